struct test_cpy : public test_case {
    double max_nmse_err() override {
        if (type_src == type_dst) {
            return 0.0;
        }
        if (type_dst == GGML_TYPE_Q4_0 || type_dst == A ||
            type_dst == B) {
            double err_estimate = 1.0f;
        }
        return 1e-6;
    }
};
