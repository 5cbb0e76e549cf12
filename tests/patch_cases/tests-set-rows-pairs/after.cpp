struct test_cont : public test_case {
    const ggml_type type;
    const std::array<int64_t, 4> permute;
};
static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    // unary ops

    // pyggmlq:begin tests-set-rows-pairs
    for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        for (int64_t tokens : { 1, 2, 7, 48, 300 }) {
            test_cases.emplace_back(new test_ggmlq_set_rows_pair(ours, 1024, 1024, tokens, false));
            test_cases.emplace_back(new test_ggmlq_set_rows_pair(ours,  128,  640, tokens, false));
            test_cases.emplace_back(new test_ggmlq_set_rows_pair(ours,  384,  384, tokens, true));
        }
    }

    // pyggmlq:end tests-set-rows-pairs
    // fusion
    test_cases.emplace_back(new test_add_rms_norm());
    return test_cases;
}
