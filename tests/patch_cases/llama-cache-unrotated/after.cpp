    LLAMA_LOG_INFO("%s: attn_rot_k = %d\n", __func__, attn_rot_k);
    // pyggmlq:begin llama-cache-unrotated
    ggmlq_llama_warn_if_unrotated(type_k, attn_rot_k);
    // pyggmlq:end llama-cache-unrotated
    LLAMA_LOG_INFO("%s: attn_rot_v = %d\n", __func__, attn_rot_v);
