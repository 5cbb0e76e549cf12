static void dsv4_state_read_tensor_streams(
        llama_io_read_i & io,
        ggml_tensor     * tensor,
        // pyggmlq:begin deepseek4-state-cache
        uint32_t          ns,
        const llama_kv_cache * ggmlq_cache = nullptr) {
        // pyggmlq:end deepseek4-state-cache
}

static void dsv4_state_write_tensor_streams(
        uint32_t          ns) {
}
