static const ggml_type all_types[] = {
    // pyggmlq:begin tests-backend-types
    GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3,
    // pyggmlq:end tests-backend-types
    GGML_TYPE_F32,
};

static const ggml_type base_types[] = {
    GGML_TYPE_F32,
};
