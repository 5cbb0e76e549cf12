void llama_kv_cache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    // pyggmlq:begin center-state-save
    if (ggmlq_center->active) {
        throw std::runtime_error("states can't be saved while keys are centered: set GGMLQ_KV_CENTER=off for that");
    }
    // pyggmlq:end center-state-save
    // shared
}
