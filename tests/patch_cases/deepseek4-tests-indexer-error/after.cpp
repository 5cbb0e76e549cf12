struct test_other : public test_case {
    double max_nmse_err() override {
        return 1e-7;
    }
};

struct test_lightning_indexer : public test_case {
    const ggml_type type_K;

    double max_nmse_err() override {
        // pyggmlq:begin deepseek4-tests-indexer-error
        for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
            if (type_K == ours) {
                return 2e-4;
            }
        }
        // pyggmlq:end deepseek4-tests-indexer-error
        return 1e-6;
    }
};
