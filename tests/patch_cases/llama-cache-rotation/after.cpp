        attn_rot_k =
            ggml_is_quantized(type_k) &&
            // pyggmlq:begin llama-cache-rotation
            ggmlq_llama_wants_attn_rot(type_k, hparams.is_mla()) &&
            // pyggmlq:end llama-cache-rotation
            hparams.n_embd_head_k() % 64 == 0;

        attn_rot_v =
            ggml_is_quantized(type_v) &&
            // pyggmlq:begin llama-cache-rotation
            ggmlq_llama_wants_attn_rot(type_v, hparams.is_mla()) &&
            // pyggmlq:end llama-cache-rotation
            hparams.n_embd_head_v() % 64 == 0;
