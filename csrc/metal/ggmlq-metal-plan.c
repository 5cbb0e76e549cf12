/* SPDX-License-Identifier: MIT
 *
 * See ggmlq-metal-plan.h.
 */
#include "ggmlq-metal-plan.h"

#include "ggmlq-cuda-checks.h"

#define ENCODE     "kernel_ggmlq_encode"
#define ROUND      "kernel_ggmlq_round"
#define DECODE     "kernel_ggmlq_decode"
#define ROTATE     "kernel_ggmlq_rotate"
#define FILL       "kernel_ggmlq_fill"
#define POSITIONAL "kernel_ggmlq_positional"
#define COPY       "kernel_ggmlq_copy"
#define MUL_MV     "kernel_ggmlq_mul_mv"
#define SELECT     "kernel_ggmlq_select"
#define ATTEND     "kernel_ggmlq_attend"
#define COMBINE    "kernel_ggmlq_combine"
#define INDEXER    "kernel_ggmlq_indexer"

const char * const * ggmlq_metal_kernels(void) {
    static const char * const kernels[] = { ENCODE, ROUND, DECODE, ROTATE, FILL, POSITIONAL, COPY, MUL_MV, SELECT, ATTEND, COMBINE, INDEXER, NULL };
    return kernels;
}

enum { PLANE = 32 };

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
    launch->groups[0]   = (uint32_t) ((n*each + GGMLQ_METAL_THREADS - 1)/GGMLQ_METAL_THREADS);
}

/* --- rows ------------------------------------------------------------------------------------------------------- */

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
    args->inverse    = !rotated;
    if (indices) {
        for (int i = 0; i < 3; ++i) {
            args->index_nb[i] = indices->nb[i];
        }
        args->index_bytes = (uint32_t) index_bytes;
        args->index_ne1   = (uint32_t) indices->ne[1];
        args->index_ne2   = (uint32_t) indices->ne[2];
    }
    args->n = (uint32_t) n;
    finish(launch, n, GGMLQ_METAL_TEAM);
    return GGMLQ_OK;
}

int ggmlq_metal_set_rows(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                         int index_bytes, struct ggmlq_metal_launch * launch) {
    int error = ggmlq_check_rows_and_values(rows, values, true);
    error = error ? error : ggmlq_check_indices(rows, values, indices, index_bytes, true);
    return error ? error : plan_rows(rows, values, indices, index_bytes, true, false, launch);
}

int ggmlq_metal_set_rows_for_queries(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                                     int index_bytes, const struct ggmlq_cuda_view * feedback, struct ggmlq_metal_launch * launch) {
    const int error = ggmlq_check_set_rows_for_queries(rows, values, indices, index_bytes, feedback);
    if (error) {
        return error;
    }
    const int64_t heads = feedback->ne[1], length = rows->ne[0]/heads, n = values->ne[1]*heads;
    if (n > INT32_MAX/32) {
        return GGMLQ_ERROR_SHAPE;
    }
    start(launch, ROUND, 4, rows->type, values->type, sizeof(launch->args.round));
    struct ggmlq_metal_round_args * args = &launch->args.round;
    args->rows_nb1       = rows->nb[1];
    args->values_nb1     = values->nb[1];
    args->index_nb0      = indices->nb[0];
    args->feedback_nb1   = feedback->nb[1];
    args->index_bytes    = (uint32_t) index_bytes;
    args->n_rows         = (uint32_t) rows->ne[1];
    args->n_tokens       = (uint32_t) values->ne[1];
    args->length         = (uint32_t) length;
    args->n              = (uint32_t) n;
    finish(launch, n, 32);
    launch->shared_bytes = (uint32_t) (GGMLQ_METAL_SIMDGROUPS*length*(int64_t) sizeof(float));
    return GGMLQ_OK;
}

int ggmlq_metal_get_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * indices,
                         int index_bytes, bool rotated, struct ggmlq_metal_launch * launch) {
    int error = ggmlq_check_rows_and_values(rows, values, false);
    error = error ? error : ggmlq_check_indices(rows, values, indices, index_bytes, false);
    return error ? error : plan_rows(rows, values, indices, index_bytes, false, rotated, launch);
}

int ggmlq_metal_convert(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool rotated, struct ggmlq_metal_launch * launch) {
    const bool encoding = ggmlq_is_cache_type(dst->type);
    if (encoding && (rotated || ggmlq_is_cache_type(src->type))) {
        return GGMLQ_ERROR_TYPE;
    }
    const struct ggmlq_cuda_view * rows = encoding ? dst : src, * values = encoding ? src : dst;
    const int error = ggmlq_check_rows_and_values(rows, values, encoding);
    if (error) {
        return error;
    }
    const int64_t n = count(rows, rows->ne[0]/PLANE), m = count(values, values->ne[0]/PLANE);
    return n != m ? GGMLQ_ERROR_SHAPE : plan_rows(rows, values, NULL, 0, encoding, rotated, launch);
}

int ggmlq_metal_to_f16(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, struct ggmlq_metal_launch * launch) {
    const struct ggmlq_type_info * info = ggmlq_type_info_get(src->type);
    if (dst->type != GGMLQ_CUDA_F16 || info == NULL) {
        return GGMLQ_ERROR_TYPE;
    }
    const int error = ggmlq_check_view(dst, PLANE);
    if (error) {
        return error;
    }
    for (int i = 0; i < 4; ++i) {
        if (dst->ne[i] != src->ne[i]) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    return src->ne[0] % info->block_length != 0 ? GGMLQ_ERROR_LENGTH : plan_rows(src, dst, NULL, 0, false, true, launch);
}

int ggmlq_metal_fill(const struct ggmlq_cuda_view * to, const struct ggmlq_cuda_view * from, float factor, struct ggmlq_metal_launch * launch) {
    if (to->type != from->type || (to->type != GGMLQ_CUDA_F32 && to->type != GGMLQ_CUDA_F16)) {
        return GGMLQ_ERROR_TYPE;
    }
    int error = ggmlq_check_view(to, PLANE);
    error = error ? error : ggmlq_check_view(from, 1);
    if (error) {
        return error;
    }
    if (from->ne[0] > to->ne[0] || from->ne[1] != to->ne[1] || from->ne[2] != to->ne[2] || from->ne[3] != to->ne[3]) {
        return GGMLQ_ERROR_SHAPE;
    }
    const int64_t n = count(to, to->ne[0]/PLANE);
    if (n < 0) {
        return (int) n;
    }
    start(launch, FILL, 2, to->type, 0, sizeof(launch->args.fill));
    struct ggmlq_metal_fill_args * args = &launch->args.fill;
    args->to   = make_walk(to, to->ne[0]/PLANE, 0);
    args->from = make_walk(from, 0, 0);
    args->size   = (uint32_t) from->ne[0];
    args->factor = factor;
    args->n      = (uint32_t) n;
    finish(launch, n, GGMLQ_METAL_TEAM);
    return GGMLQ_OK;
}

int ggmlq_metal_positional(const struct ggmlq_cuda_view * to, const struct ggmlq_attend_params * p, float factor, struct ggmlq_metal_launch * launch) {
    if (to->type != GGMLQ_CUDA_F16) {
        return GGMLQ_ERROR_TYPE;
    }
    const int error = ggmlq_check_view(to, PLANE);
    if (error) {
        return error;
    }
    if (p->n_pairs < 1 || 2*p->n_pairs > to->ne[0] || to->ne[1] != p->n_kv || to->ne[3] != p->n_seqs_kv) {
        return GGMLQ_ERROR_SHAPE;
    }
    const int64_t n = count(to, to->ne[0]/PLANE);
    if (n < 0) {
        return (int) n;
    }
    start(launch, POSITIONAL, 4, 0, 0, sizeof(launch->args.positional));
    struct ggmlq_metal_positional_args * args = &launch->args.positional;
    args->to               = make_walk(to, to->ne[0]/PLANE, 0);
    args->positions_nb     = p->positions_stride;
    args->part_nb          = p->part_stride;
    args->n_pairs          = (uint32_t) p->n_pairs;
    args->pairs_are_halves = p->pairs_are_halves != 0;
    args->has_part         = p->part != NULL;
    args->factor           = factor;
    args->n                = (uint32_t) n;
    finish(launch, n, GGMLQ_METAL_TEAM);
    return GGMLQ_OK;
}

int ggmlq_metal_copy_rows(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, struct ggmlq_metal_launch * launch) {
    if (dst->type != src->type || !ggmlq_is_cache_type(dst->type)) {
        return GGMLQ_ERROR_TYPE;
    }
    const struct ggmlq_type_info * info = ggmlq_type_info_get(dst->type);
    int error = ggmlq_check_view(dst, info->block_length);
    error = error ? error : ggmlq_check_view(src, info->block_length);
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
    launch->args.rows.n      = (uint32_t) n;
    finish(launch, n, 1);
    return GGMLQ_OK;
}

int ggmlq_metal_rotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool back, struct ggmlq_metal_launch * launch) {
    const int error = ggmlq_check_rotation(type, dst, src);
    if (error) {
        return error;
    }
    const int64_t n = count(src, src->ne[0]/PLANE);
    if (n < 0) {
        return (int) n;
    }
    start(launch, ROTATE, 2, type, 0, sizeof(launch->args.rows));
    launch->args.rows.values = make_walk(dst, dst->ne[0]/PLANE, 0);
    launch->args.rows.rows   = make_walk(src, src->ne[0]/PLANE, 0);
    launch->args.rows.inverse = back;
    launch->args.rows.n       = (uint32_t) n;
    finish(launch, n, GGMLQ_METAL_TEAM);
    return GGMLQ_OK;
}

/* --- products --------------------------------------------------------------------------------------------------- */

int ggmlq_metal_mul_mat(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * x,
                        struct ggmlq_metal_launch * launch) {
    if (!ggmlq_is_cache_type(rows->type) || x->type != GGMLQ_CUDA_F32 || out->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t length = ggmlq_type_info_get(rows->type)->block_length, n = x->ne[0];
    const int error = ggmlq_check_view(x, length);
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

/* --- the lightning indexer --------------------------------------------------------------------------------------- */

int ggmlq_metal_indexer(const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                        const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask, struct ggmlq_metal_launch * launch) {
    const int error = ggmlq_check_indexer(scores, q, rows, weights, mask);
    if (error) {
        return error;
    }
    start(launch, INDEXER, 5, rows->type, 0, sizeof(launch->args.indexer));
    if (q->ne[2] == 0 || q->ne[3] == 0 || rows->ne[2] == 0) {
        launch->kernel = NULL;
        return GGMLQ_OK;
    }
    struct ggmlq_metal_indexer_args * args = &launch->args.indexer;
    for (int i = 0; i < 3; ++i) {
        args->q_nb[i] = q->nb[i + 1];
    }
    for (int i = 0; i < 2; ++i) {
        args->rows_nb[i]    = rows->nb[i + 2];
        args->weights_nb[i] = weights->nb[2*i + 1];
        args->mask_nb[i]    = mask->nb[2*i + 1];
        args->scores_nb[i]  = scores->nb[2*i + 1];
    }
    args->heads     = (uint32_t) q->ne[1];
    args->n_rows    = (uint32_t) rows->ne[2];
    args->mask_seqs = (uint32_t) mask->ne[3];
    launch->groups[0] = (uint32_t) ((rows->ne[2] + GGMLQ_METAL_INDEXER_ROWS - 1)/GGMLQ_METAL_INDEXER_ROWS);
    launch->groups[1] = (uint32_t) q->ne[2];
    launch->groups[2] = (uint32_t) q->ne[3];
    launch->shared_bytes = GGMLQ_METAL_INDEXER_HEADS*(GGMLQ_METAL_INDEXER_LENGTH + GGMLQ_METAL_INDEXER_LENGTH/PLANE*(int) sizeof(float));
    return GGMLQ_OK;
}

/* --- attention -------------------------------------------------------------------------------------------------- */

/* Threadgroups wanted at least, by fewer columns in each; up to, by splitting tokens. Guesses: no Apple GPU was at hand. */
enum { FEW_GROUPS = 64, MANY_GROUPS = 256 };
enum { CHUNK = 32*GGMLQ_METAL_SIMDGROUPS /* tokens that all simdgroups of a threadgroup take at once */ };

static int64_t up(int64_t n, int64_t unit) { return (n + unit - 1)/unit; }

/* planes: of K and of V. */
static int64_t shared_floats(int64_t columns, int64_t planes, int64_t n_pairs) {
    return columns*(PLANE*planes + 2*n_pairs + GGMLQ_METAL_SIMDGROUPS*(32 + 2)) + 2*n_pairs;
}

static int check_attend(const struct ggmlq_attend_params * p, int64_t most) {
    const int error = ggmlq_check_attend(p);
    if (error) {
        return error;
    }
    if (p->n_kv > INT32_MAX - CHUNK || most < 0 || most > INT32_MAX - CHUNK ||
        (p->mask && (p->mask_heads > INT32_MAX || p->mask_seqs > INT32_MAX)) || (most > 0 && (!p->mask || p->mask_heads != 1))) {
        return GGMLQ_ERROR_SHAPE;
    }
    return GGMLQ_OK;
}

static void plan_select(const struct ggmlq_attend_params * p, int64_t most, struct ggmlq_metal_launch * launch) {
    start(launch, SELECT, 2, 0, 0, sizeof(launch->args.select));
    struct ggmlq_metal_select_args * args = &launch->args.select;
    args->mask_nb[0] = p->mask_stride[0];
    args->mask_nb[1] = p->mask_stride[2];
    args->n_kv       = (uint32_t) p->n_kv;
    args->n_queries  = (uint32_t) p->n_queries;
    args->mask_seqs  = (uint32_t) p->mask_seqs;
    args->most       = (uint32_t) most;
    launch->groups[0] = (uint32_t) p->n_queries;
    launch->groups[1] = (uint32_t) p->n_seqs;
    launch->shared_bytes = GGMLQ_METAL_SIMDGROUPS*sizeof(uint32_t);
}

int ggmlq_metal_attend(const struct ggmlq_attend_params * p, int64_t most, struct ggmlq_metal_attention * attention) {
    memset(attention, 0, sizeof(*attention));
    const int error = check_attend(p, most);
    if (error || p->n_queries == 0 || p->n_heads == 0 || p->n_seqs == 0) {
        return error;
    }
    if (most > 0) {
        plan_select(p, most, &attention->select);
        attention->parts_at = up(p->n_queries*p->n_seqs*most*(int64_t) sizeof(int32_t), 16)*16;
    }
    const int64_t group = p->n_heads/p->n_heads_kv, planes_v = up(p->head_size_v, PLANE);
    const int64_t planes = up(p->head_size_k, PLANE) + planes_v;
    const int64_t n_kv = most > 0 ? most : p->n_kv, chunks = n_kv > CHUNK ? up(n_kv, CHUNK) : 1;
    const int64_t span = most > 0 ? group : group*p->n_queries, units = (most > 0 ? p->n_queries : 1)*p->n_heads_kv*p->n_seqs;

    /* As many columns as registers and threadgroup memory hold: each of them saves decoding the rows once more. */
    int64_t columns = span < GGMLQ_METAL_MAX_COLUMNS ? span : GGMLQ_METAL_MAX_COLUMNS;
    while (columns > 1 && (columns*up(planes_v, 4) > GGMLQ_METAL_MAX_PLANES ||
                           shared_floats(columns, planes, p->n_pairs)*(int64_t) sizeof(float) > GGMLQ_METAL_SHARED_BYTES ||
                           up(span, columns)*units*chunks < FEW_GROUPS)) {
        columns /= 2;
    }
    const int64_t tiles = up(span, columns);
    int64_t splits = MANY_GROUPS/(tiles*units);
    splits = splits < 1 ? 1 : splits > chunks ? chunks : splits;
    const int64_t split_kv = up(chunks, splits)*CHUNK;
    splits = up(chunks*CHUNK, split_kv);

    struct ggmlq_metal_launch * launch = &attention->attend;
    start(launch, ATTEND, 11, p->type_k, p->type_v, sizeof(launch->args.attend));
    struct ggmlq_metal_attend_args * args = &launch->args.attend;
    for (int i = 0; i < 3; ++i) {
        args->q_nb[i]    = p->q_stride[i];
        args->k_nb[i]    = p->k_stride[i];
        args->v_nb[i]    = p->v_stride[i];
        args->out_nb[i]  = p->out_stride[i];
        args->mask_nb[i] = p->mask_stride[i];
    }
    args->n_kv       = (uint32_t) n_kv;
    args->n_rows     = (uint32_t) p->n_kv;
    args->n_splits   = (uint32_t) splits;
    args->split_kv   = (uint32_t) split_kv;
    args->group      = (uint32_t) group;
    args->heads_kv   = (uint32_t) p->n_heads_kv;
    args->n_queries  = (uint32_t) p->n_queries;
    args->seqs_ratio = (uint32_t) (p->n_seqs/p->n_seqs_kv);
    args->span       = (uint32_t) span;
    args->tiles      = (uint32_t) tiles;
    args->has_mask   = p->mask != NULL;
    args->has_sinks  = p->sinks != NULL;
    args->has_list   = most > 0;
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
    if (p->n_pairs > 0) {
        for (int i = 0; i < 3; ++i) {
            args->w_nb[i] = p->w_stride[i];
        }
        args->positions_nb     = p->positions_stride;
        args->part_nb          = p->part_stride;
        args->has_part         = p->part != NULL;
        args->pairs_are_halves = p->pairs_are_halves != 0;
        launch->constants[GGMLQ_METAL_PAIRS] = (int32_t) p->n_pairs;
    }
    args->scale      = p->scale;
    args->softcap    = p->logit_softcap;
    args->query_rows = (uint32_t) (p->n_queries*p->n_heads*p->n_seqs);
    launch->constants[GGMLQ_METAL_HEAD_K]  = (int32_t) p->head_size_k;
    launch->constants[GGMLQ_METAL_HEAD_V]  = (int32_t) p->head_size_v;
    launch->constants[GGMLQ_METAL_COLUMNS] = (int32_t) columns;
    launch->groups[0] = (uint32_t) (tiles*splits*(most > 0 ? p->n_queries : 1));
    launch->groups[1] = (uint32_t) p->n_heads_kv;
    launch->groups[2] = (uint32_t) p->n_seqs;
    launch->shared_bytes = (uint32_t) (up(shared_floats(columns, planes, p->n_pairs)*(int64_t) sizeof(float), 16)*16);

    attention->workspace_bytes = attention->parts_at;
    if (splits > 1) {
        start(&attention->combine, COMBINE, 3, 0, p->type_v, sizeof(launch->args.attend));
        attention->combine.args.attend = *args;
        attention->combine.constants[GGMLQ_METAL_HEAD_V] = (int32_t) p->head_size_v;
        attention->combine.groups[0] = (uint32_t) up(args->query_rows*planes_v*GGMLQ_METAL_TEAM, GGMLQ_METAL_THREADS);
        attention->workspace_bytes += args->query_rows*splits*(planes_v*PLANE + GGMLQ_METAL_PART_EXTRA)*(int64_t) sizeof(float);
    }
    return GGMLQ_OK;
}

/* --- attention by way of f16 ------------------------------------------------------------------------------------ */

bool ggmlq_metal_attend_wants_f16(const struct ggmlq_attend_params * p, int64_t sizes[2]) {
    /* Head sizes, of K and of V, for which the f16 kernels of every tree's ggml-metal are there: tests/test_metal.py looks. Ascending. */
    static const int64_t known_sizes[][2] = {
        { 32, 32 }, { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 192, 192 }, { 256, 256 }, { 320, 256 }, { 512, 512 }, { 576, 512 },
    };
    const int64_t few_queries = 32; /* as for upstream's own quantized types; it stops the program from 65536 on */
    if (p->n_queries < few_queries || p->n_queries >= 65536 || p->n_kv == 0 || check_attend(p, 0) != GGMLQ_OK) {
        return false;
    }
    const int64_t wanted = p->head_size_k + 2*p->n_pairs;
    for (size_t i = 0; i < sizeof(known_sizes)/sizeof(known_sizes[0]); ++i) {
        sizes[0] = known_sizes[i][0];
        sizes[1] = known_sizes[i][1];
        if (p->n_pairs > 0 ? wanted <= sizes[0] && p->head_size_v <= sizes[1] : wanted == sizes[0] && p->head_size_v == sizes[1]) {
            return true;
        }
    }
    return false;
}
