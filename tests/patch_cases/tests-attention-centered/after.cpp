struct test_case {};

// pyggmlq:begin tests-attention-centered
#include "../src/ggml-ggmlq-center.h"

struct test_ggmlq_attention_centered : public test_case {
    const int64_t head, n_rot, heads_kv, group, kv, nb, streams;
    const int32_t turned; // by attn_rot: so many adjacent values of keys and queries
    const bool neox, texts; // texts: four in turn, else one, whose positions follow one another
    const ggml_type type_K, type_V;

    std::string vars() override { return VARS_TO_STR12(head, n_rot, heads_kv, group, kv, nb, streams, turned, neox, texts, type_K, type_V); }
    std::string op_desc(ggml_tensor *) override { return "FLASH_ATTN_EXT_CENTERED"; }
    double max_nmse_err() override { return 5e-4; }

    test_ggmlq_attention_centered(int64_t head, int64_t n_rot, int64_t heads_kv, int64_t group, int64_t kv, int64_t nb, int64_t streams, int32_t turned, bool neox, bool texts,
                                  ggml_type type_K, ggml_type type_V)
        : head(head), n_rot(n_rot), heads_kv(heads_kv), group(group), kv(kv), nb(nb), streams(streams), turned(turned), neox(neox), texts(texts), type_K(type_K), type_V(type_V) {}

    static constexpr float factor = 0.97f;

    ggml_tensor * build_graph(ggml_context * ctx) override {
        const auto leaf = [&](const char * name, ggml_type type, int64_t n0, int64_t n1 = 1, int64_t n2 = 1, int64_t n3 = 1) {
            return ggml_set_name(ggml_new_tensor_4d(ctx, type, n0, n1, n2, n3), name);
        };
        const auto by_head = [&](ggml_tensor * t) { return ggml_permute(ctx, t, 0, 2, 1, 3); };
        ggml_tensor * q = by_head(leaf("q", GGML_TYPE_F32, head, heads_kv*group, nb, streams));
        ggml_tensor * k = by_head(leaf("k", type_K, head, heads_kv, kv, streams));
        ggml_tensor * v = by_head(leaf("v", type_V, head, heads_kv, kv, streams));
        ggml_tensor * out = ggml_flash_attn_ext(ctx, q, k, v, leaf("mask", GGML_TYPE_F16, kv, nb, 1, streams), 1.0f/sqrtf(head), 0.0f, 0.0f);
        ggml_prec_set_acc(out, GGML_PREC_F32);
        out->src[GGMLQ_GGML_ATTEND_W]         = by_head(leaf("w", GGML_TYPE_F32, n_rot, heads_kv*group, nb, streams));
        out->src[GGMLQ_GGML_ATTEND_TURNS]     = leaf("turns", GGML_TYPE_I64, n_rot/2);
        out->src[GGMLQ_GGML_ATTEND_POSITIONS] = leaf("positions", GGML_TYPE_I32, kv, 1, 1, streams);
        out->src[GGMLQ_GGML_ATTEND_PART]      = leaf("part", GGML_TYPE_F16, kv, 1, 1, streams);
        out->src[GGMLQ_GGML_ATTEND_MEAN]      = leaf("mean", GGML_TYPE_F32, head, heads_kv);
        out->op_params[GGMLQ_GGML_ATTEND_HALVES_AT]      = neox;
        out->op_params[GGMLQ_GGML_ATTEND_MEAN_TURNED_AT] = turned;
        memcpy(&out->op_params[GGMLQ_GGML_ATTEND_MEAN_FACTOR_AT], &factor, sizeof(factor));
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override {
        std::default_random_engine rng(std::random_device{}());
        const auto set = [&](const char * name, const auto & values) {
            ggml_tensor * t = ggml_get_tensor(ctx, name);
            GGML_ASSERT(values.size()*sizeof(values[0]) == ggml_nbytes(t));
            ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
        };
        const auto uniform = [&](size_t n, float most) {
            std::uniform_real_distribution<float> draw(-most, most);
            std::vector<float> x(n);
            for (float & value : x) { value = draw(rng); }
            return x;
        };
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != NULL; t = ggml_get_next_tensor(ctx, t)) {
            if (t->type == type_K || t->type == type_V || t->type == GGML_TYPE_F32) {
                init_tensor_uniform(t); // k, v, and what this program puts between tensors
            }
        }
        init_tensor_kq_mask(ggml_get_tensor(ctx, "mask"));

        std::vector<int64_t> turns(n_rot/2);
        for (size_t j = 0; j < turns.size(); ++j) {
            turns[j] = (int64_t) std::ldexp(std::pow(10000.0, -2.0*j/n_rot)/(2*M_PI), 64);
        }
        std::vector<int32_t> positions(kv*streams);
        std::vector<ggml_fp16_t> part(kv*streams);
        for (size_t i = 0; i < part.size(); ++i) {
            positions[i] = (int32_t) (texts ? i/4 + 1000*(i % 4) : 70000 + i);
            part[i]      = ggml_fp32_to_fp16(rng() % 4 ? 1.0f : 0.0f);
        }
        set("turns", turns);
        set("positions", positions);
        set("part", part);

        // of a pair of the query and one of the mean: what <query, turned mean> has of the cosine, and of the sine
        const std::vector<float> mean = uniform(head*heads_kv, 2.0f);
        std::vector<float> q = uniform(head*heads_kv*group*nb*streams, 1.0f), w(n_rot*heads_kv*group*nb*streams);
        const int64_t next = neox ? n_rot/2 : 1;
        for (size_t row = 0; row < q.size()/head; ++row) {
            const float * m = &mean[row % (heads_kv*group)/group*head];
            float * x = &q[row*head], * y = &w[row*n_rot];
            for (int64_t j = 0; j < n_rot/2; ++j) {
                const int64_t i = neox ? j : 2*j;
                y[i]        = factor*(x[i]*m[i] + x[i + next]*m[i + next]);
                y[i + next] = factor*(x[i + next]*m[i] - x[i]*m[i + next]);
            }
            for (int64_t half = 1; half < turned; half *= 2) {
                for (int64_t i = 0; i < head; ++i) {
                    if (!(i & half)) {
                        const float a = x[i], b = x[i + half];
                        x[i] = (a + b)*(float) M_SQRT1_2, x[i + half] = (a - b)*(float) M_SQRT1_2;
                    }
                }
            }
        }
        set("mean", mean);
        set("q", q);
        set("w", w);
    }
};

// pyggmlq:end tests-attention-centered
// GGML_OP_CROSS_ENTROPY_LOSS
struct test_cross_entropy_loss : public test_case {
    const int n;
};
