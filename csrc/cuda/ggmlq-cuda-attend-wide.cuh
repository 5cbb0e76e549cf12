/* SPDX-License-Identifier: MIT
 *
 * Attention for few queries on tensor cores, 32 columns at once: the kernel, and the one that adds up its parts. Words, planes and fragments:
 * ggmlq-cuda-attend-decode.cuh; design and measurements: docs/CUDA-ATTENTION.md.
 *
 * Four warps share a tile of 64*FRAGMENTS tokens. Each copies 16*FRAGMENTS rows of K and V, computes their scores, and unpacks their values to halves; weights and values
 * meet in shared memory. Then each warp holds the sums of 32 of the 128 values, over all tokens of the tile: nothing is unpacked twice, and a sum lies
 * in one warp only. A turn has two barriers: one agrees on the maxima, and says that the last turn's weights and values have been used; one says that
 * the new ones are there.
 */
#ifndef GGMLQ_CUDA_ATTEND_WIDE_CUH
#define GGMLQ_CUDA_ATTEND_WIDE_CUH

#include "ggmlq-cuda-attend-decode.cuh"

/* Halves 1 + level/1024, low and high bytes of fields 0..3 and 4..7: below 1 a step of the mantissa is half as large. scale*h - scale is exact but for
 * one rounding. */
constexpr int ggmlq_wide_low_byte (int level) { return level < 0 ? 256 + 2*level : level; }
constexpr int ggmlq_wide_high_byte(int level) { return level < 0 ? 0x3b : 0x3c; }
constexpr uint32_t ggmlq_wide_low_bytes(const int8_t * levels) {
    return ggmlq_four_bytes(ggmlq_wide_low_byte(levels[0]), ggmlq_wide_low_byte(levels[1]), ggmlq_wide_low_byte(levels[2]), ggmlq_wide_low_byte(levels[3]));
}
constexpr uint32_t ggmlq_wide_high_bytes(const int8_t * levels) {
    return ggmlq_four_bytes(ggmlq_wide_high_byte(levels[0]), ggmlq_wide_high_byte(levels[1]), ggmlq_wide_high_byte(levels[2]), ggmlq_wide_high_byte(levels[3]));
}

template <int type> struct ggmlq_wide_type {
    static constexpr const int8_t * LEVELS = type == GGMLQ_TYPE_TQ3_0 ? ggmlq_levels_tq3_0 : ggmlq_levels_planar3;
    static constexpr uint32_t LOW0 = ggmlq_wide_low_bytes(LEVELS), LOW4 = ggmlq_wide_low_bytes(LEVELS + 4), HIGH0 = ggmlq_wide_high_bytes(LEVELS), HIGH4 = ggmlq_wide_high_bytes(LEVELS + 4);
    static constexpr float UNIT = 1024.0f*ggmlq_cache_type<type>::UNIT; /* of the sums */
};

template <int type_k, int type_v, int TILES, int FRAGMENTS, bool HALF_K> struct ggmlq_wide_shape {
    enum { TAIL = 0, TAIL_PLANES = 0 }; /* see ggmlq_decode_shape */
    typedef ggmlq_decode_rows<type_k, 128> K;
    typedef ggmlq_decode_rows<type_v, 128> V;
    enum {
        WARPS = 4, COLUMNS = 8*TILES, STAGES = 2,
        WARP_ROWS = 16*FRAGMENTS, ROWS = WARPS*WARP_ROWS,
        K_BYTES = WARP_ROWS*K::PITCH, V_BYTES = WARP_ROWS*V::PITCH, STAGE_BYTES = K_BYTES + V_BYTES,
        VALUE_PITCH  = 2*128 + 16,  /* of a token: its values as halves, and 8 more: 1 where a block's scale isn't finite (four), 1, zeros */
        WEIGHT_PITCH = 2*COLUMNS + 16,
        QUERY_PITCH  = HALF_K ? 2*128 + 64 : 128 + 32, /* queries of neighbouring columns in other banks */
        VALUES_AT  = WARPS*STAGES*STAGE_BYTES,
        WEIGHTS_AT = VALUES_AT + ROWS*VALUE_PITCH,
        MASKS_AT   = WEIGHTS_AT + ROWS*WEIGHT_PITCH,  /* [warp][query][token] */
        TOPS_AT    = MASKS_AT + WARPS*8*WARP_ROWS*2,  /* [warp][column] */
        SLOPES_AT  = TOPS_AT + WARPS*COLUMNS*4,
        TOKENS_AT  = SLOPES_AT + COLUMNS*4,           /* the columns' query tokens */
        QUERIES_AT = TOKENS_AT + COLUMNS*4,
        SCALES_AT  = QUERIES_AT + COLUMNS*QUERY_PITCH,
        SHARED_BYTES = SCALES_AT + TILES*K::SCALES*4*16,
        PART_ITEMS = TILES*8*32                       /* float4 of a part's sums: [block of 32 values][16 of them][tile][lane] */
    };
    static_assert(K_BYTES % 16 == 0 && V_BYTES % 16 == 0, "aligned");
    static constexpr __host__ __device__ int query_pitch(int) { return QUERY_PITCH; }

    static void place(ggmlq_decode_plan * plan, const ggmlq_attend_params * p) {
        plan->k_step       = (unsigned) (ROWS*p->k_stride[0]);
        plan->v_step       = (unsigned) (ROWS*p->v_stride[0]);
        plan->k_copy_step  = (unsigned) (32/K::LANES*p->k_stride[0]);
        plan->v_copy_step  = (unsigned) (32/V::LANES*p->v_stride[0]);
        plan->queries_at   = QUERIES_AT;
        plan->scales_at    = SCALES_AT;
        plan->exchange_at  = SHARED_BYTES;
        plan->shared_bytes = SHARED_BYTES;
    }
};

/* Value of a block of 32 that lies at a position of its unpacked row. */
constexpr __host__ __device__ int ggmlq_wide_value(int position) { return ggmlq_plane_value(position/16, position/4 % 2, position/8 % 2, position % 4); }

#ifdef GGMLQ_DECODE_DEVICE

/* Bytes of halves by fields. The first two words are held in registers: `zero` is 0, which the compiler doesn't know, or they are copied to one again for every use. */
struct ggmlq_wide_luts { ggmlq_decode_lut low, high; };

template <int type> GGMLQ_DEVICE ggmlq_wide_luts ggmlq_wide_tables(uint32_t zero) {
    typedef ggmlq_wide_type<type> T;
    ggmlq_wide_luts luts = { { T::LOW0 ^ zero, T::LOW4 }, { T::HIGH0 ^ zero, T::HIGH4 } };
    ggmlq_keep(luts.low.low);
    ggmlq_keep(luts.high.low);
    return luts;
}

/* Two blocks of 32 values of a row in shared memory, numbers 2*half and 2*half + 1. */
struct ggmlq_wide_blocks { uint32_t q[2][2], s[2], scale[2]; };

template <int type> GGMLQ_DEVICE ggmlq_wide_blocks ggmlq_wide_load_blocks(const uint8_t * row, int half) {
    ggmlq_wide_blocks b;
    if (type == GGMLQ_TYPE_TQ3_0) { /* rows start at multiples of 8, pairs of blocks at multiples of 28 */
        const uint32_t * const from = (const uint32_t *) (row + 28*half);
        uint32_t w[7];
#pragma unroll
        for (int i = 0; i < 7; ++i) {
            w[i] = from[i];
        }
        b.q[0][0] = w[0]; b.q[0][1] = w[1]; b.s[0] = w[2]; b.scale[0] = w[3] & 0xffffu;
        b.q[1][0] = ggmlq_permute(w[3], w[4], 0x5432); b.q[1][1] = ggmlq_permute(w[4], w[5], 0x5432); b.s[1] = ggmlq_permute(w[5], w[6], 0x5432); b.scale[1] = w[6] >> 16;
    } else { /* rows start at multiples of 2, all words of a row alike */
        const uint32_t * const q = (const uint32_t *) ((uintptr_t) (row +  2 + 16*half) & ~(uintptr_t) 3);
        const uint32_t * const s = (const uint32_t *) ((uintptr_t) (row + 34 +  8*half) & ~(uintptr_t) 3);
        const uint32_t selector = (uintptr_t) row & 2 ? 0x3210 : 0x5432;
        uint32_t w[5], x[3];
#pragma unroll
        for (int i = 0; i < 5; ++i) {
            w[i] = q[i];
        }
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            x[i] = s[i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            b.q[i/2][i%2] = ggmlq_permute(w[i], w[i + 1], selector);
        }
        b.s[0] = ggmlq_permute(x[0], x[1], selector);
        b.s[1] = ggmlq_permute(x[1], x[2], selector);
        b.scale[0] = b.scale[1] = ggmlq_read_shared_u16(row);
    }
    return b;
}

/* A block -> 32 halves scale*level/1024, in the order of ggmlq_wide_value. `scale`: twice. */
GGMLQ_DEVICE void ggmlq_wide_unpack(uint8_t * to, const uint32_t q[2], uint32_t s, uint32_t scale, const ggmlq_wide_luts & luts) {
    uint32_t even = s & 0x55555555u, odd = s & 0xaaaaaaaau;
    ggmlq_keep(even); /* or they are shifted first and masked twice */
    ggmlq_keep(odd);
    const __half2 factor = ggmlq_half2_from_bits(scale), minus = __hneg2(factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) { /* word i/2, parity i%2: the sign's bit goes to place 2 of its nibble */
        const uint32_t word = i % 2 ? q[i/2] >> 2 : q[i/2], sign = i == 0 ? even << 2 : i == 1 ? odd << 1 : i == 2 ? even : odd >> 1;
        const uint32_t fields = ggmlq_choose_bits(word, sign, 0x33333333u);
        uint32_t h[4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint32_t selector = j ? fields >> 16 : fields;
            const uint32_t low = ggmlq_permute(luts.low.low, luts.low.high, selector), high = ggmlq_permute(luts.high.low, luts.high.high, selector);
            h[2*j]     = ggmlq_half2_bits(__hfma2(ggmlq_half2_from_bits(ggmlq_permute(low, high, 0x5140)), factor, minus));
            h[2*j + 1] = ggmlq_half2_bits(__hfma2(ggmlq_half2_from_bits(ggmlq_permute(low, high, 0x7362)), factor, minus));
        }
        *(uint4 *) (to + 16*i) = make_uint4(h[0], h[1], h[2], h[3]);
    }
}

/* Query rows -> shared memory as halves, rotated like K and multiplied by `factor`, in the order of K's fields: see ggmlq_plane_words_hold. */
template <class S, int type> GGMLQ_DEVICE void ggmlq_wide_load_queries(float (* items)[2][4], uint8_t * queries, float factor) {
    float (& v)[2][4] = items[0];
    const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll 1
    for (int first = 0; first < S::COLUMNS*4; first += 32) {
        const int column = (first + threadIdx.x/4)/4, plane = (first + threadIdx.x/4) % 4;
        if (first != 0) {
            ggmlq_decode_next_item<S::COLUMNS/8>(items);
        }
        ggmlq_rotate_plane<type>(v, lane, plane);
        uint8_t * const to = queries + column*S::QUERY_PITCH + 2*(32*plane + 16*(t % 2) + 4*(t/2));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            *(uint2 *) (to + 16*i) = make_uint2(ggmlq_half2_bits(__floats2half2_rn(factor*v[0][2*i],     factor*v[1][2*i])),
                                                ggmlq_half2_bits(__floats2half2_rn(factor*v[0][2*i + 1], factor*v[1][2*i + 1])));
        }
    }
}

/* Fields of K -> halves scale*level/1024: A fragments of two steps. `low`, `high`: what k_fragment makes of the two tables; scale: of rows g and g + 8, twice. */
GGMLQ_DEVICE void ggmlq_wide_k_halves(uint32_t a[2][4], const uint32_t low[4], const uint32_t high[4], const uint32_t scale[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const __half2 factor = ggmlq_half2_from_bits(scale[i % 2]);
            const uint32_t h = ggmlq_permute(low[2*j + i % 2], high[2*j + i % 2], i/2 ? 0x7362 : 0x5140);
            a[j][i] = ggmlq_half2_bits(__hfma2(ggmlq_half2_from_bits(h), factor, __hneg2(factor)));
        }
    }
}

#endif

template <int type_k, int type_v, int TILES, int FRAGMENTS, int BLOCKS, bool HALF_K>
__global__ void __launch_bounds__(128, BLOCKS) ggmlq_attend_wide_kernel(const GGMLQ_GRID_CONSTANT ggmlq_attend_params p, const GGMLQ_GRID_CONSTANT ggmlq_decode_plan plan,
                                                                       uint8_t * workspace) {
#ifdef GGMLQ_DECODE_DEVICE
    typedef ggmlq_wide_shape<type_k, type_v, TILES, FRAGMENTS, HALF_K> S;
    typedef typename S::K K;
    typedef typename S::V V;
    enum { COLUMNS = S::COLUMNS, WARPS = S::WARPS, ROWS = S::ROWS, WARP_ROWS = S::WARP_ROWS };
    const float LOG2E = 1.44269504f, LOWEST = -1e30f;

    extern __shared__ __align__(16) uint8_t shared[];
    uint8_t * const values = shared + S::VALUES_AT, * const weights = shared + S::WEIGHTS_AT, * const queries = shared + S::QUERIES_AT;
    float   * const tops = (float *) (shared + S::TOPS_AT), * const slopes = (float *) (shared + S::SLOPES_AT), * const q_scales = (float *) (shared + S::SCALES_AT);
    int     * const column_tokens = (int *) (shared + S::TOKENS_AT);

    const int lane = threadIdx.x % 32, warp = threadIdx.x/32, g = lane/4, t = lane % 4;
    uint8_t  * const pipe = shared + warp*S::STAGES*S::STAGE_BYTES;
    uint16_t * const masks = (uint16_t *) (shared + S::MASKS_AT) + warp*8*WARP_ROWS;

    const int head_kv = blockIdx.x, split = blockIdx.y, unit = blockIdx.z*gridDim.x + blockIdx.x;
    const int seq = blockIdx.z/plan.chunks, chunk = blockIdx.z - seq*plan.chunks, seq_kv = seq/plan.seqs_per_kv, first_column = chunk*COLUMNS;
    const int tile0 = split*plan.tiles_per_split + min(split, plan.longer_splits), tile1 = tile0 + plan.tiles_per_split + (split < plan.longer_splits);

    const uint8_t * const k_rows = (const uint8_t *) p.k + seq_kv*p.k_stride[2] + head_kv*p.k_stride[1];
    const uint8_t * const v_rows = (const uint8_t *) p.v + seq_kv*p.v_stride[2] + head_kv*p.v_stride[1];
    const int v_token = lane % 16, v_half = lane/16; /* what this lane unpacks of 16 rows */
    int k_row = g*K::PITCH       + (int) ((uintptr_t) (k_rows + g*p.k_stride[0]) & 15);
    int v_row = v_token*V::PITCH + (int) ((uintptr_t) (v_rows + v_token*p.v_stride[0]) & 15);
    ggmlq_keep(k_row);
    ggmlq_keep(v_row);

    /* Of a warp's next rows. Around the last rows of the cache nothing may be read. */
    const uint8_t * k_chunk = ggmlq_decode_chunk<K>(k_rows, p.k_stride[0], lane) + (int64_t) (tile0*ROWS + warp*WARP_ROWS)*p.k_stride[0];
    const uint8_t * v_chunk = ggmlq_decode_chunk<V>(v_rows, p.v_stride[0], lane) + (int64_t) (tile0*ROWS + warp*WARP_ROWS)*p.v_stride[0];
    auto copy_rows = [&](int tile, int at) {
        const uint32_t to = ggmlq_shared_address(pipe) + at;
        const int token = tile*ROWS + warp*WARP_ROWS, count = plan.n_kv - token;
        if (__builtin_expect(tile < tile1 && count > WARP_ROWS, 1)) {
            ggmlq_decode_copy<K, WARP_ROWS>(to, k_chunk, plan.k_copy_step, lane);
            if (!plan.v_in_k) {
                ggmlq_decode_copy<V, WARP_ROWS>(to + S::K_BYTES, v_chunk, plan.v_copy_step, lane);
            }
        } else if (tile < tile1) {
            ggmlq_decode_copy_last<K, WARP_ROWS>(to, k_rows + token*p.k_stride[0], p.k_stride[0], count, lane);
            if (!plan.v_in_k) {
                ggmlq_decode_copy_last<V, WARP_ROWS>(to + S::K_BYTES, v_rows + token*p.v_stride[0], p.v_stride[0], count, lane);
            }
        }
        ggmlq_copy_async_commit();
        k_chunk += plan.k_step;
        v_chunk += plan.v_step;
    };

    /* Lane 4*query + t holds tokens 4*FRAGMENTS*t.. of a warp's rows. */
    const uint8_t * const mask_row = (const uint8_t *) p.mask + min(g, (int) p.n_queries - 1)*p.mask_stride[0] + (p.mask && seq > 0 ? (seq % (int) p.mask_seqs)*p.mask_stride[2] : 0);
    struct mask_words { uint32_t w[2*FRAGMENTS]; };
    auto load_mask = [&](int tile) {
        mask_words m = {};
        const int token = tile*ROWS + warp*WARP_ROWS + 4*FRAGMENTS*t;
        if (__builtin_expect(tile*ROWS + (warp + 1)*WARP_ROWS <= plan.n_kv && (p.mask == NULL || plan.mask_aligned), 1)) {
            if (p.mask && tile < tile1) {
#pragma unroll
                for (int i = 0; i < FRAGMENTS; ++i) {
                    const uint2 two = *(const uint2 *) (mask_row + 2*token + 8*i);
                    m.w[2*i]     = two.x;
                    m.w[2*i + 1] = two.y;
                }
            }
        } else if (tile < tile1) {
#pragma unroll
            for (int i = 0; i < 4*FRAGMENTS; ++i) {
                m.w[i/2] |= (uint32_t) (token + i >= plan.n_kv ? 0xfc00 : p.mask ? *(const uint16_t *) (mask_row + 2*(token + i)) : 0) << 16*(i % 2);
            }
        }
        return m;
    };

    /* What isn't written in a turn must not be NaN, which a weight of 0 doesn't hide. */
    for (int i = threadIdx.x; i < ROWS*S::VALUE_PITCH/16; i += 128) {
        ((uint4 *) values)[i] = make_uint4(0, 0, i % (S::VALUE_PITCH/16) == 16 ? 0x3c00u : 0, 0);
    }
    if (threadIdx.x < COLUMNS) {
        int token = 0, head = 0;
        ggmlq_decode_place_column(plan, first_column + threadIdx.x < plan.columns ? first_column + threadIdx.x : 0, token, head);
        column_tokens[threadIdx.x] = token;
        slopes[threadIdx.x] = LOG2E*ggmlq_alibi_slope(p, head_kv*plan.group + head);
    }
    ggmlq_wait_for_previous();
    if (plan.short_loop) {
        ggmlq_let_next_start();
    }
    const bool softcap = p.logit_softcap != 0.0f;
    {
        float items[TILES][2][4]; /* all that this thread prepares */
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            ggmlq_decode_fetch_query(items[i], ggmlq_decode_place_query<S, 128>(p, plan, 32*i + threadIdx.x/4, first_column, head_kv, seq), plan.q_aligned);
        }
        copy_rows(tile0, 0);
        const float factor = softcap ? p.scale/p.logit_softcap : p.scale*LOG2E;
        if constexpr (HALF_K) {
            ggmlq_wide_load_queries<S, type_k>(items, queries, factor*ggmlq_wide_type<type_k>::UNIT);
        } else {
            ggmlq_decode_load_queries<S, type_k, 128, TILES>(items, p, plan, queries, q_scales, first_column, head_kv, seq, factor);
        }
    }
    mask_words next_mask = load_mask(tile0);
    __syncthreads();

    const uint32_t zero = threadIdx.x & (plan.unit ^ 65536);
    const ggmlq_wide_luts luts_v = ggmlq_wide_tables<type_v>(zero), luts_k = type_k == type_v ? luts_v : ggmlq_wide_tables<type_k>(zero);
    ggmlq_decode_lut lut_k = ggmlq_decode_levels<type_k>(0);
    lut_k.low ^= zero;
    ggmlq_keep(lut_k.low);
    const uint32_t k_shift = t/2 ? 1 : 4;
    const int start[4] = { GGMLQ_SUM_BITS, GGMLQ_SUM_BITS, GGMLQ_SUM_BITS, GGMLQ_SUM_BITS };
    const uint8_t * const query_row = queries + g*S::QUERY_PITCH + (HALF_K ? 16 : 8)*t;
    const uint32_t value_from  = ggmlq_shared_address(values)  + (lane % 8 + 8*(lane/16))*S::VALUE_PITCH + 64*warp + 16*(lane/8 % 2);
    const uint32_t weight_from = ggmlq_shared_address(weights) + lane % 16*S::WEIGHT_PITCH + 16*(lane/16);
    const uint32_t extra_from  = ggmlq_shared_address(values)  + (warp*WARP_ROWS + lane % 8 + 8*(lane/16))*S::VALUE_PITCH + 2*128;

    /* Sums of weights times values, rows g and g + 8 of two fragments of 16 positions; of weights times the 8 extra values, row g ([2], [3]: unused); maxima, the same in all warps. */
    float o[2][TILES][4], sum[TILES][4], max[TILES][2];
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            o[0][n][e] = o[1][n][e] = sum[n][e] = 0.0f;
        }
        max[n][0] = max[n][1] = LOWEST;
    }
    auto add_values = [&](void) { /* weights times values, 16 tokens a step */
#pragma unroll
        for (int i = 0; i < WARPS*FRAGMENTS; ++i) {
            uint32_t b[TILES/2][4];
#pragma unroll
            for (int n = 0; n < TILES/2; ++n) {
                ggmlq_load_matrices<true>(b[n], weight_from + 16*i*S::WEIGHT_PITCH + 32*n);
            }
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                uint32_t a[4];
                ggmlq_load_matrices<true>(a, value_from + 16*i*S::VALUE_PITCH + 32*m);
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    ggmlq_mma_f16(o[m][n], a, make_uint2(b[n/2][2*(n % 2)], b[n/2][2*(n % 2) + 1]));
                }
            }
        }
    };
    auto add_extras = [&](void) { /* of the warp's own tokens */
#pragma unroll
        for (int m = 0; m < FRAGMENTS; ++m) {
            uint32_t a[4], b[TILES/2][4];
            ggmlq_load_matrices<true>(a, extra_from + 16*m*S::VALUE_PITCH); /* rows g + 8 repeat rows g */
#pragma unroll
            for (int n = 0; n < TILES/2; ++n) {
                ggmlq_load_matrices<true>(b[n], weight_from + (warp*WARP_ROWS + 16*m)*S::WEIGHT_PITCH + 32*n);
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                ggmlq_mma_f16(sum[n], a, make_uint2(b[n/2][2*(n % 2)], b[n/2][2*(n % 2) + 1]));
            }
        }
    };

    int stage = 0;
#pragma unroll 1
    for (int tile = tile0; tile < tile1; ++tile) {
        ggmlq_copy_async_wait<0>();
        __syncwarp();
        copy_rows(tile + 1, S::STAGE_BYTES - stage);
        const uint8_t * const k_tile = pipe + stage, * const v_tile = plan.v_in_k ? k_tile : k_tile + S::K_BYTES;
        stage = S::STAGE_BYTES - stage;
        const mask_words mask = next_mask;
        next_mask = load_mask(tile + 1);
        uint32_t any = 0, differs = 0;
#pragma unroll
        for (int i = 0; i < 2*FRAGMENTS; ++i) {
            any     |= mask.w[i];
            differs |= mask.w[i] ^ 0xfc00fc00u;
        }
        const bool biased = __any_sync(0xffffffffu, any != 0);
        const bool hidden = biased && !__any_sync(0xffffffffu, differs != 0); /* all of the warp's tokens */

        float s[FRAGMENTS][TILES][4];
        if (__builtin_expect(!hidden, 1)) {
#pragma unroll
            for (int m = 0; m < FRAGMENTS; ++m) {
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
                }
            }
            const uint8_t * const row = k_tile + k_row;
            if constexpr (HALF_K) {
#pragma unroll
                for (int plane = 0; plane < K::PLANES; ++plane) {
                    uint4 q[TILES];
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        q[n] = *(const uint4 *) (query_row + 8*n*S::QUERY_PITCH + 64*plane);
                    }
#pragma unroll
                    for (int m = 0; m < FRAGMENTS; ++m) {
                        const uint8_t * const from = row + 16*m*K::PITCH;
                        const uint32_t scale[2] = { ggmlq_read_shared_u16(from + K::scale_at(plane))*0x10001u, ggmlq_read_shared_u16(from + K::scale_at(plane) + 8*K::PITCH)*0x10001u };
                        uint32_t low[4], high[4], a[2][4];
                        ggmlq_decode_k_fragment<type_k, 128>(low,  from, plane, t, k_shift, plan.unit, luts_k.low);
                        ggmlq_decode_k_fragment<type_k, 128>(high, from, plane, t, k_shift, plan.unit, luts_k.high);
                        ggmlq_wide_k_halves(a, low, high, scale);
#pragma unroll
                        for (int n = 0; n < TILES; ++n) {
                            ggmlq_mma_f16(s[m][n], a[0], make_uint2(q[n].x, q[n].y));
                            ggmlq_mma_f16(s[m][n], a[1], make_uint2(q[n].z, q[n].w));
                        }
                    }
                }
            } else {
                int acc[FRAGMENTS][TILES][4];
#pragma unroll
                for (int plane = 0; plane < K::PLANES; ++plane) {
                    uint2 q[TILES];
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        q[n] = *(const uint2 *) (query_row + 8*n*S::QUERY_PITCH + 32*plane);
                    }
#pragma unroll
                    for (int m = 0; m < FRAGMENTS; ++m) {
                        uint32_t a[4];
                        ggmlq_decode_k_fragment<type_k, 128>(a, row + 16*m*K::PITCH, plane, t, k_shift, plan.unit, lut_k);
#pragma unroll
                        for (int n = 0; n < TILES; ++n) {
                            ggmlq_mma_s8(acc[m][n], a, q[n], K::PLANAR3 && plane != 0 ? acc[m][n] : start);
                        }
                    }
                    if (K::PLANAR3 && plane != 3) {
                        continue;
                    }
                    float scale[FRAGMENTS][2];
#pragma unroll
                    for (int m = 0; m < FRAGMENTS; ++m) {
                        const uint8_t * const at = row + 16*m*K::PITCH + K::scale_at(plane);
                        scale[m][0] = ggmlq_half_value((uint16_t) ggmlq_read_shared_u16(at));
                        scale[m][1] = ggmlq_half_value((uint16_t) ggmlq_read_shared_u16(at + 8*K::PITCH));
                    }
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        const float4 f = *(const float4 *) (q_scales + ((n*K::SCALES + (K::PLANAR3 ? 0 : plane))*4 + t)*4);
#pragma unroll
                        for (int m = 0; m < FRAGMENTS; ++m) {
#pragma unroll
                            for (int i = 0; i < 4; ++i) {
                                s[m][n][i] = fmaf(scale[m][i/2], fmaf(__int_as_float(acc[m][n][i]), i % 2 ? f.y : f.x, i % 2 ? f.w : f.z), s[m][n][i]);
                            }
                        }
                    }
                }
            }
            /* Scores in units of log 2. */
            if (__builtin_expect(softcap, 0)) { /* tanh(x) = 1 - 2/(1 + exp(2x)) */
#pragma unroll
                for (int i = 0; i < 4*FRAGMENTS*TILES; ++i) {
                    float & x = s[i/4/TILES][i/4%TILES][i%4];
                    x = p.logit_softcap*LOG2E*(1.0f - __fdividef(2.0f, 1.0f + ggmlq_exp2(fminf(2.0f*LOG2E*x, 80.0f))));
                }
            }
            if (__builtin_expect(biased, 0)) { /* 0xfc00 hides, whatever the score is */
#pragma unroll
                for (int i = 0; i < 2*FRAGMENTS; ++i) {
                    *(uint32_t *) (masks + g*WARP_ROWS + 4*FRAGMENTS*t + 2*i) = mask.w[i];
                }
                __syncwarp();
#pragma unroll
                for (int i = 0; i < 4*FRAGMENTS*TILES; ++i) {
                    const int column = 8*(i/4%TILES) + 2*t + i%2;
                    const uint16_t b = masks[column_tokens[column]*WARP_ROWS + 16*(i/4/TILES) + g + 8*(i%4/2)];
                    float & x = s[i/4/TILES][i/4%TILES][i%4];
                    x = b == 0xfc00 ? -INFINITY : fmaf(ggmlq_half_value(b), slopes[column], x);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4*FRAGMENTS*TILES; ++i) {
                s[i/4/TILES][i/4%TILES][i%4] = -INFINITY;
            }
        }

        /* The maxima are followed lazily: weights up to 2^8 do no harm. */
        float top[TILES][2];
        bool  exceeds = false;
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                top[n][e] = fmaxf(s[0][n][e], s[0][n][e + 2]);
#pragma unroll
                for (int m = 1; m < FRAGMENTS; ++m) {
                    top[n][e] = fmaxf(top[n][e], fmaxf(s[m][n][e], s[m][n][e + 2]));
                }
                exceeds |= top[n][e] > max[n][e] + 8.0f;
            }
        }
        const bool warp_exceeds = __any_sync(0xffffffffu, exceeds);
        const int  votes = __syncthreads_count(lane < 8 ? warp_exceeds : lane == 8 && !hidden); /* 8 times the warps that exceed, plus those that see something */
        if (__builtin_expect(votes == 0, 0)) {
            continue;
        }
        if (__builtin_expect(votes >= 8, 0)) {
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
#pragma unroll
                    for (int x = 4; x < 32; x *= 2) {
                        top[n][e] = fmaxf(top[n][e], ggmlq_shuffle_xor(top[n][e], x));
                    }
                    if (g == 0) {
                        tops[warp*COLUMNS + 8*n + 2*t + e] = top[n][e];
                    }
                }
            }
            __syncthreads();
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float next = max[n][e];
#pragma unroll
                    for (int i = 0; i < WARPS; ++i) {
                        next = fmaxf(next, tops[i*COLUMNS + 8*n + 2*t + e]);
                    }
                    const float shrink = ggmlq_exp2(max[n][e] - next);
                    max[n][e] = next;
                    sum[n][e] *= shrink;
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        o[i][n][e]     *= shrink;
                        o[i][n][e + 2] *= shrink;
                    }
                }
            }
        }

#pragma unroll
        for (int m = 0; m < FRAGMENTS; ++m) {
            uint8_t * const to = weights + (warp*WARP_ROWS + 16*m + g)*S::WEIGHT_PITCH + 4*t;
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                float w[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    w[i] = ggmlq_exp2(s[m][n][i] - max[n][i % 2]);
                }
                *(uint32_t *) (to + 16*n)                     = ggmlq_half2_bits(__floats2half2_rn(w[0], w[1]));
                *(uint32_t *) (to + 16*n + 8*S::WEIGHT_PITCH) = ggmlq_half2_bits(__floats2half2_rn(w[2], w[3]));
            }
        }
        if (__builtin_expect(!hidden, 1)) {
#pragma unroll
            for (int m = 0; m < FRAGMENTS; ++m) {
                ggmlq_wide_blocks b = ggmlq_wide_load_blocks<type_v>(v_tile + v_row + 16*m*V::PITCH, v_half);
                uint8_t * const to = values + (warp*WARP_ROWS + 16*m + v_token)*S::VALUE_PITCH;
                uint32_t scale[2], odd = 0;
#pragma unroll
                for (int i = 0; i < 2; ++i) { /* an infinite scale or NaN becomes 0, and is told apart */
                    const bool finite = (b.scale[i] & 0x7c00u) != 0x7c00u;
                    scale[i] = finite ? b.scale[i]*0x10001u : 0;
                    odd |= finite ? 0 : 0x3c00u << 16*i;
                }
                *(uint32_t *) (to + 2*128 + 4*v_half) = odd;
                ggmlq_wide_unpack(to + 128*v_half,      b.q[0], b.s[0], scale[0], luts_v);
                ggmlq_wide_unpack(to + 128*v_half + 64, b.q[1], b.s[1], scale[1], luts_v);
            }
        }
        __syncthreads();
        add_values();
        add_extras();
    }
    ggmlq_copy_async_wait<0>();
    ggmlq_let_next_start();

    __syncthreads();
    float * const extras = (float *) weights; /* [warp][extra value][column] */
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        *(float2 *) (extras + (warp*8 + g)*COLUMNS + 8*n + 2*t) = make_float2(sum[n][0], sum[n][1]);
        if (threadIdx.x < 4) {
            tops[8*n + 2*t]     = max[n][0];
            tops[8*n + 2*t + 1] = max[n][1];
        }
    }
    __syncthreads();
    auto extra_sum = [&](int i, int column) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            total += extras[(w*8 + i)*COLUMNS + column];
        }
        return total;
    };
    const int64_t part = (int64_t) unit*plan.splits + split;
    if (threadIdx.x < COLUMNS) {
        __stcg((float2 *) (workspace + plan.stats_at) + part*COLUMNS + threadIdx.x, make_float2(tops[threadIdx.x], extra_sum(4, threadIdx.x)));
    }
    float4 * const to = (float4 *) (workspace + plan.partials_at) + part*S::PART_ITEMS + warp*2*TILES*32 + lane;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        bool odd[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            odd[e] = extra_sum(warp, 8*n + 2*t + e) != 0.0f; /* the column sees such a scale */
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const float nan = __uint_as_float(0x7fffffff);
            __stcg(to + (m*TILES + n)*32, make_float4(odd[0] ? nan : o[m][n][0], odd[1] ? nan : o[m][n][1], odd[0] ? nan : o[m][n][2], odd[1] ? nan : o[m][n][3]));
        }
    }
#endif
}

/* Parts of a unit -> output, rotated back. A block of threads takes 8 columns of one unit and 32 values; four groups of 64 threads share the parts. */
enum { GGMLQ_WIDE_MOST_SPLITS = 256 };

template <int type_v, int TILES, bool LEAN = false> __global__ void __launch_bounds__(256) ggmlq_attend_wide_combine(const GGMLQ_GRID_CONSTANT ggmlq_attend_params p, const GGMLQ_GRID_CONSTANT ggmlq_decode_plan plan,
                                                                                      const uint8_t * workspace) {
#ifdef GGMLQ_DECODE_DEVICE
    enum { COLUMNS = 8*TILES, PART_ITEMS = TILES*8*32, BATCH = 8, PITCH = 32 + 4 };
    const float LOG2E = 1.44269504f, LOWEST = -1e30f;
    __shared__ float  factors[GGMLQ_WIDE_MOST_SPLITS*8], results[8];
    __shared__ float4 sums[4*64];
    __shared__ __align__(16) float rows[8*PITCH];

    const int lane = threadIdx.x % 32, warp = threadIdx.x/32, tile = blockIdx.x % TILES, plane = blockIdx.x/TILES % 4, unit = blockIdx.x/(4*TILES);
    const int head_kv = unit % plan.heads_kv, z = unit/plan.heads_kv, seq = z/plan.chunks, chunk = z - seq*plan.chunks, first_column = chunk*COLUMNS + 8*tile;
    ggmlq_wait_for_previous();
    ggmlq_let_next_start();
    if (first_column >= plan.columns) {
        return;
    }
    const int item = threadIdx.x % 64, quarter = threadIdx.x/64;
    const float4 * const from = (const float4 *) (workspace + plan.partials_at) + (int64_t) unit*plan.splits*PART_ITEMS + (LEAN ? (tile*8 + item/8)*32 + 8*plane + item % 8 : ((plane*2 + item/32)*TILES + tile)*32 + item % 32);
    float4 x[BATCH];
    auto load_batch = [&](int first) {
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (first + 4*i < plan.splits) {
                x[i] = __ldcg(from + (int64_t) (first + 4*i)*PART_ITEMS);
            }
        }
    };
    load_batch(quarter);
    { /* a warp a column */
        const float2 * const stats = (const float2 *) (workspace + plan.stats_at) + (int64_t) unit*plan.splits*COLUMNS + 8*tile + warp;
        const float2 mine = lane < plan.splits ? __ldcg(stats + lane*COLUMNS) : make_float2(LOWEST, 0.0f);
        float top = mine.x;
#pragma unroll 1
        for (int i = lane + 32; i < plan.splits; i += 32) {
            top = fmaxf(top, __ldcg(stats + i*COLUMNS).x);
        }
#pragma unroll
        for (int i = 1; i < 32; i *= 2) {
            top = fmaxf(top, ggmlq_shuffle_xor(top, i));
        }
        float total = ggmlq_exp2(mine.x - top)*mine.y;
        factors[lane*8 + warp] = ggmlq_exp2(mine.x - top);
#pragma unroll 1
        for (int i = lane + 32; i < plan.splits; i += 32) {
            const float2 other = __ldcg(stats + i*COLUMNS);
            factors[i*8 + warp] = ggmlq_exp2(other.x - top);
            total += ggmlq_exp2(other.x - top)*other.y;
        }
#pragma unroll
        for (int i = 1; i < 32; i *= 2) {
            total += ggmlq_shuffle_xor(total, i);
        }
        if (lane == 0) {
            float shrink = 1.0f;
            if (p.sinks && first_column + warp < plan.columns) {
                const float sink = LOG2E*p.sinks[head_kv*plan.group + (first_column + warp) % plan.group], higher = fmaxf(sink, top);
                shrink = ggmlq_exp2(top - higher);
                total  = total*shrink + ggmlq_exp2(sink - higher);
            }
            results[warp] = total == 0.0f ? 0.0f : (LEAN ? ggmlq_decode_v_bytes<type_v>::UNIT : ggmlq_wide_type<type_v>::UNIT)*shrink/total;
        }
    }
    __syncthreads();
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int first = quarter; first < plan.splits; first += 4*BATCH) {
        if (first != quarter) {
            load_batch(first);
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (first + 4*i < plan.splits) {
                const float2 f = *(const float2 *) (factors + (first + 4*i)*8 + 2*(item % 4));
                v.x = fmaf(f.x, x[i].x, v.x); v.y = fmaf(f.y, x[i].y, v.y); v.z = fmaf(f.x, x[i].z, v.z); v.w = fmaf(f.y, x[i].w, v.w);
            }
        }
    }
    sums[threadIdx.x] = v;
    __syncthreads();
    if (threadIdx.x < 64) {
        const int g = item % 32/4, column = 2*(item % 4), position = 16*(item/32) + g;
        const int value0 = LEAN ? ggmlq_decode_v_value<type_v, 128>(item/8, 0, 2*plane + item % 8/4) - 32*plane : ggmlq_wide_value(position);
        const int value1 = LEAN ? ggmlq_decode_v_value<type_v, 128>(item/8, 1, 2*plane + item % 8/4) - 32*plane : ggmlq_wide_value(position + 8);
#pragma unroll
        for (int i = 1; i < 4; ++i) {
            const float4 other = sums[64*i + item];
            v.x += other.x; v.y += other.y; v.z += other.z; v.w += other.w;
        }
        float * const row = rows + column*PITCH;
        row[value0]             = results[column]*v.x;
        row[value0 + PITCH]     = results[column + 1]*v.y;
        row[value1]         = results[column]*v.z;
        row[value1 + PITCH] = results[column + 1]*v.w;
    }
    __syncthreads();
    if (warp == 0) {
        const int column = lane/4, t = lane % 4;
        float r[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            *(float4 *) r[h] = *(const float4 *) (rows + column*PITCH + 16*h + 4*t);
        }
        ggmlq_unrotate_plane<type_v>(r, lane, plane);
        if (first_column + column < plan.columns) {
            ggmlq_decode_store_output(p, plan, first_column + column, plane, head_kv, seq, r, plan.out_aligned);
        }
    }
#endif
}

template <int type_k, int type_v, int TILES, int FRAGMENTS, int BLOCKS, bool HALF_K> ggmlq_decode_instance ggmlq_wide_make_instance(void) {
    typedef ggmlq_wide_shape<type_k, type_v, TILES, FRAGMENTS, HALF_K> S;
    ggmlq_decode_instance instance = {};
    instance.type_k = type_k; instance.type_v = type_v;
    instance.slice = 128; instance.tiles = TILES; instance.warps = S::WARPS; instance.rows = S::ROWS; instance.m_tiles = 8;
    instance.sum_bytes = 4*S::COLUMNS*GGMLQ_WIDE_MOST_SPLITS;
    instance.align_k = S::K::ALIGN; instance.align_v = S::V::ALIGN;
    instance.place   = S::place;
    instance.kernel  = (const void *) ggmlq_attend_wide_kernel<type_k, type_v, TILES, FRAGMENTS, BLOCKS, HALF_K>;
    instance.combine = (const void *) ggmlq_attend_wide_combine<type_v, TILES>;
    return instance;
}

template <int type_k, int type_v, int STAGES = 2, int ROWS = 16, int WARPS = 8, int TILES = 4> ggmlq_decode_instance ggmlq_lean_make_instance(void) {
    ggmlq_decode_instance instance = ggmlq_decode_make_instance<type_k, type_v, 128, TILES, WARPS, ROWS, STAGES, 1, 0, false, true>();
    instance.sum_bytes = 4*8*TILES*GGMLQ_WIDE_MOST_SPLITS;
    instance.combine = (const void *) ggmlq_attend_wide_combine<type_v, TILES, true>;
    return instance;
}

#endif
