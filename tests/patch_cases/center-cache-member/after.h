class llama_kv_cache : public llama_memory_i {
public:
    // pyggmlq:begin center-cache-member
    std::shared_ptr<ggmlq_llama_center> ggmlq_center;

    // pyggmlq:end center-cache-member
    struct stream_copy_info {
    };
};
