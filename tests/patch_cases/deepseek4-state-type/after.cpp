static void dsv4_state_read_tensor_streams(
        llama_io_read_i & io,
        ggml_tensor     * tensor) {
    if (type_i != type_i_ref || ne0 != ne0_ref) {
        // pyggmlq:begin deepseek4-state-type
        if (type_i != type_i_ref) {
            ggmlq_llama_explain_state_type("compressed", type_i_ref, type_i);
        }
        // pyggmlq:end deepseek4-state-type
        throw std::runtime_error("DSV4 state tensor metadata mismatch");
    }
}
