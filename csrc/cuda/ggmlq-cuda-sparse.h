/* SPDX-License-Identifier: MIT
 *
 * DeepSeek's sparse attention on the device: attention over the rows that a mask leaves, and the scores by which the lightning
 * indexer selects rows. Conventions of ggmlq-cuda.h.
 */
#ifndef GGMLQ_CUDA_SPARSE_H
#define GGMLQ_CUDA_SPARSE_H

#include "ggmlq-cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ggmlq_cuda_attend where every mask row has at most `most` values other than minus infinity; columns beyond that many are left out.
 * The rows of those columns are gathered into the workspace, in order and as the bytes that they are, each query token's by
 * themselves, and the kernel that ..._kernel names attends to them. One KV head; several query tokens or several sequences, not both. */
GGMLQ_CUDA_API int          ggmlq_cuda_attend_selected_check          (const struct ggmlq_attend_params * p, int64_t most);
GGMLQ_CUDA_API const char * ggmlq_cuda_attend_selected_kernel         (const struct ggmlq_attend_params * p, int64_t most);
GGMLQ_CUDA_API int64_t      ggmlq_cuda_attend_selected_workspace_bytes(const struct ggmlq_attend_params * p, int64_t most);
GGMLQ_CUDA_API int          ggmlq_cuda_attend_selected                (const struct ggmlq_attend_params * p, int64_t most, void * workspace, void * stream);

/* scores[row, token, 0, s] = mask[row, token, 0, s % ..] + sum over heads of weights[head, token, 0, s] * max(0, <q[head, token, s], rows[row, s]>):
 * ggml's LIGHTNING_INDEXER. rows: encoded [128, 1, n_rows, sequences]; q: f32 [128, heads, tokens, sequences], rotated and rounded to 8 bits;
 * weights: f32; mask: f16; scores: f32. */
GGMLQ_CUDA_API int     ggmlq_cuda_indexer_check          (const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                                                          const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask);
GGMLQ_CUDA_API int64_t ggmlq_cuda_indexer_workspace_bytes(int type, const struct ggmlq_cuda_view * q);
GGMLQ_CUDA_API int     ggmlq_cuda_indexer                (const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                                                          const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask, void * workspace, void * stream);

#ifdef __cplusplus
}
#endif

#endif
