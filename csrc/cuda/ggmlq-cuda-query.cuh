/* SPDX-License-Identifier: MIT
 *
 * Queries that are rotated and rounded to 8 bits once, for all rows that they meet: all 8-bit values, then all factors d.
 */
#ifndef GGMLQ_CUDA_QUERY_CUH
#define GGMLQ_CUDA_QUERY_CUH

#include "ggmlq-cuda-codec.cuh"

enum { GGMLQ_QUERY_THREADS = 128, GGMLQ_QUERY_PLANES = GGMLQ_QUERY_THREADS/4 };

struct ggmlq_queries {
    const uint8_t * data;      /* f32 [n, columns, heads, sequences] */
    int64_t  nb1, nb2, nb3;
    uint32_t columns, heads;
    int8_t * values;
    float  * d;
    int      n;
};

/* Four threads a plane pair; a query of planar3 has one d for four of them. */
template <int type> static __global__ void __launch_bounds__(GGMLQ_QUERY_THREADS)
ggmlq_encode_queries(const struct ggmlq_queries q, uint32_t n_planes) {
    typedef ggmlq_cache_type<type> T;
    const int lane = threadIdx.x % 32, t = lane % 4;
    const uint32_t number = blockIdx.x*(GGMLQ_QUERY_PLANES) + threadIdx.x/4;
    const uint32_t pair   = number < n_planes ? number : n_planes - 1;
    const uint32_t query  = pair/(uint32_t) (q.n/GGMLQ_PLANE), plane = pair%(uint32_t) (q.n/GGMLQ_PLANE);
    const uint32_t column = query%q.columns, head = query/q.columns%q.heads, seq = query/q.columns/q.heads;
    const uint8_t * x = q.data + column*q.nb1 + head*q.nb2 + seq*q.nb3 + 4*(GGMLQ_PLANE*(int64_t) plane + 4*t);
    float v[2][4];
    for (int h = 0; h < 2; ++h) {
        ggmlq_load_floats(GGMLQ_CUDA_F32, x + 64*h, 4, v[h]);
    }
    ggmlq_rotate_plane<type>(v, lane, plane % T::PLANES);

    uint32_t max = 0;
    for (int i = 0; i < 8; ++i) {
        const uint32_t bits = __float_as_uint(v[i/4][i%4]) & 0x7fffffff;
        max = bits > max ? bits : max;
    }
    for (int mask = 1; mask < 4*T::PLANES; mask *= 2) {
        const uint32_t other = ggmlq_shuffle_xor(max, mask);
        max = other > max ? other : max;
    }
    float d = ggmlq_div(__uint_as_float(max), 127.0f);
    const bool coded = max < 0x7f800000 && __float_as_uint(d) >= 0x00800000; /* not where 1/d could be infinite */
    if (!coded) {
        d = max < 0x7f800000 ? 0.0f : __uint_as_float(0x7fc00000);
    }
    const float inverse = ggmlq_div(1.0f, d);
    for (int h = 0; h < 2 && number < n_planes; ++h) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) {
            const float scaled = ggmlq_mul(v[h][i], inverse);
            const float bound  = scaled > 127.0f ? 127.0f : scaled < -127.0f ? -127.0f : scaled;
            word |= (__float_as_uint(ggmlq_add(bound, 12582912.0f)) & 255) << 8*i; /* 1.5 * 2^23: rounds to an integer in the low bits */
        }
        *(uint32_t *) (q.values + (int64_t) query*q.n + GGMLQ_PLANE*plane + 16*h + 4*t) = coded ? word : 0;
    }
    if (number < n_planes && t == 0 && plane % T::PLANES == 0) {
        q.d[(int64_t) query*(q.n/T::LENGTH) + plane/T::PLANES] = d;
    }
}

#endif
