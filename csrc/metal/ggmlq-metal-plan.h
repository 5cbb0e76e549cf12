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

enum { GGMLQ_METAL_MAX_OPERANDS = 7, GGMLQ_METAL_SHARED_BYTES = 32768 /* threadgroup memory of every Metal device */ };

struct ggmlq_metal_launch {
    const char * kernel;                          /* its name in the library; NULL: there is nothing to do */
    int32_t      constants[GGMLQ_METAL_CONSTANTS]; /* all of them, whether it uses them or not              */
    union {
        struct ggmlq_metal_rows_args    rows;
        struct ggmlq_metal_product_args product;
        struct ggmlq_metal_attend_args  attend;
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

/* q, k, v, mask, sinks, indices, out; in place of one that is absent any buffer. indices: NULL, or int32 [n_kv, n_queries, n_seqs], strides
 * nb[1] and nb[2]: the token that asks sees the rows of K and V that are named, of `n_rows`; a name out of range is hidden. The mask
 * then has a value for each name. */
GGMLQ_CUDA_API int ggmlq_metal_attend(const struct ggmlq_attend_params * p, const struct ggmlq_cuda_view * indices, int64_t n_rows,
                                      struct ggmlq_metal_launch * launch);

#ifdef __cplusplus
}
#endif

#endif
