void llama_clear_tensor_data(ggml_tensor * t, size_t offset, size_t size) {
    write_zeros(t, offset, size);
}
