/* SPDX-License-Identifier: MIT
 *
 * Vectors in plain C, for the compiler's vectorizer, and the description of what every ggmlq-simd-*.h gives:
 *
 *   v8, v8i      8 floats, 8 dwords: the codec, whose sums have 8 lanes, and so the same bits at every level
 *   vf, vi, VL   VL floats or dwords, as wide as the level likes (VL divides 32): dot products and attention
 *   ROWS, TOKEN_VECTORS, VALUE_VECTORS    how many accumulators fit: see ggmlq-cpu-kernels.inc
 *
 * v8_add, v8_sub, v8_mul round as the plain operation. v8_max(a, b) and v8_min(a, b) give b if one is NaN.
 */
#ifndef GGMLQ_SIMD_PORTABLE_H
#define GGMLQ_SIMD_PORTABLE_H

typedef struct { float   v[8]; } v8;
typedef struct { int32_t v[8]; } v8i;

#define EACH(expression) do { for (int l = 0; l < 8; ++l) { expression; } } while (0)

static inline v8   v8_load(const float * p)          { v8 r; memcpy(&r, p, sizeof(r)); return r; }
static inline void v8_store(float * p, v8 a)         { memcpy(p, &a, sizeof(a)); }
static inline v8   v8_set1(float a)                  { v8 r; EACH(r.v[l] = a); return r; }
static inline v8   v8_add(v8 a, v8 b)                { EACH(a.v[l] += b.v[l]); return a; }
static inline v8   v8_sub(v8 a, v8 b)                { EACH(a.v[l] -= b.v[l]); return a; }
static inline v8   v8_mul(v8 a, v8 b)                { EACH(a.v[l] *= b.v[l]); return a; }
static inline v8   v8_div(v8 a, v8 b)                { EACH(a.v[l] /= b.v[l]); return a; }
/* a*b + c, fused or not. */
static inline v8   v8_fma(v8 a, v8 b, v8 c)          { EACH(c.v[l] += a.v[l]*b.v[l]); return c; }
static inline v8   v8_max(v8 a, v8 b)                { EACH(b.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l]); return b; }
static inline v8   v8_min(v8 a, v8 b)                { EACH(b.v[l] = a.v[l] < b.v[l] ? a.v[l] : b.v[l]); return b; }
/* To the nearest integer, ties to even; |a| < 2^22. */
static inline v8   v8_round(v8 a)                    { EACH(a.v[l] = (a.v[l] + 12582912.0f) - 12582912.0f); return a; }
static inline v8   v8_abs(v8 a)                      { EACH(a.v[l] = fabsf(a.v[l])); return a; }
static inline v8   v8_where_equal(v8 a, v8 b, v8 x, v8 y) { EACH(y.v[l] = a.v[l] == b.v[l] ? x.v[l] : y.v[l]); return y; }
static inline v8   v8_from_int(v8i a)                { v8 r; EACH(r.v[l] = (float) a.v[l]); return r; }
static inline v8   v8_load_i8(const int8_t * p)      { v8 r; EACH(r.v[l] = (float) p[l]); return r; }
static inline v8   v8_load_half(const uint16_t * p) {
    v8 r;
    uint16_t h[8];
    memcpy(h, p, sizeof(h));
    EACH(r.v[l] = ggmlq_half_to_float(h[l]));
    return r;
}
/* 2^n for an integer n of -127 (gives 0) to 127; anything for NaN. */
static inline v8   v8_pow2(v8 n) {
    EACH(n.v[l] = ggmlq_float_from_bits((ggmlq_float_bits(n.v[l] + 12582912.0f + 127.0f) & 0xff) << 23));
    return n;
}
/* The order of docs/FORMAT.md, "Encoder". */
static inline float v8_hsum(v8 a) { return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7])); }
static inline v8   v8_reverse(v8 a)                  { v8 r; EACH(r.v[l] = a.v[7 - l]); return r; }
static inline float v8_hmax(v8 a) {
    float max = a.v[0];
    EACH(max = max > a.v[l] ? max : a.v[l]);
    return max;
}
/* The scalars that round as v8_fma and v8_load_half do. */
static inline float scalar_fma(float a, float b, float c) { return c + a*b; }
static inline float scalar_half(uint16_t h)          { return ggmlq_half_to_float(h); }
/* Lane l takes that of l ^ 1, 2, 4. */
static inline v8   v8_swap1(v8 a)                    { v8 r; EACH(r.v[l] = a.v[l ^ 1]); return r; }
static inline v8   v8_swap2(v8 a)                    { v8 r; EACH(r.v[l] = a.v[l ^ 2]); return r; }
static inline v8   v8_swap4(v8 a)                    { v8 r; EACH(r.v[l] = a.v[l ^ 4]); return r; }
/* Lane l takes that of l & ~1, of l | 1. */
static inline v8   v8_dup_even(v8 a)                 { v8 r; EACH(r.v[l] = a.v[l & ~1]); return r; }
static inline v8   v8_dup_odd(v8 a)                  { v8 r; EACH(r.v[l] = a.v[l | 1]); return r; }
/* Changes the sign where `signs` has -0.0f instead of 0.0f. */
static inline v8   v8_flip(v8 a, v8 signs) {
    EACH(a.v[l] = ggmlq_float_from_bits(ggmlq_float_bits(a.v[l]) ^ ggmlq_float_bits(signs.v[l])));
    return a;
}

/* The cell of a value among the eight, from three comparisons of magnitudes: -(bounds reached) & 7, bit 2 turned over for a
 * negative value. A value on a boundary belongs to the upper cell, so a negative one's magnitude, as an integer, counts one
 * less; -0.0 must have been made 0.0. */
static inline v8i  v8_magnitude(v8 y) { v8i r; EACH(const int32_t bits = (int32_t) ggmlq_float_bits(y.v[l]); r.v[l] = (bits & 0x7fffffff) - (bits < 0)); return r; }
static inline v8i  v8_sign4(v8 y)     { v8i r; EACH(r.v[l] = (int32_t) (ggmlq_float_bits(y.v[l]) >> 31 << 2)); return r; }
static inline v8i  v8_bound(float b)  { v8i r; EACH(r.v[l] = (int32_t) ggmlq_float_bits(b) - 1); return r; } /* reached if magnitude > bound */
static inline v8i  v8_cells(v8i magnitude, v8i sign4, const v8i bounds[3]) {
    v8i r;
    EACH(r.v[l] = -((magnitude.v[l] > bounds[0].v[l]) + (magnitude.v[l] > bounds[1].v[l]) + (magnitude.v[l] > bounds[2].v[l])) ^ sign4.v[l]);
    return r;
}
static inline v8   v8_lookup(const float table[8], v8i index) { v8 r; EACH(r.v[l] = table[index.v[l] & 7]); return r; }
static inline void v8_store_i8(int8_t * p, v8 a)     { EACH(p[l] = (int8_t) a.v[l]); }
/* Rounded to the nearest integer, ties to even. */
static inline void v8_store_i16(int16_t * p, v8 a)   { a = v8_round(a); EACH(p[l] = (int16_t) a.v[l]); }
/* The byte of `map` for each cell. */
static inline void v8_store_cells(uint8_t * p, v8i a, const uint8_t map[8]) { EACH(p[l] = map[a.v[l] & 7]); }

/* 8 dwords of each of 8 rows -> 8 rows of the first, second, ... dwords. Strides in bytes. */
static inline void transpose_dwords(const void * from, size_t from_stride, void * to, size_t to_stride) {
    for (size_t i = 0; i < 64; ++i) {
        memcpy((uint8_t *) to + i%8*to_stride + 4*(i/8), (const uint8_t *) from + i/8*from_stride + 4*(i%8), 4);
    }
}

/* A pair of planes -> 32 levels in natural order. */
static inline void unpack_levels(const uint8_t q[8], const uint8_t s[4], const int8_t field_levels[8], int8_t levels[32]) {
    ggmlq_unpack_plane(q, s, field_levels, levels);
}
/* Consecutive pairs of planes times as many 8-bit values. */
static inline int32_t dot_planes(const uint8_t * q, const uint8_t * s, int n_planes, const int8_t field_levels[8], const int8_t * query) {
    int32_t sum = 0;
    for (int g = 0; g < n_planes; ++g) {
        int8_t levels[32];
        ggmlq_unpack_plane(q + 8*g, s + 4*g, field_levels, levels);
        for (int i = 0; i < 32; ++i) {
            sum += levels[i]*query[32*g + i];
        }
    }
    return sum;
}

/* --- the wide ones ---------------------------------------------------------------------------------------------- */

#include "ggmlq-simd-vf8.h"

enum { ROWS = 4, TOKEN_VECTORS = 1, VALUE_VECTORS = 2 };
enum { LEVEL_OFFSET = 0 };  /* what is added to the levels that dot4 takes */

static inline vi vi_load(const uint32_t * p)          { vi r; memcpy(&r, p, sizeof(r)); return r; }
static inline void vi_store(uint32_t * p, vi a)       { memcpy(p, &a, sizeof(a)); }
static inline vi vi_set1(int32_t a)                   { vi r; EACH(r.v[l] = a); return r; }
static inline vi vi_shift_right(vi a, int n)          { EACH(a.v[l] = (int32_t) ((uint32_t) a.v[l] >> n)); return a; }
static inline vi vi_shift_left(vi a, int n)           { EACH(a.v[l] = (int32_t) ((uint32_t) a.v[l] << n)); return a; }
#define VI_SHIFT_RIGHT vi_shift_right                 /* by a literal */
#define VI_SHIFT_LEFT  vi_shift_left

/* Level table for vi_levels. */
typedef struct { int8_t v[8]; } vi_table;
static inline vi_table vi_table_make(const int8_t field_levels[8]) { vi_table r; memcpy(&r, field_levels, 8); return r; }
/* Every byte: the level of field (q & 3) | (s & 4), plus LEVEL_OFFSET. */
static inline vi vi_levels(vi q, vi s, vi_table table) {
    for (int l = 0; l < 8; ++l) {
        const uint32_t f = ((uint32_t) q.v[l] & 0x03030303) | ((uint32_t) s.v[l] & 0x04040404);
        q.v[l] = (int32_t) ((uint32_t) (uint8_t) table.v[f & 7] | (uint32_t) (uint8_t) table.v[f >> 8 & 7] << 8 |
                 (uint32_t) (uint8_t) table.v[f >> 16 & 7] << 16 | (uint32_t) (uint8_t) table.v[f >> 24] << 24);
    }
    return q;
}
/* sum + the products of the two 16-bit values in each lane of both. */
static inline vi vi_dot2(vi sum, vi a, vi b) {
    for (int l = 0; l < 8; ++l) {
        for (int i = 0; i < 32; i += 16) {
            sum.v[l] += (int16_t) ((uint32_t) a.v[l] >> i & 0xffff)*(int16_t) ((uint32_t) b.v[l] >> i & 0xffff);
        }
    }
    return sum;
}
/* Of 16-bit values: products of fractions of 2^15, rounded (a*b + 2^14) >> 15; sums. */
#define EACH_I16(expression) \
    do { int16_t x[16], y[16]; memcpy(x, &a, sizeof(x)); memcpy(y, &b, sizeof(y)); for (int l = 0; l < 16; ++l) { x[l] = (int16_t) (expression); } memcpy(&a, x, sizeof(x)); } while (0)
static inline vi vi_mul_fractions(vi a, vi b)         { EACH_I16((x[l]*y[l] + 16384) >> 15); return a; }
static inline vi vi_add_i16(vi a, vi b)               { EACH_I16(x[l] + y[l]); return a; }
static inline vi vi_sub_i16(vi a, vi b)               { EACH_I16(x[l] - y[l]); return a; }
/* sum + the products of the four levels in each lane with the four query values in `q`. */
static inline vi vi_dot4(vi sum, vi levels, uint32_t q) {
    for (int l = 0; l < 8; ++l) {
        for (int i = 0; i < 32; i += 8) {
            sum.v[l] += (int8_t) ((uint32_t) levels.v[l] >> i & 0xff)*(int8_t) (q >> i & 0xff);
        }
    }
    return sum;
}

#endif
