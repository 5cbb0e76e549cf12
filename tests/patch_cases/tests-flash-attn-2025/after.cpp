struct test_flash_attn_ext : public test_case {
    const ggml_type type_KV;
};
static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    // pyggmlq:begin tests-flash-attn-2025
    for (ggml_type type_KV : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        for (int64_t hs : { 64, 96, 128, 192, 256 }) {
            if (hs % ggml_blck_size(type_KV) != 0) {
                continue; // a head is a whole number of blocks
            }
            for (int64_t gqa : { 1, 4, 8 }) {
                for (int64_t nb : { 1, 3, 32, 75 }) {
                    for (bool sinks : { false, true }) {
                        test_cases.emplace_back(new test_flash_attn_ext(hs, hs, 2, { gqa, 1 }, 512, nb, true, sinks, 0.0f, 0.0f, GGML_PREC_F32, type_KV));
                        test_cases.emplace_back(new test_flash_attn_ext(hs, hs, 2, { gqa, 1 }, 113, nb, true, sinks, 8.0f, 10.0f, GGML_PREC_F32, type_KV));
                        test_cases.emplace_back(new test_flash_attn_ext(hs, hs, 2, { gqa, 1 }, 512, nb, true, sinks, 0.0f, 0.0f, GGML_PREC_F32, type_KV, { 0, 2, 1, 3 }));
                    }
                }
            }
        }
    }
    // pyggmlq:end tests-flash-attn-2025
    return test_cases;
}
static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    return test_cases;
}
