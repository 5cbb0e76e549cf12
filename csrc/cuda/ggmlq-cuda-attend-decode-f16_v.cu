/* SPDX-License-Identifier: MIT
 *
 * Instances of the decode kernel, see ggmlq-cuda-attend-decode.def.
 */
#define GGMLQ_DECODE_INSTANCES f16_v
#include "ggmlq-cuda-attend-decode.inc"
