/* SPDX-License-Identifier: MIT
 *
 * K and V as f16 rows, for attention kernels that know no other, such as llama.cpp's. Conventions of ggmlq-cuda.h.
 */
#ifndef GGMLQ_CUDA_F16_H
#define GGMLQ_CUDA_F16_H

#include "ggmlq-cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* values <- decoded rows, with the rotation of their type undone, of K (index 0) and V (index 1), as far as they are wanted; in one launch if they have one type.
 * rows: a cache type or f16 [length, tokens, heads, sequences], length a multiple of 32; values: f16, the same shape; f16 lies on multiples of 16 bytes, a cache type on even addresses, and f16 rows may be the values.
 *
 * term: NULL, or mean is what centered keys (docs/CENTERING.md) lack: F32 [length, heads], contiguous, on multiples of 16 bytes. To every key belongs factor * part of its token * the mean, whose pairs are
 * turned as the token's position says (ggmlq_attend_params: n_pairs, an even number, pairs_are_halves, turns, positions, part and their strides; 2*n_pairs values of the mean count), then every
 * `turned` values by a Walsh-Hadamard transform over the square root of that (llama.cpp's attn_rot), 64, 128, 256, 512 or 1024; 0: not. */
struct ggmlq_cuda_f16_rows {
    int           wanted[2];
    struct ggmlq_cuda_view values[2], rows[2];
    const float * mean;
    float         factor;
    int           turned;
    const struct ggmlq_attend_params * term;
};
GGMLQ_CUDA_API int ggmlq_cuda_to_f16_check(const struct ggmlq_cuda_f16_rows * p);
GGMLQ_CUDA_API int ggmlq_cuda_to_f16      (const struct ggmlq_cuda_f16_rows * p, void * stream);

#ifdef __cplusplus
}
#endif

#endif
