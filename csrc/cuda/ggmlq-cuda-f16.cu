/* SPDX-License-Identifier: MIT
 *
 * See ggmlq-cuda-f16.h. A thread has 32 values of a row, a warp 32 adjacent ones of that kind: of 8 KV heads of 128, those of a token.
 *
 * What centered keys lack costs cosines and sines once for all heads of a token, and a Walsh-Hadamard transform, of which five steps are a thread's own.
 */
#include "ggmlq-cuda-rows.cuh"
#include "ggmlq-cuda-f16.h"

enum { THREADS = 256, PLANE = GGMLQ_PLANE, TABLE = 2048 /* pairs of all tokens of a block */ };

struct rows_to_f16 {
    const uint8_t * from;
    uint8_t       * to;
    int64_t from_nb[3], to_nb[3];
    struct divider planes, planes_of_token;
    uint32_t n_tokens, at_once; /* tokens of a block of threads */
};

struct mean_of_keys {
    const float    * mean;
    const uint64_t * turns;
    const uint8_t  * positions, * part;
    int64_t  positions_stride, part_stride;
    float    factor; /* over the root of `turned` too */
    int      turned, halves;
    struct divider pairs;
};

struct conversion {
    struct rows_to_f16 r[2];
    struct mean_of_keys m;
};

/* Half-distances 1 to 16, not normalized. */
GGMLQ_DEVICE void transform(float v[PLANE]) {
#pragma unroll
    for (int half = 1; half < PLANE; half *= 2) {
#pragma unroll
        for (int i = 0; i < PLANE; ++i) {
            if ((i & half) == 0) {
                const float a = v[i], b = v[i | half];
                v[i]        = a + b;
                v[i | half] = a - b;
            }
        }
    }
}

/* Rows of `type` hold nothing but planes of it, so the number of one says where its values are. */
template <int type> struct plane {
    typedef ggmlq_cache_type<type> T;
    uint32_t q[2], s;
    uint16_t scale;

    __device__ __forceinline__ void load(const uint8_t * row, uint32_t number) {
        const uint8_t * block = row + number/T::PLANES*T::BYTES;
        const int at = number % T::PLANES;
        q[0]  = ggmlq_read_u32(block + T::Q_AT + 8*at);
        q[1]  = ggmlq_read_u32(block + T::Q_AT + 8*at + 4);
        s     = ggmlq_read_u32(block + T::S_AT + 4*at);
        scale = ggmlq_read_u16(block + T::SCALE_AT);
    }

    __device__ __forceinline__ void decode(uint32_t number, float v[PLANE]) const {
#pragma unroll
        for (int j = 0; j < PLANE; j += 4) {
            ggmlq_levels_to_floats(ggmlq_unpack_quad<type>(q[j/4 % 2], s, j/4 % 2, j/8), v + j);
        }
        const float unit = ggmlq_half_value(scale)*T::UNIT;
        if (type == GGMLQ_TYPE_TQ3_0) {
            transform(v); /* of integers, exactly */
            const float norm = unit*GGMLQ_CUDA_NORM32;
#pragma unroll
            for (int j = 0; j < PLANE; ++j) {
                v[j] *= GGMLQ_TQ3_0_SIGNS >> j & 1 ? -norm : norm;
            }
        } else {
            const float4 * turns = (const float4 *) ggmlq_cos_sin[number % T::PLANES*(PLANE/2)];
#pragma unroll
            for (int j = 0; j < PLANE; j += 4) {
                const float4 cs = turns[j/4];
                const float a = unit*v[j], b = unit*v[j + 1], c = unit*v[j + 2], d = unit*v[j + 3];
                v[j]     = cs.x*a + cs.y*b;
                v[j + 1] = cs.x*b - cs.y*a;
                v[j + 2] = cs.z*c + cs.w*d;
                v[j + 3] = cs.z*d - cs.w*c;
            }
        }
    }
};

template <> struct plane<GGMLQ_CUDA_F16> {
    uint4 h[4];

    __device__ __forceinline__ void load(const uint8_t * row, uint32_t number) {
        for (int i = 0; i < 4; ++i) {
            h[i] = ((const uint4 *) (row + 2*PLANE*number))[i];
        }
    }
    __device__ __forceinline__ void decode(uint32_t, float v[PLANE]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t words[4] = { h[i].x, h[i].y, h[i].z, h[i].w };
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                v[8*i + k] = ggmlq_half_value((uint16_t) (words[k/2] >> 16*(k % 2)));
            }
        }
    }
};

/* Values number*32 and up of the mean of a head, at the position that the table is of. */
GGMLQ_DEVICE void turned_mean(const struct mean_of_keys & m, const float * mean, const float2 * table, uint32_t number, float v[PLANE]) {
    const int pairs = (int) m.pairs.d;
#pragma unroll
    for (int j = 0; j < PLANE; j += 4) {
        const int at = (int) number*PLANE + j;
        if (at >= 2*pairs) {
            v[j] = v[j + 1] = v[j + 2] = v[j + 3] = 0.0f;
        } else if (m.halves) {
            const bool  first = at < pairs;
            const int   other = first ? at + pairs : at - pairs;
            const float4 a = *(const float4 *) (mean + at), b = *(const float4 *) (mean + other);
            const float4 * cs = (const float4 *) (table + (first ? at : other));
            const float4 cs0 = cs[0], cs1 = cs[1];
            const float sign = first ? -1.0f : 1.0f;
            v[j]     = cs0.x*a.x + sign*cs0.y*b.x;
            v[j + 1] = cs0.z*a.y + sign*cs0.w*b.y;
            v[j + 2] = cs1.x*a.z + sign*cs1.y*b.z;
            v[j + 3] = cs1.z*a.w + sign*cs1.w*b.w;
        } else {
            const float4 a = *(const float4 *) (mean + at), cs = *(const float4 *) (table + at/2);
            v[j]     = cs.x*a.x - cs.y*a.y;
            v[j + 1] = cs.y*a.x + cs.x*a.y;
            v[j + 2] = cs.z*a.z - cs.w*a.w;
            v[j + 3] = cs.w*a.z + cs.z*a.w;
        }
    }
}

GGMLQ_DEVICE uint32_t two_halves(float a, float b) {
    return __half_as_ushort(__float2half_rn(a)) | (uint32_t) __half_as_ushort(__float2half_rn(b)) << 16;
}

/* 64 bytes of each of four threads: each stores 16 of all four, side by side, where whole sectors of memory are written. All threads; NULL: not this one's. */
GGMLQ_DEVICE void store_planes(uint8_t * to, const float v[PLANE], int lane) {
    float words[4][4]; /* [word][16 bytes] */
#pragma unroll
    for (int w = 0; w < 4; ++w) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[w][i] = __uint_as_float(two_halves(v[8*i + 2*w], v[8*i + 2*w + 1]));
        }
        ggmlq_transpose(words[w], lane, 1, 2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint64_t its = ggmlq_shuffle((uint32_t) (uint64_t) to, (lane & ~3) + i) | (uint64_t) ggmlq_shuffle((uint32_t) ((uint64_t) to >> 32), (lane & ~3) + i) << 32;
        const uint4 four = { __float_as_uint(words[0][i]), __float_as_uint(words[1][i]), __float_as_uint(words[2][i]), __float_as_uint(words[3][i]) };
        if (its != 0) {
            ((uint4 *) its)[lane % 4] = four;
        }
    }
}

template <int type, bool centered> static __global__ void __launch_bounds__(THREADS, centered ? 2 : 3) to_f16(const struct conversion c) {
    __shared__ __align__(16) float2 table[centered ? TABLE : 2]; /* [token][pair] */
    const struct rows_to_f16 & r = c.r[blockIdx.y];
    const bool with_mean = centered && blockIdx.y == 0;
    const int  lane = threadIdx.x % 32;
    const uint32_t first = blockIdx.x*r.at_once, seq = blockIdx.z;
    ggmlq_wait_for_previous();
    if (first >= r.n_tokens) {
        return;
    }
    const uint32_t tokens = r.n_tokens - first < r.at_once ? r.n_tokens - first : r.at_once, units = tokens*r.planes_of_token.d;
    if (with_mean) {
        for (uint32_t i = threadIdx.x; i < tokens*c.m.pairs.d; i += THREADS) {
            const uint32_t token = divide(i, c.m.pairs), pair = i - token*c.m.pairs.d;
            const float part = c.m.part ? ggmlq_half_value(*(const uint16_t *) (c.m.part + seq*c.m.part_stride + 2*(int64_t) (first + token))) : 1.0f;
            const float2 row = ggmlq_positional(*(const int32_t *) (c.m.positions + seq*c.m.positions_stride + 4*(int64_t) (first + token)), c.m.turns[pair]);
            const float  by  = part*c.m.factor;
            table[i] = make_float2(by*row.x, by*row.y);
        }
        __syncthreads();
    }
    for (uint32_t base = 0; base < units; base += THREADS) {
        const uint32_t number = base + threadIdx.x, unit = number < units ? number : units - 1; /* shuffles need all threads */
        const uint32_t token = divide(unit, r.planes_of_token), of_token = unit - token*r.planes_of_token.d;
        const uint32_t head = divide(of_token, r.planes), at = of_token - head*r.planes.d;
        const int64_t  n = first + token;
        struct plane<type> p;
        p.load(r.from + n*r.from_nb[0] + head*r.from_nb[1] + seq*r.from_nb[2], at);
        float v[PLANE];
        if (with_mean) {
            float u[PLANE];
            turned_mean(c.m, c.m.mean + head*r.planes.d*PLANE, table + token*c.m.pairs.d, at, u);
            if (c.m.turned) {
                transform(u);
                for (int mask = 1; PLANE*mask < c.m.turned; mask *= 2) {
                    const float sign = lane & mask ? -1.0f : 1.0f;
#pragma unroll
                    for (int i = 0; i < PLANE; ++i) {
                        u[i] = fmaf(sign, u[i], ggmlq_shuffle_xor(u[i], mask));
                    }
                }
            }
            p.decode(at, v);
#pragma unroll
            for (int i = 0; i < PLANE; ++i) {
                v[i] += u[i];
            }
        } else {
            p.decode(at, v);
        }
        store_planes(number < units ? r.to + n*r.to_nb[0] + head*r.to_nb[1] + seq*r.to_nb[2] + 2*PLANE*at : NULL, v, lane);
    }
}

/* --- launches --------------------------------------------------------------------------------------------------- */

static bool on_16(const struct ggmlq_cuda_view * v) {
    return ((uintptr_t) v->data | (uintptr_t) v->nb[1] | (uintptr_t) v->nb[2] | (uintptr_t) v->nb[3]) % 16 == 0;
}

static int check_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows) {
    if (values->type != GGMLQ_CUDA_F16 || (rows->type != GGMLQ_CUDA_F16 && !ggmlq_is_cache_type(rows->type))) {
        return GGMLQ_ERROR_TYPE;
    }
    int error = ggmlq_check_view(rows, rows->type == GGMLQ_CUDA_F16 ? (int64_t) PLANE : ggmlq_type_info_get(rows->type)->block_length);
    error = error ? error : ggmlq_check_view(values, PLANE);
    if (error) {
        return error;
    }
    for (int i = 0; i < 4; ++i) {
        if (rows->ne[i] != values->ne[i]) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    return !on_16(values) || (rows->type == GGMLQ_CUDA_F16 && !on_16(rows)) || rows->ne[3] > 65535 ||
        (rows->ne[2] > 0 && rows->ne[0] > INT32_MAX/2/rows->ne[2]) ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

int ggmlq_cuda_to_f16_check(const struct ggmlq_cuda_f16_rows * p) {
    for (int i = 0; i < 2; ++i) {
        const int error = p->wanted[i] ? check_rows(&p->values[i], &p->rows[i]) : GGMLQ_OK;
        if (error) {
            return error;
        }
    }
    if (!p->wanted[0] || !p->term) {
        return GGMLQ_OK;
    }
    const int64_t length = p->rows[0].ne[0], pairs = p->term->n_pairs;
    const bool can_turn = p->turned == 0 || ((p->turned & (p->turned - 1)) == 0 && p->turned >= 2*PLANE && p->turned <= 32*PLANE && length % p->turned == 0);
    return pairs < 1 || pairs % 4 != 0 || 2*pairs > length || pairs > TABLE || (uintptr_t) p->mean % 16 != 0 || !can_turn ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

static struct rows_to_f16 make_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, int64_t pairs) {
    struct rows_to_f16 r;
    r.from = (const uint8_t *) rows->data;
    r.to   = (uint8_t *) values->data;
    for (int i = 0; i < 3; ++i) {
        r.from_nb[i] = rows->nb[i + 1];
        r.to_nb[i]   = values->nb[i + 1];
    }
    const int64_t planes = rows->ne[0]/PLANE, planes_of_token = planes*rows->ne[2];
    r.planes          = make_divider(planes);
    r.planes_of_token = make_divider(planes_of_token);
    r.n_tokens        = (uint32_t) rows->ne[1];
    int64_t at_once = planes_of_token < THREADS ? THREADS/planes_of_token : 1;
    if (pairs > 0 && at_once*pairs > TABLE) {
        at_once = TABLE/pairs;
    }
    r.at_once = (uint32_t) at_once;
    return r;
}

template <int type, bool centered> static void launch(const struct conversion & c, dim3 grid, void * stream) {
    if (!ggmlq_launch_early<to_f16<type, centered>>(grid, THREADS, (cudaStream_t) stream, c)) {
        to_f16<type, centered><<<grid, THREADS, 0, (cudaStream_t) stream>>>(c);
    }
}

template <bool centered> static int convert(int type, const struct conversion & c, int parts, int64_t seqs, void * stream) {
    uint32_t blocks = 0;
    for (int i = 0; i < parts; ++i) {
        const uint32_t n = (c.r[i].n_tokens + c.r[i].at_once - 1)/c.r[i].at_once;
        blocks = n > blocks ? n : blocks;
    }
    if (blocks == 0 || seqs == 0) {
        return GGMLQ_OK;
    }
    const dim3 grid(blocks, parts, (unsigned int) seqs);
    switch (type) {
        case GGMLQ_TYPE_TQ3_0:   launch<GGMLQ_TYPE_TQ3_0,   centered>(c, grid, stream); break;
        case GGMLQ_TYPE_PLANAR3: launch<GGMLQ_TYPE_PLANAR3, centered>(c, grid, stream); break;
        default:                 launch<GGMLQ_CUDA_F16,     centered>(c, grid, stream); break;
    }
    return ggmlq_cuda_launched();
}

int ggmlq_cuda_to_f16(const struct ggmlq_cuda_f16_rows * p, void * stream) {
    int error = ggmlq_cuda_to_f16_check(p);
    if (error) {
        return error;
    }
    struct conversion c = {};
    bool empty[2];
    for (int i = 0; i < 2; ++i) {
        const struct ggmlq_cuda_view * rows = &p->rows[i];
        empty[i] = !p->wanted[i] || rows->ne[0] == 0 || rows->ne[1] == 0 || rows->ne[2] == 0 || rows->ne[3] == 0;
        if (!empty[i]) {
            c.r[i] = make_rows(&p->values[i], rows, i == 0 && p->term ? p->term->n_pairs : 0);
        }
    }
    if (p->term) {
        c.m.mean             = p->mean;
        c.m.turns            = p->term->turns;
        c.m.positions        = (const uint8_t *) p->term->positions;
        c.m.part             = (const uint8_t *) p->term->part;
        c.m.positions_stride = p->term->positions_stride;
        c.m.part_stride      = p->term->part_stride;
        c.m.factor           = p->turned ? p->factor/sqrtf((float) p->turned) : p->factor;
        c.m.turned           = p->turned;
        c.m.halves           = p->term->pairs_are_halves;
        c.m.pairs            = make_divider(p->term->n_pairs);
    }
    const bool together = !empty[0] && !empty[1] && p->rows[0].type == p->rows[1].type && p->rows[0].ne[3] == p->rows[1].ne[3];
    if (!empty[0]) {
        error = (p->term ? convert<true> : convert<false>)(p->rows[0].type, c, together ? 2 : 1, p->rows[0].ne[3], stream);
    }
    if (!error && !empty[1] && !together) {
        c.r[0] = c.r[1];
        error = convert<false>(p->rows[1].type, c, 1, p->rows[1].ne[3], stream);
    }
    return error;
}
