static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    // rope tests
    // pyggmlq:begin tests-centers
    for (int64_t tokens : { 1, 2, 7, 48, 300 }) {
        for (bool wide : { false, true }) {
            test_cases.emplace_back(new test_ggmlq_center(128, 128, 8, 32, tokens, true,  wide));
            test_cases.emplace_back(new test_ggmlq_center( 64,  64, 3,  9, tokens, false, wide));
            test_cases.emplace_back(new test_ggmlq_center(128,  32, 2,  2, tokens, true,  wide));
            test_cases.emplace_back(new test_ggmlq_center(256, 256, 1,  4, tokens, true,  wide));
            test_cases.emplace_back(new test_ggmlq_center( 80,  20, 2,  4, tokens, true,  wide)); // not fused
        }
    }

    // pyggmlq:end tests-centers
    // in-place tests
    test_cases.emplace_back(new test_rms_norm());
}
