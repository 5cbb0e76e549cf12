/* SPDX-License-Identifier: MIT
 *
 * Attention: what is allowed, and which kernel does it. See ggmlq-cuda.h.
 */
#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-cuda-attend.h"
#include "ggmlq-cuda-checks.h"

static const struct ggmlq_cuda_attend_kernel kernels[] = {
#if __has_include("ggmlq-cuda-attend-decode.cu") && !defined(GGMLQ_CUDA_ATTEND_PLAIN_ONLY)
    { "decode", ggmlq_cuda_attend_decode_supports, ggmlq_cuda_attend_decode_workspace_bytes, ggmlq_cuda_attend_decode_launch },
#endif
    { "plain",  ggmlq_cuda_attend_plain_supports,  ggmlq_cuda_attend_plain_workspace_bytes,  ggmlq_cuda_attend_plain_launch  },
};

int ggmlq_cuda_attend_check(const struct ggmlq_attend_params * p) {
    const int error = ggmlq_check_attend(p);
    return error ? error : p->n_kv > INT32_MAX ? GGMLQ_ERROR_SHAPE : GGMLQ_OK; /* tokens, too, are numbered in 31 bits */
}

static bool is_empty(const struct ggmlq_attend_params * p) { return p->n_queries == 0 || p->n_heads == 0 || p->n_seqs == 0; }

static const struct ggmlq_cuda_attend_kernel * choose(const struct ggmlq_attend_params * p) {
    for (size_t i = 0; i < sizeof(kernels)/sizeof(kernels[0]); ++i) {
        if (kernels[i].supports(p)) {
            return &kernels[i];
        }
    }
    return NULL; /* not reached: plain takes what the check allows */
}

const char * ggmlq_cuda_attend_kernel(const struct ggmlq_attend_params * p) {
    return ggmlq_cuda_attend_check(p) ? NULL : is_empty(p) ? "none" : choose(p)->name;
}

int64_t ggmlq_cuda_attend_workspace_bytes(const struct ggmlq_attend_params * p) {
    const int error = ggmlq_cuda_attend_check(p);
    return error ? error : is_empty(p) ? 0 : choose(p)->workspace_bytes(p);
}

int ggmlq_cuda_attend(const struct ggmlq_attend_params * p, void * workspace, void * stream) {
    const int error = ggmlq_cuda_attend_check(p);
    return error ? error : is_empty(p) ? GGMLQ_OK : choose(p)->launch(p, workspace, stream);
}
