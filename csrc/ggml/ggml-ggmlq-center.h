/* SPDX-License-Identifier: MIT
 *
 * Centered keys (docs/CENTERING.md) in ggml's graphs: what libllama gives to FLASH_ATTN_EXT and the back ends read.
 */
#ifndef GGML_GGMLQ_CENTER_H
#define GGML_GGMLQ_CENTER_H

/* Sources of FLASH_ATTN_EXT that upstream doesn't use: w, F32 [2*pairs, queries, heads, sequences]; turns, I64 [pairs]; positions, I32 [cached tokens, 1, 1,
 * sequences]; part, F16 [cached tokens, 1, 1, sequences]. If turns are there, part * <w, positional row> belongs to every dot product (ggmlq.h), and whoever
 * can't add it must refuse the node. A parameter, an int32_t, says whether a pair is half of w apart (1) or side by side (0).
 *
 * The mean, F32 [head size, KV heads], is for who would rather have whole keys, and may be missing: part times a factor (a parameter, float) times the mean, its pairs turned as the token's position
 * says, then all of it by llama.cpp's own rotation of so many adjacent values (attn_rot; a parameter, int32_t; 0: none), belongs to every key, and there is no other term then. */
enum { GGMLQ_GGML_ATTEND_W = 5, GGMLQ_GGML_ATTEND_TURNS = 6, GGMLQ_GGML_ATTEND_POSITIONS = 7, GGMLQ_GGML_ATTEND_PART = 8, GGMLQ_GGML_ATTEND_MEAN = 9 };
enum { GGMLQ_GGML_ATTEND_MEAN_FACTOR_AT = 13, GGMLQ_GGML_ATTEND_MEAN_TURNED_AT = 14, GGMLQ_GGML_ATTEND_HALVES_AT = 15 }; /* in op_params */

/* A source of SET_ROWS that upstream doesn't use: feedback, F16 [ggmlq_feedback_values(head size), heads]. If it is there,
 * every head of a row is encoded by ggmlq_encode_row_for_queries, and whoever can't must refuse the node. */
enum { GGMLQ_GGML_SET_ROWS_FEEDBACK = 5 };

#endif
