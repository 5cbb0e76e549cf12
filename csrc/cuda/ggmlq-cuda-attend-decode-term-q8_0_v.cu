/* SPDX-License-Identifier: MIT
 *
 * Instances of the decode kernel for centered keys, see ggmlq-cuda-attend-decode.def.
 */
#define GGMLQ_DECODE_INSTANCES q8_0_v
#define GGMLQ_DECODE_TERM 1
#include "ggmlq-cuda-attend-decode.inc"
