/* SPDX-License-Identifier: MIT
 *
 * Attention of a patched tree's ggml-cuda-ggmlq.cu, and the store of rounded keys, with our kernels emulated. What it calls of upstream is no kernel here but what it promises: attention with
 * rows of halves, of the head sizes that upstream has, computed from the tensors that it is given. Compared with our plain kernel, called without the adapter.
 * And the nodes that center new tokens, store them or rotate the output of attention, which it fuses, against the same nodes one by one.
 */
#include "ggml-cuda-ggmlq.cuh"
#include "ggml-ggmlq-attend.h"
#include "ggml-ggmlq-center-graph.h"
#include "ggmlq-cuda.h"
#include "ggmlq-block.h"

#include "convert.cuh"
#include "cpy.cuh"
#include "fattn.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

static int failures = 0, upstream_calls = 0;
static std::string current;
static void require(bool condition, const char * what) {
    if (!condition) {
        printf("wrong: %s: %s\n", current.c_str(), what);
        ++failures;
    }
}

/* --- upstream ----------------------------------------------------------------------------------------------------- */

ggml_backend_buffer_type_t ggml_backend_buffer_get_type(ggml_backend_buffer_t) { return nullptr; }
const char * ggml_backend_buft_name(ggml_backend_buffer_type_t) { return ""; }

static void * element(const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2, int64_t i3) { return (char *) t->data + i0*t->nb[0] + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]; }

static void from_q8_0(const void * x, half * y, int64_t n0, int64_t n1, int64_t n2, int64_t n3, int64_t s1, int64_t s2, int64_t s3, void *) {
    for (int64_t k = 0; k < n3; ++k) for (int64_t j = 0; j < n2; ++j) for (int64_t i = 0; i < n1; ++i) for (int64_t b = 0; b < n0/32; ++b) {
        const uint8_t * block = (const uint8_t *) x + 34*(k*s3 + j*s2 + i*s1 + b);
        for (int64_t e = 0; e < 32; ++e) *y++ = ggml_fp32_to_fp16(ggml_fp16_to_fp32(ggmlq_load_u16(block))*(float) (int8_t) block[2 + e]);
    }
}
to_fp16_nc_cuda_t ggml_get_to_fp16_nc_cuda(ggml_type type) { return type == GGML_TYPE_Q8_0 ? from_q8_0 : nullptr; }

void ggml_cuda_cpy(ggml_backend_cuda_context &, const ggml_tensor * from, ggml_tensor * to) {
    require(from->type == to->type && ggml_are_same_shape(from, to), "a copy of another type or shape");
    for (int64_t k = 0; k < to->ne[3]; ++k) for (int64_t j = 0; j < to->ne[2]; ++j) for (int64_t i = 0; i < to->ne[1]; ++i) {
        memcpy(element(to, 0, i, j, k), element(from, 0, i, j, k), (size_t) to->ne[0]*to->nb[0]);
    }
}

static bool upstream_supports(int, const ggml_tensor * op) {
    const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2];
    static const int64_t sizes[] = { 64, 80, 96, 112, 128, 256, 512 };
    const bool in_k = k->ne[0] == 576 && v->ne[0] == 512 && v->view_src == k && v->nb[1] == k->nb[1] && v->nb[2] == k->nb[2] && v->nb[3] == k->nb[3]; /* which takes K for V */
    return k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16 && q->ne[0] == k->ne[0] && (in_k || (v->ne[0] == k->ne[0] && std::find(std::begin(sizes), std::end(sizes), k->ne[0]) != std::end(sizes))) && op->ne[0] == v->ne[0] && op->ne[1] == q->ne[2] &&
        op->ne[2] == q->ne[1] && op->ne[3] == q->ne[3] && q->ne[2] % k->ne[2] == 0 && k->ne[2] == v->ne[2];
}

static double slope(double max_bias, int64_t heads, int64_t head) {
    int64_t n = 1;
    while (2*n <= heads) n *= 2;
    return max_bias == 0 ? 1 : head < n ? std::pow(2, -max_bias/n*(head + 1)) : std::pow(2, -max_bias/2/n*(2*(head - n) + 1));
}

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * op) {
    if (ggmlq_ggml_cuda_flash_attn_ext(ctx, op, upstream_supports)) { /* the hook */
        return;
    }
    ++upstream_calls;
    const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2], * mask = op->src[3], * sinks = op->src[4];
    require(upstream_supports(0, op) && ggml_is_contiguous(op) && !op->src[GGMLQ_GGML_ATTEND_TURNS], "upstream is given what it doesn't take");
    float numbers[3];
    memcpy(numbers, op->op_params, sizeof(numbers));
    for (int64_t s = 0; s < q->ne[3]; ++s) for (int64_t h = 0; h < q->ne[2]; ++h) for (int64_t t = 0; t < q->ne[1]; ++t) {
        const int64_t hk = h/(q->ne[2]/k->ne[2]), sk = s/(q->ne[3]/k->ne[3]);
        std::vector<double> score(k->ne[1]), out(v->ne[0]);
        double top = sinks ? ((const float *) sinks->data)[h] : -INFINITY, total = 0;
        for (int64_t i = 0; i < k->ne[1]; ++i) {
            double dot = 0;
            for (int64_t j = 0; j < k->ne[0]; ++j) dot += (double) *(float *) element(q, j, t, h, s)*ggml_fp16_to_fp32(*(ggml_fp16_t *) element(k, j, i, hk, sk));
            dot *= numbers[0];
            dot  = numbers[2] != 0 ? numbers[2]*std::tanh(dot/numbers[2]) : dot;
            score[i] = dot + slope(numbers[1], q->ne[2], h)*(mask ? ggml_fp16_to_fp32(*(ggml_fp16_t *) element(mask, i, t, 0, s % mask->ne[3])) : 0);
            top = std::max(top, score[i]);
        }
        total = sinks ? std::exp(((const float *) sinks->data)[h] - top) : 0;
        for (int64_t i = 0; i < k->ne[1]; ++i) {
            if (score[i] == -INFINITY) continue;
            const double weight = std::exp(score[i] - top);
            total += weight;
            for (int64_t j = 0; j < v->ne[0]; ++j) {
                out[j] += weight*ggml_fp16_to_fp32(*(const ggml_fp16_t *) element(k->ne[0] == 576 ? k : v, j, i, hk, sk));
            }
        }
        for (int64_t j = 0; j < v->ne[0]; ++j) *(float *) element(op, j, h, t, s) = (float) (out[j]/total);
    }
}

/* --- cases ---------------------------------------------------------------------------------------------------------- */

static std::mt19937 random_bits(1);
static float normal() { return std::normal_distribution<float>()(random_bits); }

/* A tensor of normal values; the rows of all heads of a token adjacent, as in a cache, where `like_cache`. */
static ggml_tensor * make(ggml_context * ctx, ggml_type type, int64_t n0, int64_t n1, int64_t n2, int64_t n3, bool like_cache) {
    ggml_tensor * t = like_cache ? ggml_permute(ctx, ggml_new_tensor_4d(ctx, type, n0, n2, n1, n3), 0, 2, 1, 3) : ggml_new_tensor_4d(ctx, type, n0, n1, n2, n3);
    for (int64_t k = 0; k < n3; ++k) for (int64_t j = 0; j < n2; ++j) for (int64_t i = 0; i < n1; ++i) {
        std::vector<float> x(n0);
        for (auto & value : x) value = normal();
        void * row = element(t, 0, i, j, k);
        if (type == GGML_TYPE_F32) memcpy(row, x.data(), 4*n0);
        else if (type == GGML_TYPE_F16) for (int64_t e = 0; e < n0; ++e) ((ggml_fp16_t *) row)[e] = ggml_fp32_to_fp16(x[e]);
        else if (type == GGML_TYPE_Q8_0) ggml_quantize_chunk(type, x.data(), row, 0, 1, n0, nullptr);
        else require(ggmlq_encode_row((int) type, x.data(), row, n0) == 0, "rows can't be encoded");
    }
    return t;
}

struct attention_case {
    int type_k, type_v;
    int64_t head, head_v, n_rot, heads_kv, group, queries, n_kv, seqs;
    bool sinks;
    float softcap, max_bias;
    bool upstream; /* wanted */
    int turned = 0; /* how many values llama.cpp rotates */
    bool with_mean = true, v_in_k = false;
};

/* Every `length` values by a Walsh-Hadamard transform over its root. */
static void transform(float * x, int64_t n, int length) {
    for (int64_t first = 0; first < n && length; first += length) {
        for (int half = 1; half < length; half *= 2) for (int j = 0; j < length; ++j) if ((j & half) == 0) {
            const float a = x[first + j], b = x[first + (j | half)];
            x[first + j]          = (a + b)*0.70710678f;
            x[first + (j | half)] = (a - b)*0.70710678f;
        }
    }
}

/* w of such queries and such a mean, as libllama's graphs compute it. */
static ggml_tensor * w_of(ggml_context * ctx, const ggml_tensor * q, const ggml_tensor * mean, float factor, const attention_case & c, bool halves) {
    ggml_tensor * w = make(ctx, GGML_TYPE_F32, c.n_rot, q->ne[1], q->ne[2], q->ne[3], true);
    for (int64_t s = 0; s < q->ne[3]; ++s) for (int64_t h = 0; h < q->ne[2]; ++h) for (int64_t t = 0; t < q->ne[1]; ++t) {
        std::vector<float> x(c.head);
        for (int64_t j = 0; j < c.head; ++j) x[j] = *(float *) element(q, j, t, h, s);
        transform(x.data(), c.head, c.turned);
        for (int64_t pair = 0; pair < c.n_rot/2; ++pair) {
            const int64_t a = halves ? pair : 2*pair, b = halves ? pair + c.n_rot/2 : a + 1;
            const float m0 = factor**(float *) element(mean, a, h/c.group, 0, 0), m1 = factor**(float *) element(mean, b, h/c.group, 0, 0);
            *(float *) element(w, a, t, h, s) = x[a]*m0 + x[b]*m1;
            *(float *) element(w, b, t, h, s) = x[b]*m0 - x[a]*m1;
        }
    }
    return w;
}

static void check(const attention_case & c) {
    char text[200];
    snprintf(text, sizeof(text), "K %s V %s heads %d x %d of %d/%d, n_rot %d, turned by %d, %d queries, cap %g, alibi %g", ggml_type_name((ggml_type) c.type_k), ggml_type_name((ggml_type) c.type_v), (int) c.heads_kv,
             (int) c.group, (int) c.head, (int) c.head_v, (int) c.n_rot, c.turned, (int) c.queries, c.softcap, c.max_bias);
    current = text;
    ggml_init_params params = { 64u << 20, nullptr, false };
    ggml_context * ctx = ggml_init(params);
    const int64_t heads = c.heads_kv*c.group;
    ggml_tensor * q = make(ctx, GGML_TYPE_F32, c.head, c.queries, heads, c.seqs, true);
    ggml_tensor * k = make(ctx, (ggml_type) c.type_k, c.head, c.n_kv, c.heads_kv, c.seqs, true);
    ggml_tensor * v = c.v_in_k ? ggml_view_4d(ctx, k, c.head_v, c.n_kv, c.heads_kv, c.seqs, k->nb[1], k->nb[2], k->nb[3], 0) : make(ctx, (ggml_type) c.type_v, c.head_v, c.n_kv, c.heads_kv, c.seqs, true);
    ggml_tensor * mask = make(ctx, GGML_TYPE_F16, c.n_kv, c.queries, 1, c.seqs, false);
    for (int64_t i = 0; i < ggml_nelements(mask); ++i) ((ggml_fp16_t *) mask->data)[i] = ggml_fp32_to_fp16(i % 7 == 0 ? -INFINITY : -(float) (i % 5)/4);
    ggml_tensor * op = ggml_flash_attn_ext(ctx, q, k, v, mask, 1.0f/std::sqrt((float) c.head), c.max_bias, c.softcap);
    if (c.sinks) ggml_flash_attn_ext_add_sinks(op, make(ctx, GGML_TYPE_F32, heads, 1, 1, 1, false));
    if (c.n_rot) {
        const bool  halves = c.head % 128 == 0;
        const float factor = 0.8f;
        ggml_tensor * mean = make(ctx, GGML_TYPE_F32, c.head, c.heads_kv, 1, 1, false);
        for (int64_t h = 0; h < c.heads_kv; ++h) std::fill_n((float *) element(mean, c.n_rot, h, 0, 0), c.head - c.n_rot, 0.0f);
        op->src[GGMLQ_GGML_ATTEND_MEAN]      = c.with_mean ? mean : nullptr;
        op->src[GGMLQ_GGML_ATTEND_W]         = w_of(ctx, q, mean, factor, c, halves);
        op->src[GGMLQ_GGML_ATTEND_TURNS]     = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, c.n_rot/2);
        op->src[GGMLQ_GGML_ATTEND_POSITIONS] = ggml_new_tensor_4d(ctx, GGML_TYPE_I32, c.n_kv, 1, 1, c.seqs);
        op->src[GGMLQ_GGML_ATTEND_PART]      = make(ctx, GGML_TYPE_F16, c.n_kv, 1, 1, c.seqs, false);
        op->op_params[GGMLQ_GGML_ATTEND_HALVES_AT]      = halves;
        op->op_params[GGMLQ_GGML_ATTEND_MEAN_TURNED_AT] = c.turned;
        memcpy(&op->op_params[GGMLQ_GGML_ATTEND_MEAN_FACTOR_AT], &factor, sizeof(factor));
        for (int64_t i = 0; i < c.n_rot/2; ++i)       ((uint64_t *) op->src[GGMLQ_GGML_ATTEND_TURNS]->data)[i] = (uint64_t) std::ldexp(std::pow(10000, -2.0*i/c.n_rot)/6.283185307179586, 64);
        for (int64_t i = 0; i < c.n_kv*c.seqs; ++i) ((int32_t *) op->src[GGMLQ_GGML_ATTEND_POSITIONS]->data)[i] = (int32_t) (3*i - 50);
        for (int64_t i = 0; i < c.n_kv*c.seqs; ++i) ((uint16_t *) op->src[GGMLQ_GGML_ATTEND_PART]->data)[i] = i % 4 ? 0x3c00 : 0;
    }
    require(ggmlq_ggml_cuda_involved(op) && ggmlq_ggml_cuda_supports_op(0, op, upstream_supports), "the node is refused");
    ggml_backend_cuda_context context;
    upstream_calls = 0;
    ggml_cuda_flash_attn_ext(context, op);
    require(upstream_calls == c.upstream, upstream_calls ? "upstream was asked" : "upstream wasn't asked");
    const int64_t n = ggml_nelements(op);
    const std::vector<float> found((float *) op->data, (float *) op->data + n);

    ggmlq_attend_params p;
    require(ggmlq_ggml_attend_params_centered(op, &p) && ggmlq_cuda_attend_check(&p) == 0, "no parameters");
    std::vector<uint8_t> workspace((size_t) ggmlq_cuda_attend_workspace_bytes(&p));
    require(ggmlq_cuda_attend(&p, workspace.data(), nullptr) == 0, "the plain kernel failed");
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double wanted = ((float *) op->data)[i];
        error += (found[i] - wanted)*(found[i] - wanted);
        norm  += wanted*wanted;
    }
    require(error < 1e-5*norm, "the result is another"); /* halves; without the term it is of the size of the norm */
    for (const int source : { GGMLQ_GGML_ATTEND_TURNS, GGMLQ_GGML_ATTEND_POSITIONS }) {
        if (!c.n_rot) break;
        const ggml_type type = op->src[source]->type;
        op->src[source]->type = GGML_TYPE_F32;
        require(!ggmlq_ggml_cuda_supports_op(0, op, upstream_supports), "turns or positions of another type are taken");
        op->src[source]->type = type;
    }
    ggml_free(ctx);
}

/* Keys that are rounded for the model's queries as they are stored. */
static void check_store(int type, int64_t length, int64_t heads, int64_t tokens) {
    current = std::string("store of ") + ggml_type_name((ggml_type) type) + ", rounded";
    ggml_init_params params = { 16u << 20, nullptr, false };
    ggml_context * ctx = ggml_init(params);
    ggml_tensor * cache = make(ctx, (ggml_type) type, length*heads, tokens + 2, 1, 1, false), * values = make(ctx, GGML_TYPE_F32, length*heads, tokens, 1, 1, false);
    ggml_tensor * indices = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, tokens), * feedback = make(ctx, GGML_TYPE_F16, ggmlq_feedback_values(length), heads, 1, 1, false);
    for (int64_t i = 0; i < ggml_nelements(feedback); ++i) {
        ggml_fp16_t * at = (ggml_fp16_t *) feedback->data + i;
        *at = ggml_fp32_to_fp16(0.2f*ggml_fp16_to_fp32(*at));
    }
    std::vector<uint8_t> wanted((uint8_t *) cache->data, (uint8_t *) cache->data + ggml_nbytes(cache));
    for (int64_t i = 0; i < tokens; ++i) for (int64_t h = 0; h < heads; ++h) {
        ((int64_t *) indices->data)[i] = tokens + 1 - i;
        require(ggmlq_encode_row_for_queries(type, (const float *) element(values, h*length, i, 0, 0), (const uint16_t *) element(feedback, 0, h, 0, 0),
            &wanted[(tokens + 1 - i)*cache->nb[1] + ggmlq_row_bytes(type, h*length)], length) == 0, "keys can't be encoded");
    }
    ggml_tensor * store = ggml_set_rows(ctx, cache, values, indices), * other = ggml_set_rows(ctx, make(ctx, (ggml_type) type, length*heads, tokens, 1, 1, false), values, indices);
    store->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] = feedback;
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, store);
    ggml_build_forward_expand(graph, other);
    int at = 0;
    while (graph->nodes[at] != store) ++at;
    ggml_backend_cuda_context context;
    int end = at;
    while (graph->nodes[end] != other) ++end;
    require(ggmlq_ggml_cuda_fuse(context, graph, at, upstream_supports) == end - at, "it isn't stored with others, which aren't rounded");
    require(memcmp(cache->data, wanted.data(), wanted.size()) == 0, "the result is another, stored with others");
    memset(cache->data, 0, ggml_nbytes(cache));
    for (int64_t i = 0; i < 2; ++i) memcpy((uint8_t *) cache->data + i*cache->nb[1], wanted.data() + i*cache->nb[1], cache->nb[1]); /* nobody stores there */
    require(ggmlq_ggml_cuda_involved(store) && ggmlq_ggml_cuda_supports_op(0, store, upstream_supports), "the node is refused");
    require(ggmlq_ggml_cuda_set_rows(context, store), "nothing was done");
    require(memcmp(cache->data, wanted.data(), wanted.size()) == 0, "the result is another");
    for (const ggml_type wrong : { GGML_TYPE_I32, GGML_TYPE_F32 }) {
        store->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] = make(ctx, GGML_TYPE_F32, ggmlq_feedback_values(length), heads, 1, 1, false);
        store->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]->type = wrong;
        require(!ggmlq_ggml_cuda_supports_op(0, store, upstream_supports), "feedback of another type is taken");
    }
    ggml_free(ctx);
}

/* llama.cpp's own rotation of every `length` values, then the stores of rounded keys and of V. */
enum beside { V_TURNED, V_AS_IT_IS, V_OF_ANOTHER_TYPE, NO_QUERIES, QUERIES_WHERE_V_IS, KEYS_READ_ELSEWHERE };

static void check_turned_stores(int type, int64_t length, int64_t tokens, int beside) {
    static const char * const names[] = { "V turned", "V as it is", "V of another type", "no queries", "turned queries lie where V is read", "turned keys are read elsewhere" };
    current = std::string("rounded keys of ") + ggml_type_name((ggml_type) type) + ", turned by " + std::to_string(length) + ", " + std::to_string(tokens) + " tokens, " + names[beside];
    const bool v_turned = beside == V_TURNED, v_ours = beside != V_OF_ANOTHER_TYPE, fused = beside != QUERIES_WHERE_V_IS && beside != KEYS_READ_ELSEWHERE;
    const int64_t heads = 2, n = length*heads;
    ggml_init_params params = { 64u << 20, nullptr, false };
    ggml_context * ctx = ggml_init(params);
    ggml_tensor * matrix = make(ctx, GGML_TYPE_F32, length, length, 1, 1, false), * feedback = make(ctx, GGML_TYPE_F16, ggmlq_feedback_values(length), heads, 1, 1, false);
    ggml_tensor * indices = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, tokens), * turned[3], * store[2];
    for (int64_t i = 0; i < ggml_nelements(feedback); ++i) {
        ggml_fp16_t * at = (ggml_fp16_t *) feedback->data + i;
        *at = ggml_fp32_to_fp16(0.2f*ggml_fp16_to_fp32(*at));
    }
    std::vector<std::vector<float>> wanted;
    for (int i = 0; i < 3; ++i) { /* of Q, K, V */
        ggml_tensor * x = make(ctx, GGML_TYPE_F32, length, heads, tokens, 1, false);
        wanted.emplace_back((float *) x->data, (float *) x->data + n*tokens);
        turned[i] = x;
        if (i == 2 && !v_turned) continue;
        for (float & value : wanted[i]) value *= 1/std::sqrt((float) length);
        for (int64_t half = 1; half < length; half *= 2) for (int64_t j = 0; j < n*tokens; ++j) {
            if (j & half) continue;
            const float a = wanted[i][j], b = wanted[i][j + half];
            wanted[i][j] = a + b;
            wanted[i][j + half] = a - b;
        }
        turned[i] = ggml_mul_mat(ctx, matrix, x);
        ggml_mul_mat_set_hint(turned[i], GGML_HINT_SRC0_IS_HADAMARD);
    }
    for (int i = 0; i < 2; ++i) {
        ggml_tensor * cache = i == 1 && !v_ours ? ggml_new_tensor_2d(ctx, GGML_TYPE_F16, n, tokens) : make(ctx, (ggml_type) type, n, tokens, 1, 1, false);
        store[i] = ggml_set_rows(ctx, cache, ggml_view_2d(ctx, turned[1 + i], n, tokens, turned[1 + i]->nb[2], 0), indices);
    }
    store[0]->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] = feedback;
    if (beside == QUERIES_WHERE_V_IS) turned[0]->data = turned[2]->data;
    ggml_cgraph * graph = ggml_new_graph(ctx);
    if (beside != NO_QUERIES) ggml_build_forward_expand(graph, turned[0]);
    if (!v_turned) ggml_build_forward_expand(graph, store[1]->src[0]); /* views of their own are in the graph before */
    for (ggml_tensor * t : { turned[1], turned[2], store[0], store[1] }) ggml_build_forward_expand(graph, t);
    if (beside == KEYS_READ_ELSEWHERE) ggml_build_forward_expand(graph, ggml_abs(ctx, turned[1]));
    int first = 0, last = 0;
    while (graph->nodes[first] != turned[beside == NO_QUERIES ? 1 : 0]) ++first;
    while (graph->nodes[last]  != store[v_ours])  ++last;
    for (int64_t i = 0; i < tokens; ++i) ((int64_t *) indices->data)[i] = tokens - 1 - i;
    ggml_backend_cuda_context context;
    require(ggmlq_ggml_cuda_fuse(context, graph, first, upstream_supports) == (fused ? last - first : 0), fused ? "the nodes aren't done together" : "they are done together");
    if (fused && beside != NO_QUERIES) require(memcmp(turned[0]->data, wanted[0].data(), sizeof(float)*n*tokens) == 0, "queries are others");
    for (int64_t i = 0; i < tokens && fused; ++i) for (int64_t h = 0; h < heads; ++h) {
        const size_t bytes = (size_t) ggmlq_row_bytes(type, length);
        std::vector<uint8_t> keys(bytes), values(bytes);
        ggmlq_encode_row_for_queries(type, &wanted[1][i*n + h*length], (const uint16_t *) element(feedback, 0, h, 0, 0), keys.data(), length);
        ggmlq_encode_row(type, &wanted[2][i*n + h*length], values.data(), length);
        require(memcmp((uint8_t *) element(store[0], 0, tokens - 1 - i, 0, 0) + bytes*h, keys.data(), bytes) == 0, "keys are others");
        require(!v_ours || memcmp((uint8_t *) element(store[1], 0, tokens - 1 - i, 0, 0) + bytes*h, values.data(), bytes) == 0, "values are others");
    }
    ggml_free(ctx);
}

/* --- centered tokens ------------------------------------------------------------------------------------------------ */

/* One node, as ggml defines it; of these operations no more than the graphs below have. */
static void compute(ggml_tensor * t) {
    const ggml_tensor * a = t->src[0], * b = t->src[1];
    const auto at = [](const ggml_tensor * x, int64_t i0, int64_t i1, int64_t i2) { return *(const float *) element(x, i0 % x->ne[0], i1 % x->ne[1], i2 % x->ne[2], 0); };
    std::vector<float> result;
    for (int64_t i2 = 0; i2 < t->ne[2] && t->op != GGML_OP_SET_ROWS; ++i2) for (int64_t i1 = 0; i1 < t->ne[1]; ++i1) for (int64_t i0 = 0; i0 < t->ne[0]; ++i0) {
        float y = 0;
        switch (t->op) {
            case GGML_OP_MUL:    y = at(a, i0, i1, i2)*at(b, i0, i1, i2); break;
            case GGML_OP_ADD:    y = at(a, i0, i1, i2) + at(b, i0, i1, i2); break;
            case GGML_OP_SUB:    y = at(a, i0, i1, i2) - at(b, i0, i1, i2); break;
            case GGML_OP_REPEAT: y = at(a, i0, i1, i2); break;
            case GGML_OP_UNARY:  y = ggml_get_unary_op(t) == GGML_UNARY_OP_STEP ? at(a, i0, i1, i2) > 0 : std::fabs(at(a, i0, i1, i2)); break;
            case GGML_OP_SCALE:  y = std::fmaf(ggml_get_op_params_f32(t, 0), at(a, i0, i1, i2), ggml_get_op_params_f32(t, 1)); break;
            case GGML_OP_MUL_MAT: {
                double sum = 0;
                for (int64_t j = 0; j < a->ne[0]; ++j) sum += (double) at(a, j, i0, i2)*at(b, j, i1, i2);
                y = ggml_get_op_params_i32(t, 1) == GGML_HINT_SRC0_IS_HADAMARD ? at(b, i0, i1, i2) : (float) sum; /* turned below */
            } break;
            case GGML_OP_ROPE: {
                const int n = ggml_get_op_params_i32(t, 1), half = n/2;
                const bool neox = ggml_get_op_params_i32(t, 2) == GGML_ROPE_TYPE_NEOX;
                const int64_t j = i0 >= n ? i0 : !neox ? (i0 ^ 1) : i0 < half ? i0 + half : i0 - half, pair = neox ? i0 % half : i0/2;
                float angle = (float) ((const int32_t *) b->data)[i2]*std::pow(std::pow(ggml_get_op_params_f32(t, 5), -2.0f/(float) n), (float) pair);
                if (t->src[2] && i0 < n) angle /= ((const float *) t->src[2]->data)[pair];
                angle *= ggml_get_op_params_f32(t, 6);
                const float x = at(a, i0, i1, i2), z = at(a, j, i1, i2), scale = ggml_get_op_params_f32(t, 8), c = std::cos(angle)*scale, s = std::sin(angle)*scale;
                y = i0 >= n ? x : i0 < j ? std::fmaf(x, c, -(z*s)) : std::fmaf(z, s, x*c);
            } break;
            default: require(false, "an operation that isn't known here");
        }
        result.push_back(y);
    }
    if (t->op == GGML_OP_MUL_MAT && ggml_get_op_params_i32(t, 1) == GGML_HINT_SRC0_IS_HADAMARD) {
        for (float & value : result) value *= 1/std::sqrt((float) t->ne[0]);
        for (int64_t half = 1; half < t->ne[0]; half *= 2) for (size_t j = 0; j < result.size(); ++j) {
            if (j & half) continue;
            const float x = result[j], z = result[j + half];
            result[j] = x + z;
            result[j + half] = x - z;
        }
    }
    if (t->op == GGML_OP_SET_ROWS && t->type != GGML_TYPE_F16) {
        for (int64_t i = 0; i < a->ne[1]; ++i) require(ggmlq_encode_row((int) t->type, (const float *) element(a, 0, i, 0, 0), element(t, 0, ((const int64_t *) b->data)[i], 0, 0), a->ne[0]) == 0, "rows can't be encoded");
    } else if (t->op == GGML_OP_SET_ROWS) {
        for (int64_t i = 0; i < a->ne[1]; ++i) *(ggml_fp16_t *) element(t, 0, ((const int64_t *) b->data)[i], 0, 0) = ggml_fp32_to_fp16(at(a, 0, i, 0));
    } else {
        memcpy(t->data, result.data(), 4*result.size());
    }
}

/* What is other than in a graph that libllama builds, and how many launches are joined then. */
enum difference { NONE, NO_KEYS, NO_VALUES, KEYS_OF_A_WIDER_ROW, IN_PLACE, W_WHERE_K_WAS, K_ONE_TOKEN_ON, SCALED_READ_ELSEWHERE, PART_IS_AN_OUTPUT, W_VIEW_READ, FREQUENCIES, ONE_SCALE,
    NOT_A_STEP, OTHER_MEAN, TWO_QUERIES, A_NODE_BETWEEN, WITH_ROPE, WITH_ROPE_IN_PLACE, ROPED_READ_ELSEWHERE, KEYS_READ_BEFORE_ROPE, OTHER_PAIRS, DIFFERENCES };
static const struct { const char * name; int joined; } DIFFERENT[DIFFERENCES] = { { "nothing", 1 }, { "no keys", 1 }, { "values aren't scaled", 1 }, { "keys are part of wider rows", 1 },
    { "results replace their sources", 1 }, { "w lies where keys were", 2 }, { "keys move by one token", 1 }, { "scaled keys are read elsewhere", 1 }, { "part is an output", 1 },
    { "a view of an inner node is read elsewhere", 0 }, { "several frequencies", 1 }, { "one scale for all heads", 1 }, { "not a step", 1 }, { "another mean is taken off", 1 },
    { "two kinds of queries", 1 }, { "a node between", 2 },
    { "with RoPE before and behind", 1 }, { "the same in place", 1 }, { "queries after RoPE are read elsewhere", 1 }, { "centered keys are read before RoPE", 1 }, { "RoPE has other pairs than w", 1 } };
/* Of those with RoPE: how many of the nodes are joined, more than without. */
static const int ROPES_JOINED[DIFFERENCES - WITH_ROPE] = { 2, 2, 1, 1, 1 };

static void check_centering(int difference, int64_t head, int64_t n_rot, bool neox, int64_t heads_kv, int64_t heads, int64_t tokens) {
    current = std::string("centering, ") + DIFFERENT[difference].name;
    ggml_init_params params = { 64u << 20, nullptr, false };
    ggml_context * ctx = ggml_init(params);
    const auto floats = [&](int64_t n0, int64_t n1, int64_t n2) { return make(ctx, GGML_TYPE_F32, n0, n1, n2, 1, false); };
    ggml_tensor * wide = floats(head, heads_kv + 2, tokens), * v = floats(head, heads_kv, tokens), * q = floats(head, heads, tokens);
    const size_t row = head*sizeof(float);
    ggml_tensor * k = difference == KEYS_OF_A_WIDER_ROW ? ggml_view_3d(ctx, wide, head, heads_kv, tokens, wide->nb[1], wide->nb[2], wide->nb[1]) :
        ggml_view_3d(ctx, wide, head, heads_kv, tokens, row, heads_kv*row, 0);
    ggml_tensor * s = floats(head, difference == ONE_SCALE ? 1 : heads_kv, 1), * s_mu = floats(head, heads_kv, 1), * s_mu_2 = floats(1, 1, 1);
    ggml_tensor * same = floats(head, heads, 1), * turn = floats(head, heads, 1), * s_inv = floats(head, heads, 1);
    ggml_tensor * part = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 1, 3*tokens + 5), * idxs = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, tokens), * ones = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, tokens);
    for (int64_t i = 0; i < tokens; ++i) {
        ((int64_t *) idxs->data)[i] = (3*i + 2) % (3*tokens + 5);
        ((int32_t *) ones->data)[i] = 1;
    }
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_tensor * k_out = nullptr, * v_out = v, * q_out, * w;
    for (ggml_tensor * t : { k, v, q }) { /* views of their own are in the graph before */
        ggml_build_forward_expand(graph, t);
    }
    const bool ropes = difference >= WITH_ROPE;
    ggml_tensor * positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, tokens), * factors = make(ctx, GGML_TYPE_F32, n_rot/2, 1, 1, 1, false), * q_before = q;
    for (int64_t i = 0; i < tokens; ++i) ((int32_t *) positions->data)[i] = (int32_t) (17*i + 3);
    for (int64_t i = 0; i < n_rot/2; ++i) ((float *) factors->data)[i] = 1 + 0.1f*(float) (i % 5);
    const auto rope = [&](ggml_tensor * x, bool other) {
        return ggml_rope_ext(ctx, x, positions, other ? nullptr : factors, (int) n_rot, neox != other ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL, 0, 10000.0f, 0.5f, 0.0f, 1.25f, 32.0f, 1.0f);
    };
    if (ropes) {
        q = rope(q, difference == OTHER_PAIRS);
        ggml_build_forward_expand(graph, q);
    }
    if (difference != NO_KEYS) {
        k_out = ggmlq_ggml_center_k(ctx, graph, k, s, s_mu, s_mu_2, part, idxs);
    }
    if (difference == A_NODE_BETWEEN) {
        ggml_build_forward_expand(graph, ggml_abs(ctx, v));
    }
    if (difference != NO_VALUES) {
        ggml_build_forward_expand(graph, v_out = ggml_scale(ctx, v, 1.032f));
    }
    q_out = ggmlq_ggml_center_q(ctx, graph, q, ones, (int) n_rot, neox, same, turn, s_inv, k, v, &w);
    ggml_tensor * scaled = k_out ? k_out->src[0] : nullptr, * step = k_out ? k_out->src[1]->src[1]->src[0] : nullptr, * turned = w->src[1]->src[0], * beyond = nullptr;
    switch (difference) { /* the rest of what is different; the graph's nodes stay what they are */
        case IN_PLACE:              k_out->data = k->data; v_out->data = v->data; q_out->data = q->data; break;
        case W_WHERE_K_WAS:         w->data = k->data; break; /* as large, here */
        case K_ONE_TOKEN_ON:        k_out->data = (char *) k->data + k->nb[2]; break; /* where `wide` goes on */
        case SCALED_READ_ELSEWHERE: beyond = ggml_abs(ctx, scaled); break;
        case PART_IS_AN_OUTPUT:     step->flags |= GGML_TENSOR_FLAG_OUTPUT; break;
        case W_VIEW_READ:           beyond = ggml_add(ctx, ggml_abs(ctx, ggml_view_1d(ctx, turned, head, 0)), ggml_abs(ctx, ggml_view_1d(ctx, scaled, head, 0))); break;
        case FREQUENCIES:           ((float *) turned->op_params)[5] = 10000.0f; break;
        case NOT_A_STEP:            step->op_params[0] = GGML_UNARY_OP_ABS; break;
        case OTHER_MEAN:            k_out->src[1]->src[0]->src[0] = floats(head, heads_kv, 1); break;
        case TWO_QUERIES:           q_out->src[0] = floats(head, heads, tokens); break;
    }
    ggml_tensor * k_roped = ropes ? rope(k_out, false) : nullptr;
    if (ropes) ggml_build_forward_expand(graph, k_roped);
    switch (difference) {
        case WITH_ROPE_IN_PLACE:    q->data = q_before->data; k_out->data = k->data; k_roped->data = k->data; q_out->data = q->data; break;
        case ROPED_READ_ELSEWHERE:  beyond = ggml_abs(ctx, q); break;
        case KEYS_READ_BEFORE_ROPE: beyond = ggml_abs(ctx, k_out); break;
    }
    if (beyond) {
        ggml_build_forward_expand(graph, beyond);
    }
    std::vector<ggml_tensor *> results = { v_out, w, q_out, part }; /* what is there when all is done */
    if (k_out && difference != W_WHERE_K_WAS) results.push_back(ropes ? k_roped : k_out);
    if (beyond) results.push_back(beyond);

    std::vector<std::vector<uint8_t>> start, wanted; /* the sources are restored, because results may replace them */
    const std::vector<ggml_tensor *> sources = { wide, v, q_before };
    int ropes_joined = 0;
    for (ggml_tensor * t : sources) start.emplace_back((uint8_t *) t->data, (uint8_t *) t->data + ggml_nbytes(t));
    int joined = 0;
    for (int pass = 0; pass < 2; ++pass) {
        memset(part->data, 0x7e, ggml_nbytes(part));
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            ggml_tensor * node = ggml_graph_node(graph, i);
            if (node->op != GGML_OP_SET_ROWS && !node->view_src) memset(node->data, 0xff, ggml_nbytes(node));
        }
        for (size_t i = 0; i < sources.size(); ++i) memcpy(sources[i]->data, start[i].data(), start[i].size());
        ggml_backend_cuda_context context;
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            ggml_tensor * node = ggml_graph_node(graph, i);
            if (ggmlq_ggml_cuda_is_view(node)) continue;
            const int more = pass == 0 ? 0 : ggmlq_ggml_cuda_fuse(context, graph, i, upstream_supports);
            joined += more > 0;
            for (int j = i; j <= i + more && more > 0; ++j) ropes_joined += ggml_graph_node(graph, j)->op == GGML_OP_ROPE;
            if (more == 0) compute(node);
            i += more;
        }
        for (size_t i = 0; i < results.size(); ++i) {
            const std::vector<uint8_t> bytes((uint8_t *) results[i]->data, (uint8_t *) results[i]->data + ggml_nbytes(results[i]));
            if (pass == 0) wanted.push_back(bytes);
            else require(bytes == wanted[i], ("another result, number " + std::to_string(i)).c_str());
        }
    }
    const ggml_fp16_t * parts = (const ggml_fp16_t *) part->data;
    int64_t centered = 0;
    for (int64_t i = 0; i < part->ne[1]; ++i) centered += parts[i] == 0x3c00;
    require(!k_out || difference == NOT_A_STEP || (centered > 0 && centered < tokens), "all keys are centered, or none");
    require(joined == DIFFERENT[difference].joined, ("launches joined: " + std::to_string(joined)).c_str());
    require(!ropes || ropes_joined == 1 + ROPES_JOINED[difference - WITH_ROPE], ("RoPEs joined: " + std::to_string(ropes_joined)).c_str()); /* one makes w */
    ggml_free(ctx);
}

/* --- new rows after RoPE ---------------------------------------------------------------------------------------------- */

enum roped { R_NONE, R_V_FIRST, R_NO_QUERIES, R_IN_PLACE, R_FACTORS, R_MANY, R_QUERIES_WHERE_V_IS, R_KEYS_READ_ELSEWHERE, R_NODE_BETWEEN, R_YARN, R_CASES };
static const struct { const char * name; bool joined; } ROPED[R_CASES] = { { "nothing", true }, { "V is stored first", true }, { "no queries", true }, { "in place", true }, { "frequency factors", true },
    { "many tokens", false }, { "queries lie where V is read", false }, { "keys after RoPE are read elsewhere", false }, { "a node between", false }, { "YaRN", false } };

/* RoPE of queries and keys, for planar3 then rotations of all by k_turned and V's by 64, and the stores. */
static void check_roped_stores(int different, int type, int64_t head, int64_t n_rot, bool neox, int64_t k_turned, int64_t tokens) {
    current = std::string("new rows of ") + ggml_type_name((ggml_type) type) + " after RoPE, heads of " + std::to_string(head) + ", " + ROPED[different].name;
    tokens = different == R_MANY ? 200 : tokens;
    const int64_t heads = 6, heads_kv = 2;
    ggml_init_params params = { 64u << 20, nullptr, false };
    ggml_context * ctx = ggml_init(params);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_tensor * x[3], * before[3], * store[2], * positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, tokens), * indices = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, tokens);
    ggml_tensor * factors = make(ctx, GGML_TYPE_F32, n_rot/2, 1, 1, 1, false);
    for (int64_t i = 0; i < n_rot/2; ++i) ((float *) factors->data)[i] = 1 + 0.1f*(float) (i % 5);
    for (int64_t i = 0; i < tokens; ++i) {
        ((int32_t *) positions->data)[i] = (int32_t) (100 - 31*i);
        ((int64_t *) indices->data)[i] = tokens - i;
    }
    for (int i = 0; i < 3; ++i) { /* Q, K, V */
        before[i] = x[i] = make(ctx, GGML_TYPE_F32, head, i == 0 ? heads : heads_kv, tokens, 1, false);
        ggml_build_forward_expand(graph, x[i]);
        if (i == 2) continue;
        x[i] = ggml_rope_ext(ctx, x[i], positions, different == R_FACTORS ? factors : nullptr, (int) n_rot, neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL, 4096, 10000.0f, 0.5f,
            different == R_YARN ? 1.0f : 0.0f, 1.25f, 32.0f, 1.0f);
        if (different == R_IN_PLACE) x[i]->data = before[i]->data;
    }
    const auto turned = [&](ggml_tensor * t, int64_t length) {
        ggml_tensor * result = ggml_mul_mat(ctx, make(ctx, GGML_TYPE_F32, length, length, 1, 1, false), ggml_reshape_2d(ctx, t, length, ggml_nelements(t)/length));
        ggml_mul_mat_set_hint(result, GGML_HINT_SRC0_IS_HADAMARD);
        return ggml_reshape_3d(ctx, result, t->ne[0], t->ne[1], t->ne[2]);
    };
    if (k_turned) {
        if (different != R_NO_QUERIES) x[0] = turned(x[0], k_turned);
        ggml_build_forward_expand(graph, x[1]);
        x[1] = turned(x[1], k_turned);
        x[2] = turned(x[2], 64);
    }
    if (different != R_NO_QUERIES) ggml_build_forward_expand(graph, x[0]);
    ggml_build_forward_expand(graph, x[1]);
    ggml_build_forward_expand(graph, x[2]);
    if (different == R_NODE_BETWEEN) ggml_build_forward_expand(graph, ggml_abs(ctx, positions));
    for (int i = 0; i < 2; ++i) {
        const int of = different == R_V_FIRST ? 2 - i : 1 + i;
        ggml_tensor * cache = make(ctx, (ggml_type) type, head*heads_kv, tokens + 1, 1, 1, false);
        ggml_tensor * values = ggml_reshape_2d(ctx, x[of], head*heads_kv, tokens);
        ggml_build_forward_expand(graph, store[i] = ggml_set_rows(ctx, cache, values, indices));
    }
    ggml_tensor * queries = x[0]->view_src ? x[0]->view_src : x[0], * keys = x[1]->view_src ? x[1]->view_src : x[1];
    if (k_turned) keys = keys->src[1]->view_src; /* RoPE's */
    if (different == R_QUERIES_WHERE_V_IS) queries->data = before[2]->data;
    ggml_tensor * beyond = different == R_KEYS_READ_ELSEWHERE ? ggml_abs(ctx, keys) : nullptr;
    if (beyond) ggml_build_forward_expand(graph, beyond);
    if (different == R_QUERIES_WHERE_V_IS) { /* no such graph can be computed one by one: it is enough that nothing is joined */
        ggml_backend_cuda_context context;
        int i = 0;
        while (graph->nodes[i]->op != GGML_OP_ROPE) ++i;
        require(ggmlq_ggml_cuda_fuse(context, graph, i, upstream_supports) == 0, "they are done together");
        ggml_free(ctx);
        return;
    }
    std::vector<ggml_tensor *> results = { store[0], store[1], beyond ? beyond : different != R_NO_QUERIES ? queries : store[0] };
    std::vector<std::vector<uint8_t>> start, wanted;
    for (ggml_tensor * t : before) start.emplace_back((uint8_t *) t->data, (uint8_t *) t->data + ggml_nbytes(t));
    bool joined = false;
    for (int pass = 0; pass < 2; ++pass) {
        for (int i = 0; i < 2; ++i) memset(store[i]->data, 0x55, ggml_nbytes(store[i]));
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            ggml_tensor * node = ggml_graph_node(graph, i);
            if (node->op != GGML_OP_SET_ROWS && !node->view_src) memset(node->data, 0xff, ggml_nbytes(node));
        }
        for (int i = 0; i < 3; ++i) memcpy(before[i]->data, start[i].data(), start[i].size());
        ggml_backend_cuda_context context;
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            ggml_tensor * node = ggml_graph_node(graph, i);
            if (ggmlq_ggml_cuda_is_view(node)) continue;
            const bool first = node->op == GGML_OP_ROPE && (node->src[0] == before[0] || different == R_NO_QUERIES || k_turned);
            const int more = pass == 0 || !first || joined ? 0 : ggmlq_ggml_cuda_fuse(context, graph, i, upstream_supports);
            joined = joined || more > 0;
            if (more > 0) require(ggml_graph_node(graph, i + more) == store[1], "not all is done together");
            if (more == 0 && (node->op != GGML_OP_UNARY || node == beyond) && different != R_YARN) compute(node);
            i += more;
        }
        for (size_t i = 0; i < results.size() && different != R_YARN; ++i) {
            const std::vector<uint8_t> bytes((uint8_t *) results[i]->data, (uint8_t *) results[i]->data + ggml_nbytes(results[i]));
            if (pass == 0) wanted.push_back(bytes);
            else require(bytes == wanted[i], ("another result, number " + std::to_string(i)).c_str());
        }
    }
    require(joined == ROPED[different].joined, joined ? "they are done together" : "they aren't done together");
    ggml_free(ctx);
}

/* --- attention's output, turned ----------------------------------------------------------------------------------------- */

enum { O_NOTHING, O_READ_ELSEWHERE, O_WHERE_Q_IS, O_BY_128, O_THROUGH_F16, O_CASES };
static void check_turned_attention(int different, int type_v, int64_t head, int64_t queries) {
    static const char * const names[O_CASES] = { "nothing", "it is read elsewhere", "the result lies where queries are read", "by 128", "upstream's kernel" };
    current = std::string("attention's output, turned, V ") + ggml_type_name((ggml_type) type_v) + ", " + names[different];
    ggml_init_params params = { 64u << 20, nullptr, false };
    ggml_context * ctx = ggml_init(params);
    const int64_t heads = 6, heads_kv = 2, n_kv = 40, length = different == O_BY_128 ? 128 : 64;
    const int type_k = different == O_THROUGH_F16 ? type_v : GGMLQ_TYPE_TQ3_0;
    ggml_tensor * q = make(ctx, GGML_TYPE_F32, head, queries, heads, 1, true), * k = make(ctx, (ggml_type) type_k, head, n_kv, heads_kv, 1, true), * v = make(ctx, (ggml_type) type_v, head, n_kv, heads_kv, 1, true);
    ggml_tensor * op = ggml_flash_attn_ext(ctx, q, k, v, nullptr, 0.1f, 0, different == O_THROUGH_F16 ? 0.0f : 30.0f);
    ggml_tensor * turned = ggml_mul_mat(ctx, make(ctx, GGML_TYPE_F32, length, length, 1, 1, false), ggml_reshape_2d(ctx, ggml_reshape_2d(ctx, op, head*heads, queries), length, head*heads*queries/length));
    ggml_mul_mat_set_hint(turned, GGML_HINT_SRC0_IS_HADAMARD);
    if (different == O_WHERE_Q_IS) turned->data = q->data;
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, turned);
    if (different == O_READ_ELSEWHERE) ggml_build_forward_expand(graph, ggml_abs(ctx, op));
    int first = 0, last = 0;
    while (graph->nodes[first] != op) ++first;
    while (graph->nodes[last] != turned) ++last;
    const bool joined = different == O_NOTHING;
    ggml_backend_cuda_context context;
    const auto none = [](int, const ggml_tensor *) { return false; };
    const int more = ggmlq_ggml_cuda_fuse(context, graph, first, different == O_THROUGH_F16 ? upstream_supports : none);
    require(more == (joined ? last - first : 0), joined ? "they aren't done together" : "they are done together");
    if (joined) {
        const std::vector<uint8_t> found((uint8_t *) turned->data, (uint8_t *) turned->data + ggml_nbytes(turned));
        require(ggmlq_ggml_cuda_flash_attn_ext(context, op, none), "attention is refused");
        compute(turned);
        require(memcmp(turned->data, found.data(), found.size()) == 0, "the result is another");
    }
    ggml_free(ctx);
}

int main() {
    for (int difference = 0; difference < DIFFERENCES; ++difference) {
        check_centering(difference, 64, 64, true, 3, 3, 20);
    }
    check_centering(NONE, 128, 128, true, 8, 32, 9);
    check_centering(NONE, 128,  64, false, 2, 6, 9);
    check_centering(NONE, 256, 128, true, 1, 4, 9);
    check_centering(WITH_ROPE, 128, 128, false, 8, 32, 9);
    check_centering(WITH_ROPE, 256, 64, true, 1, 4, 9);
    const int T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3, H = GGML_TYPE_F16, Q = GGML_TYPE_Q8_0;
    for (int different = 0; different < R_CASES; ++different) {
        check_roped_stores(different, T, 64, 64, true, 0, 3);
        check_roped_stores(different, P, 128, 128, different % 2 == 1, 128, 3);
    }
    check_roped_stores(R_NONE, T, 128, 64, false, 0, 1);
    check_roped_stores(R_NONE, T, 80, 40, true, 0, 5);
    check_roped_stores(R_NONE, P, 64, 64, true, 64, 2);
    check_roped_stores(R_NONE, P, 64, 32, false, 64, 2);
    check_roped_stores(R_NONE, P, 192, 128, false, 64, 2);
    check_roped_stores(R_NONE, P, 256, 256, false, 128, 2);
    check_roped_stores(R_NONE, P, 256, 256, true, 128, 2);
    for (int different = 0; different < O_CASES; ++different) check_turned_attention(different, P, 128, 2);
    check_turned_attention(O_NOTHING, P, 256, 1);
    check_turned_attention(O_NOTHING, Q, 64, 3);
    check({ T, T, 128, 128, 128, 4, 2, 17, 70, 1, false, 0, 0, true, 128 });
    check({ T, T, 128, 128, 128, 4, 2, 17, 70, 1, false, 0, 0, false, 128, false }); /* no mean is told */
    check({ T, H, 128, 128, 128, 5, 3, 9, 40, 2, true, 0, 0, true });
    check({ P, P, 128, 128, 64, 2, 4, 12, 33, 2, true, 20, 0, true, 128 });
    check({ P, Q, 128, 128, 128, 3, 1, 9, 33, 1, false, 0, 8, true, 64 });
    check({ T, P, 256, 256, 256, 2, 2, 9, 40, 1, false, 0, 0, true, 256 });
    check({ T, T, 64, 64, 64, 3, 3, 10, 40, 1, true, 0, 0, true, 64 });
    check({ T, T, 64, 64, 32, 1, 4, 10, 40, 1, false, 0, 0, true });
    check({ T, T, 64, 64, 32, 1, 4, 10, 40, 1, false, 30, 0, false }); /* no softcap there */
    check({ T, T, 512, 512, 512, 1, 2, 9, 20, 1, false, 0, 0, true, 512 });
    check({ T, T, 192, 192, 192, 1, 2, 9, 20, 1, false, 0, 0, false }); /* upstream has none */
    check({ T, T, 128, 128, 36, 2, 2, 9, 20, 1, false, 0, 0, true, 64 });
    check({ H, H, 64, 64, 64, 2, 2, 9, 40, 2, true, 0, 0, true });
    check({ H, T, 80, 96, 80, 2, 2, 9, 40, 1, false, 0, 0, false });    /* no whole planes */
    check({ Q, H, 64, 64, 64, 2, 2, 9, 40, 1, false, 0, 0, true, 64 });
    check({ Q, T, 128, 128, 128, 2, 2, 9, 40, 2, false, 0, 0, true, 128 });
    check({ T, T, 128, 128, 0, 4, 2, 17, 70, 1, false, 0, 0, true }); /* plain keys */
    check({ T, P, 128, 128, 0, 2, 2, 9, 40, 2, true, 0, 8, true });
    check({ P, H, 128, 128, 0, 2, 2, 9, 40, 2, false, 0, 0, true });
    check({ Q, T, 64, 64, 0, 2, 2, 9, 40, 1, false, 0, 0, true });
    check({ T, Q, 64, 64, 0, 2, 2, 9, 40, 1, false, 0, 0, true });
    check({ T, T, 576, 512, 0, 1, 16, 9, 40, 1, false, 0, 0, true, 0, false, true });
    check({ P, P, 512, 512, 0, 1, 16, 9, 40, 1, false, 0, 0, true, 0, false, true });
    check_store(T, 64, 3, 5);
    check_store(P, 128, 2, 3);
    check_turned_stores(P, 128, 3, V_TURNED);
    check_turned_stores(P, 128, 257, V_TURNED); /* more than 512 keys, for which there is another kernel */
    check_turned_stores(T, 128, 257, V_AS_IT_IS);
    for (int beside : { V_AS_IT_IS, V_OF_ANOTHER_TYPE, NO_QUERIES, QUERIES_WHERE_V_IS, KEYS_READ_ELSEWHERE }) check_turned_stores(T, 64, 3, beside);
    check_turned_stores(T, 256, 1, V_AS_IT_IS);
    check_turned_stores(P, 256, 2, V_AS_IT_IS);
    printf(failures ? "%d wrong\n" : "ok\n", failures);
    return failures != 0;
}
