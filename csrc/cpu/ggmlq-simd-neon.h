/* SPDX-License-Identifier: MIT
 *
 * Vectors of 64-bit Arm: v8 is a pair of registers. The dot product uses the dot-product instructions where the compiler
 * has them. Names: ggmlq-simd-portable.h.
 */
#ifndef GGMLQ_SIMD_NEON_H
#define GGMLQ_SIMD_NEON_H

typedef struct { float32x4_t lo, hi; } v8;
typedef struct { int32x4_t   lo, hi; } v8i;

static inline v8 v8_make(float32x4_t lo, float32x4_t hi) { const v8 r = { lo, hi }; return r; }

static inline v8   v8_load(const float * p)          { return v8_make(vld1q_f32(p), vld1q_f32(p + 4)); }
static inline void v8_store(float * p, v8 a)         { vst1q_f32(p, a.lo); vst1q_f32(p + 4, a.hi); }
static inline v8   v8_set1(float a)                  { return v8_make(vdupq_n_f32(a), vdupq_n_f32(a)); }
static inline v8   v8_add(v8 a, v8 b)                { return v8_make(vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)); }
static inline v8   v8_sub(v8 a, v8 b)                { return v8_make(vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)); }
static inline v8   v8_mul(v8 a, v8 b)                { return v8_make(vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)); }
static inline v8   v8_div(v8 a, v8 b)                { return v8_make(vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)); }
static inline v8   v8_fma(v8 a, v8 b, v8 c)          { return v8_make(vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)); }
static inline float32x4_t max4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline float32x4_t min4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline v8   v8_max(v8 a, v8 b)                { return v8_make(max4(a.lo, b.lo), max4(a.hi, b.hi)); }
static inline v8   v8_min(v8 a, v8 b)                { return v8_make(min4(a.lo, b.lo), min4(a.hi, b.hi)); }
static inline v8   v8_round(v8 a)                    { return v8_make(vrndnq_f32(a.lo), vrndnq_f32(a.hi)); }
static inline v8   v8_abs(v8 a)                      { return v8_make(vabsq_f32(a.lo), vabsq_f32(a.hi)); }
static inline v8   v8_where_equal(v8 a, v8 b, v8 x, v8 y) {
    return v8_make(vbslq_f32(vceqq_f32(a.lo, b.lo), x.lo, y.lo), vbslq_f32(vceqq_f32(a.hi, b.hi), x.hi, y.hi));
}
static inline v8   v8_from_int(v8i a)                { return v8_make(vcvtq_f32_s32(a.lo), vcvtq_f32_s32(a.hi)); }
static inline v8   v8_load_i8(const int8_t * p) {
    const int16x8_t w = vmovl_s8(vld1_s8(p));
    return v8_make(vcvtq_f32_s32(vmovl_s16(vget_low_s16(w))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(w))));
}
static inline v8   v8_load_half(const uint16_t * p) {
    const uint16x8_t h = vld1q_u16(p);
    return v8_make(vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(h))), vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(h))));
}
static inline float32x4_t pow2_4(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
static inline v8   v8_pow2(v8 n)                     { return v8_make(pow2_4(n.lo), pow2_4(n.hi)); }
static inline float v8_hsum(v8 a) {
    const float32x4_t s = vaddq_f32(a.lo, a.hi);
    return vaddv_f32(vadd_f32(vget_low_f32(s), vget_high_f32(s)));
}
static inline float32x4_t reverse4(float32x4_t a)    { return vextq_f32(vrev64q_f32(a), vrev64q_f32(a), 2); }
static inline v8   v8_reverse(v8 a)                  { return v8_make(reverse4(a.hi), reverse4(a.lo)); }
static inline float v8_hmax(v8 a)                    { return vmaxvq_f32(max4(a.lo, a.hi)); }
static inline float scalar_fma(float a, float b, float c) { return fmaf(a, b, c); }
static inline float scalar_half(uint16_t h)          { return ggmlq_half_to_float(h); }
static inline float32x4_t swap2_4(float32x4_t a)     { return vextq_f32(a, a, 2); }
static inline v8   v8_swap1(v8 a)                    { return v8_make(vrev64q_f32(a.lo), vrev64q_f32(a.hi)); }
static inline v8   v8_swap2(v8 a)                    { return v8_make(swap2_4(a.lo), swap2_4(a.hi)); }
static inline v8   v8_swap4(v8 a)                    { return v8_make(a.hi, a.lo); }
static inline v8   v8_dup_even(v8 a)                 { return v8_make(vtrn1q_f32(a.lo, a.lo), vtrn1q_f32(a.hi, a.hi)); }
static inline v8   v8_dup_odd(v8 a)                  { return v8_make(vtrn2q_f32(a.lo, a.lo), vtrn2q_f32(a.hi, a.hi)); }
static inline float32x4_t flip4(float32x4_t a, float32x4_t signs) {
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(signs)));
}
static inline v8   v8_flip(v8 a, v8 signs)           { return v8_make(flip4(a.lo, signs.lo), flip4(a.hi, signs.hi)); }

static inline int32x4_t magnitude4(float32x4_t y) {
    const int32x4_t bits = vreinterpretq_s32_f32(y);
    return vaddq_s32(vandq_s32(bits, vdupq_n_s32(0x7fffffff)), vshrq_n_s32(bits, 31));
}
static inline int32x4_t sign4_4(float32x4_t y)       { return vreinterpretq_s32_u32(vshlq_n_u32(vshrq_n_u32(vreinterpretq_u32_f32(y), 31), 2)); }
static inline int32x4_t cells4(int32x4_t magnitude, int32x4_t sign4, int32x4_t b0, int32x4_t b1, int32x4_t b2) {
    const uint32x4_t minus_reached = vaddq_u32(vaddq_u32(vcgtq_s32(magnitude, b0), vcgtq_s32(magnitude, b1)), vcgtq_s32(magnitude, b2));
    return veorq_s32(vreinterpretq_s32_u32(minus_reached), sign4);
}
static inline v8i  v8_magnitude(v8 y)                { const v8i r = { magnitude4(y.lo), magnitude4(y.hi) }; return r; }
static inline v8i  v8_sign4(v8 y)                    { const v8i r = { sign4_4(y.lo), sign4_4(y.hi) }; return r; }
static inline v8i  v8_bound(float b) {
    const int32x4_t bound = vdupq_n_s32((int32_t) ggmlq_float_bits(b) - 1);
    const v8i r = { bound, bound };
    return r;
}
static inline v8i  v8_cells(v8i magnitude, v8i sign4, const v8i bounds[3]) {
    const v8i r = { cells4(magnitude.lo, sign4.lo, bounds[0].lo, bounds[1].lo, bounds[2].lo),
                    cells4(magnitude.hi, sign4.hi, bounds[0].hi, bounds[1].hi, bounds[2].hi) };
    return r;
}
/* Byte look-up: index -> the four bytes of its float. */
static inline float32x4_t lookup4(const float table[8], int32x4_t index) {
    const uint8x16x2_t bytes = { { vreinterpretq_u8_f32(vld1q_f32(table)), vreinterpretq_u8_f32(vld1q_f32(table + 4)) } };
    const uint32x4_t low = vandq_u32(vreinterpretq_u32_s32(index), vdupq_n_u32(7));
    const uint32x4_t at  = vmlaq_u32(vdupq_n_u32(0x03020100), low, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl2q_u8(bytes, vreinterpretq_u8_u32(at)));
}
static inline v8   v8_lookup(const float table[8], v8i index) { return v8_make(lookup4(table, index.lo), lookup4(table, index.hi)); }
static inline void v8_store_i8(int8_t * p, v8 a) {
    vst1_s8(p, vmovn_s16(vcombine_s16(vmovn_s32(vcvtnq_s32_f32(a.lo)), vmovn_s32(vcvtnq_s32_f32(a.hi)))));
}
static inline void v8_store_i16(int16_t * p, v8 a)   { vst1q_s16(p, vcombine_s16(vmovn_s32(vcvtnq_s32_f32(a.lo)), vmovn_s32(vcvtnq_s32_f32(a.hi)))); }
static inline void v8_store_cells(uint8_t * p, v8i a, const uint8_t map[8]) {
    const uint8x8_t cells = vand_u8(vreinterpret_u8_s8(vmovn_s16(vcombine_s16(vmovn_s32(a.lo), vmovn_s32(a.hi)))), vdup_n_u8(7));
    vst1_u8(p, vtbl1_u8(vld1_u8(map), cells));
}

/* 4 x 4 dwords. */
static inline void transpose4(const uint8_t * from, size_t from_stride, uint8_t * to, size_t to_stride) {
    const uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(from)),                 b = vreinterpretq_u32_u8(vld1q_u8(from + from_stride));
    const uint32x4_t c = vreinterpretq_u32_u8(vld1q_u8(from + 2*from_stride)), d = vreinterpretq_u32_u8(vld1q_u8(from + 3*from_stride));
    const uint64x2_t ab0 = vreinterpretq_u64_u32(vtrn1q_u32(a, b)), ab1 = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
    const uint64x2_t cd0 = vreinterpretq_u64_u32(vtrn1q_u32(c, d)), cd1 = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
    vst1q_u8(to,               vreinterpretq_u8_u64(vtrn1q_u64(ab0, cd0)));
    vst1q_u8(to + to_stride,   vreinterpretq_u8_u64(vtrn1q_u64(ab1, cd1)));
    vst1q_u8(to + 2*to_stride, vreinterpretq_u8_u64(vtrn2q_u64(ab0, cd0)));
    vst1q_u8(to + 3*to_stride, vreinterpretq_u8_u64(vtrn2q_u64(ab1, cd1)));
}
static inline void transpose_dwords(const void * from, size_t from_stride, void * to, size_t to_stride) {
    for (size_t i = 0; i < 4; ++i) {
        const size_t row = i/2*4, column = i%2*4;
        transpose4((const uint8_t *) from + row*from_stride + 4*column, from_stride, (uint8_t *) to + column*to_stride + 4*row, to_stride);
    }
}

/* 16 levels of plane bytes q (twice), whose 2-bit fields are shifted right by `shift_q` and sign bits to bit 2 by `shift_s`. */
static inline int8x16_t levels16(uint8x16_t q, uint8x16_t s, int8x16_t shift_q, int8x16_t shift_s, int8x16_t table) {
    const uint8x16_t field = vorrq_u8(vandq_u8(vshlq_u8(q, shift_q), vdupq_n_u8(3)), vandq_u8(vshlq_u8(s, shift_s), vdupq_n_u8(4)));
    return vqtbl1q_s8(table, field);
}
static inline void levels32(const uint8_t q[8], const uint8_t s[4], const int8_t field_levels[8], int8x16_t levels[2]) {
    static const int8_t shift_q[32] = { 0, 0, 0, 0,  0, 0, 0, 0,  -2, -2, -2, -2, -2, -2, -2, -2,  -4, -4, -4, -4, -4, -4, -4, -4,  -6, -6, -6, -6, -6, -6, -6, -6 };
    static const int8_t shift_s[32] = { 2, 2, 2, 2,  0, 0, 0, 0,   1,  1,  1,  1, -1, -1, -1, -1,  -2, -2, -2, -2, -4, -4, -4, -4,  -3, -3, -3, -3, -5, -5, -5, -5 };
    uint32_t signs;
    memcpy(&signs, s, 4);
    const uint8x16_t q2 = vcombine_u8(vld1_u8(q), vld1_u8(q)), s4 = vreinterpretq_u8_u32(vdupq_n_u32(signs));
    const int8x16_t table = vcombine_s8(vld1_s8(field_levels), vld1_s8(field_levels));
    levels[0] = levels16(q2, s4, vld1q_s8(shift_q),      vld1q_s8(shift_s),      table);
    levels[1] = levels16(q2, s4, vld1q_s8(shift_q + 16), vld1q_s8(shift_s + 16), table);
}
static inline void unpack_levels(const uint8_t q[8], const uint8_t s[4], const int8_t field_levels[8], int8_t levels[32]) {
    int8x16_t both[2];
    levels32(q, s, field_levels, both);
    vst1q_s8(levels, both[0]);
    vst1q_s8(levels + 16, both[1]);
}

/* sum + in each lane four products. Without the instruction: a sum of two products is at most 2*123*127 = 31242. */
static inline int32x4_t dot4(int32x4_t sum, int8x16_t levels, int8x16_t q) {
#ifdef GGMLQ_NEON_DOTPROD
    return vdotq_s32(sum, levels, q);
#else
    return vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(levels), vget_low_s8(q)), vmull_high_s8(levels, q)));
#endif
}
static inline int32_t dot_planes(const uint8_t * q, const uint8_t * s, int n_planes, const int8_t field_levels[8], const int8_t * query) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int g = 0; g < n_planes; ++g) {
        int8x16_t levels[2];
        levels32(q + 8*g, s + 4*g, field_levels, levels);
        sum = dot4(sum, levels[0], vld1q_s8(query + 32*g));
        sum = dot4(sum, levels[1], vld1q_s8(query + 32*g + 16));
    }
    return vaddvq_s32(sum);
}

/* --- the wide ones ---------------------------------------------------------------------------------------------- */

#include "ggmlq-simd-vf8.h"

enum { ROWS = 4, TOKEN_VECTORS = 1, VALUE_VECTORS = 2 };
enum { LEVEL_OFFSET = 0 };

static inline vi vi_make(int32x4_t lo, int32x4_t hi)  { const vi r = { lo, hi }; return r; }
static inline vi vi_load(const uint32_t * p)          { return vi_make(vreinterpretq_s32_u32(vld1q_u32(p)), vreinterpretq_s32_u32(vld1q_u32(p + 4))); }
static inline void vi_store(uint32_t * p, vi a)       { vst1q_u32(p, vreinterpretq_u32_s32(a.lo)); vst1q_u32(p + 4, vreinterpretq_u32_s32(a.hi)); }
static inline vi vi_set1(int32_t a)                   { return vi_make(vdupq_n_s32(a), vdupq_n_s32(a)); }
static inline vi vi_shift(vi a, int n) {
    return vi_make(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a.lo), vdupq_n_s32(n))),
                   vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a.hi), vdupq_n_s32(n))));
}
#define VI_SHIFT_RIGHT(a, n) vi_shift(a, -(n))
#define VI_SHIFT_LEFT(a, n)  vi_shift(a, n)

typedef int8x16_t vi_table;
static inline vi_table vi_table_make(const int8_t field_levels[8]) { return vcombine_s8(vld1_s8(field_levels), vld1_s8(field_levels)); }
static inline int32x4_t lane_levels(int32x4_t q, int32x4_t s, vi_table table) {
    const uint8x16_t field = vorrq_u8(vandq_u8(vreinterpretq_u8_s32(q), vdupq_n_u8(3)), vandq_u8(vreinterpretq_u8_s32(s), vdupq_n_u8(4)));
    return vreinterpretq_s32_s8(vqtbl1q_s8(table, field));
}
static inline vi vi_levels(vi q, vi s, vi_table table) { return vi_make(lane_levels(q.lo, s.lo, table), lane_levels(q.hi, s.hi, table)); }
static inline int32x4_t dot2(int32x4_t sum, int16x8_t two, int16x8_t w) {
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(two), vget_low_s16(w)), vmull_high_s16(two, w)));
}
static inline vi vi_dot2(vi sum, vi a, vi b) {
    return vi_make(dot2(sum.lo, vreinterpretq_s16_s32(a.lo), vreinterpretq_s16_s32(b.lo)), dot2(sum.hi, vreinterpretq_s16_s32(a.hi), vreinterpretq_s16_s32(b.hi)));
}
#define EACH_I16(f) vi_make(vreinterpretq_s32_s16(f(vreinterpretq_s16_s32(a.lo), vreinterpretq_s16_s32(b.lo))), \
                            vreinterpretq_s32_s16(f(vreinterpretq_s16_s32(a.hi), vreinterpretq_s16_s32(b.hi))))
static inline vi vi_mul_fractions(vi a, vi b)         { return EACH_I16(vqrdmulhq_s16); }
static inline vi vi_add_i16(vi a, vi b)               { return EACH_I16(vaddq_s16); }
static inline vi vi_sub_i16(vi a, vi b)               { return EACH_I16(vsubq_s16); }
static inline vi vi_dot4(vi sum, vi levels, uint32_t q) {
    const int8x16_t four = vreinterpretq_s8_u32(vdupq_n_u32(q));
    return vi_make(dot4(sum.lo, vreinterpretq_s8_s32(levels.lo), four), dot4(sum.hi, vreinterpretq_s8_s32(levels.hi), four));
}

#endif
