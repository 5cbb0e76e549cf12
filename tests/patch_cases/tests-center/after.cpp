struct test_case {};
// pyggmlq:begin tests-center
#include "../src/ggml-ggmlq-center-graph.h"

struct test_ggmlq_center : public test_case {
    const int64_t head, n_rot, heads_kv, heads, tokens;
    const bool neox, wide; // wide: keys are part of a larger tensor's rows
    std::vector<ggml_tensor *> results;

    std::string vars() override { return VARS_TO_STR7(head, n_rot, heads_kv, heads, tokens, neox, wide); }
    std::string op_desc(ggml_tensor *) override { return "CENTER"; }
    bool run_whole_graph() override { return true; }
    std::vector<ggml_tensor *> fusion_test_nodes() override { return results; }

    test_ggmlq_center(int64_t head, int64_t n_rot, int64_t heads_kv, int64_t heads, int64_t tokens, bool neox, bool wide)
        : head(head), n_rot(n_rot), heads_kv(heads_kv), heads(heads), tokens(tokens), neox(neox), wide(wide) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        const auto floats = [&](int64_t n1, int64_t n2) { return ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head, n1, n2); };
        ggml_tensor * k = floats(wide ? heads + 2*heads_kv : heads_kv, tokens);
        k = wide ? ggml_view_3d(ctx, k, head, heads_kv, tokens, k->nb[1], k->nb[2], heads*k->nb[1]) : k;
        ggml_tensor * v     = floats(heads_kv, tokens);
        ggml_tensor * q     = floats(heads, tokens);
        ggml_tensor * half  = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
        ggml_tensor * part  = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 1, 4*tokens);
        ggml_tensor * rows  = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, tokens);
        ggml_tensor * ones  = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, tokens);
        ggml_tensor * w;
        ggml_tensor * k_before = k, * v_before = v;
        ggml_build_forward_expand(gf, k);
        k = ggmlq_ggml_center_k(ctx, gf, k, floats(heads_kv, 1), floats(heads_kv, 1), half, part, rows);
        v = ggml_scale(ctx, v, 1.032f);
        ggml_build_forward_expand(gf, v);
        q = ggmlq_ggml_center_q(ctx, gf, q, ones, (int) n_rot, neox, floats(heads, 1), floats(heads, 1), floats(heads, 1), k_before, v_before, &w);
        ggml_tensor * stored = ggml_cast(ctx, part, GGML_TYPE_F32); // read after the rows are stored
        ggml_build_forward_expand(gf, stored);
        results = { k, v, w, q, stored };
        return stored;
    }

    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != NULL; t = ggml_get_next_tensor(ctx, t)) {
            if (t->type == GGML_TYPE_I64) {
                init_set_rows_row_ids(t, (int) (4*tokens));
            } else if (t->type == GGML_TYPE_I32) {
                const std::vector<int32_t> ones(tokens, 1);
                ggml_backend_tensor_set(t, ones.data(), 0, ggml_nbytes(t));
            } else if (t->op == GGML_OP_NONE) {
                init_tensor_uniform(t);
            }
        }
    }
};

// pyggmlq:end tests-center
struct test_rope : public test_case {
    const int n_dims;
};
