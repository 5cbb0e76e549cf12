ggml_tensor * llama_kv_cache::cpy_k(ggml_context * ctx) const {
    ggml_tensor * k = layers[ikv].k;
    return ggml_set_rows(ctx, k, k_cur, k_idxs);
}

ggml_tensor * llama_kv_cache::cpy_v(ggml_context * ctx) const {
    return ggml_set_rows(ctx, v, v_cur, v_idxs);
}
