/* SPDX-License-Identifier: MIT
 *
 * Centered keys (docs/CENTERING.md) in ggml's graphs: what is computed of new tokens. ggml-cuda recognizes these nodes, in this order and side by side, and does them
 * in one launch (ggmlq_ggml_cuda_fuse); other back ends one by one.
 */
#ifndef GGML_GGMLQ_CENTER_GRAPH_H
#define GGML_GGMLQ_CENTER_GRAPH_H

#include "ggml.h"

/* Keys before RoPE, F32 [head size, KV heads, tokens] -> as they are stored, but for RoPE; `part`, F16 [1, cells], says at row idxs[token] whether a key is
 * centered. s, s_mu: F32 [head size, KV heads]; s_mu_2: F32 [1].
 *
 * S kappa is shorter without S mu if <S kappa, S mu> > |S mu|^2/2. R and S commute, so the mean comes off before RoPE. */
static inline struct ggml_tensor * ggmlq_ggml_center_k(struct ggml_context * ctx, struct ggml_cgraph * gf, struct ggml_tensor * k, struct ggml_tensor * s,
        struct ggml_tensor * s_mu, struct ggml_tensor * s_mu_2, struct ggml_tensor * part_rows, struct ggml_tensor * idxs) {
    const int64_t n_values = k->ne[0]*k->ne[1], n_tokens = k->ne[2];
    struct ggml_tensor * scaled = ggml_mul(ctx, k, s);
    struct ggml_tensor * along  = ggml_mul_mat(ctx, ggml_reshape_2d(ctx, s_mu, n_values, 1), ggml_reshape_2d(ctx, scaled, n_values, n_tokens));
    ggml_prec_set_acc(along, GGML_PREC_F32);
    struct ggml_tensor * part   = ggml_step(ctx, ggml_sub(ctx, along, s_mu_2));
    ggml_build_forward_expand(gf, ggml_set_rows(ctx, part_rows, part, idxs));
    struct ggml_tensor * mean   = ggml_repeat_4d(ctx, s_mu, k->ne[0], k->ne[1], n_tokens, 1);
    struct ggml_tensor * result = ggml_sub(ctx, scaled, ggml_mul(ctx, mean, ggml_reshape_3d(ctx, part, 1, 1, n_tokens)));
    ggml_build_forward_expand(gf, result);
    return result;
}

/* Queries after RoPE, F32 [head size, heads, tokens] -> divided by the scale, and *w, of which the first n_rot values of a head count. ones: I32 [tokens];
 * the rest: F32 [head size, heads]. k, v: the keys before RoPE and values that the nodes before this have read, or NULL.
 *
 * w of a pair is (q0 m0 + q1 m1, q1 m0 - q0 m1), and (q1, -q0) is q a quarter turn back, which a RoPE of one frequency gives. */
static inline struct ggml_tensor * ggmlq_ggml_center_q(struct ggml_context * ctx, struct ggml_cgraph * gf, struct ggml_tensor * q, struct ggml_tensor * ones, int n_rot, bool neox,
        struct ggml_tensor * mu_same, struct ggml_tensor * mu_turn, struct ggml_tensor * s_inv, struct ggml_tensor * k, struct ggml_tensor * v, struct ggml_tensor ** w) {
    const float quarter = -1.57079632679f;
    struct ggml_tensor * turned = ggml_rope_ext(ctx, q, ones, NULL, n_rot, neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL, 0, 1.0f, quarter, 0.0f, 1.0f, 0.0f, 0.0f);
    *w = ggml_add(ctx, ggml_mul(ctx, q, mu_same), ggml_mul(ctx, turned, mu_turn));
    struct ggml_tensor * result = ggml_mul(ctx, q, s_inv);
    result->src[2] = k; /* which MUL doesn't read: until here their memory isn't given to a result, so that one launch can read and write all */
    result->src[3] = v;
    ggml_build_forward_expand(gf, *w);
    ggml_build_forward_expand(gf, result);
    return result;
}

#endif
