/* SPDX-License-Identifier: MIT
 *
 * The level "neon", if the compiler may use its instructions in this file; otherwise an empty record.
 */
#if defined(__aarch64__) && defined(__ARM_NEON)
#    define GGMLQ_WANT_ARM_SIMD
#    include "ggmlq-cpu-impl.h"
#    include "ggmlq-simd-neon.h"
#    include "ggmlq-cpu-kernels.inc"
#    define KERNELS &kernels
#else
#    include "ggmlq-cpu-impl.h"
#    define KERNELS NULL
#endif

const struct ggmlq_cpu_level ggmlq_cpu_level_neon = { "neon", "64-bit Arm", GGMLQ_NEEDS_NEON, KERNELS };
