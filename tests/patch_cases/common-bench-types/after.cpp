static ggml_type ggml_type_from_name(const std::string & s) {
    // pyggmlq:begin common-bench-types
    if (s == "tq3_0") {
        return GGML_TYPE_TQ3_0;
    }
    if (s == "planar3") {
        return GGML_TYPE_PLANAR3;
    }
    // pyggmlq:end common-bench-types
    return GGML_TYPE_COUNT;
}
