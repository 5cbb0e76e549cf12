/* SPDX-License-Identifier: MIT */
#include "ggml-cpu-ggmlq.h"
#include "ggml-cpu-impl.h"
#include "ggml-ggmlq-attend.h"

#include <stdio.h>

/* A wrong GGMLQ_CPU is the user's mistake and the only one that no check of the arguments has excluded. */
void ggmlq_ggml_cpu_require_ok(int error) {
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
        ggmlq_ggml_cpu_require_ok(ggmlq_cpu_encode_row(id, x, row, n)); \
    } \
    void ggmlq_ggml_cpu_encode_query_row_##name(const float * x, void * query, int64_t n) { \
        ggmlq_ggml_cpu_require_ok(ggmlq_cpu_encode_query_row(id, x, query, n)); \
    } \
    void ggmlq_ggml_cpu_dot_row_##name(int n, float * s, size_t bs, const void * row, size_t bx, const void * query, size_t by, int nrc) { \
        GGML_UNUSED(bs); \
        GGML_UNUSED(bx); \
        GGML_UNUSED(by); \
        GGML_ASSERT(nrc == 1); \
        ggmlq_ggml_cpu_require_ok(ggmlq_dot_row(id, row, query, n, s)); \
    }
#include "ggmlq-types.def"

bool ggmlq_ggml_cpu_flash_attn_ext(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    struct ggmlq_attend_params p;
    const bool known = ggmlq_ggml_attend_params_centered(dst, &p);
    const int  error = known ? ggmlq_attend_check(&p) : GGMLQ_ERROR_TYPE;
    if (error == GGMLQ_ERROR_TYPE || error == GGMLQ_ERROR_LENGTH || error == GGMLQ_ERROR_SHAPE) {
        GGML_ASSERT(dst->src[GGMLQ_GGML_ATTEND_TURNS] == NULL); /* ggmlq_ggml_cpu_supports_centered has refused it */
        return false;
    }
    ggmlq_ggml_cpu_require_ok(error);
    if (ggmlq_ggml_cpu_attend_selected(params, dst, &p)) {
        return true;
    }

    /* Every thread comes to the same decision: it depends on shapes alone. The plan of a tree is made for ggml's own kernels,
     * so what it set aside may be too little; then the cached tokens aren't split over threads. */
    const int64_t split_bytes = ggmlq_attend_workspace_bytes(&p, params->nth);
    if (split_bytes > 0 && (size_t) split_bytes <= params->wsize) {
        ggmlq_ggml_cpu_require_ok(ggmlq_attend_part(&p, params->wdata, params->ith, params->nth));
        ggml_barrier(params->threadpool);
        ggmlq_ggml_cpu_require_ok(ggmlq_attend_combine(&p, params->wdata, params->ith, params->nth));
    } else {
        ggmlq_ggml_cpu_require_ok(ggmlq_attend(&p, params->ith, params->nth));
    }
    return true;
}

bool ggmlq_ggml_cpu_supports_rounded(const struct ggml_tensor * op) {
    const struct ggml_tensor * feedback = op->src[GGMLQ_GGML_SET_ROWS_FEEDBACK], * values = op->src[0], * indices = op->src[1];
    if (feedback == NULL) {
        return true;
    }
    const int64_t heads = feedback->ne[1], length = op->ne[0]/heads;
    return ggmlq_ggml_is_cache_type(op->type) && feedback->type == GGML_TYPE_F16 && ggml_is_contiguous(feedback) && feedback->ne[2] == 1 && feedback->ne[3] == 1 &&
        feedback->ne[0] == ggmlq_feedback_values(length) && length % ggml_blck_size(op->type) == 0 && op->ne[0] == length*heads && op->ne[2] == 1 && op->ne[3] == 1 &&
        values->type == GGML_TYPE_F32 && values->nb[0] == sizeof(float) && (indices->type == GGML_TYPE_I64 || indices->type == GGML_TYPE_I32);
}

bool ggmlq_ggml_cpu_set_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    const struct ggml_tensor * feedback = dst->src[GGMLQ_GGML_SET_ROWS_FEEDBACK], * values = dst->src[0], * indices = dst->src[1];
    if (feedback == NULL) {
        return false;
    }
    GGML_ASSERT(ggmlq_ggml_cpu_supports_rounded(dst));
    const int64_t heads = feedback->ne[1], length = dst->ne[0]/heads, head_bytes = (int64_t) ggml_row_size(dst->type, length);
    for (int64_t i = params->ith; i < heads*values->ne[1]; i += params->nth) { /* a thread has as few heads as possible, whose feedback it then keeps at hand */
        const int64_t head = i/values->ne[1], token = i % values->ne[1];
        const char  * at   = (const char *) indices->data + token*indices->nb[0];
        const int64_t row  = indices->type == GGML_TYPE_I64 ? *(const int64_t *) at : *(const int32_t *) at;
        GGML_ASSERT(row >= 0 && row < dst->ne[1]);
        ggmlq_ggml_cpu_require_ok(ggmlq_cpu_encode_row_for_queries(dst->type, (const float *) ((const char *) values->data + token*values->nb[1]) + head*length,
            (const uint16_t *) ((const char *) feedback->data + head*feedback->nb[1]), (char *) dst->data + row*dst->nb[1] + head*head_bytes, length));
    }
    return true;
}

bool ggmlq_ggml_cpu_supports_centered(const struct ggml_tensor * op) {
    if (op->src[GGMLQ_GGML_ATTEND_TURNS] == NULL) {
        return true;
    }
    struct ggmlq_attend_params p;
    if (!ggmlq_ggml_attend_params_centered(op, &p)) {
        return false;
    }
    const int error = ggmlq_attend_check(&p);
    return error == GGMLQ_OK || error == GGMLQ_ERROR_LEVEL; /* of a level the first run speaks */
}
