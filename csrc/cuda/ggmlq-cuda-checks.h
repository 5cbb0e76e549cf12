/* SPDX-License-Identifier: MIT
 *
 * What every device checks of the arguments of ggmlq-cuda.h and ggmlq-cuda-sparse.h, in one place for CUDA, HIP and Metal: types, shapes and
 * strides; no address is looked at. A check gives 0 or a negative ggmlq_error.
 */
#ifndef GGMLQ_CUDA_CHECKS_H
#define GGMLQ_CUDA_CHECKS_H

#include "ggmlq-cuda.h"

static inline bool    ggmlq_is_cache_type(int type) { return type == GGMLQ_TYPE_TQ3_0 || type == GGMLQ_TYPE_PLANAR3; }
static inline int64_t ggmlq_value_bytes(int type)   { return type == GGMLQ_CUDA_F32 ? 4 : 2; }

/* Axes of up to 2^31 - 1; rows of whole blocks of `length`; values of a row adjacent. */
static inline int ggmlq_check_view(const struct ggmlq_cuda_view * v, int64_t length) {
    for (int i = 0; i < 4; ++i) {
        if (v->ne[i] < 0) {
            return i == 0 ? GGMLQ_ERROR_LENGTH : GGMLQ_ERROR_SHAPE;
        }
        if (v->ne[i] > INT32_MAX) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    if (v->ne[0] % length != 0) {
        return GGMLQ_ERROR_LENGTH;
    }
    return !ggmlq_is_cache_type(v->type) && v->nb[0] != ggmlq_value_bytes(v->type) ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

static inline int ggmlq_check_rows_and_values(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, bool encoding) {
    if (!ggmlq_is_cache_type(rows->type) ||
        (values->type != GGMLQ_CUDA_F32 && values->type != GGMLQ_CUDA_F16 && (encoding || values->type != GGMLQ_CUDA_BF16))) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t length = ggmlq_type_info_get(rows->type)->block_length;
    const int error = ggmlq_check_view(rows, length);
    return error ? error : ggmlq_check_view(values, length);
}

/* repeats: indices may be fewer than the values along axes 2 and 3. */
static inline int ggmlq_check_indices(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                                      int index_bytes, bool repeats) {
    if (index_bytes != 4 && index_bytes != 8) {
        return GGMLQ_ERROR_TYPE;
    }
    if (rows->ne[0] != values->ne[0] || rows->ne[2] != values->ne[2] || rows->ne[3] != values->ne[3] ||
        indices->ne[0] != values->ne[1] || indices->ne[3] != 1) {
        return GGMLQ_ERROR_SHAPE;
    }
    for (int i = 1; i < 3; ++i) {
        const int64_t n = indices->ne[i], wanted = values->ne[i + 1];
        if (n != wanted && (!repeats || n < 1 || wanted % n != 0)) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    return GGMLQ_OK;
}

static inline int ggmlq_check_rotation(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src) {
    if (!ggmlq_is_cache_type(type) || dst->type != GGMLQ_CUDA_F32 || src->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t length = ggmlq_type_info_get(type)->block_length;
    int error = ggmlq_check_view(dst, length);
    error = error ? error : ggmlq_check_view(src, length);
    for (int i = 0; i < 4 && !error; ++i) {
        error = dst->ne[i] == src->ne[i] ? GGMLQ_OK : GGMLQ_ERROR_SHAPE;
    }
    return error;
}

/* A thread turns the pairs of eight values. */
static inline bool ggmlq_can_rope(const struct ggmlq_cuda_rope * r, int64_t head_size) {
    return r->positions && r->n_rot > 0 && r->n_rot % 8 == 0 && r->n_rot <= head_size && head_size % 8 == 0;
}

/* Heads side by side, feedback of each; what a device wants of sizes and addresses beyond that is its own. */
static inline int ggmlq_check_set_rows_for_queries(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                                                   const struct ggmlq_cuda_view * indices, int index_bytes, const struct ggmlq_cuda_view * feedback) {
    int error = ggmlq_check_rows_and_values(rows, values, true);
    error = error ? error : ggmlq_check_indices(rows, values, indices, index_bytes, false);
    if (error) {
        return error;
    }
    if (values->type != GGMLQ_CUDA_F32 || feedback->type != GGMLQ_CUDA_F16) {
        return GGMLQ_ERROR_TYPE;
    }
    error = ggmlq_check_view(feedback, 1);
    if (error) {
        return error;
    }
    const int64_t heads = feedback->ne[1], length = heads > 0 ? rows->ne[0]/heads : 0;
    return length < 1 || ggmlq_feedback_values(length) != feedback->ne[0] || feedback->ne[2] != 1 || feedback->ne[3] != 1 || rows->ne[0] != length*heads ||
        length % ggmlq_type_info_get(rows->type)->block_length != 0 || rows->ne[2] != 1 || rows->ne[3] != 1 || values->ne[1] > INT32_MAX/heads || values->nb[1] % 4 != 0 ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

/* What ggmlq_attend takes, and query rows of all heads and sequences are numbered in 31 bits. */
static inline int ggmlq_check_attend(const struct ggmlq_attend_params * p) {
    const int error = ggmlq_attend_check_shapes(p);
    if (error) {
        return error;
    }
    int64_t rows = 1;
    const int64_t factors[3] = { p->n_queries, p->n_heads, p->n_seqs };
    for (int i = 0; i < 3; ++i) {
        if (factors[i] > INT32_MAX || (factors[i] > 0 && rows > INT32_MAX/factors[i])) {
            return GGMLQ_ERROR_SHAPE;
        }
        rows *= factors[i];
    }
    return GGMLQ_OK;
}

enum { GGMLQ_INDEXER_LENGTH = 128, GGMLQ_INDEXER_ROWS = 128 /* of a block of threads */ };

static inline int ggmlq_check_indexer(const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                                      const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask) {
    if (!ggmlq_is_cache_type(rows->type) || q->type != GGMLQ_CUDA_F32 || weights->type != GGMLQ_CUDA_F32 ||
        mask->type != GGMLQ_CUDA_F16 || scores->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    if (q->ne[0] != GGMLQ_INDEXER_LENGTH || rows->ne[0] != GGMLQ_INDEXER_LENGTH) {
        return GGMLQ_ERROR_LENGTH;
    }
    const int64_t heads = q->ne[1], tokens = q->ne[2], seqs = q->ne[3], n_rows = rows->ne[2];
    if (heads < 0 || tokens < 0 || seqs < 0 || n_rows < 0 || heads > INT32_MAX/GGMLQ_INDEXER_LENGTH || tokens > INT32_MAX ||
        n_rows > INT32_MAX - GGMLQ_INDEXER_ROWS || seqs > 65535 ||
        (heads > 0 && tokens > 0 && seqs > INT32_MAX/GGMLQ_INDEXER_LENGTH/heads/tokens) ||
        rows->ne[1] != 1 || rows->ne[3] != seqs || weights->ne[0] != heads || weights->ne[1] != tokens || weights->ne[3] != seqs ||
        mask->ne[0] != n_rows || mask->ne[1] != tokens || mask->ne[3] < 1 || seqs%mask->ne[3] != 0 ||
        scores->ne[0] != n_rows || scores->ne[1] != tokens || scores->ne[3] != seqs ||
        q->nb[0] != 4 || weights->nb[0] != 4 || mask->nb[0] != 2 || scores->nb[0] != 4) {
        return GGMLQ_ERROR_SHAPE;
    }
    return GGMLQ_OK;
}

#endif
