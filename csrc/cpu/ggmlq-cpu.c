/* SPDX-License-Identifier: MIT
 *
 * CPU kernels on encoded rows: dot products and attention, written for the compiler's vectorizer. In llama.cpp this file
 * is part of ggml-cpu and so compiled with its instruction set. Integer sums are exact and so the same everywhere;
 * float sums may be fused, which docs/FORMAT.md leaves free here.
 */
#include "ggmlq-block.h"
#include "ggmlq.h"

#ifdef __FMA__
#    define MADD(a, b, c) __builtin_fmaf(a, b, c)
#else
#    define MADD(a, b, c) ((a)*(b) + (c))
#endif

static inline bool is_cache_type(int type) { return type == GGMLQ_TYPE_TQ3_0 || type == GGMLQ_TYPE_PLANAR3; }

/* --- dot product ------------------------------------------------------------------------------------------------ */

/* An encoded row, unpacked: levels of all values and one factor per block. */
struct unpacked_row {
    int8_t levels[GGMLQ_ATTEND_MAX_HEAD_SIZE];
    float  scales[GGMLQ_ATTEND_MAX_HEAD_SIZE/32];
};

static inline int32_t dot_levels(const int8_t * levels, const int8_t * qs, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; ++i) {
        sum += levels[i]*qs[i];
    }
    return sum;
}

static void unpack_row(int type, const void * row, int64_t n, struct unpacked_row * u) {
    if (type == GGMLQ_TYPE_TQ3_0) {
        for (int64_t ib = 0; ib < n/32; ++ib) {
            u->scales[ib] = ggmlq_unpack_block_tq3_0((const struct ggmlq_block_tq3_0 *) row + ib, u->levels + 32*ib);
        }
    } else {
        for (int64_t ib = 0; ib < n/128; ++ib) {
            u->scales[ib] = ggmlq_unpack_block_planar3((const struct ggmlq_block_planar3 *) row + ib, u->levels + 128*ib);
        }
    }
}

/* sum + <row, query>, blocks added in ascending order. */
static float dot_unpacked(int type, const struct unpacked_row * u, const void * query, int64_t n, float sum) {
    if (type == GGMLQ_TYPE_TQ3_0) {
        const struct ggmlq_block_tq3_0_q8 * q = query;
        for (int64_t ib = 0; ib < n/32; ++ib) {
            sum += u->scales[ib] * q[ib].d * (float) dot_levels(u->levels + 32*ib, q[ib].qs, 32);
        }
    } else {
        const struct ggmlq_block_planar3_q8 * q = query;
        for (int64_t ib = 0; ib < n/128; ++ib) {
            sum += u->scales[ib] * q[ib].d * (float) dot_levels(u->levels + 128*ib, q[ib].qs, 128);
        }
    }
    return sum;
}

/* Rows longer than a head are taken in pieces. The pieces are whole blocks of both types. */
_Static_assert(GGMLQ_ATTEND_MAX_HEAD_SIZE % GGMLQ_MAX_BLOCK_LENGTH == 0, "pieces are whole blocks");

int ggmlq_mul_mat_vec(int type, const void * rows, int64_t row_stride, int64_t n_rows,
                      const void * queries, int64_t n_queries, int64_t n, float * out) {
    if (!is_cache_type(type)) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t row_bytes = ggmlq_row_bytes(type, n);
    if (row_bytes < 0) {
        return (int) row_bytes;
    }
    const int     query_type  = ggmlq_type_info_get(type)->query_type;
    const int64_t query_bytes = ggmlq_row_bytes(query_type, n);

    struct unpacked_row u;
    for (int64_t ir = 0; ir < n_rows; ++ir) {
        const uint8_t * row = (const uint8_t *) rows + ir*row_stride;
        for (int64_t iq = 0; iq < n_queries; ++iq) {
            out[iq*n_rows + ir] = 0.0f;
        }
        for (int64_t start = 0; start < n; start += GGMLQ_ATTEND_MAX_HEAD_SIZE) {
            const int64_t count = n - start < GGMLQ_ATTEND_MAX_HEAD_SIZE ? n - start : GGMLQ_ATTEND_MAX_HEAD_SIZE;
            unpack_row(type, row + ggmlq_row_bytes(type, start), count, &u);
            for (int64_t iq = 0; iq < n_queries; ++iq) {
                const uint8_t * query = (const uint8_t *) queries + iq*query_bytes + ggmlq_row_bytes(query_type, start);
                out[iq*n_rows + ir] = dot_unpacked(type, &u, query, count, out[iq*n_rows + ir]);
            }
        }
    }
    return GGMLQ_OK;
}

int ggmlq_dot_row(int type, const void * row, const void * query, int64_t n, float * result) {
    return ggmlq_mul_mat_vec(type, row, 0, 1, query, 1, n, result);
}

/* --- attention -------------------------------------------------------------------------------------------------- */

/* Every K and V row is fetched and unpacked once for up to MAX_ROWS query rows: all heads of the GQA group, and as many
 * query tokens as fit. Scores of TILE tokens are collected before the running maximum is touched (online softmax). V is
 * summed in the space of its rotation, which is undone once per output row. The working set is about 90 KiB of stack. */
enum { MAX_ROWS = 8, TILE = 32, MAX_HEAD = GGMLQ_ATTEND_MAX_HEAD_SIZE };

struct foreign_block_q4_0 { uint8_t d[2]; uint8_t qs[16]; };
struct foreign_block_q8_0 { uint8_t d[2]; int8_t  qs[32]; };

/* A row of any type -> floats, in the rotated space for our types. */
static void decode_any_row(int type, const void * row, float * y, int64_t n) {
    switch (type) {
        case GGMLQ_TYPE_F32:
            memcpy(y, row, sizeof(float)*(size_t) n);
            break;
        case GGMLQ_TYPE_F16:
            for (int64_t i = 0; i < n; ++i) {
                uint16_t h;
                memcpy(&h, (const uint8_t *) row + 2*i, sizeof(h));
                y[i] = ggmlq_half_to_float(h);
            }
            break;
        case GGMLQ_TYPE_Q4_0:
            for (int64_t ib = 0; ib < n/32; ++ib) {
                const struct foreign_block_q4_0 * block = (const struct foreign_block_q4_0 *) row + ib;
                const float d = ggmlq_half_to_float(ggmlq_load_u16(block->d));
                for (int i = 0; i < 16; ++i) {
                    y[32*ib + i]      = d * (float) ((block->qs[i] & 15) - 8);
                    y[32*ib + i + 16] = d * (float) ((block->qs[i] >> 4) - 8);
                }
            }
            break;
        case GGMLQ_TYPE_Q8_0:
            for (int64_t ib = 0; ib < n/32; ++ib) {
                const struct foreign_block_q8_0 * block = (const struct foreign_block_q8_0 *) row + ib;
                const float d = ggmlq_half_to_float(ggmlq_load_u16(block->d));
                for (int i = 0; i < 32; ++i) {
                    y[32*ib + i] = d * (float) block->qs[i];
                }
            }
            break;
        default:
            ggmlq_decode_row_rotated(type, row, y, n);
    }
}

static float dot_floats(const float * a, const float * b, int64_t n) {
    float lanes[16] = { 0 };
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; ++l) {
            lanes[l] = MADD(a[i + l], b[i + l], lanes[l]);
        }
    }
    float sum = 0.0f;
    for (; i < n; ++i) {
        sum = MADD(a[i], b[i], sum);
    }
    for (int l = 0; l < 16; ++l) {
        sum += lanes[l];
    }
    return sum;
}

/* What attention keeps for one query row. */
struct attend_row {
    int64_t          token, head;
    const uint16_t * mask;
    float            slope;          /* ALiBi factor of the mask */
    float            max, sum;       /* running maximum of the scores, sum of exp(score - max) */
    float            scores[TILE];
};

struct attend_scratch {
    struct attend_row rows[MAX_ROWS];
    union {                          /* the query as the K rows want it */
        struct ggmlq_block_tq3_0_q8   tq3_0[MAX_HEAD/32];
        struct ggmlq_block_planar3_q8 planar3[MAX_HEAD/128];
        float                         floats[MAX_HEAD];
    } queries[MAX_ROWS];
    float acc[MAX_ROWS][MAX_HEAD];
    float values[MAX_HEAD];          /* one decoded row */
    struct unpacked_row unpacked;
};

int ggmlq_attend_check(const struct ggmlq_attend_params * p) {
    const int     types[2] = { p->type_k,      p->type_v      };
    const int64_t sizes[2] = { p->head_size_k, p->head_size_v };
    for (int i = 0; i < 2; ++i) {
        switch (types[i]) {
#define GGMLQ_TYPE(NAME, name, id, length, bytes, description)         case id: break;
#define GGMLQ_FOREIGN_TYPE(NAME, name, id, length, bytes, description) case id: break;
#include "ggmlq-types.def"
            default: return GGMLQ_ERROR_TYPE;
        }
        if (ggmlq_row_bytes(types[i], sizes[i]) <= 0) {
            return GGMLQ_ERROR_LENGTH;
        }
        if (sizes[i] > MAX_HEAD) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    if (p->n_kv < 0 || p->n_queries < 0 || p->n_heads_kv < 1 || p->n_seqs_kv < 1 || p->n_heads < 0 || p->n_seqs < 0 ||
        p->n_heads % p->n_heads_kv != 0 || p->n_seqs % p->n_seqs_kv != 0 ||
        (p->mask && (p->mask_heads < 1 || p->mask_seqs < 1))) {
        return GGMLQ_ERROR_SHAPE;
    }
    return GGMLQ_OK;
}

static float alibi_slope(const struct ggmlq_attend_params * p, int64_t head) {
    if (p->max_bias <= 0.0f) {
        return 1.0f;
    }
    int64_t n_pow2 = 1;
    while (2*n_pow2 <= p->n_heads) {
        n_pow2 *= 2;
    }
    return head < n_pow2 ? powf(powf(2.0f, -p->max_bias       /(float) n_pow2), (float) (head + 1))
                         : powf(powf(2.0f, -p->max_bias / 2.0f/(float) n_pow2), (float) (2*(head - n_pow2) + 1));
}

static const void * at(const void * base, const int64_t stride[3], int64_t i0, int64_t i1, int64_t i2) {
    return (const uint8_t *) base + i0*stride[0] + i1*stride[1] + i2*stride[2];
}

/* Scores of tokens [start, start + count) for every row; -INFINITY where masked. False: all are. */
static bool attend_scores(const struct ggmlq_attend_params * p, struct attend_scratch * s, int n_rows,
                          int64_t head_kv, int64_t seq_kv, int64_t start, int count) {
    bool any_in_tile = false;
    for (int t = 0; t < count; ++t) {
        bool any = false;
        for (int r = 0; r < n_rows; ++r) {
            struct attend_row * row = &s->rows[r];
            const float bias = row->mask ? row->slope * ggmlq_half_to_float(row->mask[start + t]) : 0.0f;
            row->scores[t] = bias;
            any |= bias != -INFINITY;
        }
        if (!any) {
            continue;
        }
        any_in_tile = true;
        const void * k = at(p->k, p->k_stride, start + t, head_kv, seq_kv);
        if (is_cache_type(p->type_k)) {
            unpack_row(p->type_k, k, p->head_size_k, &s->unpacked);
        } else {
            decode_any_row(p->type_k, k, s->values, p->head_size_k);
        }
        for (int r = 0; r < n_rows; ++r) {
            float * score = &s->rows[r].scores[t];
            if (*score == -INFINITY) {
                continue;
            }
            float dot = is_cache_type(p->type_k) ? dot_unpacked(p->type_k, &s->unpacked, &s->queries[r], p->head_size_k, 0.0f)
                                                 : dot_floats(s->values, s->queries[r].floats, p->head_size_k);
            dot *= p->scale;
            if (p->logit_softcap != 0.0f) {
                dot = p->logit_softcap*tanhf(dot/p->logit_softcap);
            }
            *score += dot;
        }
    }
    return any_in_tile;
}

/* Scores -> weights exp(score - max); what was summed under an older maximum is scaled down. */
static void attend_softmax(struct attend_row * row, float * acc, int64_t n, int count) {
    float max = row->max;
    for (int t = 0; t < count; ++t) {
        max = row->scores[t] > max ? row->scores[t] : max;
    }
    if (max > row->max) {
        const float shrink = expf(row->max - max);
        row->max  = max;
        row->sum *= shrink;
        for (int64_t i = 0; i < n; ++i) {
            acc[i] *= shrink;
        }
    }
    for (int t = 0; t < count; ++t) {
        row->scores[t] = row->scores[t] == -INFINITY ? 0.0f : expf(row->scores[t] - row->max);
        row->sum += row->scores[t];
    }
}

/* Query rows [first, first + n_rows) of a group: row i is query token i / group, head i % group of the KV head. */
static void attend_rows(const struct ggmlq_attend_params * p, struct attend_scratch * s,
                        int64_t seq, int64_t head_kv, int64_t first, int n_rows) {
    const int64_t group  = p->n_heads/p->n_heads_kv;
    const int64_t seq_kv = seq/(p->n_seqs/p->n_seqs_kv);

    for (int r = 0; r < n_rows; ++r) {
        struct attend_row * row = &s->rows[r];
        row->token = (first + r)/group;
        row->head  = head_kv*group + (first + r)%group;
        row->mask  = p->mask ? at(p->mask, p->mask_stride, row->token, row->head % p->mask_heads, seq % p->mask_seqs) : NULL;
        row->slope = alibi_slope(p, row->head);
        row->max   = -INFINITY;
        row->sum   = 0.0f;
        const float * q = at(p->q, p->q_stride, row->token, row->head, seq);
        if (is_cache_type(p->type_k)) {
            ggmlq_encode_query_row(p->type_k, q, &s->queries[r], p->head_size_k);
        } else {
            memcpy(s->queries[r].floats, q, sizeof(float)*(size_t) p->head_size_k);
        }
        memset(s->acc[r], 0, sizeof(float)*(size_t) p->head_size_v);
    }

    for (int64_t start = 0; start < p->n_kv; start += TILE) {
        const int count = p->n_kv - start < TILE ? (int) (p->n_kv - start) : TILE;
        if (!attend_scores(p, s, n_rows, head_kv, seq_kv, start, count)) {
            continue;
        }
        for (int r = 0; r < n_rows; ++r) {
            attend_softmax(&s->rows[r], s->acc[r], p->head_size_v, count);
        }
        for (int t = 0; t < count; ++t) {
            bool any = false;
            for (int r = 0; r < n_rows; ++r) {
                any |= s->rows[r].scores[t] != 0.0f;
            }
            if (!any) {
                continue;
            }
            decode_any_row(p->type_v, at(p->v, p->v_stride, start + t, head_kv, seq_kv), s->values, p->head_size_v);
            for (int r = 0; r < n_rows; ++r) {
                const float weight = s->rows[r].scores[t];
                if (weight == 0.0f) {
                    continue;
                }
                for (int64_t i = 0; i < p->head_size_v; ++i) {
                    s->acc[r][i] = MADD(weight, s->values[i], s->acc[r][i]);
                }
            }
        }
    }

    for (int r = 0; r < n_rows; ++r) {
        struct attend_row * row = &s->rows[r];
        float * acc = s->acc[r];
        if (p->sinks) {
            const float sink = p->sinks[row->head];
            const float max  = sink > row->max ? sink : row->max;
            const float shrink = row->max == -INFINITY ? 0.0f : expf(row->max - max);
            row->sum = row->sum*shrink + (sink == -INFINITY ? 0.0f : expf(sink - max));
            for (int64_t i = 0; i < p->head_size_v; ++i) {
                acc[i] *= shrink;
            }
        }
        const float inverse = row->sum == 0.0f ? 0.0f : 1.0f/row->sum;
        for (int64_t i = 0; i < p->head_size_v; ++i) {
            acc[i] *= inverse;
        }
        float * out = (float *) ((uint8_t *) p->out + row->token*p->out_stride[0] + row->head*p->out_stride[1] + seq*p->out_stride[2]);
        if (is_cache_type(p->type_v)) {
            ggmlq_unrotate_row(p->type_v, acc, out, p->head_size_v);
        } else {
            memcpy(out, acc, sizeof(float)*(size_t) p->head_size_v);
        }
    }
}

int ggmlq_attend(const struct ggmlq_attend_params * p, int ith, int nth) {
    int error = ggmlq_attend_check(p);
    if (error == GGMLQ_OK && (nth < 1 || ith < 0 || ith >= nth)) {
        error = GGMLQ_ERROR_SHAPE;
    }
    if (error) {
        return error;
    }
    const int64_t rows_per_kv = p->n_heads/p->n_heads_kv*p->n_queries;
    const int64_t kv_heads    = p->n_heads_kv*p->n_seqs;
    /* As many rows per unit of work as leave every thread at least one unit. */
    int64_t units_per_kv = (rows_per_kv + MAX_ROWS - 1)/MAX_ROWS;
    while (units_per_kv < rows_per_kv && units_per_kv*kv_heads < nth) {
        ++units_per_kv;
    }

    struct attend_scratch scratch;
    for (int64_t unit = ith; unit < units_per_kv*kv_heads; unit += nth) {
        const int64_t part  = unit % units_per_kv;
        const int64_t kv    = unit / units_per_kv;
        const int64_t first = rows_per_kv* part     /units_per_kv;
        const int64_t last  = rows_per_kv*(part + 1)/units_per_kv;
        attend_rows(p, &scratch, kv/p->n_heads_kv, kv%p->n_heads_kv, first, (int) (last - first));
    }
    return GGMLQ_OK;
}
