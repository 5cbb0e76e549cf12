/* SPDX-License-Identifier: MIT
 *
 * Centered keys (docs/CENTERING.md) for attention kernels that know nothing of them, such as llama.cpp's f16 kernels: rows [k | part*c | 0] and
 * [q | w | 0], with c multiplied and w divided by a power of two, so that halves hold w as well. Conventions of ggmlq-cuda.h.
 */
#ifndef GGMLQ_CUDA_CENTER_H
#define GGMLQ_CUDA_CENTER_H

#include "ggmlq-cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fill values `at` and up of every row. keys: f16 [length, n_kv, any number of heads, n_seqs_kv]; queries: f32 [length, n_queries, heads, n_seqs], heads
 * from p->w on. Of p: w, c, part, their strides and c_size, at most length - at. Cells that were never written hold anything; where part is 0, c has no influence unless it
 * isn't finite. */
GGMLQ_CUDA_API int ggmlq_cuda_center_keys   (const struct ggmlq_cuda_view * keys,    int64_t at, const struct ggmlq_attend_params * p, void * stream);
GGMLQ_CUDA_API int ggmlq_cuda_center_queries(const struct ggmlq_cuda_view * queries, int64_t at, const struct ggmlq_attend_params * p, void * stream);

#ifdef __cplusplus
}
#endif

#endif
