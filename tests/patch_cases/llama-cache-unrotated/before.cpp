    LLAMA_LOG_INFO("%s: attn_rot_k = %d\n", __func__, attn_rot_k);
    LLAMA_LOG_INFO("%s: attn_rot_v = %d\n", __func__, attn_rot_v);
