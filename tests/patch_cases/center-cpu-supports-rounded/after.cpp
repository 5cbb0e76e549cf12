static bool ggml_backend_cpu_device_supports_op(ggml_backend_dev_t dev) {
    switch (op->op) {
        case GGML_OP_CPY:
        case GGML_OP_SET_ROWS:
            // pyggmlq:begin center-cpu-supports-rounded
            if (op->op == GGML_OP_SET_ROWS && !ggmlq_ggml_cpu_supports_rounded(op)) {
                return false;
            }
            // pyggmlq:end center-cpu-supports-rounded
            return true;
    }
}
