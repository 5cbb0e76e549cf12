// SPDX-License-Identifier: MIT
//
// What tests/test_llama_center.py asks of libllama's graphs: whether the mean that it gives to attention, with its factor and llama.cpp's own rotation (ggml-ggmlq-center.h), adds the same to every
// dot product as w does. Arguments: a model, types of K and V, "yarn" or nothing. Prints how many nodes were seen, the largest difference and the largest term, both over |query| |what a key lacks|.
#include "ggml-ggmlq-center.h"
#include "ggml.h"
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

struct found { int nodes = 0; double difference = 0, term = 0; };

static const void * at(const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2, int64_t i3) { return (const char *) t->data + i0*t->nb[0] + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]; }

static bool look(ggml_tensor * node, bool ask, void * data) {
    const ggml_tensor * mean = node->op == GGML_OP_FLASH_ATTN_EXT ? node->src[GGMLQ_GGML_ATTEND_MEAN] : nullptr;
    if (!mean || ask) {
        return mean || !ask;
    }
    found & f = *(found *) data;
    ++f.nodes;
    const ggml_tensor * q = node->src[0], * w = node->src[GGMLQ_GGML_ATTEND_W], * turns = node->src[GGMLQ_GGML_ATTEND_TURNS];
    const int64_t n = q->ne[0], pairs = turns->ne[0], turned = node->op_params[GGMLQ_GGML_ATTEND_MEAN_TURNED_AT], group = q->ne[2]/mean->ne[1];
    const bool halves = node->op_params[GGMLQ_GGML_ATTEND_HALVES_AT];
    float factor;
    memcpy(&factor, &node->op_params[GGMLQ_GGML_ATTEND_MEAN_FACTOR_AT], sizeof(factor));
    for (const int32_t position : { 0, 1, 19, 5000, -3 }) for (int64_t h = 0; h < q->ne[2]; ++h) {
        std::vector<double> lacks(n), row(2*pairs);
        for (int64_t i = 0; i < n; ++i) {
            lacks[i] = factor**(const float *) at(mean, i, h/group, 0, 0);
        }
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t a = halves ? pair : 2*pair, b = halves ? pair + pairs : a + 1;
            const double angle = 6.283185307179586*std::ldexp((double) (int64_t) ((uint64_t) (int64_t) position*((const uint64_t *) turns->data)[pair]), -64);
            const double x = lacks[a], y = lacks[b];
            row[a]   = std::cos(angle);
            row[b]   = std::sin(angle);
            lacks[a] = x*row[a] - y*row[b];
            lacks[b] = x*row[b] + y*row[a];
        }
        for (int64_t first = 0; turned && first < n; first += turned) for (int64_t half = 1; half < turned; half *= 2) for (int64_t i = first; i < first + turned; ++i) if (((i - first) & half) == 0) {
            const double x = lacks[i], y = lacks[i + half];
            lacks[i]        = (x + y)*std::sqrt(0.5);
            lacks[i + half] = (x - y)*std::sqrt(0.5);
        }
        for (int64_t token = 0; token < q->ne[1]; ++token) {
            double wanted = 0, whole = 0, of_q = 0, of_key = 0;
            for (int64_t i = 0; i < n; ++i) {
                const double x = *(const float *) at(q, i, token, h, 0);
                wanted += i < 2*pairs ? row[i]**(const float *) at(w, i, token, h, 0) : 0;
                whole  += x*lacks[i];
                of_q   += x*x;
                of_key += lacks[i]*lacks[i];
            }
            f.difference = std::max(f.difference, std::fabs(wanted - whole)/std::sqrt(of_q*of_key));
            f.term       = std::max(f.term, std::fabs(wanted)/std::sqrt(of_q*of_key));
        }
    }
    return true;
}

int main(int argc, char ** argv) {
    const auto type = [&](const char * name) {
        for (int t = 0; t < GGML_TYPE_COUNT; ++t) if (ggml_type_name((ggml_type) t) && !strcmp(ggml_type_name((ggml_type) t), name)) return (ggml_type) t;
        return GGML_TYPE_COUNT;
    };
    found f;
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 512;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k          = type(argv[2]);
    params.type_v          = type(argv[3]);
    params.cb_eval           = look;
    params.cb_eval_user_data = &f;
    if (argc > 4 && !strcmp(argv[4], "yarn")) {
        params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
        params.rope_freq_scale   = 0.25f;
        params.yarn_orig_ctx     = 2048;
    }
    llama_context * ctx = model ? llama_init_from_model(model, params) : nullptr;
    std::vector<llama_token> tokens(20);
    for (int i = 0; i < 20; ++i) {
        tokens[i] = 100 + 7*i;
    }
    if (!ctx || llama_decode(ctx, llama_batch_get_one(tokens.data(), (int32_t) tokens.size())) != 0) {
        return 1;
    }
    std::printf("%d %g %g\n", f.nodes, f.difference, f.term);
    return 0;
}
