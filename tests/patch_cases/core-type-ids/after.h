enum other {
    GGML_TYPE_COUNT = 7,
};
    enum ggml_type {
        GGML_TYPE_F32     = 0,
        // gap
        // pyggmlq:begin core-type-ids
        GGML_TYPE_TQ3_0 = 90,
        GGML_TYPE_PLANAR3 = 91,
        GGML_TYPE_TQ3_0_Q8 = 92,
        GGML_TYPE_PLANAR3_Q8 = 93,
        GGML_TYPE_COUNT = 94,
        // pyggmlq:end core-type-ids
    };
