        if (offload) {
            buft = ggml_backend_dev_buffer_type(dev);
            // pyggmlq:begin llama-cache-device
            ggmlq_llama_require_device(dev, type_k);
            ggmlq_llama_require_device(dev, type_v);
            // pyggmlq:end llama-cache-device
        }
