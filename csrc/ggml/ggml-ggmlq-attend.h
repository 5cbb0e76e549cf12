/* SPDX-License-Identifier: MIT
 *
 * ggmlq in ggml's back ends: what FLASH_ATTN_EXT asks for, as ggmlq_attend_params. One description for all of them.
 */
#ifndef GGML_GGMLQ_ATTEND_H
#define GGML_GGMLQ_ATTEND_H

#include "ggml-ggmlq-center.h"
#include "ggml-ggmlq.h"

/* False if neither K nor V is one of our types and K isn't centered, or if they lie in memory as no ggmlq_attend_params can say. Limits of a back
 * end are not looked at here: its ..._attend_check knows them. Whoever asks adds the term of centered keys. */
static inline bool ggmlq_ggml_attend_params_centered(const struct ggml_tensor * dst, struct ggmlq_attend_params * p) {
    const struct ggml_tensor * q     = dst->src[0];
    const struct ggml_tensor * k     = dst->src[1];
    const struct ggml_tensor * v     = dst->src[2];
    const struct ggml_tensor * mask  = dst->src[3];
    const struct ggml_tensor * sinks = dst->src[4];
    const struct ggml_tensor * w     = dst->src[GGMLQ_GGML_ATTEND_W]; /* of centered keys; upstream uses none of these slots */
    const struct ggml_tensor * turns = dst->src[GGMLQ_GGML_ATTEND_TURNS];
    const struct ggml_tensor * at    = dst->src[GGMLQ_GGML_ATTEND_POSITIONS];
    const struct ggml_tensor * part  = dst->src[GGMLQ_GGML_ATTEND_PART];

    if (!ggmlq_ggml_is_cache_type(k->type) && !ggmlq_ggml_is_cache_type(v->type) && !turns) {
        return false;
    }
    if (q->type != GGML_TYPE_F32 || (mask && mask->type != GGML_TYPE_F16) || (sinks && sinks->type != GGML_TYPE_F32) ||
        q->nb[0] != sizeof(float) || k->nb[0] != ggml_type_size(k->type) || v->nb[0] != ggml_type_size(v->type) ||
        k->ne[2] != v->ne[2] || k->ne[3] != v->ne[3]) {
        return false;
    }
    if (turns && (w->type != GGML_TYPE_F32 || w->nb[0] != sizeof(float) || w->ne[0] != 2*turns->ne[0] || w->ne[1] != q->ne[1] || w->ne[2] != q->ne[2] ||
                  w->ne[3] != q->ne[3] || turns->type != GGML_TYPE_I64 || !ggml_is_contiguous(turns) || ggml_nrows(turns) != 1 ||
                  at->type != GGML_TYPE_I32 || at->nb[0] != sizeof(int32_t) || at->ne[0] != k->ne[1] || at->ne[1] != 1 || at->ne[2] != 1 || at->ne[3] != k->ne[3] ||
                  part->type != GGML_TYPE_F16 || part->nb[0] != 2 || part->ne[0] != k->ne[1] || part->ne[1] != 1 || part->ne[2] != 1 || part->ne[3] != k->ne[3])) {
        return false;
    }

    memset(p, 0, sizeof(*p));
    p->type_k      = (int) k->type;
    p->type_v      = (int) v->type;
    p->head_size_k = k->ne[0];
    p->head_size_v = v->ne[0];
    p->n_kv        = k->ne[1];
    p->n_queries   = q->ne[1];
    p->n_heads     = q->ne[2];
    p->n_heads_kv  = k->ne[2];
    p->n_seqs      = q->ne[3];
    p->n_seqs_kv   = k->ne[3];
    p->q           = (const float *) q->data;
    p->k           = k->data;
    p->v           = v->data;
    p->out         = (float *) dst->data;
    for (int i = 0; i < 3; ++i) {
        p->q_stride[i] = (int64_t) q->nb[i + 1];
        p->k_stride[i] = (int64_t) k->nb[i + 1];
        p->v_stride[i] = (int64_t) v->nb[i + 1];
    }
    p->out_stride[0] = (int64_t) dst->nb[2]; /* the result has heads before tokens */
    p->out_stride[1] = (int64_t) dst->nb[1];
    p->out_stride[2] = (int64_t) dst->nb[3];
    if (mask) {
        p->mask = (const uint16_t *) mask->data;
        for (int i = 0; i < 3; ++i) {
            p->mask_stride[i] = (int64_t) mask->nb[i + 1];
        }
        p->mask_heads = mask->ne[2];
        p->mask_seqs  = mask->ne[3];
    }
    if (turns) {
        p->n_pairs          = turns->ne[0];
        p->pairs_are_halves = dst->op_params[GGMLQ_GGML_ATTEND_HALVES_AT];
        p->w                = (const float *) w->data;
        for (int i = 0; i < 3; ++i) {
            p->w_stride[i] = (int64_t) w->nb[i + 1];
        }
        p->turns            = (const uint64_t *) turns->data;
        p->positions        = (const int32_t *) at->data;
        p->positions_stride = (int64_t) at->nb[3];
        p->part             = (const uint16_t *) part->data;
        p->part_stride      = (int64_t) part->nb[3];
    }
    p->sinks = sinks ? (const float *) sinks->data : NULL;

    float numbers[3];
    memcpy(numbers, dst->op_params, sizeof(numbers));
    p->scale         = numbers[0];
    p->max_bias      = numbers[1];
    p->logit_softcap = numbers[2];
    return true;
}

/* How many rows a query sees at most, if the graph says so and the tree can say it; 0: unknown. */
static inline int64_t ggmlq_ggml_attend_most_visible(const struct ggml_tensor * dst) {
#ifdef GGMLQ_GGML_N_KV_MAX_AT
    return ((const int32_t *) dst->op_params)[GGMLQ_GGML_N_KV_MAX_AT];
#else
    (void) dst;
    return 0;
#endif
}

#endif
