            const float max_quantization_error =
                // pyggmlq:begin tests-quantize-total-error
                type == GGML_TYPE_TQ3_0 ? MAX_QUANTIZATION_TOTAL_ERROR_3BITS_XXS :
                type == GGML_TYPE_PLANAR3 ? MAX_QUANTIZATION_TOTAL_ERROR_3BITS_XXS :
                // pyggmlq:end tests-quantize-total-error
                type == A ? 1 :
                0;
