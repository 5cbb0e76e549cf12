/* SPDX-License-Identifier: MIT
 *
 * The codec on a GPU, bit for bit what ggmlq-codec.c computes. Constants come from ggmlq-tables.h and ggmlq-block.h.
 *
 * The unit is a quad, four consecutive values in one thread. Two layouts of a plane pair (32 values):
 *   quads     thread t of 4 holds the quads at 4t and 16 + 4t: what memory, the bit planes and planar3's pairs want
 *   columns   thread t of 4 holds the values j with j % 4 = t, ascending: what the later Hadamard stages want
 * Going from one to the other is a transposition of 4 x 4 values among 4 threads. All 32 lanes of a warp must take part.
 */
#ifndef GGMLQ_CUDA_CODEC_CUH
#define GGMLQ_CUDA_CODEC_CUH

#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-block.h"

/* --- types and tables ------------------------------------------------------------------------------------------- */

constexpr uint32_t ggmlq_four_bytes(int a, int b, int c, int d) {
    return (uint32_t) (a & 255) | (uint32_t) (b & 255) << 8 | (uint32_t) (c & 255) << 16 | (uint32_t) (d & 255) << 24;
}

constexpr int8_t ggmlq_levels[8]        = GGMLQ_LEVELS_INIT;
constexpr float  ggmlq_boundaries[7]    = GGMLQ_BOUNDARIES_INIT;
constexpr int8_t ggmlq_levels_tq3_0[8]   = GGMLQ_TQ3_0_FIELD_LEVELS_INIT;
constexpr int8_t ggmlq_levels_planar3[8] = GGMLQ_PLANAR3_FIELD_LEVELS_INIT;

/* low, high: the levels of fields 0..3 and 4..7, a byte each. */
template <int type> struct ggmlq_cache_type;

template <> struct ggmlq_cache_type<GGMLQ_TYPE_TQ3_0> {
    enum { LENGTH = 32, BYTES = sizeof(struct ggmlq_block_tq3_0), PLANES = 1,
           SCALE_AT = 12, Q_AT = 0, S_AT = 8 };
    static constexpr float    UNIT = GGMLQ_TQ3_0_UNIT;
    static constexpr uint32_t LOW  = ggmlq_four_bytes(ggmlq_levels_tq3_0[0], ggmlq_levels_tq3_0[1], ggmlq_levels_tq3_0[2], ggmlq_levels_tq3_0[3]);
    static constexpr uint32_t HIGH = ggmlq_four_bytes(ggmlq_levels_tq3_0[4], ggmlq_levels_tq3_0[5], ggmlq_levels_tq3_0[6], ggmlq_levels_tq3_0[7]);
};

template <> struct ggmlq_cache_type<GGMLQ_TYPE_PLANAR3> {
    enum { LENGTH = 128, BYTES = sizeof(struct ggmlq_block_planar3), PLANES = 4,
           SCALE_AT = 0, Q_AT = 2, S_AT = 34 };
    static constexpr float    UNIT = GGMLQ_PLANAR3_UNIT;
    static constexpr uint32_t LOW  = ggmlq_four_bytes(ggmlq_levels_planar3[0], ggmlq_levels_planar3[1], ggmlq_levels_planar3[2], ggmlq_levels_planar3[3]);
    static constexpr uint32_t HIGH = ggmlq_four_bytes(ggmlq_levels_planar3[4], ggmlq_levels_planar3[5], ggmlq_levels_planar3[6], ggmlq_levels_planar3[7]);
};

static_assert(offsetof(struct ggmlq_block_tq3_0, gamma) == 12 && offsetof(struct ggmlq_block_tq3_0, qr) == 8, "docs/FORMAT.md");
static_assert(offsetof(struct ggmlq_block_planar3, qs) == 2 && offsetof(struct ggmlq_block_planar3, signs) == 34, "docs/FORMAT.md");

static __device__ const __align__(16) float ggmlq_cos_sin[64][2] = GGMLQ_PLANAR3_COS_SIN_INIT;

/* --- memory ----------------------------------------------------------------------------------------------------- */

/* Blocks have 14 and 50 bytes: rows lie on even addresses, and where somebody sliced bytes, on odd ones. */
GGMLQ_DEVICE uint32_t ggmlq_read_u32(const uint8_t * p) {
    if (((uintptr_t) p & 1) == 0) {
        const uint16_t * h = (const uint16_t *) p;
        return h[0] | (uint32_t) h[1] << 16;
    }
    return ggmlq_load_u32(p);
}

GGMLQ_DEVICE uint16_t ggmlq_read_u16(const uint8_t * p) { return ((uintptr_t) p & 1) == 0 ? *(const uint16_t *) p : ggmlq_load_u16(p); }

GGMLQ_DEVICE void ggmlq_write_u16(uint8_t * p, uint32_t v) {
    if (((uintptr_t) p & 1) == 0) {
        *(uint16_t *) p = (uint16_t) v;
    } else {
        ggmlq_store_u16(p, (uint16_t) v);
    }
}

GGMLQ_DEVICE float ggmlq_half_value(uint16_t h) { return __half2float(__ushort_as_half(h)); }

/* Values [0, n) of 4 at p, n <= 4; the others become 0. type: f32 or f16. */
GGMLQ_DEVICE void ggmlq_load_floats(int type, const uint8_t * p, int n, float v[4]) {
    if (type == GGMLQ_CUDA_F32) {
        if (n >= 4 && ((uintptr_t) p & 15) == 0) {
            const float4 f = *(const float4 *) p;
            v[0] = f.x; v[1] = f.y; v[2] = f.z; v[3] = f.w;
            return;
        }
        for (int i = 0; i < 4; ++i) {
            v[i] = i < n ? ((const float *) p)[i] : 0.0f;
        }
    } else {
        if (n >= 4 && ((uintptr_t) p & 7) == 0) {
            const uint2 h = *(const uint2 *) p;
            v[0] = ggmlq_half_value((uint16_t) h.x); v[1] = ggmlq_half_value((uint16_t) (h.x >> 16));
            v[2] = ggmlq_half_value((uint16_t) h.y); v[3] = ggmlq_half_value((uint16_t) (h.y >> 16));
            return;
        }
        for (int i = 0; i < 4; ++i) {
            v[i] = i < n ? ggmlq_half_value(((const uint16_t *) p)[i]) : 0.0f;
        }
    }
}

/* Nearest, ties to even, NaN stays NaN. */
GGMLQ_DEVICE uint16_t ggmlq_bf16_from_float(float f) {
    const uint32_t bits = __float_as_uint(f);
    return (uint16_t) ((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

GGMLQ_DEVICE void ggmlq_store_floats(int type, uint8_t * p, const float v[4]) {
    if (type == GGMLQ_CUDA_F32) {
        if (((uintptr_t) p & 15) == 0) {
            *(float4 *) p = make_float4(v[0], v[1], v[2], v[3]);
            return;
        }
        for (int i = 0; i < 4; ++i) {
            ((float *) p)[i] = v[i];
        }
        return;
    }
    uint16_t h[4];
    for (int i = 0; i < 4; ++i) {
        h[i] = type == GGMLQ_CUDA_F16 ? __half_as_ushort(__float2half_rn(v[i])) : ggmlq_bf16_from_float(v[i]);
    }
    if (((uintptr_t) p & 7) == 0) {
        *(uint2 *) p = make_uint2(h[0] | (uint32_t) h[1] << 16, h[2] | (uint32_t) h[3] << 16);
        return;
    }
    for (int i = 0; i < 4; ++i) {
        ((uint16_t *) p)[i] = h[i];
    }
}

/* --- planes ----------------------------------------------------------------------------------------------------- */

/* Levels of the four values from 8k + 4w on, a signed byte each; q is word w of the 2-bit plane. */
template <int type> GGMLQ_DEVICE uint32_t ggmlq_unpack_quad(uint32_t q, uint32_t s, int w, int k) {
    const uint32_t fields = (q >> 2*k & 0x03030303u) | (s >> ggmlq_sign_bit(4*w, k) & 0x01010101u) << 2;
    return ggmlq_look_up_bytes(ggmlq_cache_type<type>::LOW, ggmlq_cache_type<type>::HIGH, fields);
}

/* Exact, and cheaper than four conversions: 2^23 + 128 + level is put together from bytes. */
GGMLQ_DEVICE void ggmlq_levels_to_floats(uint32_t levels, float v[4]) {
    const uint32_t shifted = levels ^ 0x80808080u;
    for (int i = 0; i < 4; ++i) {
        v[i] = __uint_as_float(ggmlq_byte_perm(shifted, 0x4b000000u, 0x7540 | i)) - 8388736.0f;
    }
}

/* Values j..j+3 of a row in the rotated space, scale * level. */
template <int type> GGMLQ_DEVICE void ggmlq_decode_quad(const uint8_t * row, int j, float v[4]) {
    typedef ggmlq_cache_type<type> T;
    const uint8_t * block = row + (j/T::LENGTH)*T::BYTES;
    const int plane = j/GGMLQ_PLANE % T::PLANES, k = j/8 % 4, w = j/4 % 2;
    const uint32_t q = ggmlq_read_u32(block + T::Q_AT + 8*plane + 4*w);
    const uint32_t s = ggmlq_read_u32(block + T::S_AT + 4*plane);
    const float scale = ggmlq_half_value(ggmlq_read_u16(block + T::SCALE_AT))*T::UNIT;
    ggmlq_levels_to_floats(ggmlq_unpack_quad<type>(q, s, w, k), v);
    for (int i = 0; i < 4; ++i) {
        v[i] = ggmlq_mul(scale, v[i]);
    }
}

/* --- transpositions --------------------------------------------------------------------------------------------- */

/* Threads whose lanes differ in the bits m0 and m1 are 0..3: value i of thread t becomes value t of thread i. (t ? v[i] : v[j] would
 * be a choice of addresses, which keeps AMD's compilers from holding v in registers.) */
GGMLQ_DEVICE void ggmlq_transpose(float v[4], int lane, int m0, int m1) {
    const bool t0 = lane & m0, t1 = lane & m1;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const float a = v[i], b = v[i + 1], got = ggmlq_shuffle_xor(t0 ? a : b, m0);
        v[i]     = t0 ? got : a;
        v[i + 1] = t0 ? b : got;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float a = v[i], b = v[i + 2], got = ggmlq_shuffle_xor(t1 ? a : b, m1);
        v[i]     = t1 ? got : a;
        v[i + 2] = t1 ? b : got;
    }
}

GGMLQ_DEVICE uint32_t ggmlq_transpose_bytes(uint32_t v, int lane, int m0, int m1) {
    v = ggmlq_byte_perm(v, ggmlq_shuffle_xor(v, m0), lane & m0 ? 0x3715 : 0x6240);
    return ggmlq_byte_perm(v, ggmlq_shuffle_xor(v, m1), lane & m1 ? 0x3276 : 0x5410);
}

/* --- rotations -------------------------------------------------------------------------------------------------- */

#define GGMLQ_CUDA_NORM32 0.17677669529663689f /* 1/sqrt(32) */

GGMLQ_DEVICE void ggmlq_butterfly(float & a, float & b) {
    const float sum = ggmlq_add(a, b);
    b = ggmlq_sub(a, b);
    a = sum;
}

/* With the lane whose number differs in the bit `mask`. */
GGMLQ_DEVICE void ggmlq_butterfly_lanes(float & v, int lane, int mask) {
    v = ggmlq_fma(lane & mask ? -1.0f : 1.0f, v, ggmlq_shuffle_xor(v, mask));
}

/* Quads in, columns out. */
GGMLQ_DEVICE void ggmlq_hadamard(float v[2][4], int lane) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        ggmlq_butterfly(v[h][0], v[h][1]); ggmlq_butterfly(v[h][2], v[h][3]); /* half-distance 1 */
        ggmlq_butterfly(v[h][0], v[h][2]); ggmlq_butterfly(v[h][1], v[h][3]); /* 2 */
        ggmlq_transpose(v[h], lane, 1, 2);
        ggmlq_butterfly(v[h][0], v[h][1]); ggmlq_butterfly(v[h][2], v[h][3]); /* 4 */
        ggmlq_butterfly(v[h][0], v[h][2]); ggmlq_butterfly(v[h][1], v[h][3]); /* 8 */
    }
    for (int i = 0; i < 4; ++i) {
        ggmlq_butterfly(v[0][i], v[1][i]);                                    /* 16 */
        v[0][i] = ggmlq_mul(v[0][i], GGMLQ_CUDA_NORM32);
        v[1][i] = ggmlq_mul(v[1][i], GGMLQ_CUDA_NORM32);
    }
}

/* Quad at value j of a tq3_0 block times its signs. */
GGMLQ_DEVICE void ggmlq_flip_quad(float v[4], int j) {
    for (int i = 0; i < 4; ++i) {
        v[i] = __uint_as_float(__float_as_uint(v[i]) ^ GGMLQ_TQ3_0_SIGNS >> (j + i) << 31);
    }
}

/* Turns the two pairs of the quad at value j of a planar3 block, which are turned by cs; direction -1: back. */
GGMLQ_DEVICE float4 ggmlq_turns_of_quad(int j) { return *(const float4 *) ggmlq_cos_sin[j/2]; }

GGMLQ_DEVICE void ggmlq_turn_quad(float v[4], const float4 & cs, float direction) {
    const float s0 = direction*cs.y, s1 = direction*cs.w;
    const float y0 = ggmlq_sub(ggmlq_mul(cs.x, v[0]), ggmlq_mul(s0, v[1]));
    const float y2 = ggmlq_sub(ggmlq_mul(cs.z, v[2]), ggmlq_mul(s1, v[3]));
    v[1] = ggmlq_add(ggmlq_mul(s0, v[0]), ggmlq_mul(cs.x, v[1]));
    v[3] = ggmlq_add(ggmlq_mul(s1, v[2]), ggmlq_mul(cs.z, v[3]));
    v[0] = y0;
    v[2] = y2;
}

/* Plane pair `plane` of a block, quads in four threads, quads out. */
template <int type> GGMLQ_DEVICE void ggmlq_rotate_plane(float v[2][4], int lane, int plane) {
    const int t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (type == GGMLQ_TYPE_TQ3_0) {
            ggmlq_flip_quad(v[h], 16*h + 4*t);
        } else {
            ggmlq_turn_quad(v[h], ggmlq_turns_of_quad(32*plane + 16*h + 4*t), 1.0f);
        }
    }
    if (type == GGMLQ_TYPE_TQ3_0) {
        ggmlq_hadamard(v, lane);
        ggmlq_transpose(v[0], lane, 1, 2);
        ggmlq_transpose(v[1], lane, 1, 2);
    }
}

template <int type> GGMLQ_DEVICE void ggmlq_unrotate_plane(float v[2][4], int lane, int plane) {
    const int t = lane % 4;
    if (type == GGMLQ_TYPE_TQ3_0) {
        ggmlq_hadamard(v, lane);
        ggmlq_transpose(v[0], lane, 1, 2);
        ggmlq_transpose(v[1], lane, 1, 2);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (type == GGMLQ_TYPE_TQ3_0) {
            ggmlq_flip_quad(v[h], 16*h + 4*t);
        } else {
            ggmlq_turn_quad(v[h], ggmlq_turns_of_quad(32*plane + 16*h + 4*t), -1.0f);
        }
    }
}

/* --- encoder ---------------------------------------------------------------------------------------------------- */

/* Two ways to encode, with the same result.
 * Many blocks: threads hold 16 values each and try the three starts side by side:
 *   tq3_0    thread t of 2 holds the values j with j % 8 in 4t..4t+3
 *   planar3  thread t of 8 holds the values j with j % 8 = 4*(t % 2) + t/2
 * Few blocks (`wide`), where time is the length of a thread's work: a thread has four values and tries one start.
 *   tq3_0    a warp a block, in four groups of 8 threads (the last repeats a start), of which thread t holds the values j with j % 8 as in planar3's above; then all go on with the best
 *   planar3  a thread block a block, each warp a start (the last repeats one), thread t of 32 holds the quad at 4t; the warp whose start is best stores
 * So each lane of FORMAT.md's sums is added up by one thread, in ascending order. More values a thread would repeat less, but such code
 * waits for its own instructions (docs/CUDA.md). */
template <int type, bool wide> struct ggmlq_encoder;

constexpr float GGMLQ_KEY_SCALE = 1152921504606846976.0f; /* 2^60 */

/* Levels and boundaries mirror each other, so all is done with magnitudes. On a boundary a value belongs to the upper
 * cell: a positive one's key is the next larger float. Keys are scaled for ggmlq_pick. */
GGMLQ_DEVICE float ggmlq_key(float y) {
    const uint32_t bits = __float_as_uint(y);
    return ggmlq_mul(fabsf(__uint_as_float(bits + 1 - (bits >> 31))), GGMLQ_KEY_SCALE);
}

/* Of a start: the boundaries of magnitudes, scaled as the keys are. */
struct ggmlq_bounds { float b[3]; };
GGMLQ_DEVICE struct ggmlq_bounds ggmlq_bounds_of(float step) {
    constexpr float B1 = ggmlq_boundaries[4]*GGMLQ_KEY_SCALE, B2 = ggmlq_boundaries[5]*GGMLQ_KEY_SCALE, B3 = ggmlq_boundaries[6]*GGMLQ_KEY_SCALE;
    return { { ggmlq_mul(B1, step), ggmlq_mul(B2, step), ggmlq_mul(B3, step) } };
}

/* The magnitude of the level. */
GGMLQ_DEVICE float ggmlq_level_of(float key, const struct ggmlq_bounds & b) {
    constexpr float L0 = ggmlq_levels[4], L1 = ggmlq_levels[5], L2 = ggmlq_levels[6], L3 = ggmlq_levels[7];
    return ggmlq_pick(key, b.b[0], b.b[1], b.b[2], L0, L1, L2, L3);
}

/* Of a block, by the bits of its largest magnitude: 2^(e-1) <= that < 2^e. `down`: of the factor 2^-e, that part which is a float, subnormal ones included. */
struct ggmlq_size {
    bool  finite, coded;
    int   e;
    float down;
};

GGMLQ_DEVICE struct ggmlq_size ggmlq_size_of(uint32_t max) {
    const bool finite = max < 0x7f800000, coded = finite && max != 0;
    const int e = !coded ? 0 : max >= 0x00800000 ? (int) (max >> 23) - 126 : -117 - __clz((int) max);
    return { finite, coded, e, __uint_as_float(e > 126 ? 0x00800000u >> (e - 126) : (uint32_t) (127 - (e < -127 ? -127 : e)) << 23) };
}

/* The other part. */
template <int n> GGMLQ_DEVICE void ggmlq_lift(float v[n], const struct ggmlq_size & size) {
    if (size.e < -127) {
        for (int i = 0; i < n; ++i) {
            v[i] = ggmlq_mul(v[i], __uint_as_float((uint32_t) -size.e << 23));
        }
    }
}

template <int type> GGMLQ_DEVICE uint32_t ggmlq_scale_of(const struct ggmlq_size & size, float step) {
    const int e = size.e, up_excess = e < -126 ? e + 126 : e > 127 ? e - 127 : 0;
    const float up = __uint_as_float((uint32_t) (127 + up_excess) << 23), up2 = __uint_as_float((uint32_t) (127 + e - up_excess) << 23);
    const float scaled = ggmlq_mul(ggmlq_mul(ggmlq_mul(step, 1.0f/ggmlq_cache_type<type>::UNIT), up), up2);
    return size.coded ? __half_as_ushort(__float2half_rn(fminf(scaled, 65504.0f))) : size.finite ? 0 : 0x7e00;
}

template <int type, bool wide> struct ggmlq_encoder { /* `wide`: tq3_0 only */
    enum { TQ3_0 = type == GGMLQ_TYPE_TQ3_0,
           GROUP = wide ? 8 : ggmlq_cache_type<type>::LENGTH/16, /* threads that hold a block */
           THREADS = wide ? 32 : GROUP, STARTS = wide ? 1 : 3,
           VALUES = ggmlq_cache_type<type>::LENGTH/GROUP, LANES = 8/GROUP,
           SHARED = 1 }; /* floats that a thread block needs in shared memory; none */

    /* The first lane of sums of a thread: its n-th value is this + n % LANES + 8*(n/LANES) of the block. */
    static __device__ __forceinline__ int first_lane(int lane) { return GROUP == 8 ? 4*(lane % 2) + lane/2 % 4 : 4*(lane % 2); }

    static __device__ __forceinline__ void load(int value_type, const uint8_t * block, int lane, float v[VALUES]) {
        const bool f32     = value_type == GGMLQ_CUDA_F32;
        const int  run     = wide ? 1 : 4; /* adjacent values; planar3's quads are turned before they change hands */
        const int  apart   = TQ3_0 ? 8 : 32;
        const uint8_t * at = block + (run == 1 ? first_lane(lane) : 4*(lane % GROUP))*(f32 ? 4 : 2);
        const bool aligned = ((uintptr_t) at & (f32 ? 4*run - 1 : 2*run - 1)) == 0;
        if (!aligned) {
            for (int i = 0; i < VALUES; ++i) {
                const int k = i/run*apart + i % run;
                v[i] = f32 ? ((const float *) at)[k] : ggmlq_half_value(((const uint16_t *) at)[k]);
            }
            return;
        }
        for (int i = 0; i < VALUES; i += run) {
            const int k = i/run*apart;
            if (f32 && run == 4) {
                const float4 f = *(const float4 *) (at + 4*k);
                v[i] = f.x; v[i + 1] = f.y; v[i + 2] = f.z; v[i + 3] = f.w;
            } else if (f32) {
                v[i] = *(const float *) (at + 4*k);
            } else {
                uint32_t h[2];
                if (run == 4) {
                    const uint2 two = *(const uint2 *) (at + 2*k);
                    h[0] = two.x;
                    h[1] = two.y;
                } else {
                    h[0] = *(const uint16_t *) (at + 2*k);
                }
                for (int n = 0; n < run; ++n) {
                    v[i + n] = ggmlq_half_value((uint16_t) (h[n/2] >> 16*(n % 2)));
                }
            }
        }
    }

    /* planar3's loaded values: llama.cpp's own rotation (attn_rot) of every 64 or 128 of them, whose `scale` is 1/sqrt of that. The steps
     * and their order are those of its kernel for it, and so are the bits. */
    static __device__ __forceinline__ void turn(float v[VALUES], int lane, int length, float scale) {
        for (int i = 0; i < VALUES; ++i) {
            v[i] = ggmlq_mul(v[i], scale);
        }
        for (int i = 0; i < VALUES; i += 4) {
            ggmlq_butterfly(v[i], v[i + 1]); ggmlq_butterfly(v[i + 2], v[i + 3]); /* half-distance 1 */
            ggmlq_butterfly(v[i], v[i + 2]); ggmlq_butterfly(v[i + 1], v[i + 3]); /* 2 */
        }
        for (int mask = 1; mask < 8; mask *= 2) { /* 4, 8, 16 */
            for (int i = 0; i < VALUES; ++i) {
                ggmlq_butterfly_lanes(v[i], lane, mask);
            }
        }
        for (int i = 0; i < 4; ++i) {
            ggmlq_butterfly(v[i], v[4 + i]); ggmlq_butterfly(v[8 + i], v[12 + i]); /* 32 */
        }
        for (int i = 0; i < 8 && length == 128; ++i) {
            ggmlq_butterfly(v[i], v[8 + i]); /* 64 */
        }
    }

    /* Each step adds the same two numbers in both threads of a pair, so all threads get the same bits. */
    static __device__ __forceinline__ float fold(float sum) {
        sum = ggmlq_add(sum, ggmlq_shuffle_xor(sum, 1));
        if (GROUP == 8) {
            sum = ggmlq_add(sum, ggmlq_shuffle_xor(sum, 4));
            sum = ggmlq_add(sum, ggmlq_shuffle_xor(sum, 2));
        }
        return sum;
    }

    static __device__ __forceinline__ float fold_lanes(const float sum[LANES]) {
        if (LANES == 1) {
            return fold(sum[0]);
        }
        return ggmlq_add(ggmlq_add(fold(sum[0]), fold(sum[2 % LANES])), ggmlq_add(fold(sum[1 % LANES]), fold(sum[3 % LANES])));
    }

    /* One pass of all starts side by side, which don't wait for each other: steps -> new steps, and the levels. */
    static __device__ __forceinline__ void improve(const float y[VALUES], const float key[VALUES], float step[STARTS], float level[STARTS][VALUES]) {
        float sum[STARTS][LANES], squares[STARTS];
        for (int start = 0; start < STARTS; ++start) {
            const struct ggmlq_bounds b = ggmlq_bounds_of(step[start]);
            float square = 0.0f;
            for (int n = 0; n < VALUES; ++n) {
                const float l = ggmlq_level_of(key[n], b), product = ggmlq_mul(fabsf(y[n]), l);
                level[start][n] = l;
                sum[start][n % LANES] = n < LANES ? product : ggmlq_add(sum[start][n % LANES], product);
                square = fmaf(l, l, square); /* integers below 2^24: exact in any order */
            }
            squares[start] = square;
        }
        for (int start = 0; start < STARTS; ++start) {
            step[start] = ggmlq_div_safe(fold_lanes(sum[start]), fold(squares[start]));
        }
    }

    /* Rotated values, none of them -0 -> the step, and the level index of each: nibble k of half c % 2 of index[c/2] is that of the value
     * for bit position k of byte c of those that the thread has of the 2-bit planes. */
    static __device__ __forceinline__ float search(const float y[VALUES], int lane, uint32_t index[2]) {
        const float starts[3] = { 0.8f, 1.0f, 1.2f };

        float key[VALUES], square_sum[LANES];
        for (int n = 0; n < VALUES; ++n) {
            key[n] = ggmlq_key(y[n]);
            const float square = ggmlq_mul(y[n], y[n]);
            square_sum[n % LANES] = n < LANES ? square : ggmlq_add(square_sum[n % LANES], square);
        }
        const float base = ggmlq_div(ggmlq_sqrt(ggmlq_mul(fold_lanes(square_sum), 1.0f/ggmlq_cache_type<type>::LENGTH)), GGMLQ_LEVEL_SIGMA);

        float step[STARTS], from[STARTS], level[STARTS][VALUES];
        for (int start = 0; start < STARTS; ++start) {
            step[start] = ggmlq_mul(!wide ? starts[start] : lane < 8 ? starts[0] : lane < 16 ? starts[1] : starts[2], base);
        }
#pragma unroll 1 /* the last one is apart, or compilers take the errors into the loop */
        for (int pass = 0; pass < 2; ++pass) {
            improve(y, key, step, level);
        }
        for (int start = 0; start < STARTS; ++start) {
            from[start] = step[start];
        }
        improve(y, key, step, level);

        /* The lowest error, the first of equals. */
        float best_step = 0.0f, best_from = 0.0f, best_error = __uint_as_float(0x7f800000);
        for (int start = 0; start < STARTS; ++start) {
            float sum[LANES];
            for (int n = 0; n < VALUES; ++n) {
                const float d = ggmlq_sub(fabsf(y[n]), ggmlq_mul(step[start], level[start][n]));
                sum[n % LANES] = n < LANES ? ggmlq_mul(d, d) : ggmlq_add(sum[n % LANES], ggmlq_mul(d, d));
            }
            const float error = fold_lanes(sum);
            if (wide || error < best_error) {
                best_error = error;
                best_step  = step[start];
                best_from  = from[start];
            }
        }
        for (int mask = 8, start = lane/8; wide && mask < 32; mask *= 2) {
            const float error = ggmlq_shuffle_xor(best_error, mask), step2 = ggmlq_shuffle_xor(best_step, mask), from2 = ggmlq_shuffle_xor(best_from, mask);
            const int   other = ggmlq_shuffle_xor(start, mask);
            if (error < best_error || (error == best_error && other < start)) {
                best_error = error;
                best_step  = step2;
                best_from  = from2;
                start      = other;
            }
        }

        const struct ggmlq_bounds b = ggmlq_bounds_of(best_from);
        index[0] = index[1] = 0;
        for (int c = 0; c < VALUES/4; ++c) {
            float nibbles = 3.5f*(1 + 16 + 256 + 4096); /* index = 3.5 +- (cell + 0.5) */
            for (int k = 0, weight = 1; k < 4; ++k, weight *= 16) {
                const int n = TQ3_0 ? VALUES/4*k + c : 4*c + k;
                const float cell = ggmlq_pick(key[n], b.b[0], b.b[1], b.b[2], 0.5f, 1.5f, 2.5f, 3.5f);
                nibbles = fmaf(__uint_as_float(__float_as_uint(cell) | (__float_as_uint(y[n]) & 0x80000000u)), (float) weight, nibbles);
            }
            index[c/2] |= (uint32_t) (int) nibbles << 16*(c % 2);
        }
        return best_step;
    }

    /* Bits `mask` from bit `shift` of each nibble of the indices on -> where a plane's byte has them (signs: the 1-bit plane, byte 0). */
    static __device__ __forceinline__ uint32_t pack(const uint32_t index[2], int shift, uint32_t mask, bool signs) {
        uint32_t half[2] = { 0, 0 };
        for (int i = 0; i < 2; ++i) {
            for (int k = 0; k < 4; ++k) {
                const int to = signs ? ggmlq_sign_bit(0, k) : 2*k;
                half[i] |= (index[i] >> shift >> (4*k - to)) & (mask << to)*0x10001u;
            }
        }
        return ggmlq_byte_perm(half[0], half[1], 0x6420);
    }

    /* What a thread has of a block: bytes of the 2-bit planes, the bits of the 1-bit planes of the same values, the scale. */
    struct fields { uint32_t two, one, scale; };

    struct constants {};
    static __device__ __forceinline__ constants load_constants(int) { return {}; }

    static __device__ __forceinline__ fields encode(float v[VALUES], int lane, const constants &, float *) {
        uint32_t max = 0;
        for (int i = 0; i < VALUES; ++i) {
            const uint32_t bits = __float_as_uint(v[i]) & 0x7fffffff;
            max = bits > max ? bits : max;
        }
        for (int mask = 1; mask < GROUP; mask *= 2) {
            const uint32_t other = ggmlq_shuffle_xor(max, mask);
            max = other > max ? other : max;
        }
        const struct ggmlq_size size = ggmlq_size_of(max);
        const float down = size.down;
        ggmlq_lift<VALUES>(v, size);

        float y[VALUES];
        if (wide) {
            const int first = first_lane(lane);
            for (int i = 0; i < VALUES; ++i) {
                v[i] = ggmlq_mul(v[i], __uint_as_float(__float_as_uint(down) ^ GGMLQ_TQ3_0_SIGNS >> (8*i + first) << 31));
                ggmlq_butterfly_lanes(v[i], lane, 2); /* half-distance 1 */
                ggmlq_butterfly_lanes(v[i], lane, 4); /* 2 */
                ggmlq_butterfly_lanes(v[i], lane, 1); /* 4 */
            }
        } else if (TQ3_0) {
            const int t = lane % 2;
            /* Signs as bits: under -use_fast_math a minus would flush the subnormal factors of values from 2^126 on. down_t: for values whose
             * sign the threads don't share. */
            const uint32_t minus = 0x80000000u, down_bits = __float_as_uint(down), down_t = down_bits ^ (t ? minus : 0);
            const float factors[4] = { down, __uint_as_float(down_bits ^ minus), __uint_as_float(down_t), __uint_as_float(down_t ^ minus) };
            for (int i = 0; i < VALUES; i += 4) {
                for (int n = i; n < i + 4; ++n) {
                    const uint32_t minus0 = GGMLQ_TQ3_0_SIGNS >> (i + n) & 1, minus1 = GGMLQ_TQ3_0_SIGNS >> (i + n + 4) & 1;
                    v[n] = ggmlq_mul(v[n], factors[(minus0 == minus1 ? 0 : 2) + minus0]);
                }
                ggmlq_butterfly(v[i], v[i + 1]); ggmlq_butterfly(v[i + 2], v[i + 3]); /* 1 */
                ggmlq_butterfly(v[i], v[i + 2]); ggmlq_butterfly(v[i + 1], v[i + 3]); /* 2 */
                for (int n = i; n < i + 4; ++n) {                                     /* 4 */
                    ggmlq_butterfly_lanes(v[n], lane, 1);
                }
            }
        } else {
            for (int i = 0; i < VALUES; i += 4) {
                for (int n = i; n < i + 4; ++n) {
                    v[n] = ggmlq_mul(v[n], down);
                }
                ggmlq_turn_quad(v + i, ggmlq_turns_of_quad(8*i + 4*(lane % 8)), 1.0f);
                ggmlq_transpose(v + i, lane, 2, 4);
            }
        }
        for (int half = LANES; TQ3_0 && half < VALUES; half *= 2) { /* 8, 16 */
            for (int i = 0; i < VALUES; ++i) {
                if ((i & half) == 0) {
                    ggmlq_butterfly(v[i], v[(i + half) % VALUES]);
                }
            }
        }
        for (int i = 0; i < VALUES; ++i) { /* +0 for -0 */
            y[i] = TQ3_0 ? ggmlq_fma(v[i], GGMLQ_CUDA_NORM32, 0.0f) : ggmlq_add(v[i], 0.0f);
        }

        uint32_t index[2];
        const float step = search(y, lane, index);
        fields f;
        f.scale = ggmlq_scale_of<type>(size, step);
        f.two = size.coded ? pack(index, TQ3_0 ? 1 : 0, 3, false) : 0;
        f.one = size.coded ? pack(index, TQ3_0 ? 0 : 2, 1, true)  : 0;
        return f;
    }

    /* All threads must take part; nothing is stored where block is NULL. */
    static __device__ __forceinline__ void store(const fields & f, int lane, uint8_t * block) {
        typedef ggmlq_cache_type<type> T;
        const int first = first_lane(lane), w = lane % 2;
        uint32_t two = f.two, one = f.one << ggmlq_sign_bit(wide ? first : 4*w, 0);
        one |= ggmlq_shuffle_xor(one, 1);
        if (wide) {
            one |= ggmlq_shuffle_xor(one, 2);
            one |= ggmlq_shuffle_xor(one, 4);
        }
        if (!TQ3_0) {
            two = ggmlq_transpose_bytes(two, lane, 2, 4);
            one = ggmlq_transpose_bytes(one, lane, 2, 4);
        }
        if (block == NULL || lane % THREADS >= GROUP) {
            return;
        }
        if (wide) {
            block[T::Q_AT + first] = (uint8_t) two;
            if (lane < 3) {
                ggmlq_write_u16(block + T::S_AT + 2*lane, lane == 0 ? one : lane == 1 ? one >> 16 : f.scale);
            }
        } else if (TQ3_0) {
            ggmlq_write_u16(block + T::Q_AT + 4*w, two);
            ggmlq_write_u16(block + T::Q_AT + 4*w + 2, two >> 16);
            ggmlq_write_u16(block + (w == 0 ? T::S_AT : T::SCALE_AT), w == 0 ? one : f.scale);
            if (w == 0) {
                ggmlq_write_u16(block + T::S_AT + 2, one >> 16);
            }
        } else {
            const int plane = lane/2 % 4;
            ggmlq_write_u16(block + T::Q_AT + 8*plane + 4*w, two);
            ggmlq_write_u16(block + T::Q_AT + 8*plane + 4*w + 2, two >> 16);
            ggmlq_write_u16(block + T::S_AT + 4*plane + 2*w, w ? one >> 16 : one);
            if (lane % 8 == 0) {
                ggmlq_write_u16(block + T::SCALE_AT, f.scale);
            }
        }
    }
};

template <> struct ggmlq_encoder<GGMLQ_TYPE_PLANAR3, true> {
    enum { THREADS = 128, GROUP = 32, VALUES = 4, WARPS = 4,
           STRIDE = 20, /* floats between lanes of sums in shared memory: 16 in use, on other banks than those of other lanes */
           SUMS   = 2*8*STRIDE, SHARED = WARPS*(SUMS + 1) };
    typedef ggmlq_cache_type<GGMLQ_TYPE_PLANAR3> T;

    static __device__ __forceinline__ void load(int value_type, const uint8_t * block, int lane, float v[VALUES]) {
        ggmlq_load_floats(value_type, block + 4*lane*(value_type == GGMLQ_CUDA_F32 ? 4 : 2), 4, v);
    }

    /* As in the encoder of many blocks. */
    static __device__ __forceinline__ void turn(float v[VALUES], int lane, int length, float scale) {
        for (int i = 0; i < VALUES; ++i) {
            v[i] = ggmlq_mul(v[i], scale);
        }
        ggmlq_butterfly(v[0], v[1]); ggmlq_butterfly(v[2], v[3]);
        ggmlq_butterfly(v[0], v[2]); ggmlq_butterfly(v[1], v[3]);
#pragma unroll
        for (int mask = 1; mask < 16; mask *= 2) {
            for (int i = 0; i < VALUES; ++i) {
                ggmlq_butterfly_lanes(v[i], lane, mask);
            }
        }
        for (int i = 0; i < VALUES && length == 128; ++i) {
            ggmlq_butterfly_lanes(v[i], lane, 16);
        }
    }

    /* FORMAT.md's sum of a warp's values, in all of its threads; shared: of the warp, not what the call before was given. */
    static __device__ __forceinline__ float sum_of(const float x[VALUES], int lane, float shared[8*STRIDE]) {
        for (int i = 0; i < VALUES; ++i) {
            shared[(4*(lane % 2) + i)*STRIDE + lane/2] = x[i];
        }
        ggmlq_sync_warp();
        const float4 * mine = (const float4 *) (shared + lane % 8*STRIDE);
        float sum = 0.0f;
        for (int i = 0; i < 4; ++i) {
            const float4 four = mine[i];
            sum = i == 0 ? four.x : ggmlq_add(sum, four.x);
            sum = ggmlq_add(ggmlq_add(ggmlq_add(sum, four.y), four.z), four.w);
        }
        for (int mask = 4; mask > 0; mask /= 2) {
            sum = ggmlq_add(sum, ggmlq_shuffle_xor(sum, mask));
        }
        return sum;
    }

    /* Of 32 values: bytes of the 2-bit planes and bits of the 1-bit planes, put together from the threads that have them; `best`: the warp's start is. */
    struct fields { uint32_t two, one, scale; bool best; };

    /* What encoding needs besides the values. */
    typedef float4 constants;
    static __device__ __forceinline__ constants load_constants(int lane) {
        float4 turns = ggmlq_turns_of_quad(4*lane);
        ggmlq_keep(turns.x); ggmlq_keep(turns.y); ggmlq_keep(turns.z); ggmlq_keep(turns.w);
        return turns;
    }

    /* All but which start is best: its error; sums: of the warp. */
    static __device__ __forceinline__ float encode_from(float start, float v[VALUES], int lane, const constants & turns, float sums[SUMS], fields & f) {
        uint32_t max = 0;
        for (int i = 0; i < VALUES; ++i) {
            const uint32_t bits = __float_as_uint(v[i]) & 0x7fffffff;
            max = bits > max ? bits : max;
        }
        const struct ggmlq_size size = ggmlq_size_of(ggmlq_max_of_lanes(max));
        ggmlq_lift<VALUES>(v, size);
        for (int i = 0; i < VALUES; ++i) {
            v[i] = ggmlq_mul(v[i], size.down);
        }
        ggmlq_turn_quad(v, turns, 1.0f);

        float y[VALUES], key[VALUES], level[VALUES], part[VALUES];
        for (int i = 0; i < VALUES; ++i) {
            y[i]    = ggmlq_add(v[i], 0.0f); /* +0 for -0 */
            key[i]  = ggmlq_key(y[i]);
            part[i] = ggmlq_mul(y[i], y[i]);
        }
        const float base = ggmlq_div_safe(ggmlq_sqrt(ggmlq_mul(sum_of(part, lane, sums), 1.0f/T::LENGTH)), GGMLQ_LEVEL_SIGMA);
        float step = ggmlq_mul(start, base);
        struct ggmlq_bounds b;
#pragma unroll 1 /* less to fetch: in a model, other kernels' instructions took the place of these */
        for (int pass = 1; pass < 4; ++pass) {
            float squares = 0.0f;
            b = ggmlq_bounds_of(step);
            for (int i = 0; i < VALUES; ++i) {
                level[i] = ggmlq_level_of(key[i], b);
                part[i]  = ggmlq_mul(fabsf(y[i]), level[i]);
                squares  = fmaf(level[i], level[i], squares); /* integers below 2^24: exact in any order */
            }
            step = ggmlq_div_safe(sum_of(part, lane, sums + pass % 2*8*STRIDE), (float) (int) ggmlq_sum_of_lanes((uint32_t) (int) squares));
        }
        for (int i = 0; i < VALUES; ++i) {
            const float d = ggmlq_sub(fabsf(y[i]), ggmlq_mul(step, level[i]));
            part[i] = ggmlq_mul(d, d);
        }
        const float error = sum_of(part, lane, sums);

        uint32_t low_bits = 0, high_bits = 0;
        for (int i = 0; i < VALUES; ++i) {
            const uint32_t cell = (key[i] > b.b[0]) + (key[i] > b.b[1]) + (key[i] > b.b[2]), minus = __float_as_uint(y[i]) >> 31;
            low_bits  |= (minus ? 3 - cell : cell) << 8*i; /* the index is 3 - cell or 4 + cell */
            high_bits |= (1 - minus) << 8*i;
        }
        f.two   = size.coded ? low_bits << 2*(lane/2 % 4) : 0;
        f.one   = size.coded ? high_bits << ggmlq_sign_bit(4*(lane % 2), lane/2 % 4) : 0;
        f.scale = ggmlq_scale_of<GGMLQ_TYPE_PLANAR3>(size, step);
        for (int mask = 4; mask > 0; mask /= 2) {
            f.one |= ggmlq_shuffle_xor(f.one, mask);
            f.two |= mask > 1 ? ggmlq_shuffle_xor(f.two, mask) : 0;
        }
        return error;
    }

    static __device__ __forceinline__ fields encode(float v[VALUES], int lane, const constants & turns, float shared[SHARED]) {
        float * const errors = shared + WARPS*SUMS;
        const int warp = threadIdx.x/32 % WARPS;
        fields f = {};
        if (warp < 3 || !ggmlq_warps_alone) {
            const float error = encode_from(warp == 0 ? 0.8f : warp == 1 ? 1.0f : 1.2f, v, lane, turns, shared + warp*SUMS, f);
            if (lane == 0) {
                errors[warp] = error;
            }
        }
        __syncthreads();
        const float error0 = errors[0], error1 = errors[1], error2 = errors[2];
        const int   best   = error2 < (error1 < error0 ? error1 : error0) ? 2 : error1 < error0 ? 1 : 0; /* the first of equals */
        f.best = warp == best;
        return f;
    }

    static __device__ __forceinline__ void store(const fields & f, int lane, uint8_t * block) {
        const int plane = lane/8, w = lane % 2, half = lane % 8/2; /* of a plane, the first four threads store halves of words of fields, the next two halves of the signs */
        if (block == NULL || !f.best) {
            return;
        }
        if (half < 3) {
            const int at = half < 2 ? T::Q_AT + 8*plane + 4*w + 2*half : T::S_AT + 4*plane + 2*w;
            ggmlq_write_u16(block + at, half < 2 ? f.two >> 16*half : f.one >> 16*w);
        } else if (lane == 6) {
            ggmlq_write_u16(block + T::SCALE_AT, f.scale);
        }
    }
};

/* --- attention -------------------------------------------------------------------------------------------------- */

/* What the mask is multiplied by for a head (ALiBi); 1: no such bias. */
GGMLQ_DEVICE float ggmlq_alibi_slope(const struct ggmlq_attend_params & p, int head) {
    if (p.max_bias <= 0.0f) {
        return 1.0f;
    }
    int n_pow2 = 1;
    while (2*n_pow2 <= p.n_heads) {
        n_pow2 *= 2;
    }
    const float exponent = head < n_pow2 ? (float) (head + 1) : 0.5f*(float) (2*(head - n_pow2) + 1);
    return exp2f(ggmlq_mul(ggmlq_div(-p.max_bias, (float) n_pow2), exponent));
}

/* A pair of a positional row (ggmlq.h): cosine and sine. */
GGMLQ_DEVICE float2 ggmlq_positional(int32_t position, uint64_t turn) {
    const uint32_t fraction = (uint32_t) ((uint64_t) (int64_t) position*turn >> 32);
    float2 v;
    sincospif((float) (int32_t) fraction*4.65661287e-10f /* 2^-31 */, &v.y, &v.x);
    return v;
}

/* a and b become what they are turned by the angle, as compilers fuse x*cosine - y*sine in llama.cpp's RoPE, and round as the surrounding build does. */
GGMLQ_DEVICE void ggmlq_turn_pair(float & a, float & b, float2 angle) {
    const float x = a, y = b;
#if defined(GGMLQ_HIP) || defined(GGMLQ_MUSA)
    a = ggmlq_fma(x, angle.x, -ggmlq_mul(y, angle.y));
    b = ggmlq_fma(x, angle.y, ggmlq_mul(y, angle.x));
#else
    a = __fmaf_rn(x, angle.x, -__fmul_rn(y, angle.y));
    b = __fmaf_rn(x, angle.y, __fmul_rn(y, angle.x));
#endif
}

/* Eight values of a head whose pairs are among them, as two quads at at[]: unit u has those from 8u on, or where halves of n_rot values are paired (`neox`) two times four, n_rot/2 apart;
 * behind n_rot there are no pairs. */
struct ggmlq_rope_unit {
    bool     turns, apart;
    uint32_t at[2];
};

GGMLQ_DEVICE struct ggmlq_rope_unit ggmlq_rope_unit_of(uint32_t u, int n_rot, bool neox) {
    const bool turns = (int) (8*u) < n_rot, apart = turns && neox;
    const struct ggmlq_rope_unit unit = { turns, apart, { apart ? 4*u : 8*u, apart ? (uint32_t) n_rot/2 + 4*u : 8*u + 4 } };
    return unit;
}

/* Its pairs, numbers 4u to 4u + 3 of the head. */
GGMLQ_DEVICE void ggmlq_turn_unit(float a[4], float b[4], bool apart, const float2 angle[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (apart) {
            ggmlq_turn_pair(a[i], b[i], angle[i]);
        } else {
            ggmlq_turn_pair((i < 2 ? a : b)[i % 2*2], (i < 2 ? a : b)[i % 2*2 + 1], angle[i]);
        }
    }
}

/* What doesn't depend on the position. */
GGMLQ_DEVICE float ggmlq_rope_power(const struct ggmlq_cuda_rope & r, int pair) { return powf(r.theta_scale, (float) pair); }

/* Cosine and sine of a pair. */
GGMLQ_DEVICE float2 ggmlq_rope_angle(const struct ggmlq_cuda_rope & r, int32_t position, int pair, float power) {
    float angle = (float) position*power;
    if (r.factors) {
        angle = angle/r.factors[pair];
    }
    angle = r.freq_scale*angle;
    return make_float2(cosf(angle)*r.attn_factor, sinf(angle)*r.attn_factor);
}

/* llama.cpp's own rotation of every `length` values (64, 128, 256). A thread holds two quads, `apart` values from each other; the next quads are in the next thread. Its steps and their order, and so the bits. */
GGMLQ_DEVICE void ggmlq_turn_quads(float v[2][4], int lane, int length, int apart, float scale) {
    for (int i = 0; i < 8; ++i) {
        v[i/4][i % 4] = ggmlq_mul(v[i/4][i % 4], scale);
    }
    for (int h = 0; h < 2; ++h) {
        ggmlq_butterfly(v[h][0], v[h][1]); ggmlq_butterfly(v[h][2], v[h][3]); /* half-distance 1 */
        ggmlq_butterfly(v[h][0], v[h][2]); ggmlq_butterfly(v[h][1], v[h][3]); /* 2 */
    }
    for (int distance = 4, mask = 1; distance < length; distance *= 2) {
        if (distance == apart) {
            for (int i = 0; i < 4; ++i) {
                ggmlq_butterfly(v[0][i], v[1][i]);
            }
            continue;
        }
        for (int i = 0; i < 8; ++i) {
            ggmlq_butterfly_lanes(v[i/4][i % 4], lane, mask);
        }
        mask *= 2;
    }
}

/* The same of planes, of which four threads hold one. */
GGMLQ_DEVICE void ggmlq_turn_planes(float v[2][4], int lane, int length, float scale) { ggmlq_turn_quads(v, lane, length, 16, scale); }

#endif
