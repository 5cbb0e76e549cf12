/* SPDX-License-Identifier: MIT
 *
 * The level "portable": plain C, what every other level is compared with.
 */
#include "ggmlq-cpu-impl.h"
#include "ggmlq-simd-portable.h"
#include "ggmlq-cpu-kernels.inc"

const struct ggmlq_cpu_level ggmlq_cpu_level_portable = { "portable", "nothing", 0, &kernels };
