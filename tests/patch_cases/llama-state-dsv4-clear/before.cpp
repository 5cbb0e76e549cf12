void llama_kv_cache_dsv4::state_read(llama_io_read_i & io) {
    if (!partial_only) {
        clear_compressed(seq_id, true);
    }
}
