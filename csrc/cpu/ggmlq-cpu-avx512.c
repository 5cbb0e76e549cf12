/* SPDX-License-Identifier: MIT
 *
 * The level "avx512", if the compiler may use its instructions in this file; otherwise an empty record.
 */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#    define GGMLQ_WANT_X86_SIMD
#    include "ggmlq-cpu-impl.h"
#    include "ggmlq-simd-avx512.h"
#    include "ggmlq-cpu-kernels.inc"
#    define KERNELS &kernels
#    ifdef __AVX512VBMI__
#        define NEEDS (GGMLQ_NEEDS_AVX2 | GGMLQ_NEEDS_AVX512 | GGMLQ_NEEDS_VBMI)
#    else
#        define NEEDS (GGMLQ_NEEDS_AVX2 | GGMLQ_NEEDS_AVX512)
#    endif
#else
#    include "ggmlq-cpu-impl.h"
#    define KERNELS NULL
#    define NEEDS (GGMLQ_NEEDS_AVX2 | GGMLQ_NEEDS_AVX512)
#endif

const struct ggmlq_cpu_level ggmlq_cpu_level_avx512 = { "avx512", "AVX-512 F, BW, VL, DQ, VNNI", NEEDS, KERNELS };
