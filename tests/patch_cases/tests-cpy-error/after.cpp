struct test_cpy : public test_case {
    double max_nmse_err() override {
        if (type_src == type_dst) {
            return 0.0;
        }
        // pyggmlq:begin tests-cpy-error
        if (type_dst == GGML_TYPE_TQ3_0) { return 0.5*0.5 / (0.25*float(total_elements())); }
        if (type_dst == GGML_TYPE_PLANAR3) { return 0.5*0.5 / (0.25*float(total_elements())); }
        // pyggmlq:end tests-cpy-error
        if (type_dst == GGML_TYPE_Q4_0 || type_dst == A ||
            type_dst == B) {
            double err_estimate = 1.0f;
        }
        return 1e-6;
    }
};
