// attn_rot_k
bool llama_kv_cache::state_read_meta(llama_io_read_i & io, uint32_t cell_count) {
    auto & head = v_heads[0];
    if (dest_seq_id != -1) {
        sinfo = find_slot(ubatch, false);
    } else {
        head = 0;
    }
    return true;
}

void llama_kv_cache::clear() {
        head = 0;
}
