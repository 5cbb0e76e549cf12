static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    std::default_random_engine rng(0);

    // pyggmlq:begin tests-layouts
    for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        for (int64_t columns : { 1, 2, 3, 5, 8, 9, 16, 33, 512 }) {
            for (int64_t group : { 1, 4 }) {
                test_cases.emplace_back(new test_mul_mat(ours, GGML_TYPE_F32, 129, columns, 128, { 2, 1 }, { group, 1 }, { 0, 2, 1, 3 }));
                test_cases.emplace_back(new test_mul_mat(ours, GGML_TYPE_F32, 256, columns, 256, { 2, 3 }, { group, 1 }));
            }
        }
    }

    // pyggmlq:end tests-layouts
    // unary ops

    return test_cases;
}

static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    std::vector<std::unique_ptr<test_case>> test_cases;

    return test_cases;
}
