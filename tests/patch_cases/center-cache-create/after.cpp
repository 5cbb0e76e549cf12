    attn_rot_k = other ? other->attn_rot_k : quantized;

    // pyggmlq:begin center-cache-create
    ggmlq_center = other ? other->ggmlq_center : std::make_shared<ggmlq_llama_center>();
    if (!other) {
        ggmlq_center->type_v  = type_v;
        ggmlq_center->cells   = v_cells_impl;
        ggmlq_center->rotates = ggml_is_quantized(type_k) && ggmlq_llama_can_attn_rot(n_embd_head_k_all, hparams.n_embd_head_k());
    }
    if (attn_rot_k || attn_rot_v || ggmlq_center->rotates) {
    // pyggmlq:end center-cache-create
        make_matrices();
    }
}
