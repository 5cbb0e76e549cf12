/* SPDX-License-Identifier: MIT
 *
 * What the level files and ggmlq-dispatch.c share. Included first: the codec must give the same bits at every level.
 */
#ifndef GGMLQ_CPU_IMPL_H
#define GGMLQ_CPU_IMPL_H

#include "ggmlq-fp-contract.h"

#include "ggmlq-block.h"
#include "ggmlq.h"

/* What a level needs of the processor; ggmlq-dispatch.c finds out. */
enum {
    GGMLQ_NEEDS_AVX2    = 1 << 0, /* AVX2, FMA, F16C            */
    GGMLQ_NEEDS_AVX512  = 1 << 1, /* F, BW, VL, DQ, VNNI        */
    GGMLQ_NEEDS_VBMI    = 1 << 2,
    GGMLQ_NEEDS_NEON    = 1 << 3,
    GGMLQ_NEEDS_DOTPROD = 1 << 4
};

/* The entry points of ggmlq.h, arguments checked. */
struct ggmlq_cpu_kernels {
    void (* encode_row)        (int type, const float * x, void * row, int64_t n);
    void (* decode_row)        (int type, const void * row, float * x, int64_t n);
    void (* decode_row_rotated)(int type, const void * row, float * y, int64_t n);
    void (* rotate_row)        (int type, const float * x, float * y, int64_t n);
    void (* unrotate_row)      (int type, const float * y, float * x, int64_t n);
    void (* encode_query_row)  (int type, const float * x, void * query, int64_t n);
    void (* encode_row_for_queries)(int type, const float * x, const uint16_t * feedback, void * row, int64_t n);
    void (* dot_row)           (int type, const void * row, const void * query, int64_t n, float * result);
    void (* mul_mat_vec)       (int type, const void * rows, int64_t row_stride, int64_t n_rows,
                                const void * queries, int64_t query_stride, int64_t n_queries, int64_t n, float * out);
    void (* attend)            (const struct ggmlq_attend_params * p, float * partials, int ith, int nth);
    void (* attend_combine)    (const struct ggmlq_attend_params * p, const float * partials, int ith, int nth);
    int64_t (* attend_partials)(const struct ggmlq_attend_params * p, int nth); /* floats that attend writes to partials */
    const int64_t * calls;      /* how often one of the above was entered; NULL unless GGMLQ_COUNT_CALLS */
};

struct ggmlq_cpu_level {
    const char * name;
    const char * needs_text;
    uint32_t     needs;
    const struct ggmlq_cpu_kernels * kernels; /* NULL: compiled without the instructions */
};

GGMLQ_CPU_API extern const struct ggmlq_cpu_level ggmlq_cpu_level_portable;
GGMLQ_CPU_API extern const struct ggmlq_cpu_level ggmlq_cpu_level_avx2;
GGMLQ_CPU_API extern const struct ggmlq_cpu_level ggmlq_cpu_level_avx512;
GGMLQ_CPU_API extern const struct ggmlq_cpu_level ggmlq_cpu_level_neon_dotprod;
GGMLQ_CPU_API extern const struct ggmlq_cpu_level ggmlq_cpu_level_neon;

#endif
