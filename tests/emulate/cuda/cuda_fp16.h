/* SPDX-License-Identifier: MIT */
#pragma once
#include "cuda_runtime.h"
#include "../hip/hip_fp16.h"

static inline __half2 __half2half2(__half h)  { return { h, h }; }
static inline float2  __half22float2(__half2 h) { return { __half2float(h.x), __half2float(h.y) }; }
static inline __half  __float2half(float f)   { return __float2half_rn(f); }
