/* SPDX-License-Identifier: MIT
 *
 * Keys that are rounded for the model's queries (docs/CENTERING.md) on their way into the cache: bit for bit what ggmlq_encode_row_for_queries
 * writes. See ggmlq-cuda.h; ggmlq-cuda-center.h for what goes along in the same launch.
 *
 * A head's values are rounded one after the other, so time is the length of that chain. All threads of a key round the next few values for themselves:
 * nothing is exchanged within these. What rounding does to the rest of 32 values follows at once, and to later ones when the 32 are done, as in GPTQ's
 * lazy batches.
 */
#include "ggmlq-cuda-center.h"
#include "ggmlq-cuda-rows.cuh"

enum {
    THREADS = 128, MAX_LENGTH = 512, PAD = 8,  /* floats between keys, for the banks */
    TILE_VALUES = 32*512,                      /* feedback of 32 values, as many times as it fits */
    FEW_KEYS = 512,                            /* up to so many a call, a thread block a key */
    MANY_KEYS_BYTES = 16*(256 + PAD)*4 + 2*(8 + 7)*32*32 /* of a thread block with up to 16 keys: values, and of heads of up to 256 the first two tiles */
};

struct keys {
    const uint8_t * values;   /* f32, head h of token i at i*values_nb1 + h*4*length */
    uint8_t       * rows;
    const uint8_t * index;
    const uint8_t * feedback; /* f16, heads feedback_nb1 apart */
    int64_t values_nb1, rows_nb1, index_nb0, feedback_nb1, n_rows;
    int32_t index_bytes, length, heads, tokens;
    int32_t group, groups;    /* many keys: so many tokens a thread block, and so many of these for all tokens */
    int32_t turned;           /* so many adjacent values by llama.cpp's own rotation (attn_rot) before, 0: none */
    float   turn_scale;       /* 1/sqrt of that */
};

/* What else a launch does, in thread blocks behind those of keys: `v` is encoded, q_out becomes q, turned like keys. */
struct beside_keys {
    struct encoding v;
    const float   * q;
    float         * q_out;
    uint32_t        v_blocks, q_planes; /* of 32 values */
    int32_t         q_turned;
    float           q_scale;
};

/* Sum over the columns of 8 lanes, as fold_lanes in ggmlq-codec.c. */
GGMLQ_DEVICE float fold_columns(float sum) {
    sum = ggmlq_add(sum, ggmlq_shuffle_xor(sum, 4));
    sum = ggmlq_add(sum, ggmlq_shuffle_xor(sum, 2));
    return ggmlq_add(sum, ggmlq_shuffle_xor(sum, 1));
}

struct cell_bounds { float b1, b2, b3; };

template <typename T> GGMLQ_DEVICE T pick(float a, const struct cell_bounds & b, T l0, T l1, T l2, T l3) {
    const T low = a >= b.b1 ? l1 : l0, high = a >= b.b3 ? l3 : l2;
    return a >= b.b2 ? high : low;
}

static constexpr float B1 = ggmlq_boundaries[4], B2 = ggmlq_boundaries[5], B3 = ggmlq_boundaries[6];
static constexpr float L0 = ggmlq_levels[4], L1 = ggmlq_levels[5], L2 = ggmlq_levels[6], L3 = ggmlq_levels[7];

GGMLQ_DEVICE struct cell_bounds bounds_of(float step) {
    return { ggmlq_mul(B1, step), ggmlq_mul(B2, step), ggmlq_mul(B3, step) };
}

/* One level of the block, whose values t, 8 + t, .. are y; the scale as it is stored. The encoder's search (FORMAT.md) on values of any size; `wide`:
 * each eight threads of the warp try one of the three starts, the last ones repeat one. -1: the block isn't finite. */
template <int type, bool wide> GGMLQ_DEVICE float step_for_queries(const float y[ggmlq_cache_type<type>::LENGTH/8], int lane, uint16_t * scale) {
    typedef ggmlq_cache_type<type> T;
    enum { STARTS = wide ? 1 : 3, VALUES = T::LENGTH/8 };
    float key[VALUES], square = 0.0f;
    for (int i = 0; i < VALUES; ++i) { /* on a boundary a value belongs to the upper cell */
        const uint32_t bits = __float_as_uint(y[i]);
        key[i] = fabsf(__uint_as_float(bits + 1 - (bits >> 31)));
        square = i == 0 ? ggmlq_mul(y[i], y[i]) : ggmlq_add(square, ggmlq_mul(y[i], y[i]));
    }
    square = fold_columns(square);
    /* What is too small for ggmlq_div_safe gives steps too small for a half, or 0 by 0, which is right. */
    const float base = ggmlq_div_safe(ggmlq_sqrt(ggmlq_mul(square, 1.0f/T::LENGTH)), GGMLQ_LEVEL_SIGMA);
    float step[STARTS], level[STARTS][VALUES], error[STARTS];
    for (int s = 0; s < STARTS; ++s) {
        const float start[3] = { 0.8f, 1.0f, 1.2f };
        step[s] = ggmlq_mul(!wide ? start[s] : lane < 8 ? start[0] : lane < 16 ? start[1] : start[2], base);
    }
#pragma unroll
    for (int pass = 0; pass < 3; ++pass) {
        for (int s = 0; s < STARTS; ++s) {
            const struct cell_bounds b = bounds_of(step[s]);
            float y_level = 0.0f, level_level = 0.0f;
            for (int i = 0; i < VALUES; ++i) {
                const float low = key[i] > b.b1 ? L1 : L0, high = key[i] > b.b3 ? L3 : L2, l = key[i] > b.b2 ? high : low, product = ggmlq_mul(fabsf(y[i]), l);
                level[s][i] = l;
                y_level     = i == 0 ? product : ggmlq_add(y_level, product);
                level_level = ggmlq_fma(l, l, level_level); /* integers: exact */
            }
            step[s] = ggmlq_div_safe(fold_columns(y_level), fold_columns(level_level));
        }
    }
    for (int s = 0; s < STARTS; ++s) {
        for (int i = 0; i < VALUES; ++i) {
            const float off = ggmlq_sub(fabsf(y[i]), ggmlq_mul(step[s], level[s][i])), square_off = ggmlq_mul(off, off);
            error[s] = i == 0 ? square_off : ggmlq_add(error[s], square_off);
        }
        error[s] = fold_columns(error[s]);
    }
    /* The lowest error, the first of equals. */
    float best = step[0], best_error = error[0];
    for (int s = 1; s < STARTS; ++s) {
        best       = error[s] < best_error ? step[s]  : best;
        best_error = error[s] < best_error ? error[s] : best_error;
    }
    if (wide) {
        const float of_start[3] = { ggmlq_shuffle(best_error, 0), ggmlq_shuffle(best_error, 8), ggmlq_shuffle(best_error, 16) };
        const float steps[3]    = { ggmlq_shuffle(best, 0), ggmlq_shuffle(best, 8), ggmlq_shuffle(best, 16) };
        const bool  second = of_start[1] < of_start[0];
        const float lower  = second ? of_start[1] : of_start[0], step_of_lower = second ? steps[1] : steps[0];
        best = of_start[2] < lower ? steps[2] : step_of_lower;
    }
    const bool finite = square <= 3.402823466e+38f;
    *scale = finite ? __half_as_ushort(__float2half_rn(fminf(ggmlq_mul(1.0f/T::UNIT, best), 65504.0f))) : 0x7e00;
    return finite ? ggmlq_mul(ggmlq_half_value(*scale), T::UNIT) : -1.0f;
}

/* The feedback of the 32 values of a plane: a row of blocks (ggmlq_feedback_before), to the values themselves first. */
enum { BLOCK = GGMLQ_PLANE*GGMLQ_PLANE };

GGMLQ_DEVICE void fetch_tile(const struct keys & k, int head, int plane, __half * tile, int thread, int threads) {
    const int planes = k.length/GGMLQ_PLANE;
    const uint8_t * from = k.feedback + head*k.feedback_nb1 + 2*ggmlq_feedback_before(plane, planes);
    for (int i = thread; i < BLOCK/8*(planes - plane); i += threads) {
        ggmlq_copy_16(tile + 8*i, from + 16*i);
    }
}

/* Rounding to a level by additions and products alone: comparisons and choices have half their rate on NVIDIA's devices. */
struct level_sums {
    float below[3]; /* the floats before the boundaries, scaled as magnitudes are */
    float least, more[3];
};

GGMLQ_DEVICE struct level_sums level_sums_of(float step) {
    const struct cell_bounds b = bounds_of(step);
    const float bounds[3] = { b.b1, b.b2, b.b3 };
    struct level_sums s;
    for (int i = 0; i < 3; ++i) {
        s.below[i] = ggmlq_mul(__uint_as_float(__float_as_uint(bounds[i]) - 1), GGMLQ_KEY_SCALE); /* step 0: NaN, and all levels are 0 */
    }
    s.least   = ggmlq_mul(step, L0); /* a step has the digits of a half: all products and sums are exact */
    s.more[0] = ggmlq_mul(step, L1 - L0);
    s.more[1] = ggmlq_mul(step, L2 - L1);
    s.more[2] = ggmlq_mul(step, L3 - L2);
    return s;
}

/* By how much x is above its level. Steps are 0 or at least 2^-33, so that what is above a boundary's float before it is so by 1 or more when scaled. */
GGMLQ_DEVICE float off_level(float x, const struct level_sums & s) {
    float level = s.least;
    for (int i = 0; i < 3; ++i) {
        level = ggmlq_fma(ggmlq_fma_saturated(fabsf(x), GGMLQ_KEY_SCALE, -s.below[i]), s.more[i], level);
    }
    return ggmlq_sub(x, __uint_as_float(__float_as_uint(level) ^ (__float_as_uint(x) & 0x80000000u)));
}

/* Rounds 32 values, eight at a time; thread t of 8 holds v, those at t, 8 + t, .., which become what they are right before they are rounded; feedback: a tile.
 * By how much each value has moved goes to `moves`, in all eight threads. */
GGMLQ_DEVICE void round_plane(float v[4], const __half * feedback, float step, int lane, float moves[32]) {
    const struct level_sums s = level_sums_of(step);
    const int t = lane % 8;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        float x[8];
        for (int i = 0; i < 8; ++i) {
            x[i] = ggmlq_shuffle(v[k], (lane & 24) + i);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint4 row = *(const uint4 *) (feedback + (8*k + i)*GGMLQ_PLANE + 8*k);
            const uint32_t pairs[4] = { row.x, row.y, row.z, row.w };
            const float move = moves[8*k + i] = off_level(x[i], s);
            for (int j = i + 1; j < 8; ++j) {
                x[j] = ggmlq_sub(x[j], ggmlq_mul(move, ggmlq_half_value((uint16_t) (pairs[j/2] >> 16*(j % 2)))));
            }
            for (int later = k + 1; later < 4; ++later) {
                v[later] = ggmlq_sub(v[later], ggmlq_mul(move, __half2float(feedback[(8*k + i)*GGMLQ_PLANE + 8*later + t])));
            }
        }
        for (int bit = 1; bit < 8; bit *= 2) { /* v[k] = x[t] */
            for (int i = 0; i < 8; i += 2*bit) {
                x[i] = t & bit ? x[i + bit] : x[i];
            }
        }
        v[k] = x[0];
    }
}

/* Of one level index, or of eight in the nibbles of a word. */
template <int type> GGMLQ_DEVICE uint32_t field_of(uint32_t index) {
    return type == GGMLQ_TYPE_TQ3_0 ? (index >> 1 & 0x33333333u) | (index & 0x11111111u) << 2 : index;
}

template <int type> GGMLQ_DEVICE void store_bytes(uint32_t two, uint32_t one, int t, uint8_t * block, int plane) {
    typedef ggmlq_cache_type<type> T;
    block[T::Q_AT + 8*plane + t] = (uint8_t) two;
    if (t < 4) {
        block[T::S_AT + 4*plane + t] = (uint8_t) one;
    }
}

/* v: as round_plane leaves it. */
template <int type> GGMLQ_DEVICE void store_plane(const float v[4], float step, int t, uint8_t * block, int plane) {
    const struct cell_bounds b = bounds_of(step);
    uint32_t two = 0, one = 0;
    for (int k = 0; k < 4; ++k) {
        const uint32_t cell = pick<uint32_t>(fabsf(v[k]), b, 0, 1, 2, 3), index = __float_as_uint(v[k]) >> 31 ? 3 - cell : 4 + cell, field = field_of<type>(step > 0.0f ? index : 0);
        two |= (field & 3) << 2*k;
        one |= (field >> 2) << ggmlq_sign_bit(t & 4, k);
    }
    one |= ggmlq_shuffle_xor(one, 4);
    if (block) {
        store_bytes<type>(two, one, t, block, plane);
    }
}

/* Rounds the 32 values of a warp, x in lane order, and moves `next`, those 32 values later, if there are such. Four at a time, which all lanes round for
 * themselves. In a loop: as fast as unrolled, and a model's other kernels leave less code to fetch again.
 *
 * All is done with magnitudes; the sign is put on the feedback for the value that waits for the product, and on the move for others. So a negative value that is a
 * level moves by -0 and not 0, which only a value of -0 could tell. */
GGMLQ_DEVICE void round_lanes(float & x, float & next, const __half * tile, float step, int lane) {
    const struct cell_bounds b = bounds_of(step);
    const float level[4] = { ggmlq_mul(step, L0), ggmlq_mul(step, L1), ggmlq_mul(step, L2), ggmlq_mul(step, L3) };
#pragma unroll 1
    for (int k = 0; k < 32; k += 4, tile += 4*GGMLQ_PLANE) {
        float y[4];
        for (int i = 0; i < 4; ++i) {
            y[i] = ggmlq_shuffle(x, k + i);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint2 row = *(const uint2 *) (tile + i*GGMLQ_PLANE + k);
            const uint32_t pairs[2] = { row.x, row.y };
            const uint32_t sign = __float_as_uint(y[i]) & 0x80000000u;
            const float a = fabsf(y[i]), size = ggmlq_sub(a, pick<float>(a, b, level[0], level[1], level[2], level[3]));
            const float move = __uint_as_float(__float_as_uint(size) ^ sign);
            for (int j = i + 1; j < 4; ++j) {
                const float f = ggmlq_half_value((uint16_t) (pairs[j/2] >> 16*(j % 2)));
                y[j] = ggmlq_sub(y[j], j == i + 1 ? ggmlq_mul(size, __uint_as_float(__float_as_uint(f) ^ sign)) : ggmlq_mul(move, f));
            }
            const float moved = ggmlq_sub(x, ggmlq_mul(move, __half2float(tile[i*GGMLQ_PLANE + lane])));
            x    = lane > k + i ? moved : x;
            next = ggmlq_sub(next, ggmlq_mul(move, __half2float(tile[BLOCK + i*GGMLQ_PLANE + lane])));
        }
    }
}

/* Where a key's row begins; NULL: its number is out of range. */
template <int type> GGMLQ_DEVICE uint8_t * row_of(const struct keys & k, int head, int token) {
    typedef ggmlq_cache_type<type> T;
    const uint8_t * at = k.index + token*k.index_nb0;
    const int64_t number = k.index_bytes == 8 ? *(const int64_t *) at : *(const int32_t *) at;
    return number < 0 || number >= k.n_rows ? NULL : k.rows + number*k.rows_nb1 + (int64_t) head*(k.length/T::LENGTH)*T::BYTES;
}

GGMLQ_DEVICE void turn_queries(const struct beside_keys & b, uint32_t part) {
    const uint32_t number = part*(THREADS/4) + threadIdx.x/4, plane = number < b.q_planes ? number : b.q_planes - 1;
    const int64_t  at     = GGMLQ_PLANE*(int64_t) plane + 4*(threadIdx.x % 4);
    float v[2][4];
    for (int h = 0; h < 2; ++h) {
        ggmlq_load_floats(GGMLQ_CUDA_F32, (const uint8_t *) (b.q + at + 16*h), 4, v[h]);
    }
    ggmlq_turn_planes(v, threadIdx.x % 32, b.q_turned, b.q_scale);
    for (int h = 0; h < 2 && number < b.q_planes; ++h) {
        ggmlq_store_floats(GGMLQ_CUDA_F32, (uint8_t *) (b.q_out + at + 16*h), v[h]);
    }
}

/* The keys of a thread block, rotated; four threads for 32 values. */
template <int type> GGMLQ_DEVICE void load_keys(const struct keys & k, int head, int first, int group, float * rest, int stride) {
    typedef ggmlq_cache_type<type> T;
    const int thread = threadIdx.x, lane = thread % 32, planes = k.length/GGMLQ_PLANE, n = group*planes;
    for (int i = thread/4; i - thread/4 < n; i += blockDim.x/4) {
        const bool mine  = i < n;
        const int  key   = mine ? i/planes : 0, plane = mine ? i - key*planes : 0;
        const int  token = first + key < k.tokens ? first + key : k.tokens - 1;
        const uint8_t * in = k.values + token*k.values_nb1 + 4*((int64_t) head*k.length + GGMLQ_PLANE*plane + 4*(thread % 4));
        float v[2][4];
        ggmlq_load_floats(GGMLQ_CUDA_F32, in,      4, v[0]);
        ggmlq_load_floats(GGMLQ_CUDA_F32, in + 64, 4, v[1]);
        if (k.turned) {
            ggmlq_turn_planes(v, lane, k.turned, k.turn_scale);
        }
        ggmlq_rotate_plane<type>(v, lane, plane % T::PLANES);
        for (int j = 0; j < 8 && mine; ++j) {
            rest[key*stride + GGMLQ_PLANE*plane + 16*(j/4) + 4*(thread % 4) + j % 4] = v[j/4][j % 4];
        }
    }
}

/* Few keys: a thread block each. The first warp rounds 32 values, and moves the 32 that come next; the others move those behind and fetch feedback. */
template <int type> static __global__ void __launch_bounds__(THREADS) round_key(const struct keys k, const struct beside_keys b) {
    typedef ggmlq_cache_type<type> T;
    __shared__ __align__(16) __half tiles[TILE_VALUES];
    __shared__ __align__(16) float  rest[MAX_LENGTH];
    __shared__ __align__(16) float  moved[32];
    __shared__ uint32_t index[32];

    const int lane = threadIdx.x % 32, warp = threadIdx.x/32, t = lane % 8;
    const int length = k.length, planes = length/GGMLQ_PLANE, tile_values = GGMLQ_PLANE*length, buffers = TILE_VALUES/tile_values;
    const int head = blockIdx.x % k.heads, token = blockIdx.x/k.heads;
    const bool early = gridDim.x <= 64; /* as in ggmlq-cuda-rows.cu */
    const uint32_t n_keys = (uint32_t) k.tokens*k.heads;
    if (blockIdx.x >= n_keys + b.v_blocks) {
        if (early) {
            ggmlq_let_next_start();
        }
        ggmlq_wait_for_previous();
        turn_queries(b, blockIdx.x - n_keys - b.v_blocks);
        return;
    }
    if (blockIdx.x >= n_keys) {
        encode_block<type, true, type == GGMLQ_TYPE_PLANAR3>(b.v, blockIdx.x - n_keys, early, (float *) tiles);
        return;
    }
    if (early) {
        ggmlq_let_next_start();
    }
    for (int plane = 0; plane < planes && plane < buffers; ++plane) { /* no kernel writes them */
        fetch_tile(k, head, plane, tiles + plane*tile_values, threadIdx.x, THREADS);
    }
    ggmlq_wait_for_previous();
    load_keys<type>(k, head, token, 1, rest, length);
    uint8_t * const row = row_of<type>(k, head, token);
    ggmlq_copies_done();
    __syncthreads();

    float step = 0.0f, x = rest[lane], next = 0.0f;
    for (int plane = 0, buffer = 0, spare = 0; plane < planes; ++plane) {
        __half * const tile = tiles + buffer*tile_values;
        const bool more = plane + 1 < planes, begins = warp == 0 && plane % T::PLANES == 0;
        uint8_t * const block = row + plane/T::PLANES*T::BYTES;
        float y[T::LENGTH/8];
        uint16_t scale = 0;
        for (int i = 0; i < 4 && begins; ++i) {
            y[i] = ggmlq_shuffle(x, 8*i + t);
        }
        if (begins && T::PLANES == 1) { /* while others still move what comes later */
            step = step_for_queries<type, true>(y, lane, &scale);
        }
        __syncthreads();
        if (warp == 0) {
            if (begins && T::PLANES > 1) {
                for (int i = 4; i < T::LENGTH/8; ++i) {
                    y[i] = rest[GGMLQ_PLANE*plane + 8*i + t];
                }
                step = step_for_queries<type, true>(y, lane, &scale);
            }
            if (begins && row && lane == 0) {
                ggmlq_write_u16(block + T::SCALE_AT, scale);
            }
            next = more ? rest[GGMLQ_PLANE*(plane + 1) + lane] : 0.0f;
            if (step >= 0.0f) {
                round_lanes(x, next, tile, step, lane); /* the last plane's `next` is of columns that aren't there, and of no use */
            } else {
                for (int i = 0; i < 32; ++i) {
                    next = ggmlq_sub(next, ggmlq_mul(0.0f, __half2float(tile[BLOCK + i*GGMLQ_PLANE + lane])));
                }
            }
            const struct cell_bounds b = bounds_of(step);
            const uint32_t sign = __float_as_uint(x) & 0x80000000u, cell = pick<uint32_t>(fabsf(x), b, 0, 1, 2, 3);
            const float level = ggmlq_mul(step, pick<float>(fabsf(x), b, L0, L1, L2, L3));
            moved[lane] = step >= 0.0f ? ggmlq_sub(x, __uint_as_float(__float_as_uint(level) ^ sign)) : 0.0f;
            index[lane] = step > 0.0f ? (sign ? 3 - cell : 4 + cell) : 0;
            x = next;
        } else if (plane > 0 && plane - 1 + buffers < planes && buffers > 1) { /* where the last plane's was */
            fetch_tile(k, head, plane - 1 + buffers, tiles + spare*tile_values, threadIdx.x - 32, THREADS - 32);
        }
        ggmlq_copies_done();
        __syncthreads();
        if (warp == 1 && lane < 8 && row) {
            uint32_t two = 0, one = 0;
            for (int k = 0; k < 4; ++k) {
                two |= field_of<type>(index[8*k + lane]) << 2*k & 3 << 2*k;
                for (int half = 0; half < 2; ++half) {
                    one |= (field_of<type>(index[8*k + lane % 4 + 4*half]) >> 2) << ggmlq_sign_bit(4*half, k);
                }
            }
            store_bytes<type>(two, one, lane, block, plane % T::PLANES);
        }
        for (int later = plane + 1 + warp; later < planes && warp > 0; later += THREADS/32 - 1) {
            const __half * const column = tile + BLOCK*(later - plane) + lane;
            float value = rest[GGMLQ_PLANE*later + lane];
#pragma unroll
            for (int i = 0; i < 32; i += 4) {
                const float4 four = *(const float4 *) (moved + i);
                const float  m[4] = { four.x, four.y, four.z, four.w };
                for (int j = 0; j < 4; ++j) {
                    value = ggmlq_sub(value, ggmlq_mul(m[j], __half2float(column[(i + j)*GGMLQ_PLANE])));
                }
            }
            rest[GGMLQ_PLANE*later + lane] = value;
        }
        if (more && buffers == 1) {
            __syncthreads();
            fetch_tile(k, head, plane + 1, tiles, threadIdx.x, THREADS);
            ggmlq_copies_done();
        }
        spare  = buffer;
        buffer = buffer + 1 < buffers ? buffer + 1 : 0;
    }
}

/* Many keys: eight threads each; a thread block has keys of one head. Threads without a key fetch feedback. */
template <int type> static __global__ void __launch_bounds__(THREADS) round_keys(const struct keys k, const struct beside_keys b) {
    typedef ggmlq_cache_type<type> T;
    __shared__ __align__(16) float rest[MANY_KEYS_BYTES/4];

    const int thread = threadIdx.x, lane = thread % 32, t = thread % 8;
    const int length = k.length, planes = length/GGMLQ_PLANE, stride = length + PAD;
    __half * const tiles = (__half *) (rest + k.group*stride);
    const uint32_t n_keys = (uint32_t) k.groups*k.heads;
    if (blockIdx.x >= n_keys + b.v_blocks) {
        ggmlq_wait_for_previous();
        turn_queries(b, blockIdx.x - n_keys - b.v_blocks);
        return;
    }
    if (blockIdx.x >= n_keys) {
        encode_block<type, false, type == GGMLQ_TYPE_PLANAR3>(b.v, blockIdx.x - n_keys, false, rest);
        return;
    }
    const int  head = blockIdx.x/k.groups, first = (blockIdx.x - head*k.groups)*k.group, token = first + thread/8;
    const bool has_key = thread < 8*k.group;
    const int  buffers = length <= 256 ? 2 : 1;
    fetch_tile(k, head, 0, tiles, thread, THREADS); /* no kernel writes it */
    ggmlq_wait_for_previous();
    load_keys<type>(k, head, first, k.group, rest, stride);
    uint8_t * const row = has_key && token < k.tokens ? row_of<type>(k, head, token) : NULL;
    float * const mine = rest + (has_key ? thread/8 : 0)*stride;
    ggmlq_copies_done();
    __syncthreads();

    float step = 0.0f;
    for (int plane = 0; plane < planes; ++plane) {
        __half * const tile = tiles + (buffers == 2 && plane % 2 ? GGMLQ_PLANE*length : 0);
        const bool more = plane + 1 < planes;
        if (more && buffers == 2) {
            fetch_tile(k, head, plane + 1, tiles + (plane % 2 ? 0 : GGMLQ_PLANE*length), thread, THREADS);
        }
        if (has_key) {
            uint8_t * const block = row ? row + plane/T::PLANES*T::BYTES : NULL;
            if (plane % T::PLANES == 0) {
                float y[T::LENGTH/8];
                for (int i = 0; i < T::LENGTH/8; ++i) {
                    y[i] = mine[GGMLQ_PLANE*plane + 8*i + t];
                }
                uint16_t scale;
                step = step_for_queries<type, false>(y, lane, &scale);
                if (block && t == 0) {
                    ggmlq_write_u16(block + T::SCALE_AT, scale);
                }
            }
            float v[4], moves[32];
            for (int i = 0; i < 4; ++i) {
                v[i] = mine[GGMLQ_PLANE*plane + 8*i + t];
            }
            round_plane(v, tile, step, lane, moves);
            store_plane<type>(v, step, t, block, plane % T::PLANES);
            if (step < 0.0f) {
#pragma unroll
                for (int i = 0; i < 32; ++i) {
                    moves[i] = 0.0f;
                }
            }
            for (int later = plane + 1; later < planes; ++later) {
                float4 * const values = (float4 *) (mine + GGMLQ_PLANE*later + 4*t);
                float4 four = *values;
                const __half * const column = tile + BLOCK*(later - plane) + 4*t;
#pragma unroll
                for (int i = 0; i < 32; ++i) {
                    const uint2 h = *(const uint2 *) (column + i*GGMLQ_PLANE);
                    four.x = ggmlq_sub(four.x, ggmlq_mul(moves[i], ggmlq_half_value((uint16_t) h.x)));
                    four.y = ggmlq_sub(four.y, ggmlq_mul(moves[i], ggmlq_half_value((uint16_t) (h.x >> 16))));
                    four.z = ggmlq_sub(four.z, ggmlq_mul(moves[i], ggmlq_half_value((uint16_t) h.y)));
                    four.w = ggmlq_sub(four.w, ggmlq_mul(moves[i], ggmlq_half_value((uint16_t) (h.y >> 16))));
                }
                *values = four;
            }
        }
        ggmlq_copies_done();
        __syncthreads();
        if (more && buffers == 1) {
            fetch_tile(k, head, plane + 1, tiles, thread, THREADS);
            ggmlq_copies_done();
            __syncthreads();
        }
    }
}

/* --- entry points ----------------------------------------------------------------------------------------------- */

int ggmlq_cuda_set_rows_for_queries_check(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                                          int index_bytes, const struct ggmlq_cuda_view * feedback) {
    const int error = ggmlq_check_set_rows_for_queries(rows, values, indices, index_bytes, feedback);
    if (error) {
        return error;
    }
    return rows->ne[0]/feedback->ne[1] > MAX_LENGTH || feedback->ne[1] > 65535 || feedback->nb[1] % 16 != 0 ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

static struct keys make_keys(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices, int index_bytes,
                             const struct ggmlq_cuda_view * feedback, int turned) {
    const int64_t length = rows->ne[0]/feedback->ne[1];
    const int32_t group  = length <= 256 ? 16 : length <= 384 ? 8 : 4;
    const struct keys k = { (const uint8_t *) values->data, (uint8_t *) rows->data, (const uint8_t *) indices->data, (const uint8_t *) feedback->data,
        values->nb[1], rows->nb[1], indices->nb[0], feedback->nb[1], rows->ne[1],
        index_bytes, (int32_t) length, (int32_t) feedback->ne[1], (int32_t) values->ne[1], group, (int32_t) ((values->ne[1] + group - 1)/group), turned, turned ? 1/sqrtf((float) turned) : 0.0f };
    return k;
}

template <int type> static int launch(const struct keys & k, const struct beside_keys & b, void * stream) {
    const bool few = (int64_t) k.tokens*k.heads <= FEW_KEYS;
    const dim3 grid((few ? k.tokens : k.groups)*k.heads + b.v_blocks + (b.q_planes + THREADS/4 - 1)/(THREADS/4));
    const bool launched = few ? ggmlq_launch_early<round_key<type>>(grid, THREADS, (cudaStream_t) stream, k, b) : ggmlq_launch_early<round_keys<type>>(grid, THREADS, (cudaStream_t) stream, k, b);
    if (!launched && few) {
        round_key<type><<<grid, THREADS, 0, (cudaStream_t) stream>>>(k, b);
    } else if (!launched) {
        round_keys<type><<<grid, THREADS, 0, (cudaStream_t) stream>>>(k, b);
    }
    return ggmlq_cuda_launched();
}

int ggmlq_cuda_set_rows_for_queries(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                                    int index_bytes, const struct ggmlq_cuda_view * feedback, void * stream) {
    const int error = ggmlq_cuda_set_rows_for_queries_check(rows, values, indices, index_bytes, feedback);
    if (error || values->ne[1] == 0) {
        return error;
    }
    const struct keys k = make_keys(rows, values, indices, index_bytes, feedback, 0);
    return rows->type == GGMLQ_TYPE_TQ3_0 ? launch<GGMLQ_TYPE_TQ3_0>(k, beside_keys(), stream) : launch<GGMLQ_TYPE_PLANAR3>(k, beside_keys(), stream);
}

/* Whether every `turned` adjacent values of rows of `length` can be turned. */
static bool can_turn(int64_t length, int turned) { return (turned == 64 || turned == 128 || turned == 256) && length % turned == 0; }

int ggmlq_cuda_store_new_check(const struct ggmlq_cuda_new_rows * p) {
    int error = ggmlq_cuda_set_rows_for_queries_check(&p->k_rows, &p->k, &p->k_indices, p->index_bytes, &p->feedback);
    if (error) {
        return error;
    }
    if (p->k.ne[1] < 1) {
        return GGMLQ_ERROR_SHAPE;
    }
    if (p->k_turned && !can_turn(p->k_rows.ne[0]/p->feedback.ne[1], p->k_turned)) {
        return GGMLQ_ERROR_LENGTH;
    }
    if (p->v.data) {
        error = ggmlq_cuda_set_rows_check(&p->v_rows, &p->v, &p->v_indices, p->index_bytes);
        if (error || p->v_rows.type != p->k_rows.type) {
            return error ? error : GGMLQ_ERROR_TYPE;
        }
        if (p->v_turned && (p->v_turned > 128 || !can_turn(p->v.ne[0], p->v_turned) || p->v_rows.type != GGMLQ_TYPE_PLANAR3)) {
            return GGMLQ_ERROR_LENGTH;
        }
        if (count_blocks(&p->v, 32) < 1) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    if (p->q && (!can_turn(p->n_q, p->q_turned) || p->n_q > INT32_MAX)) {
        return GGMLQ_ERROR_LENGTH;
    }
    return GGMLQ_OK;
}

int ggmlq_cuda_store_new(const struct ggmlq_cuda_new_rows * p, void * stream) {
    const int error = ggmlq_cuda_store_new_check(p);
    if (error) {
        return error;
    }
    const struct keys k = make_keys(&p->k_rows, &p->k, &p->k_indices, p->index_bytes, &p->feedback, p->k_turned);
    struct beside_keys b = {};
    if (p->v.data) {
        const int64_t n = make_encoding(&b.v, p->v_rows.type, &p->v, &p->v_rows, make_index(&p->v_indices, p->index_bytes, p->v_rows.ne[1]), p->v_turned);
        const bool few = p->k.ne[1]*p->feedback.ne[1] <= FEW_KEYS;
        b.v_blocks = p->v_rows.type == GGMLQ_TYPE_TQ3_0 ? (few ? encode_grid<GGMLQ_TYPE_TQ3_0, true>(n) : encode_grid<GGMLQ_TYPE_TQ3_0, false>(n)) :
            few ? encode_grid<GGMLQ_TYPE_PLANAR3, true>(n) : encode_grid<GGMLQ_TYPE_PLANAR3, false>(n);
    }
    if (p->q) {
        b.q        = p->q;
        b.q_out    = p->q_out;
        b.q_planes = (uint32_t) (p->n_q/GGMLQ_PLANE);
        b.q_turned = p->q_turned;
        b.q_scale  = 1/sqrtf((float) p->q_turned);
    }
    return p->k_rows.type == GGMLQ_TYPE_TQ3_0 ? launch<GGMLQ_TYPE_TQ3_0>(k, b, stream) : launch<GGMLQ_TYPE_PLANAR3>(k, b, stream);
}
