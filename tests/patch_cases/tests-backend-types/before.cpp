static const ggml_type all_types[] = {
    GGML_TYPE_F32,
};

static const ggml_type base_types[] = {
    GGML_TYPE_F32,
};
