/* SPDX-License-Identifier: MIT
 *
 * Centered keys (docs/CENTERING.md) in ggml's graphs: what libllama gives to FLASH_ATTN_EXT and the back ends read.
 */
#ifndef GGML_GGMLQ_CENTER_H
#define GGML_GGMLQ_CENTER_H

/* Sources of FLASH_ATTN_EXT that upstream doesn't use: w, F32 [c_size, queries, heads, sequences], and c, F16 [c_size, cached
 * tokens, 1, sequences], and part, F16 [cached tokens, 1, 1, sequences]. If c is there, part * <w, c> belongs to every dot product, and whoever
 * can't add it must refuse the node. */
enum { GGMLQ_GGML_ATTEND_W = 5, GGMLQ_GGML_ATTEND_C = 6, GGMLQ_GGML_ATTEND_PART = 7 };

/* A source of SET_ROWS that upstream doesn't use: feedback, [head size, head size, heads], F32 for the CPU, F16 for other devices. If it is there,
 * every head of a row is encoded by ggmlq_encode_row_for_queries, and whoever can't must refuse the node. */
enum { GGMLQ_GGML_SET_ROWS_FEEDBACK = 5 };

#endif
