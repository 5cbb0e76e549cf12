/* SPDX-License-Identifier: MIT
 *
 * ggmlq on Metal, the host's side: what the kernels of ggmlq-metal.metal can do, and how one is launched. Arithmetic on shapes only: knows
 * neither Metal nor ggml nor any memory, so that llama.cpp, Python and the tests launch the same things.
 *
 * Views and attention parameters are those of ggmlq-cuda.h; addresses in them are not looked at. A function gives 0 or a negative
 * ggmlq_error. Operands are bound in the order that a function states, the first to buffer 1.
 */
#ifndef GGMLQ_METAL_PLAN_H
#define GGMLQ_METAL_PLAN_H

#include "ggmlq-cuda.h"
#include "ggmlq-metal-args.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GGMLQ_METAL_MAX_OPERANDS = 11, GGMLQ_METAL_SHARED_BYTES = 32768 /* threadgroup memory of every Metal device */ };

struct ggmlq_metal_launch {
    const char * kernel;                          /* its name in the library; NULL: there is nothing to do */
    int32_t      constants[GGMLQ_METAL_CONSTANTS]; /* all of them, whether it uses them or not              */
    union {
        struct ggmlq_metal_rows_args    rows;
        struct ggmlq_metal_round_args   round;
        struct ggmlq_metal_fill_args    fill;
        struct ggmlq_metal_positional_args positional;
        struct ggmlq_metal_product_args product;
        struct ggmlq_metal_attend_args  attend;
        struct ggmlq_metal_select_args  select;
        struct ggmlq_metal_indexer_args indexer;
    } args;                                       /* buffer 0 */
    size_t       args_bytes;
    int          n_operands;
    uint32_t     groups[3];                       /* of GGMLQ_METAL_THREADS threads */
    uint32_t     shared_bytes;                    /* threadgroup memory 0 */
};

/* Kernels by name, NULL at the end. */
GGMLQ_CUDA_API const char * const * ggmlq_metal_kernels(void);

/* rows, values, indices. Conventions of ggmlq_cuda_set_rows. */
GGMLQ_CUDA_API int ggmlq_metal_set_rows(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                                        const struct ggmlq_cuda_view * indices, int index_bytes, struct ggmlq_metal_launch * launch);
/* rows, values, indices, feedback. Conventions of ggmlq_cuda_set_rows_for_queries, with heads of up to GGMLQ_ATTEND_MAX_HEAD_SIZE values. */
GGMLQ_CUDA_API int ggmlq_metal_set_rows_for_queries(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                                                    const struct ggmlq_cuda_view * indices, int index_bytes, const struct ggmlq_cuda_view * feedback,
                                                    struct ggmlq_metal_launch * launch);
/* values, rows, indices. rotated: without the inverse rotation. */
GGMLQ_CUDA_API int ggmlq_metal_get_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows,
                                        const struct ggmlq_cuda_view * indices, int index_bytes, bool rotated, struct ggmlq_metal_launch * launch);
/* dst, src, src again. */
GGMLQ_CUDA_API int ggmlq_metal_convert(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool rotated, struct ggmlq_metal_launch * launch);
/* dst, src: the same cache type, equally many values, any order of axes. */
GGMLQ_CUDA_API int ggmlq_metal_copy_rows(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, struct ggmlq_metal_launch * launch);
/* dst, src. */
GGMLQ_CUDA_API int ggmlq_metal_rotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool back,
                                      struct ggmlq_metal_launch * launch);
/* out, rows, x. */
GGMLQ_CUDA_API int ggmlq_metal_mul_mat(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * x,
                                       struct ggmlq_metal_launch * launch);

/* scores, q, rows, weights, mask: ggmlq_cuda_indexer. */
GGMLQ_CUDA_API int ggmlq_metal_indexer(const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                                       const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask, struct ggmlq_metal_launch * launch);

/* Up to three launches, each after the one before has written; a kernel that is NULL: there is no such launch. In place of a mask, sinks, w,
 * turns, positions or part that are absent, and of the list without `select`, any buffer. */
struct ggmlq_metal_attention {
    struct ggmlq_metal_launch select;  /* mask, list: the rows that each query token sees                     */
    struct ggmlq_metal_launch attend;  /* q, k, v, mask, sinks, list, parts (out if there is no `combine`), w, turns, positions, part */
    struct ggmlq_metal_launch combine; /* parts, sinks, out: tokens were split over threadgroups              */
    int64_t parts_at;                  /* bytes into the workspace; the list is at its start                  */
    int64_t workspace_bytes;
};

/* most > 0: no mask row has more values than that other than minus infinity, and what it has beyond is left out; only those rows are read.
 * The mask then has one head. */
GGMLQ_CUDA_API int ggmlq_metal_attend(const struct ggmlq_attend_params * p, int64_t most, struct ggmlq_metal_attention * attention);

/* Whether ggml-metal's f16 kernels should do it instead: on K and V that ggmlq_metal_to_f16 wrote, with queries rotated as K is, the result
 * rotated back as V is. sizes: values of the rows of K and of V that they are given; beyond those of p where keys are centered, and then
 * rows are [k | 256 part*c | 0] and [q | w/256 | 0], c the positional row, values of V past its own any, and those of the result are dropped. */
GGMLQ_CUDA_API bool ggmlq_metal_attend_wants_f16(const struct ggmlq_attend_params * p, int64_t sizes[2]);

/* 256: a power of two, so that halves hold w as well. */
#define GGMLQ_METAL_TERM_UNIT 256.0f

/* to, from. to <- factor*from, 0 behind the values of a row of `from`: both f32 or both f16, rows of `to` of whole planes of 32 values, equal shapes
 * but for that. */
GGMLQ_CUDA_API int ggmlq_metal_fill(const struct ggmlq_cuda_view * to, const struct ggmlq_cuda_view * from, float factor, struct ggmlq_metal_launch * launch);

/* to, turns, positions, part. to <- factor*part times the positional rows of p's n_kv tokens, in w's order of values, 0 behind them: f16, rows of whole
 * planes; tokens along axis 1, the same for all heads, sequences of the cache along axis 3. */
GGMLQ_CUDA_API int ggmlq_metal_positional(const struct ggmlq_cuda_view * to, const struct ggmlq_attend_params * p, float factor, struct ggmlq_metal_launch * launch);

/* dst, src, src again: rows of any type that attention reads to f16, in the space that they are stored in. Equal shapes. */
GGMLQ_CUDA_API int ggmlq_metal_to_f16(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, struct ggmlq_metal_launch * launch);

#ifdef __cplusplus
}
#endif

#endif
