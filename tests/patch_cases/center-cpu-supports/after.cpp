static bool ggml_backend_cpu_device_supports_op(ggml_backend_dev_t dev) {
    switch (op->op) {
        // pyggmlq:begin center-cpu-supports
        case GGML_OP_FLASH_ATTN_EXT:
            return ggmlq_ggml_cpu_supports_centered(op);
        // pyggmlq:end center-cpu-supports
        case GGML_OP_CPY:
        case GGML_OP_SET_ROWS:
            return true;
    }
}
