void llama_kv_cache::set_input_k_idxs(ggml_tensor * dst) const {
    fill(dst);
}

void llama_kv_cache::set_input_k_rot(ggml_tensor * dst) const {
    fill(dst);
}

void llama_kv_cache::set_input_v_rot(ggml_tensor * dst) const {
    fill(dst);
}
