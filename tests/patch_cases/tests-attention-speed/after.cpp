struct test_flash_attn_ext : public test_case {
    const bool v_is_view_of_k;
    const int64_t n_kv_max;
};

static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    std::default_random_engine rng(0);

    return test_cases;
}

static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    std::vector<std::unique_ptr<test_case>> test_cases;

    // pyggmlq:begin tests-attention-speed
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        const auto add = [&](int64_t head, int64_t heads, int64_t group, int64_t kv, int64_t nb, ggml_type type_V, bool part_of_k = false) {
            if (head % ggml_blck_size(type) == 0 && head % ggml_blck_size(type_V) == 0) {
                test_cases.emplace_back(new test_flash_attn_ext(head, head, heads, { group, 1 }, kv, nb, true, false, 0.0f, 0.0f, GGML_PREC_F32, type, type_V, { 0, 2, 1, 3 }, false, part_of_k));
            }
        };
        for (int64_t kv : { 4096, 32768, 131072 }) {
            add(128, 8, 4, kv, 1, type);
            add(128, 8, 8, kv, 1, type);
        }
        add(128, 8,  1, 32768,   1, type);
        add(128, 8,  4, 32768,   8, type);
        add(128, 8,  4,  8192, 512, type);
        add( 64, 8,  4, 32768,   1, type);
        add(256, 4,  4, 32768,   1, type);
        add(512, 1, 64, 32768,   1, type, true);
        for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
            if (type == GGML_TYPE_Q8_0) {
                add(128, 8, 8, 32768, 1, ours);
            }
        }
    }

    // pyggmlq:end tests-attention-speed
    return test_cases;
}
