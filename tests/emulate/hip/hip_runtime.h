/* SPDX-License-Identifier: MIT
 *
 * As much of HIP as csrc/cuda and tests/cuda use, on a CPU: see emulate.cpp. Everything is stricter than a GPU is.
 */
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

/* --- the language ----------------------------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* Blocks run one after the other, so one copy will do. It lies in a section that is filled with garbage before each block; under the
 * address sanitizer, which doesn't watch such sections, it lies where that watches. */
#if defined(__SANITIZE_ADDRESS__)
#    define EMULATED_ADDRESS_SANITIZER
#elif defined(__has_feature)
#    if __has_feature(address_sanitizer)
#        define EMULATED_ADDRESS_SANITIZER
#    endif
#endif
#ifdef EMULATED_ADDRESS_SANITIZER
#    define __shared__ static
#else
#    define __shared__ static __attribute__((section("emulated_shared")))
#endif

struct dim3 {
    unsigned int x, y, z;
    dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8)  float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8)  uint2  { uint32_t x, y; };
struct alignas(16) uint4  { uint32_t x, y, z, w; };
static inline float2 make_float2(float x, float y) { return { x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return { x, y, z, w }; }
static inline uint2  make_uint2(uint32_t x, uint32_t y) { return { x, y }; }

typedef void * hipStream_t;

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
extern const int warpSize;

/* What tests/emulate/build.py makes of kernel<<<grid, block, 0, stream>>>(...). */
void emulated_launch(dim3 grid, dim3 block, hipStream_t stream, const std::function<void()> & thread);

/* --- what threads do together ----------------------------------------------------------------------------------- */

int      emulated_barrier(int vote, int line); /* the result: whether any thread of the block voted */
uint32_t emulated_shuffle_xor(uint32_t value, int mask, int width);
uint32_t emulated_shuffle(uint32_t value, int lane, int width);

#define __syncthreads()         ((void) emulated_barrier(0, __LINE__))
#define __syncthreads_or(vote)  emulated_barrier((vote) != 0, __LINE__)

template <typename T> static inline T __shfl_xor(T value, int mask, int width = warpSize) {
    static_assert(sizeof(T) == 4, "32 bits");
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = emulated_shuffle_xor(bits, mask, width);
    memcpy(&value, &bits, 4);
    return value;
}

template <typename T> static inline T __shfl(T value, int lane, int width = warpSize) {
    static_assert(sizeof(T) == 4, "32 bits");
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = emulated_shuffle(bits, lane, width);
    memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned long long atomicMin(unsigned long long * address, unsigned long long value) {
    const unsigned long long before = *address;
    *address = value < before ? value : before;
    return before;
}

/* --- arithmetic ------------------------------------------------------------------------------------------------- */

static inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float    __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t) ((uint64_t) a*b >> 32); }
static inline int      __clz(int v) { return v == 0 ? 32 : __builtin_clz((unsigned int) v); }

static inline void sincospif(float x, float * sine, float * cosine) {
    *sine   = (float) sin(3.14159265358979324*(double) x);
    *cosine = (float) cos(3.14159265358979324*(double) x);
}

/* v_perm_b32: byte i is byte number (byte i of selector) of low (0..3) and high (4..7); 8 and above mean something else. */
static inline uint32_t emulated_perm(uint32_t high, uint32_t low, uint32_t selector) {
    uint32_t result = 0;
    for (int i = 0; i < 32; i += 8) {
        const uint32_t from = selector >> i & 255;
        if (from > 7) {
            fprintf(stderr, "v_perm_b32: selector %08x\n", selector);
            abort();
        }
        result |= (uint32_t) ((((uint64_t) high << 32 | low) >> 8*from) & 255) << i;
    }
    return result;
}
#define __builtin_amdgcn_perm emulated_perm

/* --- the run-time library: device memory is memory -------------------------------------------------------------- */

#define HIP_VERSION_MAJOR 6
enum hipError_t { hipSuccess = 0, hipErrorInvalidValue = 1, hipErrorOutOfMemory = 2, hipErrorNotSupported = 801 };
enum hipMemcpyKind { hipMemcpyHostToDevice = 1, hipMemcpyDeviceToHost = 2, hipMemcpyDeviceToDevice = 3 };
enum hipMemoryType { hipMemoryTypeUnregistered, hipMemoryTypeDevice };
struct hipDeviceProp_t { char name[256]; int major, minor; size_t totalGlobalMem; char gcnArchName[256]; };
struct hipPointerAttribute_t { hipMemoryType type; int device; };
struct hipFuncAttributes { int numRegs; };

hipError_t   hipGetLastError(void);
const char * hipGetErrorString(hipError_t error);
hipError_t   hipDriverGetVersion(int * version);
hipError_t   hipRuntimeGetVersion(int * version);
hipError_t   hipGetDeviceCount(int * count);
hipError_t   hipGetDevice(int * device);
hipError_t   hipSetDevice(int device);
hipError_t   hipGetDeviceProperties(hipDeviceProp_t * properties, int device);
hipError_t   hipPointerGetAttributes(hipPointerAttribute_t * attributes, const void * pointer);
hipError_t   hipFuncGetAttributes(hipFuncAttributes * attributes, const void * function);
hipError_t   hipMalloc(void ** pointer, size_t bytes);
hipError_t   hipFree(void * pointer);
hipError_t   hipMemcpy(void * to, const void * from, size_t bytes, hipMemcpyKind kind);
hipError_t   hipMemcpyAsync(void * to, const void * from, size_t bytes, hipMemcpyKind kind, hipStream_t stream = nullptr);
hipError_t   hipMemset(void * to, int byte, size_t bytes);
hipError_t   hipMemsetAsync(void * to, int byte, size_t bytes, hipStream_t stream = nullptr);
hipError_t   hipStreamSynchronize(hipStream_t stream);
hipError_t   hipDeviceSynchronize(void);

/* Times aren't for an emulator. */
typedef void * hipEvent_t;
typedef void * hipGraph_t;
typedef void * hipGraphExec_t;
enum hipStreamCaptureMode { hipStreamCaptureModeThreadLocal };
template <typename... T> static inline hipError_t emulated_nothing(T...) { return hipErrorNotSupported; }
#define hipEventCreate          emulated_nothing
#define hipEventDestroy         emulated_nothing
#define hipEventElapsedTime     emulated_nothing
#define hipEventRecord          emulated_nothing
#define hipEventSynchronize     emulated_nothing
#define hipGraphDestroy         emulated_nothing
#define hipGraphExecDestroy     emulated_nothing
#define hipGraphInstantiate     emulated_nothing
#define hipGraphLaunch          emulated_nothing
#define hipStreamBeginCapture   emulated_nothing
#define hipStreamCreate         emulated_nothing
#define hipStreamDestroy        emulated_nothing
#define hipStreamEndCapture     emulated_nothing
