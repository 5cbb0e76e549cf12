static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    // rope tests
    // in-place tests
    test_cases.emplace_back(new test_rms_norm());
}
