// attn_rot_k
void llama_kv_cache::clear(bool data) {
    reset();
}
