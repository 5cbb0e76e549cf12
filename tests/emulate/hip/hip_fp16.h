/* SPDX-License-Identifier: MIT */
#pragma once
#include "hip_runtime.h"

#include <algorithm>

struct __half { uint16_t bits; };
static inline __half   __ushort_as_half(uint16_t bits) { return { bits }; }
static inline uint16_t __half_as_ushort(__half half)   { return half.bits; }

static inline float __half2float(__half half) {
    const uint32_t sign = (uint32_t) (half.bits & 0x8000) << 16, exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
    if (exponent == 0) {
        return (sign ? -1.0f : 1.0f)*(float) fraction*0x1p-24f;
    }
    return __uint_as_float(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

/* Nearest, ties to even, as the host rounds. */
static inline __half __float2half_rn(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = fabsf(value);
    if (!(magnitude < 65520.0f)) {
        return { (uint16_t) (sign | (std::isnan(value) ? 0x7e00 : 0x7c00)) };
    }
    const int exponent = std::max(-14, (int) (__float_as_uint(magnitude) >> 23) - 127);
    const float scaled = magnitude*__uint_as_float((uint32_t) (137 - exponent) << 23); /* times 2^(10 - exponent) */
    const int steps = (int) (scaled + 0x1.8p23f - 0x1.8p23f); /* rounded; up to 2048: then the next exponent */
    return { (uint16_t) (sign | ((exponent + 14)*1024 + steps)) };
}

struct __half2 { __half x, y; };
static inline __half2 __floats2half2_rn(float x, float y) { return { __float2half_rn(x), __float2half_rn(y) }; }
static inline __half2 __low2half2(__half2 h)              { return { h.x, h.x }; }
static inline __half2 __high2half2(__half2 h)             { return { h.y, h.y }; }
static inline __half2 __hneg2(__half2 h)                  { return { { (uint16_t) (h.x.bits ^ 0x8000) }, { (uint16_t) (h.y.bits ^ 0x8000) } }; }
/* By way of floats, which have twice as many digits: but for some of fma's, rounded as if once. */
static inline __half2 __hadd2(__half2 a, __half2 b)       { return __floats2half2_rn(__half2float(a.x) + __half2float(b.x), __half2float(a.y) + __half2float(b.y)); }
static inline __half2 __hsub2(__half2 a, __half2 b)       { return __floats2half2_rn(__half2float(a.x) - __half2float(b.x), __half2float(a.y) - __half2float(b.y)); }
static inline __half2 __hmul2(__half2 a, __half2 b)       { return __floats2half2_rn(__half2float(a.x)*__half2float(b.x), __half2float(a.y)*__half2float(b.y)); }
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return __floats2half2_rn(fmaf(__half2float(a.x), __half2float(b.x), __half2float(c.x)), fmaf(__half2float(a.y), __half2float(b.y), __half2float(c.y)));
}
