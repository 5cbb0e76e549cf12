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
#else
#    define GGMLQ_UNUSED
#endif

#endif
