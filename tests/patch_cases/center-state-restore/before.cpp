void llama_kv_cache::state_read_sinfo(
    const slot_info_vec_t *   sinfos_in) {
    // shared
}
