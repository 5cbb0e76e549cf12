/* SPDX-License-Identifier: MIT
 *
 * Vectors of AVX2 + FMA + F16C: v8 is 8 floats, v8i 8 dwords. The names and what they promise: ggmlq-simd-portable.h,
 * which is their executable description.
 */
#ifndef GGMLQ_SIMD_AVX2_H
#define GGMLQ_SIMD_AVX2_H

typedef __m256  v8;
typedef __m256i v8i;

static inline v8   v8_load(const float * p)          { return _mm256_loadu_ps(p); }
static inline void v8_store(float * p, v8 a)         { _mm256_storeu_ps(p, a); }
static inline v8   v8_set1(float a)                  { return _mm256_set1_ps(a); }
static inline v8   v8_add(v8 a, v8 b)                { return _mm256_add_ps(a, b); }
static inline v8   v8_sub(v8 a, v8 b)                { return _mm256_sub_ps(a, b); }
static inline v8   v8_mul(v8 a, v8 b)                { return _mm256_mul_ps(a, b); }
static inline v8   v8_div(v8 a, v8 b)                { return _mm256_div_ps(a, b); }
static inline v8   v8_fma(v8 a, v8 b, v8 c)          { return _mm256_fmadd_ps(a, b, c); }
static inline v8   v8_max(v8 a, v8 b)                { return _mm256_max_ps(a, b); }
static inline v8   v8_min(v8 a, v8 b)                { return _mm256_min_ps(a, b); }
static inline v8   v8_round(v8 a)                    { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline v8   v8_abs(v8 a)                      { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline v8   v8_where_equal(v8 a, v8 b, v8 x, v8 y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
static inline v8   v8_from_int(v8i a)                { return _mm256_cvtepi32_ps(a); }
static inline v8   v8_load_i8(const int8_t * p)      { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p))); }
static inline v8   v8_load_half(const uint16_t * p)  { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
static inline v8   v8_pow2(v8 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline float v8_hsum(v8 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float v8_hmax(v8 a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline v8   v8_reverse(v8 a)                  { return _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0)); }
static inline float scalar_fma(float a, float b, float c) { return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c))); }
static inline float scalar_half(uint16_t h)          { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
static inline v8   v8_swap1(v8 a)                    { return _mm256_permute_ps(a, 0xb1); }
static inline v8   v8_swap2(v8 a)                    { return _mm256_permute_ps(a, 0x4e); }
static inline v8   v8_swap4(v8 a)                    { return _mm256_permute2f128_ps(a, a, 1); }
static inline v8   v8_dup_even(v8 a)                 { return _mm256_moveldup_ps(a); }
static inline v8   v8_dup_odd(v8 a)                  { return _mm256_movehdup_ps(a); }
static inline v8   v8_flip(v8 a, v8 signs)           { return _mm256_xor_ps(a, signs); }

static inline v8i  v8_magnitude(v8 y) {
    const __m256i bits = _mm256_castps_si256(y);
    return _mm256_add_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)), _mm256_srai_epi32(bits, 31));
}
static inline v8i  v8_sign4(v8 y)                    { return _mm256_slli_epi32(_mm256_srli_epi32(_mm256_castps_si256(y), 31), 2); }
static inline v8i  v8_bound(float b)                 { return _mm256_set1_epi32((int32_t) ggmlq_float_bits(b) - 1); }
static inline v8i  v8_cells(v8i magnitude, v8i sign4, const v8i bounds[3]) {
    const v8i minus_reached = _mm256_add_epi32(_mm256_add_epi32(_mm256_cmpgt_epi32(magnitude, bounds[0]), _mm256_cmpgt_epi32(magnitude, bounds[1])),
                                               _mm256_cmpgt_epi32(magnitude, bounds[2]));
    return _mm256_xor_si256(minus_reached, sign4);
}
static inline v8   v8_lookup(const float table[8], v8i index) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index); }
static inline void v8_store_i8(int8_t * p, v8 a) {
    const __m256i d = _mm256_cvtps_epi32(a);
    const __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
    _mm_storel_epi64((__m128i *) p, _mm_packs_epi16(w, w));
}
static inline void v8_store_i16(int16_t * p, v8 a) {
    const __m256i d = _mm256_cvtps_epi32(a);
    _mm_storeu_si128((__m128i *) p, _mm_packs_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1)));
}
static inline void v8_store_cells(uint8_t * p, v8i a, const uint8_t map[8]) {
    a = _mm256_and_si256(a, _mm256_set1_epi32(7));
    const __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *) p, _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *) map), _mm_packus_epi16(w, w)));
}

static inline void transpose_dwords(const void * from, size_t from_stride, void * to, size_t to_stride) {
    __m256 a[8], b[8];
    for (size_t i = 0; i < 8; ++i) {
        a[i] = _mm256_loadu_ps((const float *) (const void *) ((const uint8_t *) from + i*from_stride));
    }
    for (int i = 0; i < 8; i += 2) { /* 2 x 2, 4 x 4 in each half, halves */
        b[i]     = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i]     = _mm256_shuffle_ps(b[i],     b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i],     b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (size_t i = 0; i < 4; ++i) {
        _mm256_storeu_ps((float *) (void *) ((uint8_t *) to + i*to_stride),       _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps((float *) (void *) ((uint8_t *) to + (i + 4)*to_stride), _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

/* 32 levels in natural order: 2-bit fields from one broadcast, the 1-bit field of every value shifted to where the blend
 * looks, bit 7 of its byte. */
static inline __m256i levels32(const uint8_t q[8], const uint8_t s[4], const int8_t field_levels[8]) {
    int64_t q64;
    int32_t s32, low, high;
    memcpy(&q64, q, 8);
    memcpy(&s32, s, 4);
    memcpy(&low, field_levels, 4);
    memcpy(&high, field_levels + 4, 4);
    const __m256i fields = _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(q64), _mm256_setr_epi64x(0, 2, 4, 6)), _mm256_set1_epi8(3));
    const __m256i signs  = _mm256_sllv_epi32(_mm256_set1_epi32(s32), _mm256_setr_epi32(7, 5, 6, 4, 3, 1, 2, 0));
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(_mm256_set1_epi32(low), fields), _mm256_shuffle_epi8(_mm256_set1_epi32(high), fields), signs);
}
static inline void unpack_levels(const uint8_t q[8], const uint8_t s[4], const int8_t field_levels[8], int8_t levels[32]) {
    _mm256_storeu_si256((__m256i *) levels, levels32(q, s, field_levels));
}

/* |level| is unsigned and the query takes the level's sign. A pair sum is at most 2*123*127 = 31242: no saturation. */
static inline __m256i dot_lanes(__m256i levels, __m256i q) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(q, levels)), _mm256_set1_epi16(1));
}
static inline int32_t dot_planes(const uint8_t * q, const uint8_t * s, int n_planes, const int8_t field_levels[8], const int8_t * query) {
    __m256i sum = _mm256_setzero_si256();
    for (int g = 0; g < n_planes; ++g) {
        sum = _mm256_add_epi32(sum, dot_lanes(levels32(q + 8*g, s + 4*g, field_levels), _mm256_loadu_si256((const __m256i *) (query + 32*g))));
    }
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

/* --- the wide ones, unless ggmlq-simd-avx512.h has wider ones ---------------------------------------------------- */

#ifndef GGMLQ_SIMD_AVX512_H
#include "ggmlq-simd-vf8.h"

enum { ROWS = 4, TOKEN_VECTORS = 1, VALUE_VECTORS = 2 };
enum { LEVEL_OFFSET = 0 };

static inline vi   vi_load(const uint32_t * p)       { return _mm256_loadu_si256((const __m256i *) p); }
static inline void vi_store(uint32_t * p, vi a)      { _mm256_storeu_si256((__m256i *) p, a); }
static inline vi   vi_set1(int32_t a)                { return _mm256_set1_epi32(a); }
#define VI_SHIFT_RIGHT(a, n) _mm256_srli_epi32(a, n)
#define VI_SHIFT_LEFT(a, n)  _mm256_slli_epi32(a, n)

typedef vi vi_table;
static inline vi_table vi_table_make(const int8_t field_levels[8]) {
    int64_t table;
    memcpy(&table, field_levels, 8);
    return _mm256_set1_epi64x(table);
}
static inline vi vi_levels(vi q, vi s, vi_table table) {
    const vi field = _mm256_or_si256(_mm256_and_si256(q, _mm256_set1_epi8(3)), _mm256_and_si256(s, _mm256_set1_epi8(4)));
    return _mm256_shuffle_epi8(table, field);
}
static inline vi vi_dot2(vi sum, vi a, vi b)         { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
static inline vi vi_mul_fractions(vi a, vi b)        { return _mm256_mulhrs_epi16(a, b); }
static inline vi vi_add_i16(vi a, vi b)              { return _mm256_add_epi16(a, b); }
static inline vi vi_sub_i16(vi a, vi b)              { return _mm256_sub_epi16(a, b); }
static inline vi vi_dot4(vi sum, vi levels, uint32_t q) {
    return _mm256_add_epi32(sum, dot_lanes(levels, _mm256_set1_epi32((int32_t) q)));
}
#endif

#endif
