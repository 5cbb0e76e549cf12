/* SPDX-License-Identifier: MIT
 *
 * ggmlq in ggml-base: what ggml's type tables, ggml_quantize_chunk and ggml_validate_row_data call.
 */
#ifndef GGML_GGMLQ_H
#define GGML_GGMLQ_H

#include "ggml.h"
#include "ggmlq.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline bool ggmlq_ggml_is_cache_type(enum ggml_type type) {
    switch ((int) type) {
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) case id:
#include "ggmlq-types.def"
            return true;
        default:
            return false;
    }
}

/* The signatures of ggml's type tables. n is a whole number of blocks (asserted). */
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) \
    GGML_API void ggmlq_ggml_encode_row_##name(const float * x, void * row, int64_t n); \
    GGML_API void ggmlq_ggml_encode_query_row_##name(const float * x, void * query, int64_t n); \
    GGML_API void ggmlq_ggml_decode_row_##name(const void * row, float * x, int64_t n);
#include "ggmlq-types.def"

GGML_API size_t ggmlq_ggml_quantize(enum ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row);

/* False, with a message on stderr, if a block's scale isn't finite. */
GGML_API bool ggmlq_ggml_validate(enum ggml_type type, const void * data, size_t n_bytes);

#ifdef __cplusplus
}
#endif

#endif
