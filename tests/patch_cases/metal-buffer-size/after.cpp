static size_t ggml_backend_metal_buffer_type_get_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor * tensor) {
    // pyggmlq:begin metal-buffer-size
    if (ggmlq_ggml_metal_involved(tensor)) {
        return ggmlq_ggml_metal_alloc_size((ggml_metal_device_t) buft->device->context, buft, tensor);
    }
    // pyggmlq:end metal-buffer-size
    size_t res = ggml_nbytes(tensor);
    return res;
}
