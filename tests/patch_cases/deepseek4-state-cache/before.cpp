static void dsv4_state_read_tensor_streams(
        llama_io_read_i & io,
        ggml_tensor     * tensor,
        uint32_t          ns) {
}

static void dsv4_state_write_tensor_streams(
        uint32_t          ns) {
}
