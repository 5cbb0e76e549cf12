class llama_kv_cache_context : public llama_memory_context_i {
public:
    // pyggmlq:begin center-cache-context-member
    ggmlq_llama_center * ggmlq_center() const { return kv->ggmlq_center.get(); }
    ggml_tensor * ggmlq_k_storage(int32_t il) const { return kv->get_k_storage(il); }

    // pyggmlq:end center-cache-context-member
    // some shorthands
};
