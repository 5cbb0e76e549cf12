struct test_lightning_indexer : public test_case {
};

static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    // lightning_indexer
}

static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    // pyggmlq:begin deepseek4-tests-speed
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        for (int64_t kv : { 4096, 8192, 16384, 33024, 66048, 131328 }) {
            for (int64_t nb : { 1, 4 }) {
                test_cases.emplace_back(new test_flash_attn_ext(512, 512, 1, { 64, 1 }, kv, nb, true, true, 0.0f, 0.0f, GGML_PREC_F32, type, type, { 0, 2, 1, 3 }, false, true, 640));
            }
            test_cases.emplace_back(new test_lightning_indexer(128, 64, kv, 1, 1, 1, type));
        }
        for (int64_t kv : { 1280, 8192, 33024 }) { // dense: HCA
            test_cases.emplace_back(new test_flash_attn_ext(512, 512, 1, { 64, 1 }, kv, 1, true, true, 0.0f, 0.0f, GGML_PREC_F32, type, type, { 0, 2, 1, 3 }, false, true, 0));
        }
        for (int64_t nh : { 16, 128 }) {
            for (int64_t most : { 0, 2048 }) {
                if (576 % ggml_blck_size(type) == 0) {
                    test_cases.emplace_back(new test_flash_attn_ext(576, 512, 1, { nh, 1 }, 49152, 1, true, false, 0.0f, 0.0f, GGML_PREC_F32, type, type, { 0, 1, 2, 3 }, true, true, most));
                }
            }
        }
    }

    // pyggmlq:end deepseek4-tests-speed
    // lightning_indexer
    for (int kv : { 256 }) {
    }
}
