struct test_flash_attn_ext : public test_case {
    const ggml_type type_K;
    const ggml_type type_V;
};
static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    return test_cases;
}
static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    return test_cases;
}
