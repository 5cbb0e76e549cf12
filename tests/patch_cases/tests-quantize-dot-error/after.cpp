            // pyggmlq:begin tests-quantize-dot-error
            const float max_allowed_error =
                type == GGML_TYPE_TQ3_0 ? MAX_DOT_PRODUCT_ERROR_LOWBIT :
                type == GGML_TYPE_PLANAR3 ? MAX_DOT_PRODUCT_ERROR_LOWBIT :
                type == A || type == B ||
            // pyggmlq:end tests-quantize-dot-error
                                            type == C
                                          ? 1
                                          : 0;
