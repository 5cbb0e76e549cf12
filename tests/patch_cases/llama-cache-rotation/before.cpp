        attn_rot_k =
            ggml_is_quantized(type_k) &&
            hparams.n_embd_head_k() % 64 == 0;

        attn_rot_v =
            ggml_is_quantized(type_v) &&
            hparams.n_embd_head_v() % 64 == 0;
