/* SPDX-License-Identifier: MIT
 *
 * Centered keys (docs/CENTERING.md): new tokens' keys, values and queries. Conventions of ggmlq-cuda.h.
 */
#ifndef GGMLQ_CUDA_CENTER_H
#define GGMLQ_CUDA_CENTER_H

#include "ggmlq-cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What centering does to new tokens, in one launch; `data` NULL: not that part. Values are floats, views [head size, heads, tokens] with a multiple of 4 of
 * them in a head; k_out, v_out, q_out and w are contiguous, and so are the factors, of as many values as a token. All addresses and strides are multiples of
 * 16 bytes. An output may be its input if that is contiguous; other memory of the call mustn't overlap what it writes.
 *
 *   k: before RoPE. x = s*k; part = <x, s_mu> > s_mu_2; k_out = x - part*s_mu, after k_rope if that has positions (a head is a multiple of 8 values then); row indices[token] of `part`, halves [1, n_rows], becomes 1 or 0: nothing is
 *      written for a row out of range.
 *   v: any number of values, a multiple of 4. v_out = v*v_scale + v_bias.
 *   q: after RoPE, or before q_rope if that has positions (of the same pairs as below). w = q*mu_same + t*mu_turn, q_out = q*s_inv; t: q, the pairs of its first n_rot values (adjacent ones, or with `neox` half of n_rot apart)
 *      turned by the angle positions[token]*turn. n_rot and head size are multiples of 8 then.
 *
 * Every operation is rounded as in a kernel of its own, but that the dot product has an order of summation of its own, always the same. */
struct ggmlq_cuda_centering {
    struct ggmlq_cuda_view k, part, indices;
    int           index_bytes; /* 4 or 8 */
    const float * s, * s_mu, * s_mu_2;
    float       * k_out;
    struct ggmlq_cuda_rope k_rope;

    const float * v;
    float       * v_out;
    int64_t       n_v;
    float         v_scale, v_bias;

    struct ggmlq_cuda_view q;
    struct ggmlq_cuda_rope q_rope;
    const float   * s_inv, * mu_same, * mu_turn;
    const int32_t * positions;
    float           turn;
    int             n_rot, neox;
    float         * q_out, * w;
};

GGMLQ_CUDA_API int ggmlq_cuda_center_check(const struct ggmlq_cuda_centering * p);
GGMLQ_CUDA_API int ggmlq_cuda_center      (const struct ggmlq_cuda_centering * p, void * stream);

/* Stores of new tokens in one launch: keys as ggmlq_cuda_set_rows_for_queries does it, `v` (data NULL: not that part) as ggmlq_cuda_set_rows, into rows of the
 * same type. .._turned: so many adjacent values are first turned as llama.cpp does it (attn_rot), by a Walsh-Hadamard transform over the square root: 64, 128
 * or 256, V 64 or 128 and planar3 only; 0: not. And q_out <- q (NULL: not that part), n_q floats, turned; it may replace q. What one part writes another must
 * neither read nor write. */
struct ggmlq_cuda_new_rows {
    struct ggmlq_cuda_view k_rows, k, k_indices, feedback, v_rows, v, v_indices;
    int           index_bytes, k_turned, v_turned, q_turned;
    const float * q;
    float       * q_out;
    int64_t       n_q;
};

int ggmlq_cuda_store_new_check(const struct ggmlq_cuda_new_rows * p);
int ggmlq_cuda_store_new      (const struct ggmlq_cuda_new_rows * p, void * stream);

#ifdef __cplusplus
}
#endif

#endif
