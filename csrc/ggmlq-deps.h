/* SPDX-License-Identifier: MIT
 *
 * The only door to the outside: no other file of the codec and the kernels includes a system header or tests a macro
 * of the tree that it is compiled in.
 *
 * Need: fixed-width integers, memcpy, float functions (sqrtf, expf, tanhf, powf, INFINITY), symbol visibility.
 */
#ifndef GGMLQ_DEPS_H
#define GGMLQ_DEPS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* What single files of csrc/cpu ask for. */
#ifdef GGMLQ_WANT_X86_SIMD
#    include <immintrin.h>
#endif
#ifdef GGMLQ_WANT_ARM_SIMD
#    include <arm_neon.h>
#endif
#ifdef GGMLQ_WANT_CPUID
#    include <stdlib.h> /* getenv */
#    if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#        include <intrin.h>
#    elif defined(__x86_64__) || defined(__i386__)
#        include <cpuid.h>
#    elif defined(__aarch64__) && defined(__linux__)
#        include <sys/auxv.h>
#    elif defined(__aarch64__) && defined(__APPLE__)
#        include <sys/sysctl.h>
#    endif
#endif

/* Before what CUDA and HIP compile for both sides. */
#if defined(__CUDACC__) || defined(__HIPCC__)
#    define GGMLQ_DEVICE_TOO __host__ __device__
#else
#    define GGMLQ_DEVICE_TOO
#endif

/* Inside llama.cpp the codec is part of ggml-base and is called from ggml-cpu, which may be another shared library. The
 * CPU kernels stay inside ggml-cpu: with GGML_CPU_ALL_VARIANTS there are several of those, each with its own copy. */
#if defined(GGML_SHARED) && defined(_WIN32) && !defined(__MINGW32__)
#    ifdef GGML_BUILD
#        define GGMLQ_API __declspec(dllexport)
#    else
#        define GGMLQ_API __declspec(dllimport)
#    endif
#elif defined(__GNUC__)
#    define GGMLQ_API __attribute__((visibility("default")))
#else
#    define GGMLQ_API
#endif

#if defined(__GNUC__) && !defined(_WIN32)
#    define GGMLQ_CPU_API __attribute__((visibility("hidden")))
#else
#    define GGMLQ_CPU_API
#endif

#if defined(__GNUC__)
#    define GGMLQ_UNUSED __attribute__((unused))
#    define GGMLQ_INLINE inline __attribute__((always_inline)) /* where an argument must become a constant */
#    define GGMLQ_ALIGNED(bytes) __attribute__((aligned(bytes)))
#    define GGMLQ_PREFETCH(address) __builtin_prefetch(address)
#    define GGMLQ_LOAD(variable)         __atomic_load_n(&(variable), __ATOMIC_RELAXED)
#    define GGMLQ_STORE(variable, value) __atomic_store_n(&(variable), value, __ATOMIC_RELAXED)
#    define GGMLQ_COUNT(variable)        ((void) __atomic_fetch_add(&(variable), 1, __ATOMIC_RELAXED))
#else /* MSVC: an aligned word is loaded and stored whole */
#    define GGMLQ_UNUSED
#    define GGMLQ_INLINE __forceinline
#    define GGMLQ_ALIGNED(bytes) __declspec(align(bytes))
#    define GGMLQ_PREFETCH(address) ((void) 0)
#    define GGMLQ_LOAD(variable)         (variable)
#    define GGMLQ_STORE(variable, value) ((variable) = (value))
#    define GGMLQ_COUNT(variable)        ((void) ++(variable))
#endif

#endif
