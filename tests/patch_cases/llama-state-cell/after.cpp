// attn_rot_k
bool llama_kv_cache::state_read_meta(llama_io_read_i & io) {
        for (;;) {
            io.read(&n_seq_id, sizeof(n_seq_id));
            // pyggmlq:begin llama-state-cell
            if (!ggmlq_llama_cell_is_sane(pos, n_seq_id, n_seq_max)) {
                return false;
            }
            // pyggmlq:end llama-state-cell
        }
        for (;;) {
            io.read(&pos,      sizeof(pos));
            io.read(&n_seq_id, sizeof(n_seq_id));
            // pyggmlq:begin llama-state-cell
            if (!ggmlq_llama_cell_is_sane(pos, n_seq_id, n_seq_max)) {
                return false;
            }
            // pyggmlq:end llama-state-cell
        }
}
