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
    if (!ggmlq_ggml_attend_params(dst, &p)) {
        return false;
    }
    const int error = ggmlq_attend_check(&p);
    if (error == GGMLQ_ERROR_TYPE || error == GGMLQ_ERROR_LENGTH || error == GGMLQ_ERROR_SHAPE) {
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
