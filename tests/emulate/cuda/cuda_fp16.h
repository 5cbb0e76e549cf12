/* SPDX-License-Identifier: MIT */
#pragma once
#include "cuda_runtime.h"
#include "../hip/hip_fp16.h"

static inline __half2 __half2half2(__half h)  { return { h, h }; }
static inline float2  __half22float2(__half2 h) { return { __half2float(h.x), __half2float(h.y) }; }
static inline __half  __float2half(float f)   { return __float2half_rn(f); }
/* Towards zero. */
static inline __half  __float2half_rz(float f) {
    const __half near = __float2half_rn(f);
    return fabsf(__half2float(near)) > fabsf(f) ? __half{ (uint16_t) (near.bits - 1) } : near;
}
static inline bool    __hbge2(__half2 a, __half2 b) { return __half2float(a.x) >= __half2float(b.x) && __half2float(a.y) >= __half2float(b.y); }
static inline __half2 __hne2(__half2 a, __half2 b)  { return __floats2half2_rn(__half2float(a.x) != __half2float(b.x), __half2float(a.y) != __half2float(b.y)); }
