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
    for (ggml_type ours : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        for (int64_t nb : { 1, 3, 8, 75 }) {
            for (bool texts : { false, true }) {
                const auto add = [&](int64_t head, int64_t n_rot, int64_t heads_kv, int64_t group, int64_t kv, int64_t streams, int32_t turned, bool neox, ggml_type type_V) {
                    if (head % ggml_blck_size(ours) == 0) {
                        test_cases.emplace_back(new test_ggmlq_attention_centered(head, n_rot, heads_kv, group, kv, nb, streams, turned, neox, texts, ours, type_V));
                    }
                };
                for (ggml_type type_V : { ours, GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
                    add(128, 128, 2, 4, 1024, 1, 128, true, type_V);
                }
                add( 64,  64, 3, 3, 512, 1,  64, false, ours);
                add(128,  32, 2, 8, 512, 1, 128, true,  ours); // partial rotary
                add(128, 128, 2, 1, 113, 1,   0, false, ours);
                add(128, 128, 2, 4, 256, 3, 128, true,  ours);
                add(256, 256, 1, 4, 512, 1, 256, true,  ours);
            }
        }
    }

    // pyggmlq:end tests-centers
    // in-place tests
    test_cases.emplace_back(new test_rms_norm());
}
