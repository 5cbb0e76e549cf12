/* SPDX-License-Identifier: MIT */
#include "ggml-ggmlq.h"

#include <assert.h>
#include <stdio.h>

#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) \
    static_assert((int) GGML_TYPE_##NAME == (int) GGMLQ_TYPE_##NAME, "ggml.h and ggmlq-types.def must agree"); \
    void ggmlq_ggml_encode_row_##name(const float * x, void * row, int64_t n) { \
        const int error = ggmlq_encode_row(id, x, row, n); \
        GGML_ASSERT(error == GGMLQ_OK); \
    } \
    void ggmlq_ggml_encode_query_row_##name(const float * x, void * query, int64_t n) { \
        const int error = ggmlq_encode_query_row(id, x, query, n); \
        GGML_ASSERT(error == GGMLQ_OK); \
    } \
    void ggmlq_ggml_decode_row_##name(const void * row, float * x, int64_t n) { \
        const int error = ggmlq_decode_row(id, row, x, n); \
        GGML_ASSERT(error == GGMLQ_OK); \
    }
#define GGMLQ_QUERY_TYPE(NAME, name, id, block_length, block_bytes, description) \
    static_assert((int) GGML_TYPE_##NAME == (int) GGMLQ_TYPE_##NAME, "ggml.h and ggmlq-types.def must agree");
#define GGMLQ_FOREIGN_TYPE(NAME, name, id, block_length, block_bytes, description) \
    static_assert((int) GGML_TYPE_##NAME == (int) GGMLQ_TYPE_##NAME, "ggml.h and ggmlq-types.def must agree");
#include "ggmlq-types.def"

size_t ggmlq_ggml_quantize(enum ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row) {
    const int64_t row_bytes = ggmlq_row_bytes(type, n_per_row);
    if (row_bytes < 0 || ggmlq_encode_row(type, src, dst, n_rows*n_per_row) != GGMLQ_OK) {
        return 0; /* the caller compares with the size that it expects */
    }
    return (size_t) (n_rows*row_bytes);
}

bool ggmlq_ggml_validate(enum ggml_type type, const void * data, size_t n_bytes) {
    const struct ggmlq_type_info * info = ggmlq_type_info_get(type);
    if (info == NULL || n_bytes % (size_t) info->block_bytes != 0) {
        fprintf(stderr, "%s: %zu bytes are no whole number of %s blocks\n", __func__, n_bytes, info ? info->name : "unknown");
        return false;
    }
    int64_t block = -1;
    const int error = ggmlq_validate_row(type, data, (int64_t) n_bytes/info->block_bytes*info->block_length, &block);
    if (error) {
        fprintf(stderr, "%s: %s block %lld: %s\n", __func__, info->name, (long long) block, ggmlq_error_text(error));
    }
    return error == GGMLQ_OK;
}
