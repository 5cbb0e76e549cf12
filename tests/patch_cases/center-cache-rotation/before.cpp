ggml_tensor * llama_kv_cache::build_input_k_rot(ggml_context * ctx) const {
    if (attn_rot_k) {
        return matrix(ctx);
    }
    return nullptr;
}

void other(bool attn_rot_k) {
    if (attn_rot_k) {
    }
}
