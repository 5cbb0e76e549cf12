const std::vector<int> others = {
    1,
};
const std::vector<ggml_type> kv_cache_types = {
    GGML_TYPE_F32,
    GGML_TYPE_LAST,
    // pyggmlq:begin common-cache-types
    GGML_TYPE_TQ3_0,
    GGML_TYPE_PLANAR3,
    // pyggmlq:end common-cache-types
};
