struct test_flash_attn_ext : public test_case {
    const bool v_is_view_of_k;
    const int64_t n_kv_max;
};

static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    std::default_random_engine rng(0);

    // pyggmlq:begin tests-attention-shapes
    for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        const auto add = [&](int64_t hsk, int64_t hsv, int64_t heads, std::array<int64_t, 2> repeat, int64_t kv, int64_t nb, ggml_type k, ggml_type v,
                             bool part_of_k = false) {
            if (hsk % ggml_blck_size(k) == 0 && hsv % ggml_blck_size(v) == 0) {
                test_cases.emplace_back(new test_flash_attn_ext(hsk, hsv, heads, repeat, kv, nb, true, false, 0.0f, 0.0f, GGML_PREC_F32, k, v, { 0, 2, 1, 3 }, false, part_of_k));
            }
        };
        for (int64_t nb : { 1, 2, 5, 8, 9, 64, 512 }) {
            for (int64_t kv : { 256, 1000, 2048 }) {
                for (int64_t group : { 1, 2, 3, 6, 7, 8, 16, 64 }) {
                    if (nb*kv*group > 1048576) continue; // the reference is slow
                    add(128, 128, 2, { group, 1 }, kv, nb, ours, ours);
                }
                add( 64,  64, 3, { 4, 1 }, kv, nb, ours, ours);
                add(256, 256, 1, { 4, 2 }, kv, nb, ours, ours);
                add(512, 512, 1, { nb > 64 ? 4 : 64, 1 }, kv, nb, ours, ours, true);
                add(576, 512, 1, { nb > 64 ? 4 : 16, 1 }, kv, nb, ours, ours, true);
            }
            for (ggml_type other : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL }) {
                add(128, 128, 2, { 4, 1 }, 512, nb, ours, other);
                add(128, 128, 2, { 4, 1 }, 512, nb, other, ours);
            }
        }
        add(128, 128, 2, { 4, 1 }, 512, 2048, ours, ours);
        add(128, 128, 8, { 4, 1 }, 16384, 1, ours, ours);
        add(128, 128, 8, { 4, 1 }, 16384, 4, ours, ours);
    }

    // pyggmlq:end tests-attention-shapes
    return test_cases;
}

static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    std::vector<std::unique_ptr<test_case>> test_cases;

    return test_cases;
}
