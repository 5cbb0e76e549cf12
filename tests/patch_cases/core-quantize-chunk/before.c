size_t elsewhere(void) {
        case GGML_TYPE_Q4_0:    result = quantize_q4_0(a); break;
}
size_t ggml_quantize_chunk(
        int type) {
    switch (type) {
        case GGML_TYPE_Q4_0:    result = quantize_q4_0   (src); break;
        case GGML_TYPE_Q4_1:    result = quantize_q4_1   (src); break;
    }
}
