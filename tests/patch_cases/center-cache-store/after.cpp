ggml_tensor * llama_kv_cache::cpy_k(ggml_context * ctx) const {
    ggml_tensor * k = layers[ikv].k;
    // pyggmlq:begin center-cache-store
    return ggmlq_center->stored(ggml_set_rows(ctx, k, k_cur, k_idxs), layers[ikv].k);
    // pyggmlq:end center-cache-store
}

ggml_tensor * llama_kv_cache::cpy_v(ggml_context * ctx) const {
    return ggml_set_rows(ctx, v, v_cur, v_idxs);
}
