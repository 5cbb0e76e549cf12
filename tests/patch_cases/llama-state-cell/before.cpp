// attn_rot_k
bool llama_kv_cache::state_read_meta(llama_io_read_i & io) {
        for (;;) {
            io.read(&n_seq_id, sizeof(n_seq_id));
        }
        for (;;) {
            io.read(&pos,      sizeof(pos));
            io.read(&n_seq_id, sizeof(n_seq_id));
        }
}
