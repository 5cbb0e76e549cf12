void llama_kv_cache_dsv4::state_read(llama_io_read_i & io) {
    if (!partial_only) {
        // pyggmlq:begin llama-state-dsv4-clear
        ggmlq_llama_on_failure([this, rs_idx = rs_idx]() { this->rs_idx = rs_idx; });
        if (!ggmlq_llama_postpone([this, seq_id]() { clear_compressed(seq_id, true); })) {
            clear_compressed(seq_id, true);
        }
        // pyggmlq:end llama-state-dsv4-clear
    }
}
