void llama_clear_tensor_data(ggml_tensor * t, size_t offset, size_t size) {
    // pyggmlq:begin llama-state-clear
    if (ggmlq_llama_restoring()) {
        return;
    }
    // pyggmlq:end llama-state-clear
    write_zeros(t, offset, size);
}
