/* SPDX-License-Identifier: MIT
 *
 * The attention kernels of the CUDA back end; ggmlq-cuda-attend.cu lists them in the order in which they are tried.
 */
#ifndef GGMLQ_CUDA_ATTEND_H
#define GGMLQ_CUDA_ATTEND_H

#include "ggmlq-cuda.h"

/* p has passed ggmlq_cuda_attend_check and isn't empty. workspace_bytes and launch: supports(p) was true. launch gives 0 or
 * GGMLQ_ERROR_DEVICE. */
struct ggmlq_cuda_attend_kernel {
    const char * name;
    bool    (* supports)       (const struct ggmlq_attend_params * p);
    int64_t (* workspace_bytes)(const struct ggmlq_attend_params * p);
    int     (* launch)         (const struct ggmlq_attend_params * p, void * workspace, void * stream);
    /* The same, every 64 values of the output turned, where turns(p); NULL: nowhere. */
    bool    (* turns)          (const struct ggmlq_attend_params * p);
    int     (* turned)         (const struct ggmlq_attend_params * p, void * workspace, void * stream);
};

/* Few queries, tensor cores. */
bool    ggmlq_cuda_attend_decode_supports       (const struct ggmlq_attend_params * p);
int64_t ggmlq_cuda_attend_decode_workspace_bytes(const struct ggmlq_attend_params * p);
int     ggmlq_cuda_attend_decode_launch         (const struct ggmlq_attend_params * p, void * workspace, void * stream);
bool    ggmlq_cuda_attend_decode_turns          (const struct ggmlq_attend_params * p);
int     ggmlq_cuda_attend_decode_turned         (const struct ggmlq_attend_params * p, void * workspace, void * stream);

/* Any shape, any device, float arithmetic throughout: what the others are measured against. */
bool    ggmlq_cuda_attend_plain_supports       (const struct ggmlq_attend_params * p);
int64_t ggmlq_cuda_attend_plain_workspace_bytes(const struct ggmlq_attend_params * p);
int     ggmlq_cuda_attend_plain_launch         (const struct ggmlq_attend_params * p, void * workspace, void * stream);

#endif
