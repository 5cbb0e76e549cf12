struct test_cont : public test_case {
    const ggml_type type;
    const std::array<int64_t, 4> permute;
};
static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    // unary ops

    // fusion
    test_cases.emplace_back(new test_add_rms_norm());
    return test_cases;
}
