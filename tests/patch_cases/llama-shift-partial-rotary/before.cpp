bool llama_kv_cache::get_can_shift() const {
    return true;
}
