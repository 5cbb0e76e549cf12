/* SPDX-License-Identifier: MIT
 *
 * See ggmlq-cuda-f16.h. A thread has 32 adjacent values (a plane) of a row, always the same ones of one token after the other: of 8 KV heads of 128, the 32 threads of a warp have those of a token.
 *
 * What centered keys lack is computed in pairs of halves, about as exact as the f16 rows that it is added to: cosines and sines once for all heads of a token, in shared memory; the mean in registers;
 * five steps of a Walsh-Hadamard transform among a thread's own values, the others by shuffles.
 */
#include "ggmlq-cuda-rows.cuh"
#include "ggmlq-cuda-f16.h"

enum { THREADS = 256, PLANE = GGMLQ_PLANE, WORDS = PLANE/2,
       ROUNDS = 6,           /* tokens of a thread, where there are many: what it prepares pays from there on */
       BLOCKS = 264,         /* of threads, where rows are few */
       TABLE = 12288,        /* halves: cosines and sines for the values of a head, of all tokens of a block of threads */
       MOST_VALUES = 8192, MOST_CENTERED = 2048, /* of a head */
       MEAN_STRIDE = WORDS + 1 /* words, so that threads read their planes from different banks */ };

struct rows_to_f16 {
    const uint8_t * from;
    uint8_t       * to;
    int64_t from_nb[3], to_nb[3];
    struct divider planes;    /* of a head */
    uint32_t n_tokens, units; /* planes of a token */
    uint32_t slots, at_once;  /* tokens side by side, and all, of a block of threads */
    uint32_t chunks;          /* blocks of threads that a token's planes take */
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

/* Two halves in a word. */
GGMLQ_DEVICE uint32_t word_of(__half2 h)     { uint32_t word; memcpy(&word, &h, 4); return word; }
GGMLQ_DEVICE __half2  halves_of(uint32_t w)  { __half2 h; memcpy(&h, &w, 4); return h; }

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

/* Cosines and sines of a token, times the factor of its part: for value i of a head what its mean is multiplied by, and what that of the other value of its pair. Chunks of eight values, in
 * the order in which threads that have adjacent planes read them: those at 8*chunk of all planes, then the next. */
GGMLQ_DEVICE int table_at(int value, int planes) { return (value/8 % 4*planes + value/PLANE)*8 + value % 8; }

GGMLQ_DEVICE void fill_table(const struct mean_of_keys & m, __half * table, int planes, uint32_t first, uint32_t tokens, uint32_t seq) {
    const int length = PLANE*planes, pairs = (int) m.pairs.d, rest = length - 2*pairs;
    for (uint32_t i = threadIdx.x; i < tokens*m.pairs.d; i += THREADS) {
        const uint32_t token = divide(i, m.pairs);
        const int      pair  = (int) (i - token*m.pairs.d), a = m.halves ? pair : 2*pair, b = m.halves ? pair + pairs : a + 1;
        const float    part  = m.part ? ggmlq_half_value(*(const uint16_t *) (m.part + seq*m.part_stride + 2*(int64_t) (first + token))) : 1.0f;
        const float2   turn  = ggmlq_positional(*(const int32_t *) (m.positions + seq*m.positions_stride + 4*(int64_t) (first + token)), m.turns[pair]);
        const float    by    = part*m.factor, sine = by*turn.y;
        __half * const own = table + token*2*length, * const other = own + length, cosine = __float2half_rn(by*turn.x);
        own[table_at(a, planes)]   = cosine;
        own[table_at(b, planes)]   = cosine;
        other[table_at(a, planes)] = __float2half_rn(-sine);
        other[table_at(b, planes)] = __float2half_rn(sine);
    }
    for (uint32_t i = threadIdx.x; rest > 0 && i < tokens*rest; i += THREADS) {
        const uint32_t token = i/rest, value = 2*pairs + i%rest;
        table[token*2*length + table_at(value, planes)] = table[token*2*length + length + table_at(value, planes)] = __float2half_rn(0.0f);
    }
}

/* The mean of a plane, and of the other value of each one's pair. */
struct mean_words { uint32_t own[WORDS], other[WORDS]; };

/* By way of shared memory, where a block of threads puts the planes that it works on. */
GGMLQ_DEVICE void load_mean(const struct mean_of_keys & m, uint32_t * shared, int planes, uint32_t first_unit, uint32_t units, uint32_t unit, struct mean_words & words) {
    for (uint32_t i = threadIdx.x; i < units*WORDS; i += THREADS) {
        const float2 two = ((const float2 *) m.mean)[first_unit*WORDS + i];
        shared[i/WORDS*MEAN_STRIDE + i%WORDS] = word_of(__floats2half2_rn(two.x, two.y));
    }
    __syncthreads();
    const int      at = (int) (first_unit + unit) % planes*PLANE, pairs = (int) m.pairs.d;
    const uint32_t * head = shared + ((int) unit - at/PLANE)*MEAN_STRIDE; /* blocks of threads have whole heads */
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        words.own[i] = shared[unit*MEAN_STRIDE + i];
        uint16_t other[2];
        for (int k = 0; k < 2; ++k) {
            const int value = at + 2*i + k, partner = value >= 2*pairs ? value : !m.halves ? value ^ 1 : value < pairs ? value + pairs : value - pairs;
            other[k] = (uint16_t) (head[partner/PLANE*MEAN_STRIDE + partner % PLANE/2] >> 16*(partner % 2));
        }
        words.other[i] = other[0] | (uint32_t) other[1] << 16;
    }
}

/* What a key lacks of the plane `number` of its head. */
GGMLQ_DEVICE void turned_mean(const struct mean_words & mean, const __half * table, int planes, uint32_t number, int turned, int lane, __half2 u[WORDS]) {
    const uint4 * own = (const uint4 *) table + number, * other = own + PLANE/8*planes;
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
        const uint4 a = own[chunk*planes], b = other[chunk*planes];
        const uint32_t by[4] = { a.x, a.y, a.z, a.w }, by_other[4] = { b.x, b.y, b.z, b.w };
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u[4*chunk + i] = __hfma2(halves_of(by_other[i]), halves_of(mean.other[4*chunk + i]), __hmul2(halves_of(by[i]), halves_of(mean.own[4*chunk + i])));
        }
    }
    if (turned == 0) {
        return;
    }
    const __half2 plus_minus = __floats2half2_rn(1.0f, -1.0f);
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        u[i] = __hfma2(__high2half2(u[i]), plus_minus, __low2half2(u[i])); /* half-distance 1 */
    }
#pragma unroll
    for (int half = 1; half < WORDS; half *= 2) { /* 2 to 16 */
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            if ((i & half) == 0) {
                const __half2 a = u[i], b = u[i | half];
                u[i]        = __hadd2(a, b);
                u[i | half] = __hsub2(a, b);
            }
        }
    }
    for (int mask = 1; PLANE*mask < turned; mask *= 2) {
        const float sign = lane & mask ? -1.0f : 1.0f;
        const __half2 signs = __floats2half2_rn(sign, sign);
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            u[i] = __hfma2(signs, u[i], halves_of(ggmlq_shuffle_xor(word_of(u[i]), mask)));
        }
    }
}

/* 64 bytes of each of four threads: each stores 16 of all four, side by side, where whole sectors of memory are written. All threads; NULL: not this one's. */
GGMLQ_DEVICE void store_planes(uint8_t * to, const __half2 h[WORDS], int lane) {
    float words[4][4]; /* [word][16 bytes] */
#pragma unroll
    for (int w = 0; w < 4; ++w) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[w][i] = __uint_as_float(word_of(h[4*i + w]));
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
    __shared__ __align__(16) __half table[centered ? TABLE : 8]; /* [token][own, other][value] */
    __shared__ uint32_t means[centered ? THREADS*MEAN_STRIDE : 1];
    const struct rows_to_f16 & r = c.r[blockIdx.y];
    const bool with_mean = centered && blockIdx.y == 0;
    const int  lane = threadIdx.x % 32, planes = (int) r.planes.d;
    const uint32_t group = blockIdx.x/r.chunks, chunk = blockIdx.x - group*r.chunks, first = group*r.at_once, seq = blockIdx.z;
    if (first >= r.n_tokens) {
        return;
    }
    const uint32_t per_chunk = r.chunks == 1 ? r.units : THREADS/r.planes.d*r.planes.d, first_unit = chunk*per_chunk;
    const uint32_t units = r.units - first_unit < per_chunk ? r.units - first_unit : per_chunk, tokens = r.n_tokens - first < r.at_once ? r.n_tokens - first : r.at_once;
    const uint32_t slot = threadIdx.x/units, unit = threadIdx.x - slot*units;
    const uint32_t head = divide(first_unit + unit, r.planes), at = first_unit + unit - head*r.planes.d;
    const uint8_t * from = r.from + head*r.from_nb[1] + seq*r.from_nb[2];
    uint8_t       * to   = r.to   + head*r.to_nb[1]   + seq*r.to_nb[2] + 2*PLANE*at;
    ggmlq_wait_for_previous();
    struct mean_words mean;
    if (with_mean) {
        fill_table(c.m, table, planes, first, tokens, seq);
        load_mean(c.m, means, planes, first_unit, units, unit, mean); /* with a barrier that the table needs too */
    }
    for (uint32_t base = 0; base < tokens; base += r.slots) {
        const bool     mine  = slot < r.slots && base + slot < tokens; /* shuffles need the others, too */
        const uint32_t token = mine ? base + slot : tokens - 1;
        struct plane<type> p;
        p.load(from + (int64_t) (first + token)*r.from_nb[0], at);
        __half2 u[WORDS];
        if (with_mean) {
            turned_mean(mean, table + token*2*PLANE*planes, planes, at, c.m.turned, lane, u);
        }
        float v[PLANE];
        p.decode(at, v);
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            const __half2 h = __floats2half2_rn(v[2*i], v[2*i + 1]);
            u[i] = with_mean ? __hadd2(h, u[i]) : h;
        }
        store_planes(mine ? to + (int64_t) (first + token)*r.to_nb[0] : NULL, u, lane);
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
    return !on_16(values) || (rows->type == GGMLQ_CUDA_F16 && !on_16(rows)) || rows->ne[3] > 65535 || rows->ne[0] > MOST_VALUES ||
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
    return pairs < 1 || 2*pairs > length || length > MOST_CENTERED || (uintptr_t) p->mean % 16 != 0 || !can_turn ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

static struct rows_to_f16 make_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, bool centered) {
    struct rows_to_f16 r;
    r.from = (const uint8_t *) rows->data;
    r.to   = (uint8_t *) values->data;
    for (int i = 0; i < 3; ++i) {
        r.from_nb[i] = rows->nb[i + 1];
        r.to_nb[i]   = values->nb[i + 1];
    }
    const int64_t planes = rows->ne[0]/PLANE, units = planes*rows->ne[2], per_chunk = units <= THREADS ? units : THREADS/planes*planes; /* whole heads */
    r.planes   = make_divider(planes);
    r.n_tokens = (uint32_t) rows->ne[1];
    r.units    = (uint32_t) units;
    r.chunks   = (uint32_t) ((units + per_chunk - 1)/per_chunk);
    const int64_t most = centered ? TABLE/2/rows->ne[0] : ROUNDS*THREADS, slots = THREADS/per_chunk < most ? THREADS/per_chunk : most, rounds = most/slots < ROUNDS ? most/slots : ROUNDS;
    const int64_t enough = (rows->ne[1] + BLOCKS*slots - 1)/(BLOCKS*slots); /* rounds that leave every multiprocessor some blocks */
    r.slots   = (uint32_t) slots;
    r.at_once = (uint32_t) (slots*(enough < 1 ? 1 : enough < rounds ? enough : rounds));
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
        const uint32_t n = (c.r[i].n_tokens + c.r[i].at_once - 1)/c.r[i].at_once*c.r[i].chunks;
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
            c.r[i] = make_rows(&p->values[i], rows, i == 0 && p->term);
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
