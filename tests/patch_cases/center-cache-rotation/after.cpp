ggml_tensor * llama_kv_cache::build_input_k_rot(ggml_context * ctx) const {
    // pyggmlq:begin center-cache-rotation
    if (ggmlq_center->active && ggmlq_center->rotation) {
        return ggmlq_center->rotation;
    }
    if (attn_rot_k || (ggmlq_center->active && ggmlq_center->rotates)) {
    // pyggmlq:end center-cache-rotation
        return matrix(ctx);
    }
    return nullptr;
}

void other(bool attn_rot_k) {
    if (attn_rot_k) {
    }
}
