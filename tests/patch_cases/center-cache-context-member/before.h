class llama_kv_cache_context : public llama_memory_context_i {
public:
    // some shorthands
};
