/* SPDX-License-Identifier: MIT
 *
 * The device code's only door to the outside: CUDA, HIP or MUSA, and what differs between them.
 *
 * Need: a few names of the run-time library, half precision, xor shuffles among 32 lanes, byte permutation, four products of bytes,
 * and float operations that are rounded to nearest, keep subnormals and are never fused, whatever the surrounding build
 * asks for (-use_fast_math flushes subnormals even in __fmul_rn).
 */
#ifndef GGMLQ_CUDA_DEPS_CUH
#define GGMLQ_CUDA_DEPS_CUH

#if defined(GGML_USE_HIP) || defined(__HIP__) || defined(__HIP_PLATFORM_AMD__)
#    define GGMLQ_HIP
#    include <hip/hip_fp16.h>
#    include <hip/hip_runtime.h>
/* The same lines as in llama.cpp's vendors/hip.h: there both are read. */
#    define cudaError_t        hipError_t
#    define cudaGetErrorString hipGetErrorString
#    define cudaGetLastError   hipGetLastError
#    define cudaStream_t       hipStream_t
#    define cudaSuccess        hipSuccess
#    ifndef GGML_USE_HIP /* for ggmlq-cuda-memory.cu, which llama.cpp doesn't get */
#        define cudaDeviceProp               hipDeviceProp_t
#        define cudaDriverGetVersion         hipDriverGetVersion
#        define cudaFree                     hipFree
#        define cudaFuncAttributes           hipFuncAttributes
#        define cudaFuncGetAttributes        hipFuncGetAttributes
#        define cudaGetDevice                hipGetDevice
#        define cudaGetDeviceCount           hipGetDeviceCount
#        define cudaGetDeviceProperties      hipGetDeviceProperties
#        define cudaMalloc                   hipMalloc
#        define cudaMemcpyAsync              hipMemcpyAsync
#        define cudaMemcpyDeviceToHost       hipMemcpyDeviceToHost
#        define cudaMemcpyHostToDevice       hipMemcpyHostToDevice
#        define cudaMemoryTypeUnregistered   hipMemoryTypeUnregistered
#        define cudaMemsetAsync              hipMemsetAsync
#        define cudaPointerAttributes        hipPointerAttribute_t
#        define cudaPointerGetAttributes     hipPointerGetAttributes
#        define cudaRuntimeGetVersion        hipRuntimeGetVersion
#        define cudaSetDevice                hipSetDevice
#        define cudaStreamSynchronize        hipStreamSynchronize
#    endif
#elif defined(GGML_USE_MUSA)
#    define GGMLQ_MUSA
#    include <musa_fp16.h>
#    include <musa_runtime.h>
#    define cudaError_t        musaError_t
#    define cudaGetErrorString musaGetErrorString
#    define cudaGetLastError   musaGetLastError
#    define cudaStream_t       musaStream_t
#    define cudaSuccess        musaSuccess
#else
#    include <cuda_fp16.h>
#    include <cuda_runtime.h>
#endif

#include <atomic>
#include <cstdlib>
#include <type_traits>

#include "ggmlq-cuda.h"

/* After a launch: 0 or GGMLQ_ERROR_DEVICE, the driver's sentence being kept for ggmlq_cuda_error_text. */
int ggmlq_cuda_launched(void);

#define GGMLQ_DEVICE static __device__ __forceinline__

/* --- launches that begin before the previous kernel of the stream has ended (compute capability 9.0 and up) ----- */

#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA) && CUDART_VERSION >= 12030
#    define GGMLQ_EARLY_LAUNCH
#endif

/* In a kernel launched by ggmlq_launch_early or .._waiting, before the first access to memory that the call was given; all threads. */
GGMLQ_DEVICE void ggmlq_wait_for_previous(void) {
#if defined(GGMLQ_EARLY_LAUNCH) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Computed by here: compilers put off what isn't needed before the wait. */
GGMLQ_DEVICE void ggmlq_keep(uint64_t & x) {
#ifdef GGMLQ_EARLY_LAUNCH
    asm volatile("" : "+l"(x));
#else
    (void) x;
#endif
}

GGMLQ_DEVICE void ggmlq_keep(float & x) {
#ifdef GGMLQ_EARLY_LAUNCH
    asm volatile("" : "+f"(x));
#else
    (void) x;
#endif
}

/* Into the L2 cache; memory of the call, also before the wait. */
GGMLQ_DEVICE void ggmlq_prefetch(const void * address) {
#if defined(GGMLQ_EARLY_LAUNCH) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("prefetch.global.L2 [%0];" :: "l"(address));
#else
    (void) address;
#endif
}

/* The next kernel, if it is of that kind too, may be put on the device as soon as all threads have said so, or ended. */
GGMLQ_DEVICE void ggmlq_let_next_start(void) {
#if defined(GGMLQ_EARLY_LAUNCH) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#ifdef GGMLQ_EARLY_LAUNCH
/* Whether the code that the current device runs has the wait: not where it was translated from an older architecture's. */
template <auto kernel> static bool ggmlq_waits_for_previous(void) {
    enum { UNKNOWN, NO, YES, DEVICES = 64 };
    static std::atomic<signed char> known[DEVICES];
    int device;
    if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= DEVICES) {
        return false;
    }
    signed char answer = known[device].load(std::memory_order_relaxed);
    if (answer == UNKNOWN) {
        cudaFuncAttributes attributes;
        if (cudaFuncGetAttributes(&attributes, (const void *) kernel) != cudaSuccess) {
            return false; /* the plain launch says why */
        }
        answer = attributes.ptxVersion >= 90 ? YES : NO;
        known[device].store(answer, std::memory_order_relaxed);
    }
    return answer == YES;
}
#endif

/* Launches a kernel that waits; false, and nothing is done: it has to be launched as others are. GGML_CUDA_PDL=0 forbids it, as in llama.cpp. */
static inline bool ggmlq_launch_waiting(const void * kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, void ** arguments) {
#ifdef GGMLQ_EARLY_LAUNCH
    static const char * const wanted = getenv("GGML_CUDA_PDL");
    if (!wanted || atoi(wanted) != 0) {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim          = grid;
        config.blockDim         = block;
        config.dynamicSmemBytes = shared_bytes;
        config.stream           = stream;
        config.attrs            = &attribute;
        config.numAttrs         = 1;
        (void) cudaLaunchKernelExC(&config, kernel, arguments); /* cudaGetLastError has its error too */
        return true;
    }
#else
    (void) kernel; (void) grid; (void) block; (void) shared_bytes; (void) stream; (void) arguments;
#endif
    return false;
}

/* The same, if the device's code of the kernel has the wait. */
template <auto kernel, typename... arguments_t>
static bool ggmlq_launch_early(dim3 grid, dim3 block, cudaStream_t stream, const arguments_t &... arguments) {
#ifdef GGMLQ_EARLY_LAUNCH
    static_assert(std::is_same<decltype(kernel), void (*)(arguments_t...)>::value, "their addresses are all that is passed on");
    void * pointers[] = { const_cast<void *>(static_cast<const void *>(&arguments))... };
    return ggmlq_waits_for_previous<kernel>() && ggmlq_launch_waiting((const void *) kernel, grid, block, 0, stream, pointers);
#else
    (void) grid; (void) block; (void) stream; ((void) arguments, ...);
    return false;
#endif
}

template <typename T> GGMLQ_DEVICE T ggmlq_shuffle_xor(T value, int mask) {
#ifdef GGMLQ_HIP
    return __shfl_xor(value, mask, 32); /* waves of 64 are two groups of 32 */
#else
    return __shfl_xor_sync(0xffffffffu, value, mask, 32);
#endif
}

/* The value of another lane of 32. */
template <typename T> GGMLQ_DEVICE T ggmlq_shuffle(T value, int lane) {
#ifdef GGMLQ_HIP
    return __shfl(value, lane, 32);
#else
    return __shfl_sync(0xffffffffu, value, lane, 32);
#endif
}

#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
GGMLQ_DEVICE uint32_t ggmlq_max_of_lanes(uint32_t value) { return __reduce_max_sync(0xffffffffu, value); }
GGMLQ_DEVICE uint32_t ggmlq_sum_of_lanes(uint32_t value) { return __reduce_add_sync(0xffffffffu, value); }
#else
GGMLQ_DEVICE uint32_t ggmlq_max_of_lanes(uint32_t value) {
    for (int mask = 1; mask < 32; mask *= 2) {
        const uint32_t other = ggmlq_shuffle_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
}
GGMLQ_DEVICE uint32_t ggmlq_sum_of_lanes(uint32_t value) {
    for (int mask = 1; mask < 32; mask *= 2) {
        value += ggmlq_shuffle_xor(value, mask);
    }
    return value;
}
#endif

/* Behind it a warp sees what its threads have written to shared memory. Where warps aren't alone in this, all threads of the block call it. */
#if defined(GGMLQ_HIP) || defined(GGMLQ_MUSA)
constexpr bool ggmlq_warps_alone = false;
GGMLQ_DEVICE void ggmlq_sync_warp(void) { __syncthreads(); }
#else
constexpr bool ggmlq_warps_alone = true;
GGMLQ_DEVICE void ggmlq_sync_warp(void) { __syncwarp(); }
#endif

/* 16 bytes from global to shared memory, both on such addresses; there once the thread has called the other function, for others behind a barrier. */
GGMLQ_DEVICE void ggmlq_copy_16(void * shared, const void * global) {
#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((unsigned int) __cvta_generic_to_shared(shared)), "l"(global) : "memory");
#else
    *(uint4 *) shared = *(const uint4 *) global;
#endif
}

GGMLQ_DEVICE void ggmlq_copies_done(void) {
#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* The same number, of which AMD's compilers then know nothing. */
GGMLQ_DEVICE int ggmlq_opaque(int x) {
#ifdef __HIP_DEVICE_COMPILE__
    asm volatile("" : "+v"(x));
#endif
    return x;
}

/* Byte i of the result is byte (selector >> 4*i & 7) of a (0..3) and b (4..7). */
GGMLQ_DEVICE uint32_t ggmlq_byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef GGMLQ_HIP /* its own __byte_perm goes through memory */
    selector = (selector | selector << 8) & 0x00ff00ff;
    return __builtin_amdgcn_perm(b, a, (selector | selector << 4) & 0x07070707);
#else
    return __byte_perm(a, b, selector);
#endif
}

/* Byte i of the result is byte number (byte i of index) of a (0..3) and b (4..7). */
GGMLQ_DEVICE uint32_t ggmlq_look_up_bytes(uint32_t a, uint32_t b, uint32_t index) {
#ifdef GGMLQ_HIP
    return __builtin_amdgcn_perm(b, a, index);
#else
    const uint32_t nibbles = index | index >> 4; /* in bytes 0 and 2 */
    return __byte_perm(a, b, __byte_perm(nibbles, 0, 0x4420));
#endif
}

/* Sum of four products of signed bytes, plus c. */
GGMLQ_DEVICE int ggmlq_dot4(uint32_t a, uint32_t b, int c) {
#if defined(GGMLQ_HIP) && (defined(__gfx906__)  || defined(__gfx908__)  || defined(__gfx90a__)  || defined(__gfx942__)  || defined(__gfx950__)  || \
                           defined(__gfx1030__) || defined(__gfx1031__) || defined(__gfx1032__) || defined(__gfx1034__) || defined(__gfx1035__))
    return __builtin_amdgcn_sdot4((int) a, (int) b, c, false);
#elif defined(GGMLQ_HIP) && (defined(__GFX11__) || defined(__GFX12__))
    return __builtin_amdgcn_sudot4(true, (int) a, true, (int) b, c, false);
#elif !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 610
    return __dp4a((int) a, (int) b, c);
#else
    for (int i = 0; i < 32; i += 8) {
        c += (int) (int8_t) (a >> i) * (int) (int8_t) (b >> i);
    }
    return c;
#endif
}

#if defined(GGMLQ_HIP) || defined(GGMLQ_MUSA)

#pragma clang fp contract(off)
GGMLQ_DEVICE float ggmlq_mul(float a, float b) { return a*b; }
GGMLQ_DEVICE float ggmlq_add(float a, float b) { return a + b; }
GGMLQ_DEVICE float ggmlq_sub(float a, float b) { return a - b; }
GGMLQ_DEVICE float ggmlq_fma(float a, float b, float c) { return fmaf(a, b, c); }
#    ifdef GGMLQ_HIP /* correctly rounded by clang's default; HIP's own __fsqrt_rn is the approximation */
GGMLQ_DEVICE float ggmlq_div(float a, float b) { return a/b; }
GGMLQ_DEVICE float ggmlq_sqrt(float a)         { return sqrtf(a); }
#    else
GGMLQ_DEVICE float ggmlq_div(float a, float b) { return __fdiv_rn(a, b); }
GGMLQ_DEVICE float ggmlq_sqrt(float a)         { return __fsqrt_rn(a); }
#    endif
GGMLQ_DEVICE float ggmlq_div_safe(float a, float b) { return ggmlq_div(a, b); }
GGMLQ_DEVICE float ggmlq_fma_saturated(float a, float b, float c) { return fminf(fmaxf(fmaf(a, b, c), 0.0f), 1.0f); } /* NaN gives 0 */

/* l[0] where key <= b[0], l[1] where key <= b[1], l[2] where key <= b[2], l[3] above. */
GGMLQ_DEVICE float ggmlq_pick(float key, float b0, float b1, float b2, float l0, float l1, float l2, float l3) {
    return key > b1 ? (key > b2 ? l3 : l2) : key > b0 ? l1 : l0;
}

#else

GGMLQ_DEVICE float ggmlq_mul(float a, float b) { float r; asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
GGMLQ_DEVICE float ggmlq_add(float a, float b) { float r; asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
GGMLQ_DEVICE float ggmlq_sub(float a, float b) { float r; asm("sub.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
GGMLQ_DEVICE float ggmlq_fma(float a, float b, float c) { float r; asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c)); return r; }
GGMLQ_DEVICE float ggmlq_fma_saturated(float a, float b, float c) { float r; asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c)); return r; }
GGMLQ_DEVICE float ggmlq_div(float a, float b) { float r; asm("div.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
GGMLQ_DEVICE float ggmlq_sqrt(float a)         { float r; asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(a)); return r; }

/* The same quotient where it, both operands and 2^-24 of a are normal floats: the steps that the compiler takes too, without the
 * test for the other cases. */
GGMLQ_DEVICE float ggmlq_div_safe(float a, float b) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
    r = __fmaf_rn(r, __fmaf_rn(-b, r, 1.0f), r);
    float q = __fmaf_rn(a, r, 0.0f);
    q = __fmaf_rn(__fmaf_rn(-b, q, a), r, q);
    return __fmaf_rn(__fmaf_rn(-b, q, a), r, q);
}

/* l0 where key <= b0, l1 where key <= b1, l2 where key <= b2, l3 above; key - b0 and key - b2 are 0 or at least 1 in magnitude, so
 * that saturated they are 0 or 1. Comparisons have half the rate of the adder: one of them and four predicated additions. */
GGMLQ_DEVICE float ggmlq_pick(float key, float b0, float b1, float b2, float l0, float l1, float l2, float l3) {
    float l;
    asm("{\n\t.reg .pred p;\n\t.reg .f32 i;\n\t"
        "setp.gt.f32 p, %1, %3;\n\t"
        "sub.sat.f32 i, %1, %2;\n\t"
        "@p sub.sat.f32 i, %1, %4;\n\t"
        "fma.rn.f32 %0, i, %6, %5;\n\t"
        "@p fma.rn.f32 %0, i, %8, %7;\n\t}"
        : "=&f"(l) : "f"(key), "f"(b0), "f"(b1), "f"(b2), "f"(l0), "f"(l1 - l0), "f"(l2), "f"(l3 - l2));
    return l;
}

#endif

#endif
