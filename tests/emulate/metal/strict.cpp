/* SPDX-License-Identifier: MIT
 *
 * The kernels alone, for the compiler's strictest warnings; those of the stand-ins for the C++ library and for Metal's are left out.
 */
#include <metal_stdlib>

namespace {
#include "ggmlq-metal-kernels.inc"
}

/* Used, or they would all be warned of. */
extern const void * const ggmlq_metal_kernels_used[];
const void * const ggmlq_metal_kernels_used[] = {
    reinterpret_cast<const void *>(&kernel_ggmlq_encode), reinterpret_cast<const void *>(&kernel_ggmlq_round), reinterpret_cast<const void *>(&kernel_ggmlq_decode), reinterpret_cast<const void *>(&kernel_ggmlq_rotate),
    reinterpret_cast<const void *>(&kernel_ggmlq_fill), reinterpret_cast<const void *>(&kernel_ggmlq_positional),
    reinterpret_cast<const void *>(&kernel_ggmlq_copy), reinterpret_cast<const void *>(&kernel_ggmlq_mul_mv), reinterpret_cast<const void *>(&kernel_ggmlq_attend),
    reinterpret_cast<const void *>(&kernel_ggmlq_combine), reinterpret_cast<const void *>(&kernel_ggmlq_select), reinterpret_cast<const void *>(&kernel_ggmlq_indexer),
};
