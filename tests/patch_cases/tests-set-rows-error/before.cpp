struct test_get_rows : public test_case {
    double max_nmse_err() override {
        if (type == GGML_TYPE_Q4_0 || type == A ||
            type == B) {
        }
    }
};
struct test_set_rows : public test_case {
    const ggml_type type;

    double max_nmse_err() override {
        if (type == GGML_TYPE_Q4_0 || type == A ||
            type == B) {
            if (type == GGML_TYPE_Q5_0 || type == C) {
            }
        }
        return 1e-7;
    }
};
