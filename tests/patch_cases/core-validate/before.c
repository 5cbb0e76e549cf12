void elsewhere(void) {
        case GGML_TYPE_Q4_0:
}
bool ggml_validate_row_data(int type) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            {
            } break;
    }
}
