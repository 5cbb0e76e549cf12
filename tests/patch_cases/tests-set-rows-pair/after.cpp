struct test_cont : public test_case {
    const ggml_type type;
    const std::array<int64_t, 4> permute;
};
// pyggmlq:begin tests-set-rows-pair
struct test_ggmlq_set_rows_pair : public test_case {
    const ggml_type type;
    const int64_t n_k, n_v, tokens;
    const bool same_cache; // the second call's rows lie where the first one's do, and replace them

    std::string vars() override { return VARS_TO_STR5(type, n_k, n_v, tokens, same_cache); }
    std::string op_desc(ggml_tensor *) override { return "SET_ROWS_PAIR"; }
    bool run_whole_graph() override { return true; }
    double max_nmse_err() override { return 0.5*0.5 / (0.25*float((n_k + n_v)*tokens)); }

    test_ggmlq_set_rows_pair(ggml_type type, int64_t n_k, int64_t n_v, int64_t tokens, bool same_cache)
        : type(type), n_k(n_k), n_v(n_v), tokens(tokens), same_cache(same_cache) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        ggml_tensor * k_cache = ggml_new_tensor_2d(ctx, type, n_k, 2*tokens);
        ggml_tensor * v_cache = same_cache ? k_cache : ggml_new_tensor_2d(ctx, type, n_v, 2*tokens);
        ggml_tensor * k_cur   = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 64, n_k/64, tokens);
        ggml_tensor * v_cur   = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 64, n_v/64, tokens);
        ggml_tensor * k_rows  = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, tokens);
        ggml_tensor * v_rows  = same_cache ? k_rows : ggml_new_tensor_1d(ctx, GGML_TYPE_I64, tokens);
        ggml_tensor * k = ggml_set_rows(ctx, k_cache, ggml_view_2d(ctx, k_cur, n_k, tokens, k_cur->nb[2], 0), k_rows);
        ggml_tensor * v = ggml_set_rows(ctx, v_cache, ggml_view_2d(ctx, v_cur, n_v, tokens, v_cur->nb[2], 0), v_rows);
        return ggml_concat(ctx, k, v, 0);
    }

    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != NULL; t = ggml_get_next_tensor(ctx, t)) {
            if (t->type == GGML_TYPE_I64) {
                init_set_rows_row_ids(t, (int) (2*tokens));
            } else if (t->op == GGML_OP_NONE) {
                init_tensor_uniform(t);
            }
        }
    }
};

// pyggmlq:end tests-set-rows-pair
static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    // fusion
    return test_cases;
}
