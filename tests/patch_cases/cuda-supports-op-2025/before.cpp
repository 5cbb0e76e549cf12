static bool other(const ggml_tensor * op) {
    switch (op->op) {
    }
}

static bool ggml_backend_cuda_device_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    device_context * dev_ctx = (device_context *) dev->context;

    for (int i = 0; i < 10; i++) {
        if (elsewhere(op->src[i], dev_ctx)) {
            return false;
        }
    }

    switch (op->op) {
        case GGML_OP_UNARY:
            switch (op->op) {
                default:
                    return false;
            }
    }
}

static bool third(const ggml_tensor * op) {
    switch (op->op) {
    }
}
