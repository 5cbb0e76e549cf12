struct test_lightning_indexer : public test_case {
};

static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    std::vector<std::unique_ptr<test_case>> test_cases;
#if 0
    test_cases.emplace_back(new test_falcon(1));
    test_cases.emplace_back(new test_falcon(2));
#endif
    // pyggmlq:begin deepseek4-tests
    for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        for (int64_t kv : { 1, 63, 65, 256, 1000 }) {
            for (int64_t nh : { 32, 64, 70 }) {
                if (kv > 1) { // of a single score, whose heads may cancel, no relative error can be asked
                    test_cases.emplace_back(new test_lightning_indexer(128, nh, kv, 1, 1, 1, ours));
                }
                test_cases.emplace_back(new test_lightning_indexer(128, nh, kv, 17, 4, 1, ours));
            }
        }
        for (int64_t nb : { 1, 3, 8, 33 }) {
            for (int64_t kv : { 512, 4096, 8192 }) {
                for (int64_t most : { 64, 100, 640 }) {
                    if (kv > most) {
                        test_cases.emplace_back(new test_flash_attn_ext(512, 512, 1, { 8, 1 }, kv, nb, true, true, 0.0f, 0.0f, GGML_PREC_F32, ours, ours, { 0, 2, 1, 3 }, false, true, most));
                        if (nb < 33 && 576 % ggml_blck_size(ours) == 0) {
                            test_cases.emplace_back(new test_flash_attn_ext(576, 512, 1, { 20, 1 }, kv, nb, true, false, 0.0f, 0.0f, GGML_PREC_F32, ours, ours, { 0, 1, 2, 3 }, true, true, most));
                        }
                    }
                }
                test_cases.emplace_back(new test_flash_attn_ext(128, 128, 1, { 8, 1 }, kv, nb, true, false, 0.0f, 0.0f, GGML_PREC_F32, ours, GGML_TYPE_Q8_0, { 0, 2, 1, 3 }, false, false, 200));
                test_cases.emplace_back(new test_flash_attn_ext(128, 128, 1, { 8, 2 }, kv, nb, true, false, 0.0f, 0.0f, GGML_PREC_F32, ours, ours, { 0, 2, 1, 3 }, false, false, 200));
            }
        }
    }

    // pyggmlq:end deepseek4-tests

    // lightning_indexer
    return test_cases;
}
