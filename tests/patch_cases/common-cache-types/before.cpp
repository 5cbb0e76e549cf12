const std::vector<int> others = {
    1,
};
const std::vector<ggml_type> kv_cache_types = {
    GGML_TYPE_F32,
    GGML_TYPE_LAST,
};
