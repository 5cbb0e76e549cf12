void llama_kv_cache::state_read_sinfo(
    const slot_info_vec_t *   sinfos_in) {
    // pyggmlq:begin center-state-restore
    if (ggmlq_center->active) {
        throw std::runtime_error("states can't be restored while keys are centered: set GGMLQ_KV_CENTER=off for that");
    }
    // pyggmlq:end center-state-restore
    // shared
}
