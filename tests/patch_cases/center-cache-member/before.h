class llama_kv_cache : public llama_memory_i {
public:
    struct stream_copy_info {
    };
};
