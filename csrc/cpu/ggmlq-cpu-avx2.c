/* SPDX-License-Identifier: MIT
 *
 * The level "avx2", if the compiler may use its instructions in this file; otherwise an empty record.
 */
#if defined(__AVX2__) && ((defined(__FMA__) && defined(__F16C__)) || defined(_MSC_VER))
#    define GGMLQ_WANT_X86_SIMD
#    include "ggmlq-cpu-impl.h"
#    include "ggmlq-simd-avx2.h"
#    include "ggmlq-cpu-kernels.inc"
#    define KERNELS &kernels
#else
#    include "ggmlq-cpu-impl.h"
#    define KERNELS NULL
#endif

const struct ggmlq_cpu_level ggmlq_cpu_level_avx2 = { "avx2", "AVX2, FMA, F16C", GGMLQ_NEEDS_AVX2, KERNELS };
