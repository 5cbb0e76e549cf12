static ggml_type ggml_type_from_name(const std::string & s) {
    return GGML_TYPE_COUNT;
}
