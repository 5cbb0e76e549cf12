/* SPDX-License-Identifier: MIT
 *
 * ggmlq in ggml-cpu: what the CPU type table and the operations call.
 */
#ifndef GGML_CPU_GGMLQ_H
#define GGML_CPU_GGMLQ_H

#include "ggml-ggmlq-center.h"
#include "ggml-ggmlq.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

/* The signatures of the CPU type table. */
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) \
    void ggmlq_ggml_cpu_encode_row_##name(const float * x, void * row, int64_t n); \
    void ggmlq_ggml_cpu_encode_query_row_##name(const float * x, void * query, int64_t n); \
    void ggmlq_ggml_cpu_dot_row_##name(int n, float * s, size_t bs, const void * row, size_t bx, const void * query, size_t by, int nrc);
#include "ggmlq-types.def"

/* Does the whole operation if K or V is one of our types, or K is centered, and the shape is within ggmlq_attend's limits; otherwise
 * returns false and has done nothing: ggml's own path, through the type tables, is then correct too. */
bool ggmlq_ggml_cpu_flash_attn_ext(const struct ggml_compute_params * params, struct ggml_tensor * dst);

/* The same where the graph says that a query sees few rows (n_kv_max): those that its mask leaves are gathered, as the bytes that
 * they are, and only they are looked at. */
bool ggmlq_ggml_cpu_attend_selected(const struct ggml_compute_params * params, const struct ggml_tensor * dst, const struct ggmlq_attend_params * p);

/* The scores by which DeepSeek's lightning indexer selects rows, if its keys are of one of our types. */
bool ggmlq_ggml_cpu_lightning_indexer(const struct ggml_compute_params * params, struct ggml_tensor * dst);

/* Stores keys that are rounded for the model's queries (ggml-ggmlq-center.h); false, and nothing is done, for any other SET_ROWS. */
bool ggmlq_ggml_cpu_set_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst);

/* False if `op`, a SET_ROWS, has keys to be rounded that the function above can't do. */
bool ggmlq_ggml_cpu_supports_rounded(const struct ggml_tensor * op);

/* Stops the program unless the error is 0; explains a wrong GGMLQ_CPU first. */
void ggmlq_ggml_cpu_require_ok(int error);

/* False if `op`, a FLASH_ATTN_EXT, has centered keys (ggml-ggmlq-center.h) that the function above can't do: nobody else can. */
bool ggmlq_ggml_cpu_supports_centered(const struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif

#endif
