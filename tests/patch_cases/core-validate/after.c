void elsewhere(void) {
        case GGML_TYPE_Q4_0:
}
bool ggml_validate_row_data(int type) {
    switch (type) {
        // pyggmlq:begin core-validate
        case GGML_TYPE_TQ3_0: if (!ggmlq_ggml_validate(type, data, nbytes)) { return false; } break;
        case GGML_TYPE_PLANAR3: if (!ggmlq_ggml_validate(type, data, nbytes)) { return false; } break;
        // pyggmlq:end core-validate
        case GGML_TYPE_Q4_0:
            {
            } break;
    }
}
