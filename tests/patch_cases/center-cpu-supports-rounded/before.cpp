static bool ggml_backend_cpu_device_supports_op(ggml_backend_dev_t dev) {
    switch (op->op) {
        case GGML_OP_CPY:
        case GGML_OP_SET_ROWS:
            return true;
    }
}
