/* SPDX-License-Identifier: MIT
 *
 * See ggmlq-cuda-center.h.
 */
#include "ggmlq-cuda-codec.cuh"
#include "ggmlq-cuda-center.h"
#include "ggmlq-cuda-checks.h"

enum { THREADS = 256, MOST_BLOCKS = 1 << 20 };

static constexpr float UNIT = 256.0f; /* a product of w and 16 bits of range to either side */

struct rows {
    uint8_t * data; /* of value `at` */
    int64_t   ne[4], nb[4];
    int64_t   count; /* threads with work */
};

/* A thread reads a value of c once and writes it for all heads. */
static __global__ void __launch_bounds__(THREADS) fill_keys(const struct rows r, const struct ggmlq_attend_params p) {
    const int64_t step = (int64_t) gridDim.x*THREADS;
    for (int64_t i = (int64_t) blockIdx.x*THREADS + threadIdx.x; i < r.count; i += step) {
        const int64_t j = i % r.ne[0], token = i/r.ne[0] % r.ne[1], seq = i/r.ne[0]/r.ne[1];
        float x = 0.0f;
        if (j < p.c_size) {
            const float part = p.part ? ggmlq_half_value(*(const uint16_t *) ((const uint8_t *) p.part + seq*p.part_stride + 2*token)) : 1.0f;
            if (part != 0.0f) { /* c of a token without a part may be anything */
                x = UNIT*part*ggmlq_half_value(*(const uint16_t *) ((const uint8_t *) p.c + token*p.c_stride[0] + seq*p.c_stride[1] + 2*j));
            }
        }
        uint8_t * to = r.data + 2*j + token*r.nb[1] + seq*r.nb[3];
        for (int64_t head = 0; head < r.ne[2]; ++head) {
            *(__half *) (to + head*r.nb[2]) = __float2half_rn(x);
        }
    }
}

static __global__ void __launch_bounds__(THREADS) fill_queries(const struct rows r, const struct ggmlq_attend_params p) {
    const int64_t step = (int64_t) gridDim.x*THREADS;
    for (int64_t i = (int64_t) blockIdx.x*THREADS + threadIdx.x; i < r.count; i += step) {
        const int64_t j = i % r.ne[0], token = i/r.ne[0] % r.ne[1], head = i/r.ne[0]/r.ne[1] % r.ne[2], seq = i/r.ne[0]/r.ne[1]/r.ne[2];
        const float x = j < p.c_size ? *(const float *) ((const uint8_t *) p.w + token*p.w_stride[0] + head*p.w_stride[1] + seq*p.w_stride[2] + 4*j) : 0.0f;
        *(float *) (r.data + 4*j + token*r.nb[1] + head*r.nb[2] + seq*r.nb[3]) = x*(1.0f/UNIT);
    }
}

static int check(const struct ggmlq_cuda_view * v, int type, int64_t at, const struct ggmlq_attend_params * p) {
    if (v->type != type) {
        return GGMLQ_ERROR_TYPE;
    }
    const int error = ggmlq_check_view(v, 1);
    return error ? error : p->c == NULL || p->w == NULL || p->c_size < 1 || at < 0 || p->c_size > v->ne[0] - at ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

static struct rows rows_of(const struct ggmlq_cuda_view * v, int64_t at) {
    struct rows r;
    r.data = (uint8_t *) v->data + at*v->nb[0];
    for (int i = 0; i < 4; ++i) {
        r.ne[i] = v->ne[i];
        r.nb[i] = v->nb[i];
    }
    r.ne[0] -= at;
    return r;
}

static unsigned int blocks_of(int64_t count) {
    const int64_t blocks = (count + THREADS - 1)/THREADS;
    return (unsigned int) (blocks < (int64_t) MOST_BLOCKS ? blocks : (int64_t) MOST_BLOCKS);
}

int ggmlq_cuda_center_keys(const struct ggmlq_cuda_view * keys, int64_t at, const struct ggmlq_attend_params * p, void * stream) {
    const int error = check(keys, GGMLQ_CUDA_F16, at, p);
    if (error) {
        return error;
    }
    struct rows r = rows_of(keys, at);
    r.count = r.ne[0]*r.ne[1]*r.ne[3];
    if (r.count*r.ne[2] == 0) {
        return GGMLQ_OK;
    }
    fill_keys<<<blocks_of(r.count), THREADS, 0, (cudaStream_t) stream>>>(r, *p);
    return ggmlq_cuda_launched();
}

int ggmlq_cuda_center_queries(const struct ggmlq_cuda_view * queries, int64_t at, const struct ggmlq_attend_params * p, void * stream) {
    const int error = check(queries, GGMLQ_CUDA_F32, at, p);
    if (error) {
        return error;
    }
    struct rows r = rows_of(queries, at);
    r.count = r.ne[0]*r.ne[1]*r.ne[2]*r.ne[3];
    if (r.count == 0) {
        return GGMLQ_OK;
    }
    fill_queries<<<blocks_of(r.count), THREADS, 0, (cudaStream_t) stream>>>(r, *p);
    return ggmlq_cuda_launched();
}
