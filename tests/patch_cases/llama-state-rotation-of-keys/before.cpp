// attn_rot_k
bool llama_kv_cache::state_read_data(llama_io_read_i & io, uint32_t strm, const slot_info & sinfo) {
    return true;
}
