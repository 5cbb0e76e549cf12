void llama_kv_cache::set_input_k_idxs(ggml_tensor * dst) const {
    fill(dst);
}

void llama_kv_cache::set_input_k_rot(ggml_tensor * dst) const {
    // pyggmlq:begin center-cache-rotation-set
    if (dst == ggmlq_center->rotation) {
        ggmlq_center->set_rotation(attn_rot_hadamard.at(dst->ne[0]));
        return;
    }
    // pyggmlq:end center-cache-rotation-set
    fill(dst);
}

void llama_kv_cache::set_input_v_rot(ggml_tensor * dst) const {
    fill(dst);
}
