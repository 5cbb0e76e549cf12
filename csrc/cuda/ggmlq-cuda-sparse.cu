/* SPDX-License-Identifier: MIT
 *
 * Attention over selected rows. See ggmlq-cuda-sparse.h.
 *
 * One kernel gathers: each of its blocks makes SLOTS rows of the output. A block looks through the mask by itself, up to the columns that
 * it wants, since counting in one kernel and copying in another costs a second launch, which takes longer than reading the mask from
 * the L2 cache again. So the copies are spread evenly, wherever the visible columns lie; and as they are in ascending order, the result
 * doesn't depend on which block comes first.
 */
#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-cuda-sparse.h"

/* A round is the columns that a block looks at at once: of each warp 32*EACH in a row. */
enum { THREADS = 512, WARPS = THREADS/32, EACH = 64, ROUND = THREADS*EACH, SLOTS = 16, MINUS_INFINITY = 0xfc00 };

/* What is gathered is a multiple of this many rows; the rest is hidden. */
enum { PAD = 64 };

struct selection {
    const uint8_t * mask;
    int64_t   mask_token, mask_seq;         /* strides */
    uint32_t  queries, mask_seqs, n_kv, most, padded;
    uint32_t  seq_repeats;                  /* sequences of queries for each of K */
    bool      mask_by_eight;                /* its rows are whole groups of 16 bytes */
    const uint8_t * rows[2];                /* K; V, NULL where it is part of K */
    int64_t   row_stride[2], seq_stride[2];
    uint32_t  row_bytes[2];
    uint8_t  * gathered[2];                 /* [token][padded] */
    uint16_t * gathered_mask;
};

GGMLQ_DEVICE uint32_t count_bits(uint32_t bits) {
#ifdef GGMLQ_HIP
    return (uint32_t) __builtin_popcount(bits);
#else
    return (uint32_t) __popc(bits);
#endif
}

/* Two columns of the mask: bit 15 is set if the first is visible, bit 31 if the second is. */
GGMLQ_DEVICE uint32_t two_visible(uint32_t columns) {
    const uint32_t x = columns ^ (uint32_t) MINUS_INFINITY*0x10001u;
    return ((x & 0x7fff7fffu) + 0x7fff7fffu | x) & 0x80008000u;
}

/* Bit i: column i of eight is visible. */
GGMLQ_DEVICE uint32_t eight_visible(uint4 columns) {
    const uint32_t spread = two_visible(columns.x) >> 6 | two_visible(columns.y) >> 4 | two_visible(columns.z) >> 2 | two_visible(columns.w);
    return (spread >> 9 | spread >> 24) & 255;
}

/* By a group of 32 threads. from NULL: zeros. */
template <typename T> GGMLQ_DEVICE void copy_row_by(uint8_t * to, const uint8_t * from, uint32_t bytes, uint32_t lane) {
    for (uint32_t i = lane; i < bytes/(uint32_t) sizeof(T); i += 32) {
        T x = {};
        if (from) {
            x = ((const T *) from)[i];
        }
        ((T *) to)[i] = x;
    }
}

GGMLQ_DEVICE void copy_row(uint8_t * to, const uint8_t * from, uint32_t bytes, uint32_t lane) {
    const uintptr_t odd = (uintptr_t) to | (uintptr_t) from | bytes;
    if ((odd & 7) == 0) {
        copy_row_by<uint2>(to, from, bytes, lane);
    } else if ((odd & 3) == 0) {
        copy_row_by<uint32_t>(to, from, bytes, lane);
    } else if ((odd & 1) == 0) {
        copy_row_by<uint16_t>(to, from, bytes, lane);
    } else {
        copy_row_by<uint8_t>(to, from, bytes, lane);
    }
}

/* blockIdx.x: slots of the output; y: query token, of all sequences. */
static __global__ void __launch_bounds__(THREADS, 1)
gather_visible(const struct selection s) {
    __shared__ uint2    seen[WARPS][32];    /* bit i of lane l: column 64*l + i of the warp's */
    __shared__ uint32_t totals[WARPS];
    __shared__ uint32_t columns[SLOTS];
    const uint32_t token = blockIdx.y, thread = threadIdx.x, lane = thread % 32, warp = thread/32;
    const uint32_t first_slot = blockIdx.x*SLOTS, end_slot = first_slot + SLOTS < s.most ? first_slot + SLOTS : s.most;
    const uint32_t query = token%s.queries, seq = token/s.queries, seq_kv = seq/s.seq_repeats;
    const uint16_t * const mask = (const uint16_t *) (s.mask + query*s.mask_token + seq%s.mask_seqs*s.mask_seq);

    ggmlq_let_next_start(); /* attention waits for the end of this where it needs the rows */
    ggmlq_wait_for_previous();
    uint4 hidden;
    hidden.x = hidden.y = hidden.z = hidden.w = (uint32_t) MINUS_INFINITY*0x10001u;

    uint32_t before = 0; /* visible columns of earlier rounds */
    for (uint32_t first = 0; first < s.n_kv && before < end_slot; first += ROUND) {
        const uint32_t warp_first = first + warp*32*EACH;
        uint8_t * const bytes = (uint8_t *) seen[warp];
        if (s.mask_by_eight) {
            uint4 loaded[EACH/8]; /* all on their way together */
#pragma unroll
            for (uint32_t i = 0; i < EACH/8; ++i) {
                const uint32_t column = warp_first + 256*i + 8*lane;
                loaded[i] = column < s.n_kv ? *(const uint4 *) (mask + column) : hidden;
            }
#pragma unroll
            for (uint32_t i = 0; i < EACH/8; ++i) {
                bytes[32*i + lane] = (uint8_t) eight_visible(loaded[i]);
            }
        } else {
#pragma unroll 1
            for (uint32_t i = 0; i < EACH/8; ++i) {
                uint32_t byte = 0;
                for (uint32_t j = 0; j < 8; ++j) {
                    const uint32_t column = warp_first + 256*i + 8*lane + j;
                    byte |= column < s.n_kv && mask[column] != MINUS_INFINITY ? 1u << j : 0;
                }
                bytes[32*i + lane] = (uint8_t) byte;
            }
        }
        __syncthreads();
        uint2 bits = seen[warp][lane];
        uint32_t total = count_bits(bits.x) + count_bits(bits.y), place = 0; /* of the lanes before this one */
        for (uint32_t i = 1; i < 32; i *= 2) {
            const uint32_t other = ggmlq_shuffle_xor(total, (int) i);
            place += lane & i ? other : 0;
            total += other;
        }
        if (lane == 0) {
            totals[warp] = total;
        }
        __syncthreads();
        uint32_t earlier = lane < warp ? totals[lane] : 0, all = lane < WARPS ? totals[lane] : 0;
        for (int i = 1; i < 32; i *= 2) {
            earlier += ggmlq_shuffle_xor(earlier, i);
            all     += ggmlq_shuffle_xor(all, i);
        }
        place += before + earlier;
        before += all;
        for (int half = 0; half < 2; ++half) {
            uint32_t left = half ? bits.y : bits.x;
            const uint32_t end = place + count_bits(left);
            if (end > first_slot && place < end_slot) {
                for (; left; left &= left - 1, ++place) {
                    if (place >= first_slot && place < end_slot) {
                        columns[place - first_slot] = warp_first + 64*lane + 32*half + count_bits((left & 0 - left) - 1);
                    }
                }
            }
            place = end;
        }
        __syncthreads(); /* columns are there; and nobody is at `seen` and `totals` any more */
    }

    for (uint32_t slot = first_slot + warp; slot < first_slot + SLOTS && slot < s.padded; slot += WARPS) {
        const bool     found  = slot < before && slot < s.most; /* the others: nobody reads what a workspace held before */
        const uint32_t column = found ? columns[slot - first_slot] : 0;
        const int64_t  to     = (int64_t) token*s.padded + slot;
        for (int which = 0; which < 2 && s.rows[which]; ++which) {
            copy_row(s.gathered[which] + to*s.row_bytes[which], found ? s.rows[which] + column*s.row_stride[which] + seq_kv*s.seq_stride[which] : NULL, s.row_bytes[which], lane);
        }
        if (lane == 0) {
            s.gathered_mask[to] = found ? mask[column] : (uint16_t) MINUS_INFINITY;
        }
    }
}

/* --- entry points ----------------------------------------------------------------------------------------------- */

static int64_t aligned(int64_t bytes) { return (bytes + 15)/16*16; }

static bool v_is_part_of_k(const struct ggmlq_attend_params * p) {
    return p->v == p->k && p->type_v == p->type_k && p->head_size_v <= p->head_size_k && p->v_stride[0] == p->k_stride[0] && p->v_stride[2] == p->k_stride[2];
}

/* Offsets in the workspace; `dense` is what is attended to: every query token is a sequence with rows of its own. */
struct layout {
    int64_t tokens, padded, row_bytes[2], rows[2], mask, attention;
    struct ggmlq_attend_params dense;
};

static struct layout lay_out(const struct ggmlq_attend_params * p, int64_t most, uint8_t * workspace) {
    struct layout l;
    const bool part = v_is_part_of_k(p);
    l.tokens       = p->n_queries*p->n_seqs;
    l.padded       = (most + PAD - 1)/PAD*PAD;
    l.row_bytes[0] = ggmlq_row_bytes(p->type_k, p->head_size_k);
    l.row_bytes[1] = ggmlq_row_bytes(p->type_v, p->head_size_v);
    l.rows[0]      = 0;
    l.rows[1]      = part ? 0 : aligned(l.tokens*l.padded*l.row_bytes[0]);
    l.mask         = l.rows[1] + aligned(l.tokens*l.padded*l.row_bytes[part ? 0 : 1]);
    l.attention    = l.mask + aligned(l.tokens*l.padded*2);

    l.dense = *p;
    l.dense.n_kv      = l.padded;
    l.dense.n_queries = 1;
    l.dense.n_seqs    = l.dense.n_seqs_kv = l.dense.mask_seqs = l.tokens;
    if (p->n_queries > 1) {
        l.dense.q_stride[2]   = p->q_stride[0];
        l.dense.out_stride[2] = p->out_stride[0];
    }
    l.dense.k = workspace + l.rows[0];
    l.dense.v = workspace + l.rows[1];
    l.dense.k_stride[0] = l.row_bytes[0];
    l.dense.v_stride[0] = l.row_bytes[part ? 0 : 1];
    l.dense.k_stride[1] = l.dense.k_stride[2] = l.padded*l.dense.k_stride[0];
    l.dense.v_stride[1] = l.dense.v_stride[2] = l.padded*l.dense.v_stride[0];
    l.dense.mask = (const uint16_t *) (workspace + l.mask);
    l.dense.mask_stride[0] = l.dense.mask_stride[1] = l.dense.mask_stride[2] = 2*l.padded;
    return l;
}

/* Any address that isn't NULL: what is asked before there is a workspace depends on alignment only. */
static uint8_t * somewhere(void) { return (uint8_t *) (uintptr_t) 4096; }

int ggmlq_cuda_attend_selected_check(const struct ggmlq_attend_params * p, int64_t most) {
    const int error = ggmlq_cuda_attend_check(p);
    if (error) {
        return error;
    }
    if (p->n_pairs > 0 /* centered keys: positions aren't gathered */ || most < 1 || !p->mask || p->n_heads_kv != 1 || p->mask_heads != 1 || (p->n_queries > 1 && p->n_seqs > 1) ||
        p->n_queries*p->n_seqs > 65535 || most > INT32_MAX/65536) {
        return GGMLQ_ERROR_SHAPE;
    }
    const struct layout l = lay_out(p, most, somewhere());
    return ggmlq_cuda_attend_check(&l.dense);
}

const char * ggmlq_cuda_attend_selected_kernel(const struct ggmlq_attend_params * p, int64_t most) {
    if (ggmlq_cuda_attend_selected_check(p, most)) {
        return NULL;
    }
    const struct layout l = lay_out(p, most, somewhere());
    return ggmlq_cuda_attend_kernel(&l.dense);
}

int64_t ggmlq_cuda_attend_selected_workspace_bytes(const struct ggmlq_attend_params * p, int64_t most) {
    const int error = ggmlq_cuda_attend_selected_check(p, most);
    if (error) {
        return error;
    }
    const struct layout l = lay_out(p, most, somewhere());
    const int64_t attention = ggmlq_cuda_attend_workspace_bytes(&l.dense);
    return attention < 0 ? attention : l.attention + attention;
}

static struct selection select(const struct ggmlq_attend_params * p, int64_t most, const struct layout * l, uint8_t * workspace) {
    struct selection s;
    s.mask          = (const uint8_t *) p->mask;
    s.mask_token    = p->mask_stride[0];
    s.mask_seq      = p->mask_stride[2];
    s.queries       = (uint32_t) p->n_queries;
    s.mask_seqs     = (uint32_t) p->mask_seqs;
    s.n_kv          = (uint32_t) p->n_kv;
    s.most          = (uint32_t) most;
    s.padded        = (uint32_t) l->padded;
    s.seq_repeats   = (uint32_t) (p->n_seqs/p->n_seqs_kv);
    s.mask_by_eight = p->n_kv%8 == 0 && ((uintptr_t) p->mask | (uintptr_t) p->mask_stride[0] | (uintptr_t) p->mask_stride[2])%16 == 0;
    s.rows[0]       = (const uint8_t *) p->k;
    s.rows[1]       = l->rows[1] ? (const uint8_t *) p->v : NULL;
    s.gathered_mask = (uint16_t *) (workspace + l->mask);
    for (int which = 0; which < 2; ++which) {
        s.row_stride[which] = which ? p->v_stride[0] : p->k_stride[0];
        s.seq_stride[which] = which ? p->v_stride[2] : p->k_stride[2];
        s.row_bytes[which]  = (uint32_t) l->row_bytes[which];
        s.gathered[which]   = workspace + l->rows[which];
    }
    return s;
}

static int gather(const struct selection & s, int64_t tokens, void * stream) {
    const dim3 grid((s.padded + SLOTS - 1)/SLOTS, (unsigned int) tokens, 1);
    const bool early = s.n_kv < 4*ROUND; /* a microsecond less; above, one or two more */
    if (!early || !ggmlq_launch_early<gather_visible>(grid, THREADS, (cudaStream_t) stream, s)) {
        gather_visible<<<grid, THREADS, 0, (cudaStream_t) stream>>>(s);
    }
    return ggmlq_cuda_launched();
}

int ggmlq_cuda_attend_selected(const struct ggmlq_attend_params * p, int64_t most, void * workspace, void * stream) {
    int error = ggmlq_cuda_attend_selected_check(p, most);
    if (error) {
        return error;
    }
    uint8_t * base = (uint8_t *) workspace;
    const struct layout l = lay_out(p, most, base);
    if (l.tokens == 0 || p->n_heads == 0) {
        return GGMLQ_OK;
    }
    error = gather(select(p, most, &l, base), l.tokens, stream);
    return error ? error : ggmlq_cuda_attend(&l.dense, base + l.attention, stream);
}
