/* SPDX-License-Identifier: MIT */
#include "ggml-cpu-ggmlq.h"
#include "ggml-cpu-impl.h"

#include <stdio.h>

/* A wrong GGMLQ_CPU is the user's mistake and the only one that no check of the arguments has excluded. */
static void require_ok(int error) {
    if (error == GGMLQ_ERROR_LEVEL) {
        fprintf(stderr, "GGMLQ_CPU names no CPU level that can be used here. The levels are:\n");
        for (int i = 0; i < ggmlq_cpu_level_count(); ++i) {
            fprintf(stderr, "  %s (%s) %s\n", ggmlq_cpu_level_name(i), ggmlq_cpu_level_needs(i), ggmlq_cpu_level_reason(i));
        }
    }
    GGML_ASSERT(error == GGMLQ_OK);
}

#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) \
    void ggmlq_ggml_cpu_encode_row_##name(const float * x, void * row, int64_t n) { \
        require_ok(ggmlq_cpu_encode_row(id, x, row, n)); \
    } \
    void ggmlq_ggml_cpu_encode_query_row_##name(const float * x, void * query, int64_t n) { \
        require_ok(ggmlq_cpu_encode_query_row(id, x, query, n)); \
    } \
    void ggmlq_ggml_cpu_dot_row_##name(int n, float * s, size_t bs, const void * row, size_t bx, const void * query, size_t by, int nrc) { \
        GGML_UNUSED(bs); \
        GGML_UNUSED(bx); \
        GGML_UNUSED(by); \
        GGML_ASSERT(nrc == 1); \
        require_ok(ggmlq_dot_row(id, row, query, n, s)); \
    }
#include "ggmlq-types.def"

static bool is_cache_type(enum ggml_type type) {
    switch ((int) type) {
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) case id:
#include "ggmlq-types.def"
            return true;
        default:
            return false;
    }
}

bool ggmlq_ggml_cpu_flash_attn_ext(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    const struct ggml_tensor * q     = dst->src[0];
    const struct ggml_tensor * k     = dst->src[1];
    const struct ggml_tensor * v     = dst->src[2];
    const struct ggml_tensor * mask  = dst->src[3];
    const struct ggml_tensor * sinks = dst->src[4];

    if (!is_cache_type(k->type) && !is_cache_type(v->type)) {
        return false;
    }
    if (q->type != GGML_TYPE_F32 || (mask && mask->type != GGML_TYPE_F16) ||
        q->nb[0] != sizeof(float) || k->nb[0] != ggml_type_size(k->type) || v->nb[0] != ggml_type_size(v->type) ||
        k->ne[2] != v->ne[2] || k->ne[3] != v->ne[3]) {
        return false;
    }

    struct ggmlq_attend_params p = {
        .type_k      = k->type,  .type_v      = v->type,
        .head_size_k = k->ne[0], .head_size_v = v->ne[0],
        .n_kv        = k->ne[1],
        .n_queries   = q->ne[1],
        .n_heads     = q->ne[2], .n_heads_kv  = k->ne[2],
        .n_seqs      = q->ne[3], .n_seqs_kv   = k->ne[3],
        .q = q->data,   .q_stride   = { (int64_t) q->nb[1],   (int64_t) q->nb[2],   (int64_t) q->nb[3]   },
        .k = k->data,   .k_stride   = { (int64_t) k->nb[1],   (int64_t) k->nb[2],   (int64_t) k->nb[3]   },
        .v = v->data,   .v_stride   = { (int64_t) v->nb[1],   (int64_t) v->nb[2],   (int64_t) v->nb[3]   },
        .out = dst->data, .out_stride = { (int64_t) dst->nb[2], (int64_t) dst->nb[1], (int64_t) dst->nb[3] },
        .sinks = sinks ? sinks->data : NULL,
    };
    if (mask) {
        p.mask = mask->data;
        for (int i = 0; i < 3; ++i) {
            p.mask_stride[i] = (int64_t) mask->nb[i + 1];
        }
        p.mask_heads = mask->ne[2];
        p.mask_seqs  = mask->ne[3];
    }
    const float * op_params = (const float *) dst->op_params;
    p.scale         = op_params[0];
    p.max_bias      = op_params[1];
    p.logit_softcap = op_params[2];

    const int error = ggmlq_attend_check(&p);
    if (error == GGMLQ_ERROR_TYPE || error == GGMLQ_ERROR_LENGTH || error == GGMLQ_ERROR_SHAPE) {
        return false;
    }
    require_ok(error);

    /* Every thread comes to the same decision: it depends on shapes alone. The plan of a tree is made for ggml's own kernels,
     * so what it set aside may be too little; then the cached tokens aren't split over threads. */
    const int64_t split_bytes = ggmlq_attend_workspace_bytes(&p, params->nth);
    if (split_bytes > 0 && (size_t) split_bytes <= params->wsize) {
        require_ok(ggmlq_attend_part(&p, params->wdata, params->ith, params->nth));
        ggml_barrier(params->threadpool);
        require_ok(ggmlq_attend_combine(&p, params->wdata, params->ith, params->nth));
    } else {
        require_ok(ggmlq_attend(&p, params->ith, params->nth));
    }
    return true;
}
