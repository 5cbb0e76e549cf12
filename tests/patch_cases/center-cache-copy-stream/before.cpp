void other() {
    for (uint32_t il = 0; il < layers.size(); ++il) {
    }
}
bool llama_kv_cache::update(llama_context * lctx) {
            for (uint32_t il = 0; il < layers.size(); ++il) {
            }
}
