/* SPDX-License-Identifier: MIT
 *
 * Vectors of AVX-512 (F, BW, VL, DQ, VNNI, and VBMI where the compiler has it) beside the 8-lane ones of AVX2. Names:
 * ggmlq-simd-portable.h.
 */
#ifndef GGMLQ_SIMD_AVX512_H
#define GGMLQ_SIMD_AVX512_H

#include "ggmlq-simd-avx2.h"

enum { VL = 16, ROWS = 4, TOKEN_VECTORS = 2, VALUE_VECTORS = 4 };
typedef __m512  vf;
typedef __m512i vi;

static inline vf   vf_load(const float * p)          { return _mm512_loadu_ps(p); }
static inline void vf_store(float * p, vf a)         { _mm512_storeu_ps(p, a); }
static inline vf   vf_set1(float a)                  { return _mm512_set1_ps(a); }
static inline vf   vf_add(vf a, vf b)                { return _mm512_add_ps(a, b); }
static inline vf   vf_sub(vf a, vf b)                { return _mm512_sub_ps(a, b); }
static inline vf   vf_mul(vf a, vf b)                { return _mm512_mul_ps(a, b); }
static inline vf   vf_div(vf a, vf b)                { return _mm512_div_ps(a, b); }
static inline vf   vf_fma(vf a, vf b, vf c)          { return _mm512_fmadd_ps(a, b, c); }
static inline vf   vf_max(vf a, vf b)                { return _mm512_max_ps(a, b); }
static inline vf   vf_min(vf a, vf b)                { return _mm512_min_ps(a, b); }
static inline vf   vf_round(vf a)                    { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf   vf_abs(vf a)                      { return _mm512_abs_ps(a); }
static inline vf   vf_where_equal(vf a, vf b, vf x, vf y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), y, x); }
static inline vf   vf_from_int(vi a)                 { return _mm512_cvtepi32_ps(a); }
static inline vf   vf_load_i8(const int8_t * p)      { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p))); }
static inline vf   vf_load_half(const uint16_t * p)  { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
static inline void vf_store_i16(int16_t * p, vf a)    { _mm256_storeu_si256((__m256i *) p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a))); }
static inline vf   vf_pow2(vf n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
static inline vf   vf_reverse(vf a) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), a);
}
static inline float vf_hsum(vf a)                    { return v8_hsum(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))); }
static inline float vf_hmax(vf a)                    { return v8_hmax(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))); }

static inline vi   vi_load(const uint32_t * p)       { return _mm512_loadu_si512(p); }
static inline void vi_store(uint32_t * p, vi a)      { _mm512_storeu_si512(p, a); }
static inline vi   vi_set1(int32_t a)                { return _mm512_set1_epi32(a); }
#define VI_SHIFT_RIGHT(a, n) _mm512_srli_epi32(a, n)
#define VI_SHIFT_LEFT(a, n)  _mm512_slli_epi32(a, n)

/* vpdpbusd wants one factor unsigned: levels are kept as level + 128, and the kernel starts its sums at -128 times the
 * sum of the query. */
enum { LEVEL_OFFSET = 128 };

typedef vi vi_table;
static inline vi_table vi_table_make(const int8_t field_levels[8]) {
    int64_t table;
    memcpy(&table, field_levels, 8);
    return _mm512_xor_si512(_mm512_set1_epi64(table), _mm512_set1_epi8((char) 0x80));
}
static inline vi vi_levels(vi q, vi s, vi_table table) {
    const vi field = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), q, s, 0xca); /* 3 ? q : s, bit by bit */
#ifdef __AVX512VBMI__
    return _mm512_permutexvar_epi8(field, table); /* the table repeats every 8 bytes: bits above the third don't matter */
#else
    return _mm512_shuffle_epi8(table, _mm512_and_si512(field, _mm512_set1_epi8(7)));
#endif
}
static inline vi vi_dot2(vi sum, vi a, vi b)            { return _mm512_dpwssd_epi32(sum, a, b); }
static inline vi vi_mul_fractions(vi a, vi b)           { return _mm512_mulhrs_epi16(a, b); }
static inline vi vi_add_i16(vi a, vi b)                 { return _mm512_add_epi16(a, b); }
static inline vi vi_sub_i16(vi a, vi b)                 { return _mm512_sub_epi16(a, b); }
static inline vi vi_dot4(vi sum, vi levels, uint32_t q) { return _mm512_dpbusd_epi32(sum, levels, _mm512_set1_epi32((int32_t) q)); }

#endif
