struct test_flash_attn_ext : public test_case {
    const ggml_type type_K;
    const ggml_type type_V;
};
static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    // pyggmlq:begin tests-flash-attn
    {
        std::vector<std::pair<ggml_type, ggml_type>> pairs;
        for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
            for (ggml_type other : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
                pairs.push_back({ ours, other });
            }
            for (ggml_type other : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
                pairs.push_back({ ours, other });
                pairs.push_back({ other, ours });
            }
        }
        const std::vector<std::pair<int64_t, int64_t>> heads = {
            { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 192, 192 }, { 256, 256 }, { 512, 512 }, { 576, 512 },
        };
        for (const auto & pair : pairs) {
            const ggml_type type_K = pair.first;
            const ggml_type type_V = pair.second;
            for (const auto & head : heads) {
                const int64_t hsk = head.first;
                const int64_t hsv = head.second;
                if (hsk % ggml_blck_size(type_K) != 0 || hsv % ggml_blck_size(type_V) != 0) {
                    continue; // a head is a whole number of blocks
                }
                for (int64_t gqa : { 1, 4, 8 }) {
                    for (int64_t kv : { 113, 512, 1024 }) {
                        for (int64_t nb : { 1, 3, 32, 75 }) {
                            if (kv != 512 && (gqa != 4 || hsk != 128)) continue; // fewer cases
                            if (nb == 75 && hsk > 128) continue;
                            test_cases.emplace_back(new test_flash_attn_ext(hsk, hsv, 2, { gqa, 1 }, kv, nb, true, false, 0.0f, 0.0f, GGML_PREC_F32, type_K, type_V));
                        }
                    }
                }
                for (int64_t nb : { 1, 35 }) {
                    const auto add = [&](bool mask, bool sinks, float max_bias, float softcap, int64_t n_seq, std::array<int32_t, 4> permute) {
                        test_cases.emplace_back(new test_flash_attn_ext(hsk, hsv, 2, { 4, n_seq }, 113, nb, mask, sinks, max_bias, softcap, GGML_PREC_F32, type_K, type_V, permute));
                    };
                    add(false, false, 0.0f,  0.0f, 1, { 0, 1, 2, 3 });
                    add(true,  true,  0.0f,  0.0f, 1, { 0, 1, 2, 3 });
                    add(true,  false, 8.0f,  0.0f, 1, { 0, 1, 2, 3 });
                    add(true,  false, 0.0f, 10.0f, 1, { 0, 1, 2, 3 });
                    add(true,  true,  8.0f, 10.0f, 3, { 0, 1, 2, 3 });
                    add(true,  false, 0.0f,  0.0f, 1, { 0, 2, 1, 3 });
                }
            }
        }
    }
    // pyggmlq:end tests-flash-attn
    return test_cases;
}
static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    std::vector<std::unique_ptr<test_case>> test_cases;
    return test_cases;
}
