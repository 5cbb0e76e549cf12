struct common_params_speculative {
    ggml_type cache_type_v = GGML_TYPE_F16; // KV cache data type for the V
};
struct common_params {
    ggml_type cache_type_k = GGML_TYPE_F16; // KV cache data type for the K
    ggml_type cache_type_v = GGML_TYPE_F16; // KV cache data type for the V
    // pyggmlq:begin center-common-member
    std::string ggmlq_kv_center; // off, auto, all, a file; empty: whatever GGMLQ_KV_CENTER says
    // pyggmlq:end center-common-member

    int other = 0;
};
