/* SPDX-License-Identifier: MIT
 *
 * See ggmlq-cuda-f16.h. A thread has 32 adjacent values (a plane) of a row, always the same ones of one token after the other: of 8 KV heads of 128, the 32 threads of a warp have those of a token.
 *
 * All is computed in pairs of halves, some roundings less exact than the rows that it gives. What centered keys lack: cosines and sines once for all heads of a token, in shared memory; the mean in registers;
 * five steps of a Walsh-Hadamard transform among a thread's own values, the others by shuffles.
 */
#include "ggmlq-cuda-rows.cuh"
#include "ggmlq-cuda-f16.h"

/* Tokens of a thread, where there are many: of centered keys as many as make what it prepares pay; plain rows are as fast as memory with two. BLOCKS: of threads, where tokens are few. TABLE: halves,
 * cosines and sines for the values of a head, of all tokens of a block of threads. MEAN_STRIDE: words, so that threads read their planes from different banks. MOST_..: values of a head. */
enum { THREADS = 128, PLANE = GGMLQ_PLANE, WORDS = PLANE/2, ROUNDS_PLAIN = 2, ROUNDS_CENTERED = 6, BLOCKS = 528, TABLE = 8192, MEAN_STRIDE = WORDS + 1,
       MOST_VALUES = THREADS*PLANE, MOST_CENTERED = TABLE/4 };

/* Blocks of threads that a multiprocessor is to hold, plain and centered. */
#if defined(GGMLQ_HIP) || defined(GGMLQ_MUSA) /* where the number means something else */
enum { AT_LEAST_PLAIN = 1, AT_LEAST_CENTERED = 1 };
#else
#    if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
enum { AT_LEAST_PLAIN = 8, AT_LEAST_CENTERED = 6 }; /* there are no more */
#    else
enum { AT_LEAST_PLAIN = 10, AT_LEAST_CENTERED = 6 };
#    endif
#endif

struct rows_to_f16 {
    const uint8_t * from;
    uint8_t       * to;
    uint32_t from_row, to_row; /* bytes from a token to the next */
    int64_t from_head, to_head, from_seq, to_seq;
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
GGMLQ_DEVICE void transform(__half2 v[WORDS]) {
    const __half2 plus_minus = __floats2half2_rn(1.0f, -1.0f);
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        v[i] = __hfma2(__high2half2(v[i]), plus_minus, __low2half2(v[i]));
    }
#pragma unroll
    for (int half = 1; half < WORDS; half *= 2) {
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            if ((i & half) == 0) {
                const __half2 a = v[i], b = v[i | half];
                v[i]        = __hadd2(a, b);
                v[i | half] = __hsub2(a, b);
            }
        }
    }
}

/* Four levels, signed bytes, times a power of 2: exactly, since 1024 + 128 + level is put together from bytes. */
GGMLQ_DEVICE void levels_to_halves(uint32_t levels, float unit, __half2 v[2]) {
    const uint32_t shifted = levels ^ 0x80808080u;
    const __half2  factor = __floats2half2_rn(unit, unit), offset = __floats2half2_rn(-1152.0f*unit, -1152.0f*unit);
    v[0] = __hfma2(halves_of(ggmlq_byte_perm(shifted, 0x64646464u, 0x4140)), factor, offset);
    v[1] = __hfma2(halves_of(ggmlq_byte_perm(shifted, 0x64646464u, 0x4342)), factor, offset);
}

/* The cosines and sines of planar3 as halves. */
enum { TURNS = 64 };

/* What is loaded of a plane, and its values, which are still to be multiplied. Levels come as fractions, so that what they are multiplied by has no smaller exponent than the values themselves. */
template <int type> struct plane {
    typedef ggmlq_cache_type<type> T;
    static constexpr float FRACTION = type == GGMLQ_TYPE_TQ3_0 ? 1.0f/256 : 1.0f/128;
    uint32_t q[2], s;
    uint16_t scale;

    __device__ __forceinline__ void load(const uint8_t * row, uint32_t number) {
        const uint8_t  * block = row + number/T::PLANES*T::BYTES;
        const int        at = number % T::PLANES;
        const uint16_t * q16 = (const uint16_t *) (block + T::Q_AT + 8*at), * s16 = (const uint16_t *) (block + T::S_AT + 4*at);
        q[0]  = q16[0] | (uint32_t) q16[1] << 16;
        q[1]  = q16[2] | (uint32_t) q16[3] << 16;
        s     = s16[0] | (uint32_t) s16[1] << 16;
        scale = *(const uint16_t *) (block + T::SCALE_AT);
    }

    __device__ __forceinline__ void decode(uint32_t number, const uint32_t * turns, __half2 v[WORDS]) const {
#pragma unroll
        for (int i = 0; i < WORDS; i += 2) {
            levels_to_halves(ggmlq_unpack_quad<type>(q[i/2 % 2], s, i/2 % 2, i/4), FRACTION, v + i);
        }
        if (type == GGMLQ_TYPE_TQ3_0) {
            transform(v);
            return;
        }
        const uint4 * turns_of_plane = (const uint4 *) (turns + number % T::PLANES*WORDS);
        const __half2 plus_minus = __floats2half2_rn(1.0f, -1.0f);
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) {
            const uint4 four = turns_of_plane[i/4];
            const uint32_t turn[4] = { four.x, four.y, four.z, four.w };
#pragma unroll
            for (int k = 0; k < 4; ++k) { /* (x, y) -> (c x + s y, c y - s x) */
                const __half2 cs = halves_of(turn[k]), swapped = halves_of(ggmlq_byte_perm(word_of(v[i + k]), 0, 0x1032));
                v[i + k] = __hfma2(swapped, __hmul2(__high2half2(cs), plus_minus), __hmul2(v[i + k], __low2half2(cs)));
            }
        }
    }

    /* Values multiplied, plus u. */
    __device__ __forceinline__ void add(const __half2 v[WORDS], bool plus, __half2 u[WORDS]) const {
        const float unit = ggmlq_half_value(scale)*(T::UNIT/FRACTION*(type == GGMLQ_TYPE_TQ3_0 ? GGMLQ_CUDA_NORM32 : 1.0f));
        const __half2 same = __floats2half2_rn(unit, unit), different = __floats2half2_rn(-unit, unit);
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            const int     signs = type == GGMLQ_TYPE_TQ3_0 ? GGMLQ_TQ3_0_SIGNS >> 2*i & 3 : 0; /* 1: of the first of two */
            const __half2 by = signs == 1 || signs == 2 ? different : same, x = signs < 2 ? v[i] : __hneg2(v[i]);
            u[i] = plus ? __hfma2(x, by, u[i]) : __hmul2(x, by);
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
    __device__ __forceinline__ void decode(uint32_t, const uint32_t *, __half2 v[WORDS]) const {
        for (int i = 0; i < 4; ++i) {
            v[4*i] = halves_of(h[i].x); v[4*i + 1] = halves_of(h[i].y); v[4*i + 2] = halves_of(h[i].z); v[4*i + 3] = halves_of(h[i].w);
        }
    }
    __device__ __forceinline__ void add(const __half2 v[WORDS], bool plus, __half2 u[WORDS]) const {
        for (int i = 0; i < WORDS; ++i) {
            u[i] = plus ? __hadd2(v[i], u[i]) : v[i];
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

/* The mean of a plane: in registers, and, of the other value of each one's pair, in shared memory, since registers of both would halve the threads that a multiprocessor holds. */
struct mean_words { uint32_t own[WORDS]; const uint32_t * other; };

/* shared: MEAN_STRIDE words a thread, where a block of threads first puts all planes that it works on. */
GGMLQ_DEVICE void load_mean(const struct mean_of_keys & m, uint32_t * shared, uint32_t planes, uint32_t first_unit, uint32_t units, uint32_t unit, struct mean_words & mean) {
    for (uint32_t i = threadIdx.x; i < units*WORDS; i += THREADS) {
        const float2 two = ((const float2 *) m.mean)[first_unit*WORDS + i];
        shared[i/WORDS*MEAN_STRIDE + i%WORDS] = word_of(__floats2half2_rn(two.x, two.y));
    }
    __syncthreads();
    const uint32_t at = (first_unit + unit)%planes*WORDS, half = m.pairs.d/2, * head = shared + (unit - at/WORDS)*MEAN_STRIDE; /* blocks of threads have whole heads */
    uint32_t other[WORDS];
#pragma unroll
    for (uint32_t i = 0; i < WORDS; ++i) {
        const uint32_t word = at + i, partner = !m.halves ? word : word < half ? word + half : word < 2*half ? word - half : word;
        other[i]    = ggmlq_byte_perm(head[partner + partner/WORDS], 0, m.halves ? 0x3210 : 0x1032);
        mean.own[i] = shared[unit*MEAN_STRIDE + i];
    }
    __syncthreads();
    uint32_t * mine = shared + threadIdx.x*MEAN_STRIDE;
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        mine[i] = other[i];
    }
    mean.other = mine;
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
    transform(u);
#pragma unroll 1
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

template <int type, bool centered> static __global__ void __launch_bounds__(THREADS, centered ? AT_LEAST_CENTERED : AT_LEAST_PLAIN) to_f16(const struct conversion c) {
    __shared__ __align__(16) __half table[centered ? TABLE : 8]; /* [token][own, other][value] */
    __shared__ uint32_t means[centered ? THREADS*MEAN_STRIDE : 1];
    __shared__ __align__(16) uint32_t turns[type == GGMLQ_TYPE_PLANAR3 ? TURNS : 4];
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
    const uint8_t * from = r.from + (int64_t) first*r.from_row + head*r.from_head + seq*r.from_seq;
    uint8_t       * to   = r.to   + (int64_t) first*r.to_row   + head*r.to_head   + seq*r.to_seq + 2*PLANE*at;
    if (type == GGMLQ_TYPE_PLANAR3) {
        if (threadIdx.x < TURNS) {
            turns[threadIdx.x] = word_of(__floats2half2_rn(ggmlq_cos_sin[threadIdx.x][0], ggmlq_cos_sin[threadIdx.x][1]));
        }
        __syncthreads();
    }
    ggmlq_wait_for_previous();
    struct mean_words mean;
    if (with_mean) {
        fill_table(c.m, table, planes, first, tokens, seq);
        load_mean(c.m, means, planes, first_unit, units, unit, mean); /* with a barrier that the table needs too */
    }
#pragma unroll 1
    for (uint32_t base = 0; base < tokens; base += r.slots) {
        const bool     mine  = slot < r.slots && base + slot < tokens; /* shuffles need the others, too */
        const uint32_t token = mine ? base + slot : tokens - 1;
        struct plane<type> p;
        p.load(from + (uint64_t) token*r.from_row, at);
        __half2 u[WORDS];
        if (with_mean) {
            turned_mean(mean, table + token*2*PLANE*planes, planes, at, c.m.turned, lane, u);
        }
        __half2 v[WORDS];
        p.decode(at, turns, v);
        p.add(v, with_mean, u);
        store_planes(mine ? to + (uint64_t) token*r.to_row : NULL, u, lane);
    }
}

/* --- launches --------------------------------------------------------------------------------------------------- */

/* Rows lie on multiples of so many bytes. */
static bool aligned(const struct ggmlq_cuda_view * v) {
    return ((uintptr_t) v->data | (uintptr_t) v->nb[1] | (uintptr_t) v->nb[2] | (uintptr_t) v->nb[3]) % (v->type == GGMLQ_CUDA_F16 ? 16 : 2) == 0;
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
        if (rows->ne[i] != values->ne[i] || rows->nb[1] < 0 || rows->nb[1] > INT32_MAX || values->nb[1] < 0 || values->nb[1] > INT32_MAX) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    return !aligned(values) || !aligned(rows) || rows->ne[3] > 65535 || rows->ne[0] > MOST_VALUES ||
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
    return pairs < 1 || pairs % 2 != 0 || 2*pairs > length || length > MOST_CENTERED || (uintptr_t) p->mean % 16 != 0 || !can_turn ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

static struct rows_to_f16 make_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, bool centered) {
    struct rows_to_f16 r;
    r.from = (const uint8_t *) rows->data;
    r.to   = (uint8_t *) values->data;
    r.from_row  = (uint32_t) rows->nb[1];
    r.to_row    = (uint32_t) values->nb[1];
    r.from_head = rows->nb[2];
    r.to_head   = values->nb[2];
    r.from_seq  = rows->nb[3];
    r.to_seq    = values->nb[3];
    const int64_t planes = rows->ne[0]/PLANE, units = planes*rows->ne[2], per_chunk = units <= THREADS ? units : THREADS/planes*planes; /* whole heads */
    r.planes   = make_divider(planes);
    r.n_tokens = (uint32_t) rows->ne[1];
    r.units    = (uint32_t) units;
    r.chunks   = (uint32_t) ((units + per_chunk - 1)/per_chunk);
    const int64_t most   = centered ? TABLE/2/rows->ne[0] : ROUNDS_PLAIN*THREADS, slots = THREADS/per_chunk < most ? THREADS/per_chunk : most; /* tokens at once, side by side */
    const int64_t wanted = centered ? ROUNDS_CENTERED : ROUNDS_PLAIN, rounds = most/slots < wanted ? most/slots : wanted;
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
