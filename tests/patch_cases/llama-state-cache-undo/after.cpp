void llama_kv_cache::state_read(llama_io_read_i & io) {
    // attn_rot_k
    // pyggmlq:begin llama-state-cache-undo
    if (ggmlq_llama_restoring()) {
        ggmlq_llama_on_failure([this, cells = v_cells, heads = v_heads]() {
            v_cells = cells;
            v_heads = heads;
        });
    }
    // pyggmlq:end llama-state-cache-undo
    uint32_t n_stream_cur;
    io.read(&n_stream_cur, sizeof(n_stream_cur));
}
