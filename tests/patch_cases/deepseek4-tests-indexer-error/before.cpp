struct test_other : public test_case {
    double max_nmse_err() override {
        return 1e-7;
    }
};

struct test_lightning_indexer : public test_case {
    const ggml_type type_K;

    double max_nmse_err() override {
        return 1e-6;
    }
};
