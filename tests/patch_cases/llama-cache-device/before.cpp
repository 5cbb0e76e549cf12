        if (offload) {
            buft = ggml_backend_dev_buffer_type(dev);
        }
