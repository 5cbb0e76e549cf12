/* SPDX-License-Identifier: MIT
 *
 * ggmlq on Metal: encoder, decoder, rotations, products, attention and the lightning indexer; the host side is ggmlq-metal-plan.c, the
 * promises docs/METAL.md.
 *
 * A team is eight neighbouring threads of a simdgroup. Thread l of it holds the values j of a plane with j % 8 = l: byte l of the 2-bit plane
 * is its own, lane l of FORMAT.md's sums too, and a row of any type is read in the same shape, k = j / 8 counting 0 to 3. All 32 threads of a
 * simdgroup go through every shuffle, those without work with zeros.
 *
 * Includes are replaced by their files before Metal sees this text (pyggmlq/_metal_source.py): llama.cpp compiles it from memory.
 */
#include <metal_stdlib>

using namespace metal;

/* The encoder's bytes are those of the plain operations written here: nothing reordered, nothing fused. */
#if __METAL_VERSION__ >= 320
#pragma METAL fp math_mode(safe)
#endif
#pragma METAL fp contract(off)

#define GGMLQ_DEVICE_TOO

static inline float    ggmlq_float_from_bits(uint32_t bits) { return as_type<float>(bits); }
static inline uint32_t ggmlq_float_bits(float f)            { return as_type<uint32_t>(f); }

#include "ggmlq-tables.h"
#include "ggmlq-values.h"
#include "ggmlq-metal-args.h"

enum {
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) \
    GGMLQ_TYPE_##NAME = id, GGMLQ_BYTES_##NAME = block_bytes,
#define GGMLQ_FOREIGN_TYPE(NAME, name, id, block_length, block_bytes, description) \
    GGMLQ_TYPE_##NAME = id, GGMLQ_BYTES_##NAME = block_bytes,
#include "ggmlq-types.def"
    GGMLQ_PLANE = 32
};

constant int ggmlq_type       [[function_constant(GGMLQ_METAL_TYPE)]];
constant int ggmlq_other_type [[function_constant(GGMLQ_METAL_OTHER_TYPE)]];
constant int ggmlq_head_k     [[function_constant(GGMLQ_METAL_HEAD_K)]];
constant int ggmlq_head_v     [[function_constant(GGMLQ_METAL_HEAD_V)]];
constant int ggmlq_columns    [[function_constant(GGMLQ_METAL_COLUMNS)]];
constant int ggmlq_pairs      [[function_constant(GGMLQ_METAL_PAIRS)]];

constant constexpr float ggmlq_levels[8]               = GGMLQ_LEVELS_INIT;
constant constexpr float ggmlq_boundaries[7]           = GGMLQ_BOUNDARIES_INIT;
constant constexpr float ggmlq_field_levels_tq3_0[8]   = GGMLQ_TQ3_0_FIELD_LEVELS_INIT;
constant constexpr float ggmlq_field_levels_planar3[8] = GGMLQ_PLANAR3_FIELD_LEVELS_INIT;
constant constexpr float ggmlq_cos_sin[64][2]          = GGMLQ_PLANAR3_COS_SIN_INIT;

/* --- exchange --------------------------------------------------------------------------------------------------- */

static inline float    ggmlq_swap(float v, int mask)         { return simd_shuffle_xor(v, static_cast<ushort>(mask)); }
static inline uint32_t ggmlq_swap_bits(uint32_t v, int mask) { return simd_shuffle_xor(v, static_cast<ushort>(mask)); }

/* The sum of eight lanes in FORMAT.md's order. Each step adds the same two numbers in both threads, so all get the same bits. */
static inline float ggmlq_fold(float sum) {
    sum += ggmlq_swap(sum, 4);
    sum += ggmlq_swap(sum, 2);
    sum += ggmlq_swap(sum, 1);
    return sum;
}

static inline uint32_t ggmlq_team_max(uint32_t v) {
    for (int mask = 1; mask < GGMLQ_METAL_TEAM; mask *= 2) {
        v = max(v, ggmlq_swap_bits(v, mask));
    }
    return v;
}

static inline uint32_t ggmlq_team_or(uint32_t v) {
    for (int mask = 1; mask < GGMLQ_METAL_TEAM; mask *= 2) {
        v |= ggmlq_swap_bits(v, mask);
    }
    return v;
}

/* --- memory: rows may lie at any address ------------------------------------------------------------------------ */

static inline uint32_t ggmlq_read_u16(device const uint8_t * p) {
    return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8;
}

static inline uint32_t ggmlq_read_u32(device const uint8_t * p) { return ggmlq_read_u16(p) | ggmlq_read_u16(p + 2) << 16; }

static inline float ggmlq_read_half(device const uint8_t * p) { return ggmlq_half_to_float(static_cast<uint16_t>(ggmlq_read_u16(p))); }

static inline void ggmlq_write_u16(device uint8_t * p, uint32_t v) {
    p[0] = static_cast<uint8_t>(v);
    p[1] = static_cast<uint8_t>(v >> 8);
}

/* Value i of a row of f32 or f16. Floats lie where floats may lie. */
static inline float ggmlq_read_value(int type, device const uint8_t * row, uint32_t i) {
    return type == GGMLQ_TYPE_F32 ? reinterpret_cast<device const float *>(row)[i] : ggmlq_read_half(row + 2*i);
}

/* f32, f16 or else bf16. Nearest, ties to even; beyond the largest half infinite. */
static inline void ggmlq_write_value(int type, device uint8_t * row, uint32_t i, float f) {
    const uint32_t bits = ggmlq_float_bits(f), magnitude = bits & 0x7fffffff;
    if (type == GGMLQ_TYPE_F32) {
        reinterpret_cast<device float *>(row)[i] = f;
    } else if (type == GGMLQ_TYPE_F16) {
        const bool overflows = magnitude >= 0x477ff000 && magnitude <= 0x7f800000;
        ggmlq_write_u16(row + 2*i, overflows ? (bits >> 16 & 0x8000) | 0x7c00 : ggmlq_half_from_float(f));
    } else {
        ggmlq_write_u16(row + 2*i, magnitude > 0x7f800000 ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

struct ggmlq_place {
    uint32_t i0, i1, i2, i3;
};

static inline ggmlq_place ggmlq_place_of(constant ggmlq_metal_walk & walk, uint32_t number) {
    ggmlq_place place;
    place.i0 = number % walk.units;
    number  /= walk.units;
    place.i1 = number % walk.ne1;
    number  /= walk.ne1;
    place.i2 = number % walk.ne2;
    place.i3 = number / walk.ne2;
    return place;
}

static inline int64_t ggmlq_row_at(constant ggmlq_metal_walk & walk, ggmlq_place place, int64_t i1) {
    return i1*walk.nb1 + place.i2*walk.nb2 + place.i3*walk.nb3;
}

/* The row that an index names; negative: none. */
static inline int64_t ggmlq_index_of(constant ggmlq_metal_rows_args & args, device const uint8_t * indices, ggmlq_place place) {
    device const uint8_t * at = indices + place.i1*args.index_nb[0] + place.i2 % args.index_ne1*args.index_nb[1] + place.i3 % args.index_ne2*args.index_nb[2];
    const int64_t row = args.index_bytes == 8 ? *reinterpret_cast<device const int64_t *>(at) : *reinterpret_cast<device const int32_t *>(at);
    return row < args.n_rows ? row : -1;
}

/* --- planes ----------------------------------------------------------------------------------------------------- */

/* Field of value 8k + l: its two bits of byte l, and its bit of the word s. */
static inline uint32_t ggmlq_field(uint32_t byte, uint32_t s, uint32_t l, int k) {
    return (byte >> 2*k & 3) | (s >> ggmlq_sign_bit(static_cast<int>(l), k) & 1) << 2;
}

/* Values 8k + l of plane `plane` of a row, in the space that the row is stored in. `size` values are in the row; beyond is 0. */
static inline void ggmlq_load_plane(int type, device const uint8_t * row, uint32_t plane, uint32_t l, uint32_t size, thread float * v) {
    if (type == GGMLQ_TYPE_TQ3_0) {
        device const uint8_t * block = row + plane*GGMLQ_BYTES_TQ3_0;
        const uint32_t byte = block[l], s = ggmlq_read_u32(block + 8);
        const float scale = ggmlq_read_half(block + 12)*GGMLQ_TQ3_0_UNIT;
        for (int k = 0; k < 4; ++k) {
            v[k] = scale*ggmlq_field_levels_tq3_0[ggmlq_field(byte, s, l, k)];
        }
    } else if (type == GGMLQ_TYPE_PLANAR3) {
        device const uint8_t * block = row + plane/4*GGMLQ_BYTES_PLANAR3;
        const uint32_t byte = block[2 + 8*(plane % 4) + l], s = ggmlq_read_u32(block + 34 + 4*(plane % 4));
        const float scale = ggmlq_read_half(block)*GGMLQ_PLANAR3_UNIT;
        for (int k = 0; k < 4; ++k) {
            v[k] = scale*ggmlq_field_levels_planar3[ggmlq_field(byte, s, l, k)];
        }
    } else if (type == GGMLQ_TYPE_Q8_0) {
        device const uint8_t * block = row + plane*GGMLQ_BYTES_Q8_0;
        const float scale = ggmlq_read_half(block);
        for (uint32_t k = 0; k < 4; ++k) {
            v[k] = scale*static_cast<float>(static_cast<int8_t>(block[2 + 8*k + l]));
        }
    } else if (type == GGMLQ_TYPE_Q4_0) {
        device const uint8_t * block = row + plane*GGMLQ_BYTES_Q4_0;
        const float scale = ggmlq_read_half(block);
        for (uint32_t k = 0; k < 4; ++k) {
            const int nibble = block[2 + 8*(k % 2) + l] >> 4*(k/2) & 15;
            v[k] = scale*static_cast<float>(nibble - 8);
        }
    } else {
        for (uint32_t k = 0; k < 4; ++k) {
            const uint32_t j = GGMLQ_PLANE*plane + 8*k + l;
            v[k] = j < size ? ggmlq_read_value(type, row, j) : 0.0f;
        }
    }
}

/* --- rotations -------------------------------------------------------------------------------------------------- */

static inline void ggmlq_butterfly(thread float * a, thread float * b) {
    const float sum = *a + *b;
    *b = *a - *b;
    *a = sum;
}

/* v[k] is value 8k + l: the first three stages are between threads, the last two in each. */
static inline void ggmlq_hadamard(thread float * v, uint32_t l) {
    for (uint32_t half = 1; half < GGMLQ_METAL_TEAM; half *= 2) {
        for (int k = 0; k < 4; ++k) {
            const float other = ggmlq_swap(v[k], static_cast<int>(half));
            v[k] = (l & half) != 0 ? other - v[k] : v[k] + other;
        }
    }
    ggmlq_butterfly(&v[0], &v[1]);
    ggmlq_butterfly(&v[2], &v[3]);
    ggmlq_butterfly(&v[0], &v[2]);
    ggmlq_butterfly(&v[1], &v[3]);
    for (int k = 0; k < 4; ++k) {
        v[k] *= 0.17677669529663689f; /* 1/sqrt(32) */
    }
}

static inline void ggmlq_flip(thread float * v, uint32_t l) {
    for (uint32_t k = 0; k < 4; ++k) {
        v[k] = ggmlq_float_from_bits(ggmlq_float_bits(v[k]) ^ GGMLQ_TQ3_0_SIGNS >> (8*k + l) << 31);
    }
}

/* Pairs are neighbouring threads. `plane` of the block; direction -1: back. */
static inline void ggmlq_turn(thread float * v, uint32_t l, uint32_t plane, float direction) {
    for (uint32_t k = 0; k < 4; ++k) {
        const uint32_t pair = (GGMLQ_PLANE*plane + 8*k + l)/2;
        const float c = ggmlq_cos_sin[pair][0], s = direction*ggmlq_cos_sin[pair][1], other = ggmlq_swap(v[k], 1);
        v[k] = l % 2 == 0 ? c*v[k] - s*other : s*other + c*v[k];
    }
}

static inline void ggmlq_rotate(int type, thread float * v, uint32_t l, uint32_t plane) {
    if (type == GGMLQ_TYPE_TQ3_0) {
        ggmlq_flip(v, l);
        ggmlq_hadamard(v, l);
    } else if (type == GGMLQ_TYPE_PLANAR3) {
        ggmlq_turn(v, l, plane % 4, 1.0f);
    }
}

static inline void ggmlq_unrotate(int type, thread float * v, uint32_t l, uint32_t plane) {
    if (type == GGMLQ_TYPE_TQ3_0) {
        ggmlq_hadamard(v, l);
        ggmlq_flip(v, l);
    } else if (type == GGMLQ_TYPE_PLANAR3) {
        ggmlq_turn(v, l, plane % 4, -1.0f);
    }
}

/* --- encoder ---------------------------------------------------------------------------------------------------- */

static inline float ggmlq_power_of_two(int e) { return ggmlq_float_from_bits(static_cast<uint32_t>(127 + e) << 23); }

/* f * 2^e, |e| <= 252, in two steps because 2^e itself may be no float. Only one of them can round. */
static inline float ggmlq_scale(float f, int e) {
    const int excess = e < -126 ? e + 126 : e > 127 ? e - 127 : 0;
    return f*ggmlq_power_of_two(e - excess)*ggmlq_power_of_two(excess);
}

/* The same for a float that may be subnormal, which Apple's processors take for 0: from its integer. */
static inline float ggmlq_scale_any(float f, int e) {
    const uint32_t bits = ggmlq_float_bits(f), magnitude = bits & 0x7fffffff;
    if (magnitude == 0 || magnitude >= 0x00800000) {
        return ggmlq_scale(f, e);
    }
    const float scaled = ggmlq_scale(static_cast<float>(magnitude), max(e - 149, -252));
    return (bits & 0x80000000) != 0 ? -scaled : scaled;
}

/* The exponent e with 2^(e-1) <= max < 2^e, from the bits of a positive, finite max. */
static inline int ggmlq_exponent(uint32_t bits) {
    return bits < 0x00800000 ? -117 - static_cast<int>(clz(bits)) : static_cast<int>(bits >> 23) - 126;
}

static inline float ggmlq_root_mean_square(float sum, int length) { return precise::sqrt(sum/static_cast<float>(length)); }

/* Least-squares search of the step: docs/FORMAT.md, "Encoder". n rotated values to each thread; the level index of each and the step. */
template <int n> static inline float ggmlq_search(thread const float * y, thread uint8_t * best_indices) {
    float square_sum = 0.0f;
    for (int i = 0; i < n; ++i) {
        square_sum += y[i]*y[i];
    }
    const float base = ggmlq_root_mean_square(ggmlq_fold(square_sum), n*GGMLQ_METAL_TEAM)/GGMLQ_LEVEL_SIGMA;

    float best_step  = 0.0f;
    float best_error = INFINITY;
    for (int start = 0; start < 3; ++start) {
        float step = (start == 0 ? 0.8f : start == 1 ? 1.0f : 1.2f)*base;
        float   levels[n];
        uint8_t indices[n];
        for (int pass = 0; pass < 3; ++pass) {
            float y_level = 0.0f, level_level = 0.0f;
            for (int i = 0; i < n; ++i) {
                int index = 0;
                for (int b = 0; b < 7; ++b) {
                    index += y[i] >= ggmlq_boundaries[b]*step ? 1 : 0;
                }
                indices[i]   = static_cast<uint8_t>(index);
                levels[i]    = ggmlq_levels[index];
                y_level     += y[i]*levels[i];
                level_level += levels[i]*levels[i];
            }
            step = ggmlq_fold(y_level)/ggmlq_fold(level_level);
        }
        float error_sum = 0.0f;
        for (int i = 0; i < n; ++i) {
            const float d = y[i] - step*levels[i];
            error_sum += d*d;
        }
        const float error = ggmlq_fold(error_sum);
        if (error < best_error) {
            best_error = error;
            best_step  = step;
            for (int i = 0; i < n; ++i) {
                best_indices[i] = indices[i];
            }
        }
    }
    return best_step;
}

/* One block by a team. Values 8k + l of plane p are x[4p + k]. Writes if `active`. */
template <int type> static inline void ggmlq_encode_block(thread float * x, device uint8_t * block, uint32_t l, bool active) {
    constexpr int planes = type == GGMLQ_TYPE_TQ3_0 ? 1 : 4, n = 4*planes;

    uint32_t magnitude = 0;
    for (int i = 0; i < n; ++i) {
        magnitude = max(magnitude, ggmlq_float_bits(x[i]) & 0x7fffffff);
    }
    magnitude = ggmlq_team_max(magnitude);
    const bool finite = magnitude < 0x7f800000, plain = finite && magnitude != 0;
    const int  e = plain ? ggmlq_exponent(magnitude) : 0;

    /* An exact normalization: nothing below can overflow. */
    for (int i = 0; i < n; ++i) {
        x[i] = plain ? ggmlq_scale_any(x[i], -e) : 0.0f;
    }
    for (int p = 0; p < planes; ++p) {
        ggmlq_rotate(type, x + 4*p, l, static_cast<uint32_t>(p));
    }
    uint8_t indices[n];
    for (int i = 0; i < n; ++i) {
        indices[i] = 0;
    }
    const float step   = ggmlq_search<n>(x, indices);
    const float scaled = ggmlq_scale((type == GGMLQ_TYPE_TQ3_0 ? 1.0f/GGMLQ_TQ3_0_UNIT : 1.0f/GGMLQ_PLANAR3_UNIT)*step, e);
    const uint32_t scale = plain ? ggmlq_half_from_float(scaled) : finite ? 0 : 0x7e00;

    for (int p = 0; p < planes; ++p) {
        uint32_t byte = 0, word = 0;
        for (int k = 0; k < 4; ++k) {
            const uint32_t index = plain ? indices[4*p + k] : 0;
            const uint32_t field = type == GGMLQ_TYPE_TQ3_0 ? index >> 1 | (index & 1) << 2 : index;
            byte |= (field & 3) << 2*k;
            word |= field >> 2 << ggmlq_sign_bit(static_cast<int>(l), k);
        }
        word = ggmlq_team_or(word);
        if (active) {
            block[(type == GGMLQ_TYPE_TQ3_0 ? 0 : 2 + 8*p) + static_cast<int>(l)] = static_cast<uint8_t>(byte);
            if (l < 4) {
                block[(type == GGMLQ_TYPE_TQ3_0 ? 8 : 34 + 4*p) + static_cast<int>(l)] = static_cast<uint8_t>(word >> 8*l);
            }
        }
    }
    if (active && l == 0) {
        ggmlq_write_u16(block + (type == GGMLQ_TYPE_TQ3_0 ? 12 : 0), scale);
    }
}

template <int type> static inline void ggmlq_encode(constant ggmlq_metal_rows_args & args, device uint8_t * rows, device const uint8_t * values,
                                                    device const uint8_t * indices, uint32_t id) {
    constexpr int n = type == GGMLQ_TYPE_TQ3_0 ? 4 : 16;
    const uint32_t number = id/GGMLQ_METAL_TEAM, l = id % GGMLQ_METAL_TEAM;
    if (id/32*32/GGMLQ_METAL_TEAM >= args.n) { /* a simdgroup without work */
        return;
    }
    const ggmlq_place from = ggmlq_place_of(args.values, number < args.n ? number : 0);
    const ggmlq_place to   = args.index_bytes != 0 ? from : ggmlq_place_of(args.rows, number < args.n ? number : 0);
    const int64_t     row  = args.index_bytes != 0 ? ggmlq_index_of(args, indices, from) : static_cast<int64_t>(to.i1);
    const bool      active = number < args.n && row >= 0;

    device const uint8_t * source = values + ggmlq_row_at(args.values, from, from.i1);
    float x[n];
    for (uint32_t i = 0; i < n; ++i) {
        x[i] = active ? ggmlq_read_value(ggmlq_other_type, source, from.i0*(GGMLQ_METAL_TEAM*n) + 8*i + l) : 0.0f;
    }
    ggmlq_encode_block<type>(x, rows + (active ? ggmlq_row_at(args.rows, to, row) + to.i0*args.rows.unit_bytes : 0), l, active);
}

/* rows <- values, a team to each block. The bytes of the row at unit i0 of the walk. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_encode(constant ggmlq_metal_rows_args & args    [[buffer(0)]],
                         device   uint8_t *               rows    [[buffer(1)]],
                         device   const uint8_t *         values  [[buffer(2)]],
                         device   const uint8_t *         indices [[buffer(3)]],
                         uint id [[thread_position_in_grid]]) {
    if (ggmlq_type == GGMLQ_TYPE_TQ3_0) {
        ggmlq_encode<GGMLQ_TYPE_TQ3_0>(args, rows, values, indices, id);
    } else {
        ggmlq_encode<GGMLQ_TYPE_PLANAR3>(args, rows, values, indices, id);
    }
}

/* --- encoder for the model's queries ---------------------------------------------------------------------------- */

/* The level next to a value, times the step. */
static inline float ggmlq_nearest(float x, float step) {
    const uint32_t bits = ggmlq_float_bits(x);
    const float    a = ggmlq_float_from_bits(bits & 0x7fffffff);
    const float    level = a >= ggmlq_boundaries[6]*step ? ggmlq_levels[7] : a >= ggmlq_boundaries[5]*step ? ggmlq_levels[6]
                         : a >= ggmlq_boundaries[4]*step ? ggmlq_levels[5] : ggmlq_levels[4];
    return ggmlq_float_from_bits(ggmlq_float_bits(step*level) ^ (bits & 0x80000000));
}

/* Its number; as a field of the planes. */
static inline uint32_t ggmlq_nearest_field(int type, float x, float step) {
    const uint32_t bits = ggmlq_float_bits(x);
    const float    a = ggmlq_float_from_bits(bits & 0x7fffffff);
    const uint32_t cell = a >= ggmlq_boundaries[6]*step ? 3 : a >= ggmlq_boundaries[5]*step ? 2 : a >= ggmlq_boundaries[4]*step ? 1 : 0;
    const uint32_t index = bits >> 31 != 0 ? 3 - cell : 4 + cell;
    return type == GGMLQ_TYPE_TQ3_0 ? index >> 1 | (index & 1) << 2 : index;
}

/* The scale of a rotated block of n*8 values, of which y are a thread's, as it is stored; false: a square is no float. */
template <int type, int n> static inline bool ggmlq_scale_for_queries(thread const float * y, thread uint32_t * scale) {
    float square_sum = 0.0f;
    for (int i = 0; i < n; ++i) {
        square_sum += y[i]*y[i];
    }
    const bool finite = ggmlq_fold(square_sum) <= 3.402823466e+38f;
    uint8_t unused[n];
    const float step = ggmlq_search<n>(y, unused);
    *scale = finite ? ggmlq_half_from_float((type == GGMLQ_TYPE_TQ3_0 ? 1.0f/GGMLQ_TQ3_0_UNIT : 1.0f/GGMLQ_PLANAR3_UNIT)*step) : 0x7e00;
    return finite;
}

/* A head's values are rounded one after the other, so time is the length of that chain; a simdgroup has a key, a lane the values 32p + lane. The next 32
 * are rounded with what rounding does to each other, all of which is read before; what it does to later ones follows when they are done. */
template <int type> static inline void ggmlq_round(constant ggmlq_metal_round_args & args, device uint8_t * rows, device const uint8_t * values,
                                                   device const uint8_t * indices, device const uint8_t * feedback, threadgroup float * rest,
                                                   uint32_t number, uint32_t lane) {
    constexpr uint32_t block_planes = type == GGMLQ_TYPE_TQ3_0 ? 1 : 4, n = 4*block_planes;
    const uint32_t planes = args.length/GGMLQ_PLANE, head = number/args.n_tokens, token = number % args.n_tokens;
    const uint32_t team = lane/GGMLQ_METAL_TEAM, l = lane % GGMLQ_METAL_TEAM;
    device const uint8_t * at = indices + token*args.index_nb0;
    const int64_t row = args.index_bytes == 8 ? *reinterpret_cast<device const int64_t *>(at) : *reinterpret_cast<device const int32_t *>(at);
    const bool exists = row >= 0 && row < args.n_rows;
    const uint32_t block_bytes = type == GGMLQ_TYPE_TQ3_0 ? GGMLQ_BYTES_TQ3_0 : GGMLQ_BYTES_PLANAR3;
    device uint8_t * target = rows + (exists ? row*args.rows_nb1 + static_cast<int64_t>(head)*(planes/block_planes)*block_bytes : 0);
    device const uint8_t * key = values + token*args.values_nb1 + static_cast<int64_t>(head)*args.length*4;
    device const uint8_t * factors = feedback + head*args.feedback_nb1;

    for (uint32_t start = 0; start < planes; start += 4) {
        const uint32_t plane = start + team;
        float x[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        if (plane < planes) {
            ggmlq_load_plane(GGMLQ_TYPE_F32, key, plane, l, args.length, x);
        }
        ggmlq_rotate(type, x, l, plane);
        for (uint32_t k = 0; k < 4 && plane < planes; ++k) {
            rest[GGMLQ_PLANE*plane + 8*k + l] = x[k];
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    float step = 0.0f;
    bool  coded = false;
    for (uint32_t plane = 0; plane < planes; ++plane) {
        device uint8_t * block = target + plane/block_planes*block_bytes;
        if (plane % block_planes == 0) { /* all four teams find the same */
            float y[n];
            for (uint32_t i = 0; i < n; ++i) {
                y[i] = rest[GGMLQ_PLANE*plane + 8*i + l];
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            uint32_t scale = 0;
            coded = ggmlq_scale_for_queries<type, static_cast<int>(n)>(y, &scale);
            step  = coded ? ggmlq_half_to_float(static_cast<uint16_t>(scale))*(type == GGMLQ_TYPE_TQ3_0 ? GGMLQ_TQ3_0_UNIT : GGMLQ_PLANAR3_UNIT) : 0.0f;
            if (exists && lane == 0) {
                ggmlq_write_u16(block + (type == GGMLQ_TYPE_TQ3_0 ? 12 : 0), scale);
            }
        }

        device const uint16_t * of_plane = reinterpret_cast<device const uint16_t *>(factors) + ggmlq_feedback_before(static_cast<int>(plane), static_cast<int>(planes)) + lane;
        float x = rest[GGMLQ_PLANE*plane + lane], moves[GGMLQ_PLANE];
        for (uint32_t i = 0; i < GGMLQ_PLANE; ++i) { /* what value i does to this lane's, until it is known by how much it moves */
            moves[i] = ggmlq_half_to_float(of_plane[GGMLQ_PLANE*i]);
        }
        for (uint32_t i = 0; i < GGMLQ_PLANE; ++i) {
            const float move = simd_shuffle(coded ? x - ggmlq_nearest(x, step) : 0.0f, static_cast<ushort>(i));
            x = lane > i ? x - move*moves[i] : x;
            moves[i] = move;
        }
        for (uint32_t later = plane + 1; later < planes; ++later) {
            float v = rest[GGMLQ_PLANE*later + lane];
            for (uint32_t i = 0; i < GGMLQ_PLANE; ++i) {
                v -= moves[i]*ggmlq_half_to_float(of_plane[GGMLQ_PLANE*(GGMLQ_PLANE*(later - plane) + i)]);
            }
            rest[GGMLQ_PLANE*later + lane] = v;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);

        /* Value 8k + l is that of lane 8k + l. */
        const uint32_t field = step > 0.0f ? ggmlq_nearest_field(type, x, step) : 0, p = plane % block_planes;
        uint32_t byte = (field & 3) << 2*team, word = field >> 2 << ggmlq_sign_bit(static_cast<int>(l), static_cast<int>(team));
        byte |= ggmlq_swap_bits(byte, 8);
        byte |= ggmlq_swap_bits(byte, 16);
        for (int other = 1; other < 32; other *= 2) {
            word |= ggmlq_swap_bits(word, other);
        }
        if (exists && lane < GGMLQ_METAL_TEAM) {
            block[(type == GGMLQ_TYPE_TQ3_0 ? 0 : 2 + 8*p) + lane] = static_cast<uint8_t>(byte);
            if (lane < 4) {
                block[(type == GGMLQ_TYPE_TQ3_0 ? 8 : 34 + 4*p) + lane] = static_cast<uint8_t>(word >> 8*lane);
            }
        }
    }
}

/* Keys that are rounded for the model's queries (docs/CENTERING.md): the bytes of ggmlq_encode_row_for_queries. shared: a key's values for each simdgroup. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_round(constant ggmlq_metal_round_args & args     [[buffer(0)]],
                        device   uint8_t *                rows     [[buffer(1)]],
                        device   const uint8_t *          values   [[buffer(2)]],
                        device   const uint8_t *          indices  [[buffer(3)]],
                        device   const uint8_t *          feedback [[buffer(4)]],
                        threadgroup float *               shared   [[threadgroup(0)]],
                        uint id        [[thread_position_in_grid]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint lane      [[thread_index_in_simdgroup]]) {
    if (id/32 >= args.n) { /* a simdgroup without work */
        return;
    }
    threadgroup float * rest = shared + simdgroup*args.length;
    if (ggmlq_type == GGMLQ_TYPE_TQ3_0) {
        ggmlq_round<GGMLQ_TYPE_TQ3_0>(args, rows, values, indices, feedback, rest, id/32, lane);
    } else {
        ggmlq_round<GGMLQ_TYPE_PLANAR3>(args, rows, values, indices, feedback, rest, id/32, lane);
    }
}

/* --- decoder ---------------------------------------------------------------------------------------------------- */

/* values <- rows, a team to each plane; with indices a gather. Rows are of any type that attention reads. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_decode(constant ggmlq_metal_rows_args & args    [[buffer(0)]],
                         device   uint8_t *               values  [[buffer(1)]],
                         device   const uint8_t *         rows    [[buffer(2)]],
                         device   const uint8_t *         indices [[buffer(3)]],
                         uint id [[thread_position_in_grid]]) {
    const uint32_t number = id/GGMLQ_METAL_TEAM, l = id % GGMLQ_METAL_TEAM;
    if (id/32*32/GGMLQ_METAL_TEAM >= args.n) { /* a simdgroup without work */
        return;
    }
    const ggmlq_place to   = ggmlq_place_of(args.values, number < args.n ? number : 0);
    const ggmlq_place from = args.index_bytes != 0 ? to : ggmlq_place_of(args.rows, number < args.n ? number : 0);
    const int64_t     row  = args.index_bytes != 0 ? ggmlq_index_of(args, indices, to) : static_cast<int64_t>(from.i1);
    const bool      active = number < args.n && row >= 0;

    float v[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
    if (active) {
        ggmlq_load_plane(ggmlq_type, rows + ggmlq_row_at(args.rows, from, row), from.i0, l, GGMLQ_PLANE*args.rows.units, v);
    }
    if (args.inverse != 0) {
        ggmlq_unrotate(ggmlq_type, v, l, from.i0);
    }
    if (active) {
        device uint8_t * target = values + ggmlq_row_at(args.values, to, to.i1);
        for (uint32_t k = 0; k < 4; ++k) {
            ggmlq_write_value(ggmlq_other_type, target, GGMLQ_PLANE*to.i0 + 8*k + l, v[k]);
        }
    }
}

/* values <- rows rotated as ggmlq_type is, or back; both f32. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_rotate(constant ggmlq_metal_rows_args & args   [[buffer(0)]],
                         device   uint8_t *               values [[buffer(1)]],
                         device   const uint8_t *         rows   [[buffer(2)]],
                         uint id [[thread_position_in_grid]]) {
    const uint32_t number = id/GGMLQ_METAL_TEAM, l = id % GGMLQ_METAL_TEAM;
    if (id/32*32/GGMLQ_METAL_TEAM >= args.n) { /* a simdgroup without work */
        return;
    }
    const bool active = number < args.n;
    const ggmlq_place place = ggmlq_place_of(args.values, active ? number : 0);

    float v[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
    if (active) {
        ggmlq_load_plane(GGMLQ_TYPE_F32, rows + ggmlq_row_at(args.rows, place, place.i1), place.i0, l, GGMLQ_PLANE*args.rows.units, v);
    }
    if (args.inverse != 0) {
        ggmlq_unrotate(ggmlq_type, v, l, place.i0);
    } else {
        ggmlq_rotate(ggmlq_type, v, l, place.i0);
    }
    if (active) {
        device uint8_t * target = values + ggmlq_row_at(args.values, place, place.i1);
        for (uint32_t k = 0; k < 4; ++k) {
            ggmlq_write_value(GGMLQ_TYPE_F32, target, GGMLQ_PLANE*place.i0 + 8*k + l, v[k]);
        }
    }
}

/* to <- factor*from, a team to each plane; 0 behind the values of a row of `from`. Both f32 or both f16. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_fill(constant ggmlq_metal_fill_args & args [[buffer(0)]],
                       device   uint8_t *               to   [[buffer(1)]],
                       device   const uint8_t *         from [[buffer(2)]],
                       uint id [[thread_position_in_grid]]) {
    const uint32_t number = id/GGMLQ_METAL_TEAM, l = id % GGMLQ_METAL_TEAM;
    if (number >= args.n) {
        return;
    }
    const ggmlq_place place = ggmlq_place_of(args.to, number);
    float v[4];
    ggmlq_load_plane(ggmlq_type, from + ggmlq_row_at(args.from, place, place.i1), place.i0, l, args.size, v);
    device uint8_t * target = to + ggmlq_row_at(args.to, place, place.i1);
    for (uint32_t k = 0; k < 4; ++k) {
        ggmlq_write_value(ggmlq_type, target, GGMLQ_PLANE*place.i0 + 8*k + l, args.factor*v[k]);
    }
}

/* The angle of a pair at a position, in half turns from -1 to 1: the upper half of position*turns mod 2^64, of whole numbers and so exact, is the
 * fraction of a full turn; one rounding to float. */
static inline float ggmlq_angle(int32_t position, uint32_t turns_low, uint32_t turns_high) {
    const uint32_t p = static_cast<uint32_t>(position), fraction = mulhi(p, turns_low) + p*turns_high - (position < 0 ? turns_low : 0);
    return static_cast<float>(static_cast<int32_t>(fraction))*4.656612873077393e-10f; /* 2^-31 */
}

/* to <- factor*part*c, c the positional rows of centered keys (docs/CENTERING.md), a team to each plane; 0 behind them and where part is 0. f16. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_positional(constant ggmlq_metal_positional_args & args      [[buffer(0)]],
                             device   uint8_t *                     to        [[buffer(1)]],
                             device   const uint8_t *               turns     [[buffer(2)]],
                             device   const uint8_t *               positions [[buffer(3)]],
                             device   const uint8_t *               part      [[buffer(4)]],
                             uint id [[thread_position_in_grid]]) {
    const uint32_t number = id/GGMLQ_METAL_TEAM, l = id % GGMLQ_METAL_TEAM;
    if (number >= args.n) {
        return;
    }
    const ggmlq_place place = ggmlq_place_of(args.to, number);
    const float factor = args.has_part != 0 ? args.factor*ggmlq_read_half(part + 2*place.i1 + place.i3*args.part_nb) : args.factor;
    const int32_t position = reinterpret_cast<device const int32_t *>(positions + place.i3*args.positions_nb)[place.i1];
    device uint8_t * target = to + ggmlq_row_at(args.to, place, place.i1);
    for (uint32_t k = 0; k < 4; ++k) {
        const uint32_t j = GGMLQ_PLANE*place.i0 + 8*k + l, pair = args.pairs_are_halves != 0 ? j % args.n_pairs : j/2;
        const bool sine = args.pairs_are_halves != 0 ? j >= args.n_pairs : j % 2 != 0;
        float v = 0.0f;
        if (j < 2*args.n_pairs && factor != 0.0f) {
            const float angle = ggmlq_angle(position, ggmlq_read_u32(turns + 8*pair), ggmlq_read_u32(turns + 8*pair + 4));
            v = factor*(sine ? precise::sinpi(angle) : precise::cospi(angle));
        }
        ggmlq_write_value(GGMLQ_TYPE_F16, target, j, v);
    }
}

/* Encoded rows as they are, 16-bit words of them, in any order of axes. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_copy(constant ggmlq_metal_rows_args & args [[buffer(0)]],
                       device   uint8_t *               to   [[buffer(1)]],
                       device   const uint8_t *         from [[buffer(2)]],
                       uint id [[thread_position_in_grid]]) {
    if (id >= args.n) {
        return;
    }
    const ggmlq_place source = ggmlq_place_of(args.values, id), target = ggmlq_place_of(args.rows, id);
    device const uint8_t * word = from + ggmlq_row_at(args.values, source, source.i1) + 2*source.i0;
    ggmlq_write_u16(to + ggmlq_row_at(args.rows, target, target.i1) + 2*target.i0, ggmlq_read_u16(word));
}

/* --- products --------------------------------------------------------------------------------------------------- */

/* One block of a query by a team: rotated and rounded to 8 bits as ggmlq_encode_query_row does. bytes: value 8k + l of a plane is byte 4l + k.
 * Where there is no query (not `exists`): zeros. Nothing is written unless `stored`. */
static inline void ggmlq_round_query(device const uint8_t * query, uint32_t first_plane, uint32_t size, uint32_t l, bool exists, bool stored,
                                     threadgroup int8_t * bytes, threadgroup float * scale) {
    const uint32_t planes = ggmlq_type == GGMLQ_TYPE_TQ3_0 ? 1 : 4;
    float y[16];
    uint32_t magnitude = 0;
    for (uint32_t p = 0; p < planes; ++p) {
        for (uint32_t k = 0; k < 4; ++k) {
            y[4*p + k] = 0.0f;
        }
        if (exists) {
            ggmlq_load_plane(GGMLQ_TYPE_F32, query, first_plane + p, l, size, y + 4*p);
        }
        ggmlq_rotate(ggmlq_type, y + 4*p, l, p);
        for (uint32_t k = 0; k < 4; ++k) {
            magnitude = max(magnitude, ggmlq_float_bits(y[4*p + k]) & 0x7fffffff);
        }
    }
    magnitude = ggmlq_team_max(magnitude);
    const bool finite = magnitude < 0x7f800000;
    const float d = ggmlq_float_from_bits(magnitude)/127.0f;
    const bool  plain = finite && d >= 1.175494351e-38f; /* else no query at all, or one whose inverse scale would be infinite */
    const float inverse = plain ? 1.0f/d : 0.0f;
    for (uint32_t i = 0; i < 4*planes && stored; ++i) {
        const float magic  = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
        const float scaled = plain ? y[i]*inverse : 0.0f;
        const float bound  = scaled > 127.0f ? 127.0f : scaled < -127.0f ? -127.0f : scaled;
        bytes[i/4*GGMLQ_PLANE + 4*l + i % 4] = static_cast<int8_t>(static_cast<int>((bound + magic) - magic));
    }
    if (stored && l == 0) {
        *scale = plain ? d : finite ? 0.0f : ggmlq_float_from_bits(0x7fc00000);
    }
}

/* Levels 8k + l of plane `plane` of an encoded row, whole numbers of up to 7 bits, and the scale of their block. */
static inline float ggmlq_load_levels(device const uint8_t * row, uint32_t plane, uint32_t l, thread float * levels) {
    const bool tq3_0 = ggmlq_type == GGMLQ_TYPE_TQ3_0;
    device const uint8_t * b = row + (tq3_0 ? plane*GGMLQ_BYTES_TQ3_0 : plane/4*GGMLQ_BYTES_PLANAR3);
    const uint32_t p = plane % 4, byte = tq3_0 ? b[l] : b[2 + 8*p + l], s = ggmlq_read_u32(b + (tq3_0 ? 8 : 34 + 4*p));
    for (int k = 0; k < 4; ++k) {
        const uint32_t field = ggmlq_field(byte, s, l, k);
        levels[k] = tq3_0 ? ggmlq_field_levels_tq3_0[field] : ggmlq_field_levels_planar3[field];
    }
    return tq3_0 ? ggmlq_read_half(b + 12)*GGMLQ_TQ3_0_UNIT : ggmlq_read_half(b)*GGMLQ_PLANAR3_UNIT;
}

/* A thread's part of the product of levels and query bytes. The sum over a block is below 2^24, so floats add it exactly, in any order. */
static inline float ggmlq_product(thread const float * levels, threadgroup const int8_t * bytes) {
    float sum = 0.0f;
    for (int k = 0; k < 4; ++k) {
        sum += levels[k]*static_cast<float>(bytes[k]);
    }
    return sum;
}

/* out[row, column] = <row, x[column]>: the threadgroup rounds its column, then each team takes rows. shared: the column's bytes, then the
 * scales of its blocks. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_mul_mv(constant ggmlq_metal_product_args & args   [[buffer(0)]],
                         device   uint8_t *                  out    [[buffer(1)]],
                         device   const uint8_t *            rows   [[buffer(2)]],
                         device   const uint8_t *            x      [[buffer(3)]],
                         threadgroup int8_t *                shared [[threadgroup(0)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint  index [[thread_index_in_threadgroup]]) {
    const uint32_t planes_of_block = ggmlq_type == GGMLQ_TYPE_TQ3_0 ? 1 : 4, n_blocks = args.n/GGMLQ_PLANE/planes_of_block;
    const uint32_t team = index/GGMLQ_METAL_TEAM, l = index % GGMLQ_METAL_TEAM, teams = GGMLQ_METAL_THREADS/GGMLQ_METAL_TEAM;
    const uint32_t i2 = group.z % args.ne2, i3 = group.z/args.ne2;
    device const uint8_t * column = x + group.y*args.x_nb[0] + i2*args.x_nb[1] + i3*args.x_nb[2];
    threadgroup float * scales = reinterpret_cast<threadgroup float *>(shared + args.n);

    for (uint32_t first = 0; first < n_blocks; first += teams) {
        const uint32_t block = first + team, plane = block*planes_of_block;
        ggmlq_round_query(column, plane, args.n, l, block < n_blocks, block < n_blocks, shared + plane*GGMLQ_PLANE, scales + block);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const uint32_t first_row = group.x*GGMLQ_METAL_PRODUCT_ROWS;
    for (uint32_t start = 0; start < GGMLQ_METAL_PRODUCT_ROWS && first_row + start < args.n_rows; start += teams) {
        const uint32_t row = first_row + start + team;
        device const uint8_t * at = rows + row*args.rows_nb[0] + i2/args.ratio2*args.rows_nb[1] + i3/args.ratio3*args.rows_nb[2];
        float sum = 0.0f;
        for (uint32_t block = 0; block < n_blocks; ++block) {
            float dot = 0.0f, scale = 0.0f;
            for (uint32_t p = 0; p < planes_of_block && row < args.n_rows; ++p) {
                const uint32_t plane = block*planes_of_block + p;
                float levels[4];
                scale = ggmlq_load_levels(at, plane, l, levels);
                dot  += ggmlq_product(levels, shared + plane*GGMLQ_PLANE + 4*l);
            }
            sum += scale*scales[block]*ggmlq_fold(dot);
        }
        if (row < args.n_rows && l == 0) {
            ggmlq_write_value(GGMLQ_TYPE_F32, out + group.y*args.out_nb[0] + i2*args.out_nb[1] + i3*args.out_nb[2], row, sum);
        }
    }
}

/* --- the lightning indexer --------------------------------------------------------------------------------------- */

/* Sums of eight numbers over a team: thread l gets that of number l. Each step halves the numbers, with seven exchanges instead of 24. */
static inline float ggmlq_fold_eight(thread float * v, uint32_t l) {
    for (uint32_t half = 4; half > 0; half /= 2) {
        const bool upper = (l & half) != 0;
        for (uint32_t i = 0; i < half; ++i) {
            const float kept = upper ? v[i + half] : v[i], given = upper ? v[i] : v[i + half];
            v[i] = kept + ggmlq_swap(given, static_cast<int>(half));
        }
    }
    return v[0];
}

/* scores[row, token] = mask[row, token] + sum over heads of weight[head, token] * max(0, <q[head, token], row>). The threadgroup rounds the queries
 * of up to GGMLQ_METAL_INDEXER_HEADS heads, then each team meets rows with eight heads at a time, of which thread l adds up head l.
 * shared: the queries' bytes, then the scales of their blocks. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_indexer(constant ggmlq_metal_indexer_args & args    [[buffer(0)]],
                          device   uint8_t *                  scores  [[buffer(1)]],
                          device   const uint8_t *            q       [[buffer(2)]],
                          device   const uint8_t *            rows    [[buffer(3)]],
                          device   const uint8_t *            weights [[buffer(4)]],
                          device   const uint8_t *            mask    [[buffer(5)]],
                          threadgroup int8_t *                shared  [[threadgroup(0)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint  index [[thread_index_in_threadgroup]]) {
    constexpr uint32_t planes = static_cast<uint32_t>(GGMLQ_METAL_INDEXER_LENGTH)/GGMLQ_PLANE, teams = GGMLQ_METAL_THREADS/GGMLQ_METAL_TEAM;
    constexpr uint32_t rounds = GGMLQ_METAL_INDEXER_ROWS/teams;
    const uint32_t planes_of_block = ggmlq_type == GGMLQ_TYPE_TQ3_0 ? 1 : 4, blocks = planes/planes_of_block;
    const uint32_t team = index/GGMLQ_METAL_TEAM, l = index % GGMLQ_METAL_TEAM, token = group.y, seq = group.z;
    threadgroup float * scales = reinterpret_cast<threadgroup float *>(shared + GGMLQ_METAL_INDEXER_HEADS*GGMLQ_METAL_INDEXER_LENGTH);

    float sums[rounds];
    for (uint32_t i = 0; i < rounds; ++i) {
        sums[i] = 0.0f;
    }
    for (uint32_t first = 0; first < args.heads; first += GGMLQ_METAL_INDEXER_HEADS) {
        const uint32_t here = args.heads - first; /* or fewer: those of the next turn aren't rounded now */
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint32_t start = 0; start < GGMLQ_METAL_INDEXER_HEADS*blocks; start += teams) {
            const uint32_t head = (start + team)/blocks, block = (start + team) % blocks;
            device const uint8_t * query = q + (head < here ? first + head : 0)*args.q_nb[0] + token*args.q_nb[1] + seq*args.q_nb[2];
            ggmlq_round_query(query, block*planes_of_block, GGMLQ_METAL_INDEXER_LENGTH, l, head < here, true,
                shared + (head*planes + block*planes_of_block)*GGMLQ_PLANE, scales + head*blocks + block);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);

        for (uint32_t i = 0; i < rounds; ++i) {
            const uint32_t row = min(group.x*GGMLQ_METAL_INDEXER_ROWS + i*teams + team, args.n_rows - 1);
            float levels[planes][4], row_scales[planes];
            for (uint32_t plane = 0; plane < planes; ++plane) {
                row_scales[plane] = ggmlq_load_levels(rows + row*args.rows_nb[0] + seq*args.rows_nb[1], plane, l, levels[plane]);
            }
            for (uint32_t head = 0; head < min(here, static_cast<uint32_t>(GGMLQ_METAL_INDEXER_HEADS)); head += 8) {
                float product = 0.0f;
                for (uint32_t block = 0; block < blocks; ++block) {
                    float dots[8];
                    for (uint32_t c = 0; c < 8; ++c) {
                        dots[c] = 0.0f;
                        for (uint32_t p = 0; p < planes_of_block; ++p) {
                            const uint32_t plane = block*planes_of_block + p;
                            dots[c] += ggmlq_product(levels[plane], shared + ((head + c)*planes + plane)*GGMLQ_PLANE + 4*l);
                        }
                    }
                    product += row_scales[block*planes_of_block]*scales[(head + l)*blocks + block]*ggmlq_fold_eight(dots, l);
                }
                if (head + l < here) {
                    const float weight = ggmlq_read_value(GGMLQ_TYPE_F32, weights + token*args.weights_nb[0] + seq*args.weights_nb[1], first + head + l);
                    sums[i] += weight*(product > 0.0f ? product : 0.0f);
                }
            }
        }
    }
    for (uint32_t i = 0; i < rounds; ++i) {
        const uint32_t row = group.x*GGMLQ_METAL_INDEXER_ROWS + i*teams + team;
        const float  score = ggmlq_fold(sums[i]);
        if (row < args.n_rows && l == 0) {
            const float m = ggmlq_read_half(mask + token*args.mask_nb[0] + seq % args.mask_seqs*args.mask_nb[1] + 2*row);
            ggmlq_write_value(GGMLQ_TYPE_F32, scores + token*args.scores_nb[0] + seq*args.scores_nb[1], row, score + m);
        }
    }
}

/* --- attention -------------------------------------------------------------------------------------------------- */

/* The place of a part: floats of a query row and a split. */
static inline int64_t ggmlq_part_at(constant ggmlq_metal_attend_args & args, uint32_t row, uint32_t split, uint32_t planes) {
    return (static_cast<int64_t>(row)*args.n_splits + split)*(planes*GGMLQ_PLANE + GGMLQ_METAL_PART_EXTRA);
}

/* softmax(scale * Q K^T + mask) V for `ggmlq_columns` columns of one head of the cache: a column is one token that asks and one of the query
 * heads of the group, so that a row is read and decoded once for all of them. Queries are rotated once, the output is rotated back once, rows
 * stay as they are stored. Positional rows of centered keys (docs/CENTERING.md) are computed as tokens come, a pair by a thread of the token's team and once
 * for all columns, and multiplied with w, which isn't rotated: so tokens may have any positions, and nothing is to be kept. The simdgroups
 * take chunks of 32 tokens in turn, each with its own running maximum and sum, and are merged at the end. Scores: a team reads a row, four rows at
 * once. V: 32 lanes read a row, lane 8g + l the values 8k + l of the planes g, g + 4, ..
 * Where tokens are split over threadgroups, the result is a part: sums of V in the rotated space, the maximum and the sum of the weights, which
 * kernel_ggmlq_combine merges.
 *
 * shared: queries, values 8k + l of a plane together; w pair by pair; turns; weights of 32 tokens for each simdgroup and column; its maxima and sums; the output. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_attend(constant ggmlq_metal_attend_args & args    [[buffer(0)]],
                         device   const uint8_t *           q       [[buffer(1)]],
                         device   const uint8_t *           k       [[buffer(2)]],
                         device   const uint8_t *           v       [[buffer(3)]],
                         device   const uint8_t *           mask    [[buffer(4)]],
                         device   const uint8_t *           sinks   [[buffer(5)]],
                         device   const uint8_t *           list    [[buffer(6)]],
                         device   uint8_t *                 out     [[buffer(7)]],
                         device   const uint8_t *           w       [[buffer(8)]],
                         device   const uint8_t *           turns   [[buffer(9)]],
                         device   const uint8_t *           positions [[buffer(10)]],
                         device   const uint8_t *           factors [[buffer(11)]],
                         threadgroup float *                shared  [[threadgroup(0)]],
                         uint3 group     [[threadgroup_position_in_grid]],
                         uint  thread_id [[thread_index_in_threadgroup]],
                         uint  simdgroup [[simdgroup_index_in_threadgroup]],
                         uint  lane      [[thread_index_in_simdgroup]]) {
    const uint32_t columns  = static_cast<uint32_t>(ggmlq_columns), head_k = static_cast<uint32_t>(ggmlq_head_k), head_v = static_cast<uint32_t>(ggmlq_head_v);
    const uint32_t planes_k = (head_k + GGMLQ_PLANE - 1)/GGMLQ_PLANE, planes_v = (head_v + GGMLQ_PLANE - 1)/GGMLQ_PLANE;
    const uint32_t pairs = static_cast<uint32_t>(ggmlq_pairs), own_planes = (planes_v + 3)/4; /* of V, to each lane */
    const uint32_t team = lane/GGMLQ_METAL_TEAM, l = lane % GGMLQ_METAL_TEAM;
    const uint32_t all_team = thread_id/GGMLQ_METAL_TEAM, all_teams = GGMLQ_METAL_THREADS/GGMLQ_METAL_TEAM;

    threadgroup float * queries = shared;
    threadgroup float * terms   = queries + columns*planes_k*GGMLQ_PLANE;
    threadgroup float * weights = terms + columns*pairs*2 + pairs*2;
    threadgroup uint32_t * turn = reinterpret_cast<threadgroup uint32_t *>(terms + columns*pairs*2);
    threadgroup float * maxima  = weights + GGMLQ_METAL_SIMDGROUPS*columns*32;
    threadgroup float * sums    = maxima + GGMLQ_METAL_SIMDGROUPS*columns;
    threadgroup float * merged  = sums + GGMLQ_METAL_SIMDGROUPS*columns;

    /* Columns of this threadgroup: from `first` of those that share their keys, unit by unit. */
    const uint32_t split = group.x % args.n_splits, tile = group.x/args.n_splits;
    const uint32_t unit = tile/args.tiles, first = tile % args.tiles*columns;
    const uint32_t here = min(columns, args.span - first), flat = unit*args.span + first;
    const uint32_t kv_head = group.y, seq = group.z;

    /* Every simdgroup runs through the same planes, so all lanes are in every shuffle. */
    for (uint32_t start = 0; start < columns*planes_k; start += all_teams) {
        const uint32_t item = start + all_team, column = item/planes_k, plane = item % planes_k;
        const bool active = item < columns*planes_k && column < here;
        float x[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        if (active) {
            const uint32_t token = (flat + column)/args.group, head = kv_head*args.group + (flat + column) % args.group;
            ggmlq_load_plane(GGMLQ_TYPE_F32, q + token*args.q_nb[0] + head*args.q_nb[1] + seq*args.q_nb[2], plane, l, head_k, x);
        }
        ggmlq_rotate(ggmlq_type, x, l, plane);
        if (item < columns*planes_k) {
            for (uint32_t i = 0; i < 4; ++i) {
                queries[item*GGMLQ_PLANE + 4*l + i] = x[i];
            }
        }
    }
    for (uint32_t item = thread_id; item < columns*pairs; item += GGMLQ_METAL_THREADS) {
        const uint32_t column = item/pairs, pair = item % pairs;
        float x[2] = { 0.0f, 0.0f };
        if (column < here) {
            const uint32_t token = (flat + column)/args.group, head = kv_head*args.group + (flat + column) % args.group;
            device const uint8_t * row = w + token*args.w_nb[0] + head*args.w_nb[1] + seq*args.w_nb[2];
            x[0] = ggmlq_read_value(GGMLQ_TYPE_F32, row, args.pairs_are_halves != 0 ? pair : 2*pair);
            x[1] = ggmlq_read_value(GGMLQ_TYPE_F32, row, args.pairs_are_halves != 0 ? pair + pairs : 2*pair + 1);
        }
        terms[2*item]     = x[0];
        terms[2*item + 1] = x[1];
    }
    for (uint32_t i = thread_id; i < 2*pairs; i += GGMLQ_METAL_THREADS) {
        turn[i] = ggmlq_read_u32(turns + 4*i);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    float accumulated[GGMLQ_METAL_MAX_PLANES][4];
    float maximum[GGMLQ_METAL_MAX_COLUMNS], sum[GGMLQ_METAL_MAX_COLUMNS];
    for (uint32_t c = 0; c < columns; ++c) {
        maximum[c] = -INFINITY;
        sum[c]     = 0.0f;
    }
    for (uint32_t i = 0; i < columns*own_planes; ++i) {
        for (int j = 0; j < 4; ++j) {
            accumulated[i][j] = 0.0f;
        }
    }

    device const uint8_t * k_head = k + kv_head*args.k_nb[1] + seq/args.seqs_ratio*args.k_nb[2];
    device const uint8_t * v_head = v + kv_head*args.v_nb[1] + seq/args.seqs_ratio*args.v_nb[2];
    device const int32_t * positions_seq = reinterpret_cast<device const int32_t *>(positions + seq/args.seqs_ratio*args.positions_nb);
    device const uint8_t * factors_seq = factors + seq/args.seqs_ratio*args.part_nb;
    const int64_t list_at = args.has_list != 0 ? (seq*args.n_queries + flat/args.group)*static_cast<int64_t>(args.n_kv) : 0;
    device const int32_t * listed = reinterpret_cast<device const int32_t *>(list) + list_at;
    threadgroup float * mine = weights + simdgroup*columns*32;

    const uint32_t end = min(args.n_kv, (split + 1)*args.split_kv);
    for (uint32_t chunk = split*args.split_kv + 32*simdgroup; chunk < end; chunk += 32*GGMLQ_METAL_SIMDGROUPS) {
        /* What is added to the scores of this lane's token; -infinity: it is hidden. */
        float bias[GGMLQ_METAL_MAX_COLUMNS];
        const uint32_t own_row = chunk + lane >= end ? args.n_rows : args.has_list != 0 ? static_cast<uint32_t>(listed[chunk + lane]) : chunk + lane;
        const bool exists = own_row < args.n_rows; /* or it is the padding of a list */
        uint32_t seen = 0;
        for (uint32_t c = 0; c < columns; ++c) {
            bias[c] = -INFINITY;
            if (exists && c < here) {
                bias[c] = 0.0f;
                const uint32_t asking = (flat + c)/args.group, head = kv_head*args.group + (flat + c) % args.group;
                if (args.has_mask != 0) {
                    const float m = ggmlq_read_half(mask + asking*args.mask_nb[0] + head % args.mask_heads*args.mask_nb[1] + seq % args.mask_seqs*args.mask_nb[2] + 2*own_row);
                    float slope = 1.0f;
                    if (args.alibi_heads != 0) {
                        slope = head < args.alibi_heads ? precise::pow(args.alibi_base, static_cast<float>(head + 1))
                                                        : precise::pow(args.alibi_base_odd, static_cast<float>(2*(head - args.alibi_heads) + 1));
                    }
                    bias[c] = m == -INFINITY ? m : slope*m;
                }
                seen |= bias[c] != -INFINITY ? 1 : 0;
            }
        }
        for (int other = 1; other < 32; other *= 2) {
            seen |= ggmlq_swap_bits(seen, other);
        }
        if (seen == 0) {
            continue;
        }

        for (uint32_t t = 0; t < 32; t += 4) {
            float dots[GGMLQ_METAL_MAX_COLUMNS];
            for (uint32_t c = 0; c < columns; ++c) {
                dots[c] = 0.0f;
            }
            const uint32_t at = chunk + t + team;
            const uint32_t row = at >= end ? args.n_rows : args.has_list != 0 ? static_cast<uint32_t>(listed[at]) : at;
            if (row < args.n_rows) {
                for (uint32_t plane = 0; plane < planes_k; ++plane) {
                    float x[4];
                    ggmlq_load_plane(ggmlq_type, k_head + row*args.k_nb[0], plane, l, head_k, x);
                    for (uint32_t c = 0; c < columns; ++c) {
                        threadgroup const float * y = queries + (c*planes_k + plane)*GGMLQ_PLANE + 4*l;
                        dots[c] += x[0]*y[0] + x[1]*y[1] + x[2]*y[2] + x[3]*y[3];
                    }
                }
                /* A key that isn't centered has the factor 0. */
                const float factor = pairs == 0 ? 0.0f : args.has_part != 0 ? ggmlq_read_half(factors_seq + 2*row) : 1.0f;
                if (factor != 0.0f) {
                    const int32_t position = positions_seq[row];
                    for (uint32_t pair = l; pair < pairs; pair += GGMLQ_METAL_TEAM) {
                        const float angle = ggmlq_angle(position, turn[2*pair], turn[2*pair + 1]);
                        const float cosine = factor*precise::cospi(angle), sine = factor*precise::sinpi(angle);
                        for (uint32_t c = 0; c < columns; ++c) {
                            threadgroup const float * y = terms + 2*(c*pairs + pair);
                            dots[c] += cosine*y[0] + sine*y[1];
                        }
                    }
                }
            }
            for (uint32_t c = 0; c < columns; ++c) {
                const float dot = ggmlq_fold(dots[c]);
                if (l == 0) {
                    mine[32*c + t + team] = dot;
                }
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);

        float shrink[GGMLQ_METAL_MAX_COLUMNS];
        for (uint32_t c = 0; c < columns; ++c) {
            float score = mine[32*c + lane]*args.scale;
            score = args.softcap != 0.0f ? args.softcap*precise::tanh(score/args.softcap) : score;
            score = bias[c] == -INFINITY ? -INFINITY : score + bias[c];
            float top = score;
            for (int other = 1; other < 32; other *= 2) {
                top = max(top, ggmlq_swap(top, other));
            }
            top = max(top, maximum[c]);
            const float weight = score == -INFINITY ? 0.0f : precise::exp(score - top);
            float total = weight;
            for (int other = 1; other < 32; other *= 2) {
                total += ggmlq_swap(total, other);
            }
            shrink[c]  = maximum[c] == -INFINITY ? 0.0f : precise::exp(maximum[c] - top);
            sum[c]     = sum[c]*shrink[c] + total;
            maximum[c] = top;
            mine[32*c + lane] = weight;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);

        for (uint32_t c = 0; c < columns; ++c) {
            for (uint32_t i = 0; i < own_planes; ++i) {
                for (int j = 0; j < 4; ++j) {
                    accumulated[c*own_planes + i][j] *= shrink[c];
                }
            }
        }
        for (uint32_t t = 0; t < 32 && chunk + t < end; ++t) {
            const uint32_t row = args.has_list != 0 ? static_cast<uint32_t>(listed[chunk + t]) : chunk + t;
            bool wanted = false;
            for (uint32_t c = 0; c < columns; ++c) {
                wanted = wanted || mine[32*c + t] != 0.0f;
            }
            if (!wanted) {
                continue;
            }
            for (uint32_t i = 0; i < own_planes; ++i) {
                const uint32_t plane = 4*i + team;
                if (plane < planes_v) {
                    float x[4];
                    ggmlq_load_plane(ggmlq_other_type, v_head + row*args.v_nb[0], plane, l, head_v, x);
                    for (uint32_t c = 0; c < columns; ++c) {
                        const float weight = mine[32*c + t];
                        if (weight != 0.0f) { /* a hidden row may hold NaN */
                            for (int j = 0; j < 4; ++j) {
                                accumulated[c*own_planes + i][j] += weight*x[j];
                            }
                        }
                    }
                }
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }

    for (uint32_t c = 0; c < columns && lane == 0; ++c) {
        maxima[simdgroup*columns + c] = maximum[c];
        sums[simdgroup*columns + c]   = sum[c];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const bool whole = args.n_splits == 1; /* else sinks are for kernel_ggmlq_combine, and nothing is divided here */
    const uint32_t query_row = (seq*args.heads_kv + kv_head)*args.group*args.n_queries + flat;
    for (uint32_t c = 0; c < columns; ++c) {
        const uint32_t head = kv_head*args.group + (flat + c) % args.group;
        const float sink = whole && args.has_sinks != 0 && c < here ? ggmlq_read_value(GGMLQ_TYPE_F32, sinks, head) : -INFINITY;
        float top = sink;
        for (uint32_t s = 0; s < GGMLQ_METAL_SIMDGROUPS; ++s) {
            top = max(top, maxima[s*columns + c]);
        }
        float total = sink == -INFINITY ? 0.0f : precise::exp(sink - top);
        for (uint32_t s = 0; s < GGMLQ_METAL_SIMDGROUPS; ++s) {
            const float of_group = maxima[s*columns + c];
            total += of_group == -INFINITY ? 0.0f : sums[s*columns + c]*precise::exp(of_group - top);
        }
        if (!whole && c < here && thread_id == 0) {
            device float * part = reinterpret_cast<device float *>(out) + ggmlq_part_at(args, query_row + c, split, planes_v) + planes_v*GGMLQ_PLANE;
            part[0] = top;
            part[1] = total;
        }
        const float share = maximum[c] == -INFINITY || total == 0.0f ? 0.0f : precise::exp(maximum[c] - top)/(whole ? total : 1.0f);
        for (uint32_t i = 0; i < own_planes; ++i) {
            for (int j = 0; j < 4; ++j) {
                accumulated[c*own_planes + i][j] *= share;
            }
        }
    }
    for (uint32_t s = 0; s < GGMLQ_METAL_SIMDGROUPS; ++s) {
        if (simdgroup == s) {
            for (uint32_t c = 0; c < columns; ++c) {
                for (uint32_t i = 0; i < own_planes; ++i) {
                    const uint32_t plane = 4*i + team;
                    for (uint32_t j = 0; j < 4 && plane < planes_v; ++j) {
                        threadgroup float * at = merged + (c*planes_v + plane)*GGMLQ_PLANE + 4*l + j;
                        *at = s == 0 ? accumulated[c*own_planes + i][j] : *at + accumulated[c*own_planes + i][j];
                    }
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    for (uint32_t start = 0; start < columns*planes_v; start += all_teams) {
        const uint32_t item = start + all_team, column = item/planes_v, plane = item % planes_v;
        const bool active = item < columns*planes_v && column < here;
        float x[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        for (uint32_t j = 0; j < 4 && active; ++j) {
            x[j] = merged[item*GGMLQ_PLANE + 4*l + j];
        }
        if (whole) {
            ggmlq_unrotate(ggmlq_other_type, x, l, plane);
        }
        if (active) {
            const uint32_t token = (flat + column)/args.group, head = kv_head*args.group + (flat + column) % args.group;
            device float * target = whole ? reinterpret_cast<device float *>(out + token*args.out_nb[0] + head*args.out_nb[1] + seq*args.out_nb[2])
                                          : reinterpret_cast<device float *>(out) + ggmlq_part_at(args, query_row + column, split, planes_v);
            const uint32_t size = whole ? head_v : planes_v*GGMLQ_PLANE;
            for (uint32_t j = 0; j < 4; ++j) {
                const uint32_t i = GGMLQ_PLANE*plane + 8*j + l;
                if (i < size) {
                    target[i] = x[j];
                }
            }
        }
    }
}

/* Parts of attention -> its result: a team to each plane of a query row. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_combine(constant ggmlq_metal_attend_args & args  [[buffer(0)]],
                          device   const uint8_t *           parts [[buffer(1)]],
                          device   const uint8_t *           sinks [[buffer(2)]],
                          device   uint8_t *                 out   [[buffer(3)]],
                          uint id [[thread_position_in_grid]]) {
    const uint32_t head_v = static_cast<uint32_t>(ggmlq_head_v), planes = (head_v + GGMLQ_PLANE - 1)/GGMLQ_PLANE, n = args.query_rows*planes;
    const uint32_t number = id/GGMLQ_METAL_TEAM, l = id % GGMLQ_METAL_TEAM;
    if (id/32*32/GGMLQ_METAL_TEAM >= n) { /* a simdgroup without work */
        return;
    }
    const bool active = number < n;
    const uint32_t row = active ? number/planes : 0, plane = active ? number % planes : 0;
    const uint32_t all_columns = args.group*args.n_queries, column = row % all_columns;
    const uint32_t kv_head = row/all_columns % args.heads_kv, seq = row/all_columns/args.heads_kv;
    const uint32_t token = column/args.group, head = kv_head*args.group + column % args.group;
    device const float * part = reinterpret_cast<device const float *>(parts) + ggmlq_part_at(args, row, 0, planes);
    const uint32_t step = planes*GGMLQ_PLANE + GGMLQ_METAL_PART_EXTRA, statistics = planes*GGMLQ_PLANE;

    const float sink = args.has_sinks != 0 ? ggmlq_read_value(GGMLQ_TYPE_F32, sinks, head) : -INFINITY;
    float top = sink;
    for (uint32_t split = 0; split < args.n_splits; ++split) {
        top = max(top, part[split*step + statistics]);
    }
    float total = sink == -INFINITY ? 0.0f : precise::exp(sink - top);
    float x[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
    for (uint32_t split = 0; split < args.n_splits; ++split) {
        const float of_split = part[split*step + statistics];
        if (of_split != -INFINITY) { /* all its tokens are hidden */
            const float share = precise::exp(of_split - top);
            total += share*part[split*step + statistics + 1];
            for (uint32_t k = 0; k < 4; ++k) {
                x[k] += share*part[split*step + GGMLQ_PLANE*plane + 8*k + l];
            }
        }
    }
    for (uint32_t k = 0; k < 4; ++k) {
        x[k] = total == 0.0f ? 0.0f : x[k]/total;
    }
    ggmlq_unrotate(ggmlq_other_type, x, l, plane);
    for (uint32_t k = 0; k < 4; ++k) {
        const uint32_t i = GGMLQ_PLANE*plane + 8*k + l;
        if (active && i < head_v) {
            ggmlq_write_value(GGMLQ_TYPE_F32, out + token*args.out_nb[0] + head*args.out_nb[1] + seq*args.out_nb[2], i, x[k]);
        }
    }
}

/* The rows that a mask row leaves, ascending, as a list of at most `most`; -1 behind them. A threadgroup for each query token; each simdgroup
 * has a range of the mask row, and counts its rows before it writes them. */
[[kernel, max_total_threads_per_threadgroup(GGMLQ_METAL_THREADS)]]
void kernel_ggmlq_select(constant ggmlq_metal_select_args & args   [[buffer(0)]],
                         device   const uint8_t *           mask   [[buffer(1)]],
                         device   uint8_t *                 list   [[buffer(2)]],
                         threadgroup uint32_t *             counts [[threadgroup(0)]],
                         uint3 group     [[threadgroup_position_in_grid]],
                         uint  thread_id [[thread_index_in_threadgroup]],
                         uint  simdgroup [[simdgroup_index_in_threadgroup]],
                         uint  lane      [[thread_index_in_simdgroup]]) {
    device const uint8_t * row = mask + group.x*args.mask_nb[0] + group.y % args.mask_seqs*args.mask_nb[1];
    device int32_t * target = reinterpret_cast<device int32_t *>(list) + (group.y*args.n_queries + group.x)*static_cast<int64_t>(args.most);
    const uint32_t range = (args.n_kv + 32*GGMLQ_METAL_SIMDGROUPS - 1)/(32*GGMLQ_METAL_SIMDGROUPS)*32;
    const uint32_t start = simdgroup*range, end = min(args.n_kv, start + range);

    uint32_t at = 0; /* in the list */
    for (int writing = 0; writing < 2; ++writing) {
        for (uint32_t first = start; first < end; first += 32) {
            const uint32_t i = first + lane;
            const bool seen = i < end && ggmlq_read_u16(row + 2*i) != 0xfc00;
            uint32_t before = 0, all = seen ? 1 : 0; /* seen by lanes before this one; by all */
            for (uint32_t half = 1; half < 32; half *= 2) {
                const uint32_t other = ggmlq_swap_bits(all, static_cast<int>(half));
                before += (lane & half) != 0 ? other : 0;
                all    += other;
            }
            if (writing == 1 && seen && at + before < args.most) {
                target[at + before] = static_cast<int32_t>(i);
            }
            at += all;
        }
        if (writing == 0) {
            if (lane == 0) {
                counts[simdgroup] = at;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            at = 0;
            for (uint32_t s = 0; s < simdgroup; ++s) {
                at += counts[s];
            }
        }
    }
    uint32_t n = 0;
    for (uint32_t s = 0; s < GGMLQ_METAL_SIMDGROUPS; ++s) {
        n += counts[s];
    }
    for (uint32_t i = n + thread_id; i < args.most; i += GGMLQ_METAL_THREADS) {
        target[i] = -1;
    }
}
