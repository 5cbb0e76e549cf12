/* SPDX-License-Identifier: MIT
 *
 * As much of CUDA as the decode attention kernels and tests/cuda/bench_attend.cu use, on a CPU: see emulate.cpp. The parts that HIP has too are those of the emulated HIP; inline PTX is what
 * tests/emulate/build.py makes of it, a call of one of the functions below.
 */
#pragma once
#include "../hip/hip_runtime.h"

#include "../../hip/cuda_names.h"

#include <algorithm>

using std::max;
using std::min;

#define __CUDA_ARCH__ 900
#define CUDART_VERSION 12000 /* without launches that overlap */
#define __grid_constant__

/* --- the run-time library --------------------------------------------------------------------------------------- */

#define cudaDeviceProp           hipDeviceProp_t
#define cudaError_t              hipError_t
#define cudaErrorNotSupported    hipErrorNotSupported
#define cudaFree                 hipFree
#define cudaGetDevice            hipGetDevice
#define cudaGetDeviceProperties  hipGetDeviceProperties
#define cudaGetErrorString       hipGetErrorString
#define cudaGetLastError         hipGetLastError
#define cudaMalloc(to, bytes)    hipMalloc((void **) (to), bytes)
#define cudaMemcpyAsync          hipMemcpyAsync
#define cudaMemcpyDeviceToHost   hipMemcpyDeviceToHost
#define cudaMemcpyHostToDevice   hipMemcpyHostToDevice
#define cudaStream_t             hipStream_t
#define cudaSuccess              hipSuccess

#define cudaStreamCaptureModeGlobal hipStreamCaptureModeThreadLocal

/* An H100, as far as plans ask. */
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor, cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
static inline cudaError_t cudaDeviceGetAttribute(int * value, cudaDeviceAttr which, int) {
    static const int values[] = { 9, 0, 232448, 132 };
    *value = values[which];
    return cudaSuccess;
}
struct cudaFuncAttributes { int numRegs, ptxVersion; size_t sharedSizeBytes; };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes * attributes, const void *) { *attributes = { 1, 90, 0 }; return cudaSuccess; }
static inline cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int bytes)   { return bytes <= 232448 ? cudaSuccess : hipErrorInvalidValue; }
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int * blocks, const void *, int threads, size_t shared_bytes) {
    *blocks = std::min(512/threads, (int) (233472/(shared_bytes + 1024))); /* by threads of 128 registers */
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void * kernel, dim3 grid, dim3 block, void ** arguments, size_t shared_bytes, cudaStream_t stream);

/* --- what threads do together: all 32 lanes of a warp at the same call ------------------------------------------- */

enum emulated_meeting { MEET_SYNC, MEET_VOTE, MEET_SHUFFLE, MEET_REDUCE, MEET_MATRICES, MEET_MOVE, MEET_MMA_S8, MEET_MMA_F16 };
struct emulated_lanes { uint32_t of[32][12]; };
const emulated_lanes & emulated_meet(emulated_meeting what, const uint32_t * mine, int n); /* n up to 12 words of every lane; they stay until the next meeting but one */
void emulated_named_barrier(int id, int threads);
int  emulated_lane(void);

static inline void emulated_require_all(uint32_t mask) {
    if (mask != 0xffffffffu) {
        fprintf(stderr, "a warp's function for a part of it: not emulated\n");
        abort();
    }
}

static inline void __syncwarp(void) { emulated_meet(MEET_SYNC, nullptr, 0); }

static inline uint32_t __ballot_sync(uint32_t mask, int vote) {
    emulated_require_all(mask);
    const uint32_t mine = vote != 0;
    const emulated_lanes & all = emulated_meet(MEET_VOTE, &mine, 1);
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i) {
        votes |= all.of[i][0] << i;
    }
    return votes;
}
static inline int __any_sync(uint32_t mask, int vote) { return __ballot_sync(mask, vote) != 0; }
static inline int __all_sync(uint32_t mask, int vote) { return __ballot_sync(mask, vote) == 0xffffffffu; }

template <typename T> static inline T emulated_from_lane(T value, int lane) {
    static_assert(sizeof(T) == 4, "32 bits");
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const emulated_lanes & all = emulated_meet(MEET_SHUFFLE, &bits, 1);
    memcpy(&value, all.of[lane], 4);
    return value;
}
template <typename T> static inline T __shfl_sync(uint32_t mask, T value, int lane, int width = 32) {
    emulated_require_all(mask);
    return emulated_from_lane(value, (emulated_lane() & ~(width - 1)) | (lane & (width - 1)));
}
template <typename T> static inline T __shfl_xor_sync(uint32_t mask, T value, int distance, int = 32) {
    emulated_require_all(mask);
    return emulated_from_lane(value, emulated_lane() ^ distance);
}
template <typename T> static inline T __shfl_down_sync(uint32_t mask, T value, int distance) {
    emulated_require_all(mask);
    return emulated_from_lane(value, emulated_lane() + distance < 32 ? emulated_lane() + distance : emulated_lane());
}
template <typename T, typename F> static inline T emulated_reduce(uint32_t mask, T value, F choose) {
    emulated_require_all(mask);
    const emulated_lanes & all = emulated_meet(MEET_REDUCE, (const uint32_t *) &value, 1);
    T result = (T) all.of[0][0];
    for (int i = 1; i < 32; ++i) {
        result = choose(result, (T) all.of[i][0]);
    }
    return result;
}
template <typename T> static inline T __reduce_min_sync(uint32_t mask, T value) { return emulated_reduce(mask, value, [](T a, T b) { return std::min(a, b); }); }
template <typename T> static inline T __reduce_max_sync(uint32_t mask, T value) { return emulated_reduce(mask, value, [](T a, T b) { return std::max(a, b); }); }
template <typename T> static inline T __reduce_add_sync(uint32_t mask, T value) { return emulated_reduce(mask, value, [](T a, T b) { return a + b; }); }

/* --- shared memory that a launch asks for; addresses count from it ----------------------------------------------- */

extern uint8_t * const emulated_dynamic_shared;
extern size_t emulated_dynamic_bytes;
static inline size_t __cvta_generic_to_shared(const void * p) { return (size_t) ((const uint8_t *) p - emulated_dynamic_shared); }
static inline void * emulated_shared_at(uint32_t address, size_t bytes) {
    if (address % bytes != 0 || address + bytes > emulated_dynamic_bytes) {
        fprintf(stderr, "%zu bytes of shared memory at %u of %zu\n", bytes, address, emulated_dynamic_bytes);
        abort();
    }
    return emulated_dynamic_shared + address;
}

/* Copies beside the instructions are done when they are waited for, or at once (GGMLQ_EMULATE_ORDER=backward): nobody may rely on either. */
void emulated_copy_async(uint32_t to, const void * from, int valid);
void emulated_copy_commit(void);
static inline void emulated_store_shared(uint32_t to, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    const uint32_t words[4] = { x, y, z, w };
    memcpy(emulated_shared_at(to, 16), words, 16);
}
void emulated_copy_wait(int groups_left);

/* --- instructions ------------------------------------------------------------------------------------------------ */

static inline void emulated_load_matrices(uint32_t & a0, uint32_t & a1, uint32_t & a2, uint32_t & a3, uint32_t address, bool transposed) {
    const emulated_lanes & all = emulated_meet(MEET_MATRICES, &address, 1);
    uint32_t * const a[4] = { &a0, &a1, &a2, &a3 };
    const int row = emulated_lane()/4, column = 2*(emulated_lane() % 4);
    for (int i = 0; i < 4; ++i) {
        uint16_t values[2];
        for (int j = 0; j < 2; ++j) {
            const int r = transposed ? column + j : row, c = transposed ? row : column + j;
            values[j] = ((const uint16_t *) emulated_shared_at(all.of[8*i + r][0], 16))[c];
        }
        *a[i] = values[0] | (uint32_t) values[1] << 16;
    }
}

static inline void emulated_move_matrix(uint32_t & d, uint32_t a) {
    const emulated_lanes & all = emulated_meet(MEET_MOVE, &a, 1);
    const int row = emulated_lane()/4, column = 2*(emulated_lane() % 4);
    d = 0;
    for (int j = 0; j < 2; ++j) { /* element [column + j][row] */
        d |= (all.of[4*(column + j) + row/2][0] >> 16*(row % 2) & 0xffff) << 16*j;
    }
}

static inline void emulated_mma_s8(int & d0, int & d1, int & d2, int & d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                                   int c0, int c1, int c2, int c3) {
    const uint32_t mine[6] = { a0, a1, a2, a3, b0, b1 };
    const emulated_lanes & all = emulated_meet(MEET_MMA_S8, mine, 6);
    const int g = emulated_lane()/4, t = emulated_lane() % 4;
    int sums[4] = { c0, c1, c2, c3 };
    for (int e = 0; e < 4; ++e) { /* row g + 8*(e/2), column 2t + e%2 */
        for (int word = 0; word < 8; ++word) { /* four values of k each */
            const uint32_t a = all.of[4*g + word % 4][e/2 + 2*(word/4)], b = all.of[4*(2*t + e % 2) + word % 4][4 + word/4];
            for (int i = 0; i < 32; i += 8) {
                sums[e] = (int) ((uint32_t) sums[e] + (uint32_t) ((int) (int8_t) (a >> i)*(int) (int8_t) (b >> i)));
            }
        }
    }
    d0 = sums[0]; d1 = sums[1]; d2 = sums[2]; d3 = sums[3];
}

/* 8 rows: K 32 as two products of 16. */
static inline void emulated_mma_s8_8(int & d0, int & d1, uint32_t a0, uint32_t a1, uint32_t b0, uint32_t b1, int c0, int c1) {
    int none[2] = {};
    emulated_mma_s8(d0, d1, none[0], none[1], a0, 0, a1, 0, b0, b1, c0, c1, 0, 0);
}

float emulated_half(uint32_t bits); /* of the lower 16 */

/* K 16, or 8: then a0, a1 and b0 only. */
static inline void emulated_mma_halves(int words, float & d0, float & d1, float & d2, float & d3, const uint32_t halves[6]) {
    uint32_t mine[12]; /* as floats */
    for (int i = 0; i < 12; ++i) {
        mine[i] = __float_as_uint(emulated_half(halves[i/2] >> 16*(i % 2)));
    }
    const emulated_lanes & all = emulated_meet(MEET_MMA_F16, mine, 12);
    const int g = emulated_lane()/4, t = emulated_lane() % 4;
    float * const d[4] = { &d0, &d1, &d2, &d3 };
    for (int e = 0; e < 4; ++e) {
        double sum = 0.0; /* products are exact in it, and so are nearly all sums */
        for (int word = 0; word < words; ++word) {
            const uint32_t * const a = &all.of[4*g + word % 4][2*(e/2 + 2*(word/4))], * const b = &all.of[4*(2*t + e % 2) + word % 4][2*(4 + word/4)];
            sum += (double) __uint_as_float(a[0])*(double) __uint_as_float(b[0]) + (double) __uint_as_float(a[1])*(double) __uint_as_float(b[1]);
        }
        *d[e] = (float) (sum + (double) *d[e]);
    }
}
static inline void emulated_mma_f16(float & d0, float & d1, float & d2, float & d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    const uint32_t mine[6] = { a0, a1, a2, a3, b0, b1 };
    emulated_mma_halves(8, d0, d1, d2, d3, mine);
}
static inline void emulated_mma_f16_8(float & d0, float & d1, float & d2, float & d3, uint32_t a0, uint32_t a1, uint32_t b0) {
    const uint32_t mine[6] = { a0, a1, 0, 0, b0, 0 };
    emulated_mma_halves(4, d0, d1, d2, d3, mine);
}

/* prmt: byte i is byte (nibble i of selector, its lower three bits) of a (0..3) and b (4..7), or, with its fourth bit, that byte's sign everywhere. */
static inline uint32_t __byte_perm_signed(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t from = selector >> 4*i & 15;
        const int8_t byte = (int8_t) (((uint64_t) b << 32 | a) >> 8*(from & 7));
        result |= (uint32_t) (uint8_t) (from & 8 ? byte >> 7 : byte) << 8*i;
    }
    return result;
}
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm_signed(a, b, selector & 0x7777); }
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) {
        c += (int) (int8_t) (a >> i) * (int) (int8_t) (b >> i);
    }
    return c;
}

static inline void emulated_exp2(float & y, float x) { y = exp2f(x); }
static inline void emulated_reciprocal(float & y, float x) { y = 1.0f/x; }
static inline void emulated_permute(uint32_t & d, uint32_t a, uint32_t b, uint32_t selector) { d = __byte_perm_signed(a, b, selector); }
static inline void emulated_choose(uint32_t & d, uint32_t a, uint32_t b, uint32_t mask) { d = (a & mask) | (b & ~mask); }
static inline void emulated_count(unsigned long long & before, unsigned long long * counter, unsigned long long step) { before = *counter; *counter += step; }
template <typename T> static inline void emulated_set(T & x, uint32_t value) { x = (T) value; }
static inline void emulated_mul(float & r, float a, float b) { r = a*b; }
static inline void emulated_add(float & r, float a, float b) { r = a + b; }
static inline void emulated_sub(float & r, float a, float b) { r = a - b; }
static inline void emulated_div(float & r, float a, float b) { r = a/b; }
static inline void emulated_sqrt(float & r, float a) { r = sqrtf(a); }
static inline void emulated_fma(float & r, float a, float b, float c) { r = fmaf(a, b, c); }
static inline void emulated_fma_saturated(float & r, float a, float b, float c) { r = fminf(fmaxf(fmaf(a, b, c), 0.0f), 1.0f); }
static inline void emulated_pick(float & l, float key, float b0, float b1, float b2, float l0, float d0, float l2, float d2) {
    l = key > b1 ? fmaf(key > b2, d2, l2) : fmaf(key > b0, d0, l0);
}
static inline void emulated_no_sum(float & odd, float x) { odd = fmaf(x, 0.0f, odd); } /* NaN if x isn't finite */

static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return { x, y, z, w }; }
template <typename T> static inline T atomicCAS(T * address, T expected, T value) {
    const T before = *address;
    *address = before == expected ? value : before;
    return before;
}
template <typename T> static inline T __ldcg(const T * p) { return *p; }
template <typename T> static inline void __stcg(T * p, T value) { *p = value; }
static inline int   __ffs(int x) { return __builtin_ffs(x); }
static inline float __int_as_float(int i) { return __uint_as_float((uint32_t) i); }
static inline int   __float_as_int(float f) { return (int) __float_as_uint(f); }
static inline float __fmul_rn(float a, float b) { return a*b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fdividef(float a, float b) { return a/b; }
#define __sincosf emulated_sincosf /* glibc has one of that name */
static inline void emulated_sincosf(float x, float * sine, float * cosine) { *sine = sinf(x); *cosine = cosf(x); }
static inline float sinpif(float x) { return (float) sin(3.14159265358979324*(double) x); }
static inline float cospif(float x) { return (float) cos(3.14159265358979324*(double) x); }
