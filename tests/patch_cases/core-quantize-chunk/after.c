size_t elsewhere(void) {
        case GGML_TYPE_Q4_0:    result = quantize_q4_0(a); break;
}
size_t ggml_quantize_chunk(
        int type) {
    switch (type) {
        // pyggmlq:begin core-quantize-chunk
        case GGML_TYPE_TQ3_0: result = ggmlq_ggml_quantize(type, src + start, (char *) dst + start_row * row_size, nrows, n_per_row); break;
        case GGML_TYPE_PLANAR3: result = ggmlq_ggml_quantize(type, src + start, (char *) dst + start_row * row_size, nrows, n_per_row); break;
        // pyggmlq:end core-quantize-chunk
        case GGML_TYPE_Q4_0:    result = quantize_q4_0   (src); break;
        case GGML_TYPE_Q4_1:    result = quantize_q4_1   (src); break;
    }
}
