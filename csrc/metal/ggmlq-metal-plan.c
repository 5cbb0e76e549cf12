/* SPDX-License-Identifier: MIT
 *
 * See ggmlq-metal-plan.h.
 */
#include "ggmlq-metal-plan.h"

#define ENCODE "kernel_ggmlq_encode"
#define DECODE "kernel_ggmlq_decode"
#define ROTATE "kernel_ggmlq_rotate"
#define COPY   "kernel_ggmlq_copy"
#define MUL_MV "kernel_ggmlq_mul_mv"
#define ATTEND "kernel_ggmlq_attend"

const char * const * ggmlq_metal_kernels(void) {
    static const char * const kernels[] = { ENCODE, DECODE, ROTATE, COPY, MUL_MV, ATTEND, NULL };
    return kernels;
}

enum { PLANE = 32 };

static bool    is_cache_type(int type) { return type == GGMLQ_TYPE_TQ3_0 || type == GGMLQ_TYPE_PLANAR3; }
static int64_t value_bytes(int type)   { return type == GGMLQ_CUDA_F32 ? 4 : 2; }

static void start(struct ggmlq_metal_launch * launch, const char * kernel, int n_operands, int type, int other_type, size_t args_bytes) {
    memset(launch, 0, sizeof(*launch));
    launch->kernel       = kernel;
    launch->n_operands   = n_operands;
    launch->args_bytes   = args_bytes;
    launch->groups[0]    = launch->groups[1] = launch->groups[2] = 1;
    launch->constants[GGMLQ_METAL_TYPE]       = type;
    launch->constants[GGMLQ_METAL_OTHER_TYPE] = other_type;
}

/* n units, each worked on by `each` threads; 0: nothing to do. */
static void finish(struct ggmlq_metal_launch * launch, int64_t n, int each) {
    if (n == 0) {
        launch->kernel = NULL;
    }
    launch->args.rows.n = (uint32_t) n;
    launch->groups[0]   = (uint32_t) ((n*each + GGMLQ_METAL_THREADS - 1)/GGMLQ_METAL_THREADS);
}

/* --- rows ------------------------------------------------------------------------------------------------------- */

/* Axes of up to 2^31 - 1; rows of whole blocks of `length`; values of a row adjacent. */
static int check_view(const struct ggmlq_cuda_view * v, int64_t length) {
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
    return !is_cache_type(v->type) && v->nb[0] != value_bytes(v->type) ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

/* Units of a view, `row` to each row, or GGMLQ_ERROR_SHAPE: the threads of a launch, eight to a unit, are numbered in 32 bits. */
static int64_t count(const struct ggmlq_cuda_view * v, int64_t row) {
    int64_t n = row;
    for (int i = 1; i < 4; ++i) {
        if (v->ne[i] == 0) {
            return 0;
        }
        if (n > INT32_MAX/GGMLQ_METAL_TEAM/v->ne[i]) {
            return GGMLQ_ERROR_SHAPE;
        }
        n *= v->ne[i];
    }
    return n;
}

static struct ggmlq_metal_walk make_walk(const struct ggmlq_cuda_view * v, int64_t units, int64_t unit_bytes) {
    struct ggmlq_metal_walk w;
    memset(&w, 0, sizeof(w));
    w.nb1 = v->nb[1];
    w.nb2 = v->nb[2];
    w.nb3 = v->nb[3];
    w.units      = (uint32_t) units;
    w.unit_bytes = (uint32_t) unit_bytes;
    w.ne1 = (uint32_t) v->ne[1];
    w.ne2 = (uint32_t) v->ne[2];
    return w;
}

static int check_rows_and_values(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, bool encoding) {
    if (!is_cache_type(rows->type) ||
        (values->type != GGMLQ_CUDA_F32 && values->type != GGMLQ_CUDA_F16 && (encoding || values->type != GGMLQ_CUDA_BF16))) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t length = ggmlq_type_info_get(rows->type)->block_length;
    const int error = check_view(rows, length);
    return error ? error : check_view(values, length);
}

/* repeats: indices may be fewer than the values along axes 2 and 3. */
static int check_indices(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
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

/* rows and values by the blocks that are encoded, or the planes that are decoded. */
static int plan_rows(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices, int index_bytes,
                     bool encoding, bool rotated, struct ggmlq_metal_launch * launch) {
    const struct ggmlq_type_info * info = ggmlq_type_info_get(rows->type);
    const int64_t length = encoding ? info->block_length : PLANE, n = count(values, values->ne[0]/length);
    if (n < 0) {
        return (int) n;
    }
    start(launch, encoding ? ENCODE : DECODE, 3, rows->type, values->type, sizeof(launch->args.rows));
    struct ggmlq_metal_rows_args * args = &launch->args.rows;
    args->rows       = make_walk(rows, rows->ne[0]/length, encoding ? info->block_bytes : 0);
    args->values     = make_walk(values, values->ne[0]/length, 0);
    args->index_ne1  = args->index_ne2 = 1;
    args->n_rows     = (uint32_t) rows->ne[1];
    args->back       = rotated;
    if (indices) {
        for (int i = 0; i < 3; ++i) {
            args->index_nb[i] = indices->nb[i];
        }
        args->index_bytes = (uint32_t) index_bytes;
        args->index_ne1   = (uint32_t) indices->ne[1];
        args->index_ne2   = (uint32_t) indices->ne[2];
    }
    finish(launch, n, GGMLQ_METAL_TEAM);
    return GGMLQ_OK;
}

int ggmlq_metal_set_rows(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                         int index_bytes, struct ggmlq_metal_launch * launch) {
    int error = check_rows_and_values(rows, values, true);
    error = error ? error : check_indices(rows, values, indices, index_bytes, true);
    return error ? error : plan_rows(rows, values, indices, index_bytes, true, false, launch);
}

int ggmlq_metal_get_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * indices,
                         int index_bytes, bool rotated, struct ggmlq_metal_launch * launch) {
    int error = check_rows_and_values(rows, values, false);
    error = error ? error : check_indices(rows, values, indices, index_bytes, false);
    return error ? error : plan_rows(rows, values, indices, index_bytes, false, rotated, launch);
}

int ggmlq_metal_convert(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool rotated, struct ggmlq_metal_launch * launch) {
    const bool encoding = is_cache_type(dst->type);
    if (encoding && (rotated || is_cache_type(src->type))) {
        return GGMLQ_ERROR_TYPE;
    }
    const struct ggmlq_cuda_view * rows = encoding ? dst : src, * values = encoding ? src : dst;
    const int error = check_rows_and_values(rows, values, encoding);
    if (error) {
        return error;
    }
    const int64_t n = count(rows, rows->ne[0]/PLANE), m = count(values, values->ne[0]/PLANE);
    return n != m ? GGMLQ_ERROR_SHAPE : plan_rows(rows, values, NULL, 0, encoding, rotated, launch);
}

int ggmlq_metal_copy_rows(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, struct ggmlq_metal_launch * launch) {
    if (dst->type != src->type || !is_cache_type(dst->type)) {
        return GGMLQ_ERROR_TYPE;
    }
    const struct ggmlq_type_info * info = ggmlq_type_info_get(dst->type);
    int error = check_view(dst, info->block_length);
    error = error ? error : check_view(src, info->block_length);
    if (error) {
        return error;
    }
    if (dst->nb[0] != info->block_bytes || src->nb[0] != info->block_bytes) {
        return GGMLQ_ERROR_SHAPE;
    }
    const int64_t to = dst->ne[0]/info->block_length*(info->block_bytes/2), from = src->ne[0]/info->block_length*(info->block_bytes/2), n = count(dst, to);
    if (n < 0 || n != count(src, from)) {
        return GGMLQ_ERROR_SHAPE;
    }
    start(launch, COPY, 2, dst->type, dst->type, sizeof(launch->args.rows));
    launch->args.rows.rows   = make_walk(dst, to, 0);
    launch->args.rows.values = make_walk(src, from, 0);
    finish(launch, n, 1);
    return GGMLQ_OK;
}

int ggmlq_metal_rotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool back, struct ggmlq_metal_launch * launch) {
    if (!is_cache_type(type) || dst->type != GGMLQ_CUDA_F32 || src->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t length = ggmlq_type_info_get(type)->block_length;
    int error = check_view(dst, length);
    error = error ? error : check_view(src, length);
    if (error) {
        return error;
    }
    for (int i = 0; i < 4; ++i) {
        if (dst->ne[i] != src->ne[i]) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    const int64_t n = count(src, src->ne[0]/PLANE);
    if (n < 0) {
        return (int) n;
    }
    start(launch, ROTATE, 2, type, 0, sizeof(launch->args.rows));
    launch->args.rows.values = make_walk(dst, dst->ne[0]/PLANE, 0);
    launch->args.rows.rows   = make_walk(src, src->ne[0]/PLANE, 0);
    launch->args.rows.back   = back;
    finish(launch, n, GGMLQ_METAL_TEAM);
    return GGMLQ_OK;
}

/* --- products --------------------------------------------------------------------------------------------------- */

int ggmlq_metal_mul_mat(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * x,
                        struct ggmlq_metal_launch * launch) {
    if (!is_cache_type(rows->type) || x->type != GGMLQ_CUDA_F32 || out->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t length = ggmlq_type_info_get(rows->type)->block_length, n = x->ne[0];
    const int error = check_view(x, length);
    if (error) {
        return error;
    }
    const int64_t shared = n + n/length*(int64_t) sizeof(float); /* bytes of a column, scales of its blocks */
    if (rows->ne[0] != n || rows->ne[1] < 0 || rows->ne[1] > INT32_MAX || out->nb[0] != 4 || shared > GGMLQ_METAL_SHARED_BYTES ||
        out->ne[0] != rows->ne[1] || out->ne[1] != x->ne[1] || out->ne[2] != x->ne[2] || out->ne[3] != x->ne[3] ||
        (x->ne[2] > 0 && x->ne[3] > INT32_MAX/x->ne[2])) {
        return GGMLQ_ERROR_SHAPE;
    }
    for (int i = 2; i < 4; ++i) {
        if (rows->ne[i] < 0 || (rows->ne[i] == 0 ? x->ne[i] != 0 : x->ne[i] % rows->ne[i] != 0)) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    start(launch, MUL_MV, 3, rows->type, 0, sizeof(launch->args.product));
    if (x->ne[1] == 0 || x->ne[2] == 0 || x->ne[3] == 0 || rows->ne[1] == 0) {
        launch->kernel = NULL;
        return GGMLQ_OK;
    }
    struct ggmlq_metal_product_args * args = &launch->args.product;
    for (int i = 0; i < 3; ++i) {
        args->rows_nb[i] = rows->nb[i + 1];
        args->x_nb[i]    = x->nb[i + 1];
        args->out_nb[i]  = out->nb[i + 1];
    }
    args->n      = (uint32_t) n;
    args->n_rows = (uint32_t) rows->ne[1];
    args->ne2    = (uint32_t) x->ne[2];
    args->ratio2 = (uint32_t) (x->ne[2]/rows->ne[2]);
    args->ratio3 = (uint32_t) (x->ne[3]/rows->ne[3]);
    launch->groups[0] = (uint32_t) ((rows->ne[1] + GGMLQ_METAL_PRODUCT_ROWS - 1)/GGMLQ_METAL_PRODUCT_ROWS);
    launch->groups[1] = (uint32_t) x->ne[1];
    launch->groups[2] = (uint32_t) (x->ne[2]*x->ne[3]);
    launch->shared_bytes = (uint32_t) ((shared + 15)/16*16);
    return GGMLQ_OK;
}

/* --- attention -------------------------------------------------------------------------------------------------- */

static int check_attend(const struct ggmlq_attend_params * p) {
    const int error = ggmlq_attend_check_shapes(p);
    if (error) {
        return error;
    }
    if (p->c || (p->mask && (p->mask_heads > INT32_MAX || p->mask_seqs > INT32_MAX))) { /* the kernel doesn't know c */
        return GGMLQ_ERROR_SHAPE;
    }
    /* Query rows of all heads and sequences are numbered in 31 bits. */
    int64_t rows = 1;
    const int64_t factors[3] = { p->n_queries, p->n_heads, p->n_seqs };
    for (int i = 0; i < 3; ++i) {
        if (factors[i] > INT32_MAX || (factors[i] > 0 && rows > INT32_MAX/factors[i])) {
            return GGMLQ_ERROR_SHAPE;
        }
        rows *= factors[i];
    }
    return p->n_kv > INT32_MAX - 32*GGMLQ_METAL_SIMDGROUPS ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

static int64_t shared_floats(int64_t columns, int64_t planes_k, int64_t planes_v) {
    return columns*(PLANE*(planes_k + planes_v) + GGMLQ_METAL_SIMDGROUPS*(32 + 2));
}

int ggmlq_metal_attend(const struct ggmlq_attend_params * p, const struct ggmlq_cuda_view * indices, int64_t n_rows, struct ggmlq_metal_launch * launch) {
    const int error = check_attend(p);
    if (error) {
        return error;
    }
    if (indices && (indices->nb[0] != 4 || indices->ne[0] != p->n_kv || indices->ne[1] != p->n_queries || indices->ne[2] != p->n_seqs || indices->ne[3] != 1 ||
        n_rows < 0 || n_rows > INT32_MAX)) {
        return GGMLQ_ERROR_SHAPE;
    }
    start(launch, ATTEND, 7, p->type_k, p->type_v, sizeof(launch->args.attend));
    if (p->n_queries == 0 || p->n_heads == 0 || p->n_seqs == 0) {
        launch->kernel = NULL;
        return GGMLQ_OK;
    }
    const int64_t group = p->n_heads/p->n_heads_kv, planes_k = (p->head_size_k + PLANE - 1)/PLANE, planes_v = (p->head_size_v + PLANE - 1)/PLANE;
    const int64_t span = indices ? group : group*p->n_queries, units = indices ? p->n_queries : 1;

    /* As many columns as registers and threadgroup memory hold; fewer where that would leave most of a GPU idle. */
    int64_t columns = span < GGMLQ_METAL_MAX_COLUMNS ? span : GGMLQ_METAL_MAX_COLUMNS;
    const int64_t few_groups = 64;
    while (columns > 1 && (columns*((planes_v + 3)/4) > GGMLQ_METAL_MAX_PLANES ||
                           shared_floats(columns, planes_k, planes_v)*(int64_t) sizeof(float) > GGMLQ_METAL_SHARED_BYTES ||
                           (span + columns - 1)/columns*units*p->n_heads_kv*p->n_seqs < few_groups)) {
        columns /= 2;
    }

    struct ggmlq_metal_attend_args * args = &launch->args.attend;
    for (int i = 0; i < 3; ++i) {
        args->q_nb[i]    = p->q_stride[i];
        args->k_nb[i]    = p->k_stride[i];
        args->v_nb[i]    = p->v_stride[i];
        args->out_nb[i]  = p->out_stride[i];
        args->mask_nb[i] = p->mask_stride[i];
    }
    if (indices) {
        args->index_nb[0] = indices->nb[1];
        args->index_nb[1] = indices->nb[2];
    }
    args->n_kv       = (uint32_t) p->n_kv;
    args->n_rows     = (uint32_t) (indices ? n_rows : p->n_kv);
    args->group      = (uint32_t) group;
    args->seqs_ratio = (uint32_t) (p->n_seqs/p->n_seqs_kv);
    args->span       = (uint32_t) span;
    args->tiles      = (uint32_t) ((span + columns - 1)/columns);
    args->has_mask   = p->mask != NULL;
    args->has_sinks  = p->sinks != NULL;
    args->has_index  = indices != NULL;
    args->mask_heads = p->mask ? (uint32_t) p->mask_heads : 1;
    args->mask_seqs  = p->mask ? (uint32_t) p->mask_seqs : 1;
    if (p->max_bias > 0.0f) {
        int64_t heads = 1;
        while (2*heads <= p->n_heads) {
            heads *= 2;
        }
        args->alibi_heads    = (uint32_t) heads;
        args->alibi_base     = powf(2.0f, -p->max_bias/(float) heads);
        args->alibi_base_odd = powf(2.0f, -p->max_bias/2.0f/(float) heads);
    }
    args->scale   = p->scale;
    args->softcap = p->logit_softcap;
    launch->constants[GGMLQ_METAL_HEAD_K]  = (int32_t) p->head_size_k;
    launch->constants[GGMLQ_METAL_HEAD_V]  = (int32_t) p->head_size_v;
    launch->constants[GGMLQ_METAL_COLUMNS] = (int32_t) columns;
    launch->groups[0] = (uint32_t) (args->tiles*units);
    launch->groups[1] = (uint32_t) p->n_heads_kv;
    launch->groups[2] = (uint32_t) p->n_seqs;
    launch->shared_bytes = (uint32_t) ((shared_floats(columns, planes_k, planes_v)*(int64_t) sizeof(float) + 15)/16*16);
    return GGMLQ_OK;
}
