/* SPDX-License-Identifier: MIT
 *
 * Attention: what is allowed, and which kernel does it. See ggmlq-cuda.h.
 */
#include "ggmlq-cuda-codec.cuh"
#include "ggmlq-cuda-attend.h"
#include "ggmlq-cuda-checks.h"

static const struct ggmlq_cuda_attend_kernel kernels[] = {
#if __has_include("ggmlq-cuda-attend-decode.cu") && !defined(GGMLQ_CUDA_ATTEND_PLAIN_ONLY)
    { "decode", ggmlq_cuda_attend_decode_supports, ggmlq_cuda_attend_decode_workspace_bytes, ggmlq_cuda_attend_decode_launch,
                ggmlq_cuda_attend_decode_turns, ggmlq_cuda_attend_decode_turned },
#endif
    { "plain",  ggmlq_cuda_attend_plain_supports,  ggmlq_cuda_attend_plain_workspace_bytes,  ggmlq_cuda_attend_plain_launch, NULL, NULL },
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

/* --- turned back ------------------------------------------------------------------------------------------------ */

enum { TURN_THREADS = 128 };

/* Four threads for 32 values. */
static __global__ void __launch_bounds__(TURN_THREADS) turn_output(const struct ggmlq_attend_params p, uint32_t n_planes) {
    const uint32_t number = blockIdx.x*(TURN_THREADS/4) + threadIdx.x/4, plane = number < n_planes ? number : n_planes - 2 + number % 2, planes = (uint32_t) p.head_size_v/GGMLQ_PLANE;
    const uint32_t row = plane/planes, heads = (uint32_t) p.n_heads, queries = (uint32_t) p.n_queries, head = row % heads, token = row/heads % queries, seq = row/heads/queries;
    uint8_t * const out = (uint8_t *) p.out + token*p.out_stride[0] + head*p.out_stride[1] + seq*p.out_stride[2] + 4*(GGMLQ_PLANE*(plane - row*planes) + 4*(threadIdx.x % 4));
    float v[2][4];
    for (int h = 0; h < 2; ++h) {
        ggmlq_load_floats(GGMLQ_CUDA_F32, out + 64*h, 4, v[h]);
    }
    ggmlq_turn_planes(v, threadIdx.x % 32, 64, 0.125f);
    for (int h = 0; h < 2 && number < n_planes; ++h) {
        ggmlq_store_floats(GGMLQ_CUDA_F32, out + 64*h, v[h]);
    }
}

int ggmlq_cuda_attend_turned_check(const struct ggmlq_attend_params * p) {
    const int error = ggmlq_cuda_attend_check(p);
    if (error || is_empty(p)) {
        return error ? error : GGMLQ_ERROR_SHAPE;
    }
    return p->head_size_v % 64 != 0 ? GGMLQ_ERROR_LENGTH : p->n_queries*p->n_heads*p->n_seqs > INT32_MAX/(p->head_size_v/GGMLQ_PLANE) ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

int ggmlq_cuda_attend_turned(const struct ggmlq_attend_params * p, void * workspace, void * stream) {
    int error = ggmlq_cuda_attend_turned_check(p);
    if (error) {
        return error;
    }
    const struct ggmlq_cuda_attend_kernel * kernel = choose(p);
    if (kernel->turned && kernel->turns(p)) {
        return kernel->turned(p, workspace, stream);
    }
    error = kernel->launch(p, workspace, stream);
    if (error) {
        return error;
    }
    const uint32_t n_planes = (uint32_t) (p->n_queries*p->n_heads*p->n_seqs*(p->head_size_v/GGMLQ_PLANE));
    turn_output<<<(n_planes + TURN_THREADS/4 - 1)/(TURN_THREADS/4), TURN_THREADS, 0, (cudaStream_t) stream>>>(*p, n_planes);
    return ggmlq_cuda_launched();
}
