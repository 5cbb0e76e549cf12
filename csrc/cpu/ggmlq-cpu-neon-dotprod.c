/* SPDX-License-Identifier: MIT
 *
 * The level "neon_dotprod", if the compiler may use its instructions in this file; otherwise an empty record.
 */
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#    define GGMLQ_WANT_ARM_SIMD
#    define GGMLQ_NEON_DOTPROD
#    include "ggmlq-cpu-impl.h"
#    include "ggmlq-simd-neon.h"
#    include "ggmlq-cpu-kernels.inc"
#    define KERNELS &kernels
#else
#    include "ggmlq-cpu-impl.h"
#    define KERNELS NULL
#endif

const struct ggmlq_cpu_level ggmlq_cpu_level_neon_dotprod = {
    "neon_dotprod", "64-bit Arm with dot products (Armv8.2)", GGMLQ_NEEDS_NEON | GGMLQ_NEEDS_DOTPROD, KERNELS
};
