enum other {
    GGML_TYPE_COUNT = 7,
};
    enum ggml_type {
        GGML_TYPE_F32     = 0,
        // gap
        GGML_TYPE_COUNT   = 43,
    };
