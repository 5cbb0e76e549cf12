void llama_kv_cache::state_read(llama_io_read_i & io) {
    // attn_rot_k
    uint32_t n_stream_cur;
    io.read(&n_stream_cur, sizeof(n_stream_cur));
}
