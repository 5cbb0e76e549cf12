/* SPDX-License-Identifier: MIT
 *
 * Blocks, bit planes and half precision: what every C back end shares. Layouts: docs/FORMAT.md.
 * Blocks are plain bytes (alignment 1, little-endian), so a row may lie anywhere.
 */
#ifndef GGMLQ_BLOCK_H
#define GGMLQ_BLOCK_H

#include "ggmlq-deps.h"
#include "ggmlq-tables.h"

struct ggmlq_block_tq3_0 {
    uint8_t qs[8];     /* coarse cell, 2 bits a value           */
    uint8_t qr[4];     /* sign of the residual in the cell, 1 bit */
    uint8_t gamma[2];  /* fp16: y = gamma * level / 64          */
};

struct ggmlq_block_planar3 {
    uint8_t norm[2];   /* fp16: y = norm * level / 512          */
    uint8_t qs[32];    /* low two bits of the level index       */
    uint8_t signs[16]; /* high bit of the level index           */
};

/* Queries: rotated like the cache type, 8 bits a value; private to one process. */
struct ggmlq_block_tq3_0_q8   { float d; int8_t qs[32];  };
struct ggmlq_block_planar3_q8 { float d; int8_t qs[128]; };

enum {
    GGMLQ_PLANE = 32,            /* values in a pair of planes: q[8], s[4] */
    GGMLQ_MAX_BLOCK_LENGTH = 128
};

static inline GGMLQ_DEVICE_TOO float ggmlq_float_from_bits(uint32_t bits) { float f; memcpy(&f, &bits, sizeof(f)); return f; }
static inline GGMLQ_DEVICE_TOO uint32_t ggmlq_float_bits(float f) { uint32_t bits; memcpy(&bits, &f, sizeof(bits)); return bits; }

#include "ggmlq-values.h"

static inline GGMLQ_DEVICE_TOO uint16_t ggmlq_load_u16(const uint8_t * p) { return (uint16_t) (p[0] | p[1] << 8); }
static inline GGMLQ_DEVICE_TOO void ggmlq_store_u16(uint8_t * p, uint16_t v) { p[0] = (uint8_t) v; p[1] = (uint8_t) (v >> 8); }

static inline GGMLQ_DEVICE_TOO uint32_t ggmlq_load_u32(const uint8_t * p) {
    return (uint32_t) p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;
}

/* Multiplies by 2^e, |e| <= 160, in two steps because 2^e itself may be no float. Only one of them can round. */
static inline void ggmlq_scale_by_power_of_two(const float * x, float * y, int n, int e) {
    const int   excess = e < -126 ? e + 126 : e > 127 ? e - 127 : 0;
    const float first  = ggmlq_float_from_bits((uint32_t) (127 + excess) << 23);
    const float second = ggmlq_float_from_bits((uint32_t) (127 + e - excess) << 23);
    for (int i = 0; i < n; ++i) {
        y[i] = x[i] * first * second;
    }
}

/* The exponent e with 2^(e-1) <= max |x| < 2^e; false if a value is NaN or infinite. All zero gives INT32_MIN. */
static inline bool ggmlq_block_exponent(const float * x, int n, int * e) {
    uint32_t max = 0;
    for (int i = 0; i < n; ++i) {
        const uint32_t bits = ggmlq_float_bits(x[i]) & 0x7fffffff;
        max = bits > max ? bits : max;
    }
    if (max >= 0x7f800000) {
        return false;
    }
    if (max == 0) {
        *e = INT32_MIN;
        return true;
    }
    *e = (int) (max >> 23) - 126;
    if (max < 0x00800000) { /* subnormal: max * 2^-149 */
        for (*e = -149; max != 0; max >>= 1) {
            ++*e;
        }
    }
    return true;
}

/* A pair of planes -> 32 levels. A value's field is its 2 bits plus 4 times its 1 bit; the type's table says which
 * level that is. */
static inline void ggmlq_unpack_plane(const uint8_t q[8], const uint8_t s[4], const int8_t field_levels[8], int8_t levels[GGMLQ_PLANE]) {
    const uint32_t word = ggmlq_load_u32(s);
    for (int k = 0; k < 4; ++k) {
        for (int b = 0; b < 8; ++b) {
            levels[8*k + b] = field_levels[(q[b] >> 2*k & 3) | (word >> ggmlq_sign_bit(b, k) & 1) << 2];
        }
    }
}

/* 32 fields -> a pair of planes. */
static inline void ggmlq_pack_plane(const uint8_t fields[GGMLQ_PLANE], uint8_t q[8], uint8_t s[4]) {
    uint32_t word = 0;
    memset(q, 0, 8);
    for (int k = 0; k < 4; ++k) {
        for (int b = 0; b < 8; ++b) {
            const uint8_t field = fields[8*k + b];
            q[b] |= (uint8_t) ((field & 3) << 2*k);
            word |= (uint32_t) (field >> 2) << ggmlq_sign_bit(b, k);
        }
    }
    for (int i = 0; i < 4; ++i) {
        s[i] = (uint8_t) (word >> 8*i);
    }
}

static const int8_t ggmlq_field_levels_tq3_0[8]   GGMLQ_UNUSED = GGMLQ_TQ3_0_FIELD_LEVELS_INIT;
static const int8_t ggmlq_field_levels_planar3[8] GGMLQ_UNUSED = GGMLQ_PLANAR3_FIELD_LEVELS_INIT;

/* One block -> its levels; the factor that makes them values in the rotated space is returned. */
static inline float ggmlq_unpack_block_tq3_0(const struct ggmlq_block_tq3_0 * block, int8_t levels[32]) {
    ggmlq_unpack_plane(block->qs, block->qr, ggmlq_field_levels_tq3_0, levels);
    return ggmlq_half_to_float(ggmlq_load_u16(block->gamma)) * GGMLQ_TQ3_0_UNIT;
}

static inline float ggmlq_unpack_block_planar3(const struct ggmlq_block_planar3 * block, int8_t levels[128]) {
    for (int g = 0; g < 4; ++g) {
        ggmlq_unpack_plane(block->qs + 8*g, block->signs + 4*g, ggmlq_field_levels_planar3, levels + GGMLQ_PLANE*g);
    }
    return ggmlq_half_to_float(ggmlq_load_u16(block->norm)) * GGMLQ_PLANAR3_UNIT;
}

#endif
