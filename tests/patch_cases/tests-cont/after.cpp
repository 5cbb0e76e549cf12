struct test_cont : public test_case {
    const ggml_type type;
    const std::array<int64_t, 4> permute;
};
static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::default_random_engine rng(0);
    // pyggmlq:begin tests-cont
    for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        for (std::array<int64_t, 4> permute : { std::array<int64_t, 4>{ 0, 2, 1, 3 }, { 0, 3, 1, 2 }, { 0, 1, 3, 2 } }) {
            test_cases.emplace_back(new test_cont(ours, { 256, 3, 5, 2 }, false, permute));
            test_cases.emplace_back(new test_cont(ours, { 128, 7, 1, 4 }, false, permute));
        }
        for (int axis = 0; axis < 4; ++axis) {
            for (int view : { 0, 1, 2, 3 }) {
                test_cases.emplace_back(new test_concat(ours, { 256, 12, 13, 14 }, axis == 0 ? 384 : 7, axis, view));
            }
        }
    }
    // pyggmlq:end tests-cont
    return test_cases;
}
static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    std::default_random_engine rng(0);
}
