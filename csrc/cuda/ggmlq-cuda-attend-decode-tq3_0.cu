/* SPDX-License-Identifier: MIT
 *
 * Instances of the decode kernel, see ggmlq-cuda-attend-decode.def.
 */
#define GGMLQ_DECODE_INSTANCES tq3_0
#include "ggmlq-cuda-attend-decode.inc"
