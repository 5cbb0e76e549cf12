/* SPDX-License-Identifier: MIT
 *
 * ggmlq in ggml-cpu: what DeepSeek's sparse attention asks for. See docs/DEEPSEEK.md.
 */
#include "ggml-cpu-ggmlq.h"
#include "ggml-cpu-impl.h"
#include "ggml-ggmlq-attend.h"

/* --- attention over selected rows ------------------------------------------------------------------------------- */

/* Columns of a mask row that aren't hidden; the first `most` of them go to columns. */
static int64_t visible_columns(const uint16_t * mask, int64_t n, int32_t * columns, int64_t most) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (mask[i] != 0xfc00) { /* minus infinity */
            if (count < most) {
                columns[count] = (int32_t) i;
            }
            ++count;
        }
    }
    return count;
}

/* Where the rows of one query token are gathered. */
struct selection {
    uint8_t  * k;
    uint8_t  * v;    /* k: V is part of K */
    uint16_t * mask;
};

static int64_t aligned(int64_t bytes) { return (bytes + 63)/64*64; }

static bool is_part_of_k(const struct ggmlq_attend_params * p) {
    bool same = p->v == p->k && p->type_v == p->type_k && p->head_size_v <= p->head_size_k;
    for (int i = 0; i < 3; ++i) {
        same = same && p->v_stride[i] == p->k_stride[i];
    }
    return same;
}


/* Query token iq of sequence is, against the `count` rows of a selection. */
static struct ggmlq_attend_params one_query(const struct ggmlq_attend_params * p, int64_t iq, int64_t is) {
    struct ggmlq_attend_params one = *p;
    const int64_t is_kv = is/(p->n_seqs/p->n_seqs_kv);
    one.n_queries = one.n_seqs = one.n_seqs_kv = one.mask_seqs = 1;
    one.q    = (const float *) ((const uint8_t *) p->q + iq*p->q_stride[0] + is*p->q_stride[2]);
    one.out  = (float *) ((uint8_t *) p->out + iq*p->out_stride[0] + is*p->out_stride[2]);
    one.k    = (const uint8_t *) p->k + is_kv*p->k_stride[2];
    one.v    = (const uint8_t *) p->v + is_kv*p->v_stride[2];
    one.mask = (const uint16_t *) ((const uint8_t *) p->mask + iq*p->mask_stride[0] + is%p->mask_seqs*p->mask_stride[2]);
    return one;
}

/* Copies rows ith, ith + nth, .. as the bytes that they are. */
static void gather(struct ggmlq_attend_params * one, const struct selection * s, const int32_t * columns, int64_t count, int ith, int nth) {
    const int64_t k_bytes = ggmlq_row_bytes(one->type_k, one->head_size_k);
    const int64_t v_bytes = ggmlq_row_bytes(one->type_v, one->head_size_v);
    for (int64_t i = ith; i < count; i += nth) {
        memcpy(s->k + i*k_bytes, (const uint8_t *) one->k + columns[i]*one->k_stride[0], (size_t) k_bytes);
        if (s->v != s->k) {
            memcpy(s->v + i*v_bytes, (const uint8_t *) one->v + columns[i]*one->v_stride[0], (size_t) v_bytes);
        }
        s->mask[i] = one->mask[columns[i]];
    }
    one->n_kv        = count;
    one->k           = s->k;
    one->v           = s->v;
    one->mask        = s->mask;
    one->k_stride[0] = k_bytes;
    one->v_stride[0] = s->v == s->k ? k_bytes : v_bytes;
}

bool ggmlq_ggml_cpu_attend_selected(const struct ggml_compute_params * params, const struct ggml_tensor * dst, const struct ggmlq_attend_params * p) {
    const int64_t most = ggmlq_ggml_attend_most_visible(dst);
    if (most == 0 || p->n_kv <= most || !p->mask || p->n_heads_kv != 1 || p->mask_heads != 1 || p->n_pairs > 0) {
        return false;
    }
    /* Threads work on a query token each, or, if there are fewer tokens, all on one. The workspace is what ggml set aside for its own
     * kernel: tiles of floats for each thread, which is more than the rows of one token take in every model so far. */
    const int64_t tokens  = p->n_queries*p->n_seqs;
    const bool    alone   = tokens >= params->nth;
    const int     ith     = alone ? 0 : params->ith, nth = alone ? 1 : params->nth;
    const int64_t k_bytes = aligned(most*ggmlq_row_bytes(p->type_k, p->head_size_k));
    const int64_t v_bytes = is_part_of_k(p) ? 0 : aligned(most*ggmlq_row_bytes(p->type_v, p->head_size_v));
    const int64_t rows    = k_bytes + v_bytes + aligned(2*most), list = aligned(4*most);
    uint8_t *     base    = (uint8_t *) (((uintptr_t) params->wdata + 63)/64*64);
    if (params->nth*list + (alone ? params->nth : 1)*rows > (int64_t) params->wsize - (base - (uint8_t *) params->wdata)) {
        return false;
    }
    int32_t * columns = (int32_t *) (base + params->ith*list);
    base += params->nth*list + (alone ? params->ith*rows : 0);
    const struct selection s = { base, v_bytes ? base + k_bytes : base, (uint16_t *) (base + k_bytes + v_bytes) };

    for (int64_t token = alone ? params->ith : 0; token < tokens; token += alone ? params->nth : 1) {
        struct ggmlq_attend_params one = one_query(p, token%p->n_queries, token/p->n_queries);
        const int64_t count = visible_columns(one.mask, one.n_kv, columns, most);
        if (count <= most) {
            gather(&one, &s, columns, count, ith, nth);
        } /* else the graph's promise doesn't hold, and all rows are looked at */
        if (!alone) {
            ggml_barrier(params->threadpool);
        }
        ggmlq_ggml_cpu_require_ok(ggmlq_attend(&one, ith, nth));
        if (!alone) {
            ggml_barrier(params->threadpool);
        }
    }
    return true;
}

/* --- the lightning indexer -------------------------------------------------------------------------------------- */

/* dst[row, token] = sum over heads of weight[head, token] * max(0, <q[head, token], k[row]>) + mask[row, token]. Heads are taken in
 * groups whose 8-bit queries fit on the stack, rows in tiles whose scores do. */
enum { INDEXER_QUERY_BYTES = 16384, INDEXER_ROWS = 64, INDEXER_HEADS = 64 };

bool ggmlq_ggml_cpu_lightning_indexer(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    const struct ggml_tensor * q = dst->src[0];
    const struct ggml_tensor * k = dst->src[1];
    const struct ggml_tensor * w = dst->src[2];
    const struct ggml_tensor * m = dst->src[3];
    if (!ggmlq_ggml_is_cache_type(k->type)) {
        return false;
    }
    const int     type        = (int) k->type;
    const int64_t n           = q->ne[0], n_heads = q->ne[1], n_tokens = q->ne[2], n_seqs = q->ne[3], n_rows = k->ne[2];
    const int64_t query_bytes = ggmlq_row_bytes(ggmlq_type_info_get(type)->query_type, n);
    if (query_bytes <= 0 || query_bytes > INDEXER_QUERY_BYTES || q->type != GGML_TYPE_F32 || w->type != GGML_TYPE_F32 || m->type != GGML_TYPE_F16 ||
        q->nb[0] != sizeof(float) || w->nb[0] != sizeof(float) || m->nb[0] != sizeof(ggml_fp16_t)) {
        return false;
    }
    const int64_t fit        = INDEXER_QUERY_BYTES/query_bytes;
    const int64_t each       = fit < INDEXER_HEADS ? fit : INDEXER_HEADS;
    const int64_t per_thread = (n_rows + params->nth - 1)/params->nth;
    const int64_t first      = per_thread*params->ith;
    const int64_t last       = first + per_thread < n_rows ? first + per_thread : n_rows;

    uint8_t queries[INDEXER_QUERY_BYTES];
    float   scores[INDEXER_HEADS*INDEXER_ROWS];
    for (int64_t seq = 0; seq < n_seqs && first < last; ++seq) {
        for (int64_t token = 0; token < n_tokens; ++token) {
            const float       * weights = (const float *) ((const char *) w->data + token*w->nb[1] + seq*w->nb[3]);
            const ggml_fp16_t * mask    = (const ggml_fp16_t *) ((const char *) m->data + token*m->nb[1] + seq%m->ne[3]*m->nb[3]);
            float             * out     = (float *) ((char *) dst->data + token*dst->nb[1] + seq*dst->nb[3]);
            for (int64_t head = 0; head < n_heads; head += each) {
                const int64_t heads = n_heads - head < each ? n_heads - head : each;
                for (int64_t i = 0; i < heads; ++i) {
                    const float * x = (const float *) ((const char *) q->data + (head + i)*q->nb[1] + token*q->nb[2] + seq*q->nb[3]);
                    ggmlq_ggml_cpu_require_ok(ggmlq_cpu_encode_query_row(type, x, queries + i*query_bytes, n));
                }
                for (int64_t row = first; row < last; row += INDEXER_ROWS) {
                    const int64_t rows = last - row < INDEXER_ROWS ? last - row : INDEXER_ROWS;
                    ggmlq_ggml_cpu_require_ok(ggmlq_mul_mat_vec(type, (const char *) k->data + row*k->nb[2] + seq*k->nb[3], (int64_t) k->nb[2], rows,
                                                                queries, heads, n, scores));
                    for (int64_t r = 0; r < rows; ++r) {
                        float sum = head == 0 ? ggml_fp16_to_fp32(mask[row + r]) : out[row + r];
                        for (int64_t i = 0; i < heads; ++i) {
                            const float s = scores[i*rows + r];
                            sum += (s > 0.0f ? s : 0.0f)*weights[head + i];
                        }
                        out[row + r] = sum;
                    }
                }
            }
        }
    }
    return true;
}
