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
        // pyggmlq:begin tests-set-rows-error
        if (type == GGML_TYPE_TQ3_0) { return 0.5*0.5 / (0.25*float(ne[0] * r * ne[2]*nr23[0] * ne[3]*nr23[1])); }
        if (type == GGML_TYPE_PLANAR3) { return 0.5*0.5 / (0.25*float(ne[0] * r * ne[2]*nr23[0] * ne[3]*nr23[1])); }
        // pyggmlq:end tests-set-rows-error
        if (type == GGML_TYPE_Q4_0 || type == A ||
            type == B) {
            if (type == GGML_TYPE_Q5_0 || type == C) {
            }
        }
        return 1e-7;
    }
};
