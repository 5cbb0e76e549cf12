/* SPDX-License-Identifier: MIT
 *
 * Attention over selected rows. See ggmlq-cuda-sparse.h.
 *
 * A mask row is cut into chunks, one for each thread block, so that one query token fills the device too. The first kernel counts the
 * visible columns of every chunk, the second finds the places of its own ones from the counts before it and copies their rows:
 * ascending, so the result doesn't depend on which block comes first.
 */
#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-cuda-sparse.h"

enum { THREADS = 256, EACH = 8, CHUNK = THREADS*EACH, MINUS_INFINITY = 0xfc00 };

/* What is gathered is a multiple of this many rows; the rest is hidden. */
enum { PAD = 64 };

struct selection {
    const uint8_t * mask;
    int64_t   mask_token, mask_seq;         /* strides */
    uint32_t  queries, mask_seqs, n_kv, chunks, most, padded;
    uint32_t  seq_repeats;                  /* sequences of queries for each of K */
    const uint8_t * rows[2];                /* K; V, NULL where it is part of K */
    int64_t   row_stride[2], seq_stride[2];
    uint32_t  row_bytes[2];
    uint32_t * counts;                      /* [token][chunk] */
    uint8_t  * gathered[2];                 /* [token][padded] */
    uint16_t * gathered_mask;
};

/* Sum over the block; every thread gets it. */
GGMLQ_DEVICE uint32_t block_sum(uint32_t x, uint32_t * shared) {
    for (int i = 1; i < 32; i *= 2) {
        x += ggmlq_shuffle_xor(x, i);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x/32] = x;
    }
    __syncthreads();
    x = 0;
    for (int i = 0; i < THREADS/32; ++i) {
        x += shared[i];
    }
    return x;
}

GGMLQ_DEVICE const uint16_t * mask_row(const struct selection & s, uint32_t token) {
    const uint32_t query = token%s.queries, seq = token/s.queries;
    return (const uint16_t *) (s.mask + query*s.mask_token + seq%s.mask_seqs*s.mask_seq);
}

/* Bit i: column first + i is visible. */
GGMLQ_DEVICE uint32_t visible(const uint16_t * mask, uint32_t first, uint32_t n) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < EACH; ++i) {
        if (first + i < n && mask[first + i] != MINUS_INFINITY) {
            bits |= 1u << i;
        }
    }
    return bits;
}

/* blockIdx.x: chunk; y: query token, of all sequences. */
static __global__ void __launch_bounds__(THREADS)
count_visible(const struct selection s) {
    __shared__ uint32_t sums[THREADS/32];
    const uint32_t token = blockIdx.y;
    const uint32_t bits  = visible(mask_row(s, token), blockIdx.x*CHUNK + threadIdx.x*EACH, s.n_kv);
    const uint32_t count = block_sum(__popc(bits), sums);
    if (threadIdx.x == 0) {
        s.counts[token*s.chunks + blockIdx.x] = count;
    }
}

/* By a group of 32 threads. from NULL: zeros. */
GGMLQ_DEVICE void copy_row(uint8_t * to, const uint8_t * from, uint32_t bytes, uint32_t lane) {
    const uintptr_t odd = (uintptr_t) to | (uintptr_t) from | bytes;
    if ((odd & 3) == 0) {
        for (uint32_t i = lane; i < bytes/4; i += 32) {
            ((uint32_t *) to)[i] = from ? ((const uint32_t *) from)[i] : 0;
        }
    } else if ((odd & 1) == 0) {
        for (uint32_t i = lane; i < bytes/2; i += 32) {
            ((uint16_t *) to)[i] = from ? ((const uint16_t *) from)[i] : (uint16_t) 0;
        }
    } else {
        for (uint32_t i = lane; i < bytes; i += 32) {
            to[i] = from ? from[i] : (uint8_t) 0;
        }
    }
}

static __global__ void __launch_bounds__(THREADS)
gather_visible(const struct selection s) {
    __shared__ uint32_t sums[THREADS/32];
    __shared__ uint32_t places[THREADS];
    __shared__ uint16_t columns[CHUNK];
    const uint32_t chunk = blockIdx.x, token = blockIdx.y, thread = threadIdx.x, lane = thread % 32, group = thread/32;
    const uint16_t * mask = mask_row(s, token);

    uint32_t before = 0;
    for (uint32_t i = thread; i < chunk; i += THREADS) {
        before += s.counts[token*s.chunks + i];
    }
    before = block_sum(before, sums);

    const uint32_t bits = visible(mask, chunk*CHUNK + thread*EACH, s.n_kv);
    places[thread] = __popc(bits);
    __syncthreads();
    for (uint32_t step = 1; step < THREADS; step *= 2) { /* sums of all threads up to this one */
        const uint32_t earlier = thread >= step ? places[thread - step] : 0;
        __syncthreads();
        places[thread] += earlier;
        __syncthreads();
    }
    uint32_t place = places[thread] - __popc(bits);
    for (uint32_t i = 0; i < EACH; ++i) {
        if (bits >> i & 1) {
            columns[place++] = (uint16_t) (thread*EACH + i);
        }
    }
    __syncthreads();

    const uint32_t count = places[THREADS - 1], seq_kv = token/s.queries/s.seq_repeats;
    for (uint32_t i = group; i < count && before + i < s.most; i += THREADS/32) {
        const uint32_t column = chunk*CHUNK + columns[i];
        const int64_t  to     = (int64_t) token*s.padded + before + i;
        for (int which = 0; which < 2 && s.rows[which]; ++which) {
            copy_row(s.gathered[which] + to*s.row_bytes[which], s.rows[which] + column*s.row_stride[which] + seq_kv*s.seq_stride[which], s.row_bytes[which], lane);
        }
        if (lane == 0) {
            s.gathered_mask[to] = mask[column];
        }
    }
    if (chunk == s.chunks - 1) { /* nobody reads what a workspace held before */
        for (uint32_t i = (before + count < s.most ? before + count : s.most) + group; i < s.padded; i += THREADS/32) {
            const int64_t to = (int64_t) token*s.padded + i;
            for (int which = 0; which < 2 && s.rows[which]; ++which) {
                copy_row(s.gathered[which] + to*s.row_bytes[which], NULL, s.row_bytes[which], lane);
            }
            if (lane == 0) {
                s.gathered_mask[to] = MINUS_INFINITY;
            }
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
    int64_t tokens, padded, chunks, row_bytes[2], counts, rows[2], mask, attention;
    struct ggmlq_attend_params dense;
};

static struct layout lay_out(const struct ggmlq_attend_params * p, int64_t most, uint8_t * workspace) {
    struct layout l;
    const bool part = v_is_part_of_k(p);
    l.tokens       = p->n_queries*p->n_seqs;
    l.padded       = (most + PAD - 1)/PAD*PAD;
    l.chunks       = p->n_kv > 0 ? (p->n_kv + CHUNK - 1)/CHUNK : 1;
    l.row_bytes[0] = ggmlq_row_bytes(p->type_k, p->head_size_k);
    l.row_bytes[1] = ggmlq_row_bytes(p->type_v, p->head_size_v);
    l.rows[0]      = 0;
    l.rows[1]      = part ? 0 : aligned(l.tokens*l.padded*l.row_bytes[0]);
    l.mask         = l.rows[1] + aligned(l.tokens*l.padded*l.row_bytes[part ? 0 : 1]);
    l.counts       = l.mask + aligned(l.tokens*l.padded*2);
    l.attention    = l.counts + aligned(l.tokens*l.chunks*4);

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
    if (most < 1 || !p->mask || p->n_heads_kv != 1 || p->mask_heads != 1 || (p->n_queries > 1 && p->n_seqs > 1) ||
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

int ggmlq_cuda_attend_selected(const struct ggmlq_attend_params * p, int64_t most, void * workspace, void * stream) {
    const int error = ggmlq_cuda_attend_selected_check(p, most);
    if (error) {
        return error;
    }
    uint8_t * base = (uint8_t *) workspace;
    const struct layout l = lay_out(p, most, base);
    if (l.tokens == 0 || p->n_heads == 0) {
        return GGMLQ_OK;
    }
    struct selection s;
    s.mask          = (const uint8_t *) p->mask;
    s.mask_token    = p->mask_stride[0];
    s.mask_seq      = p->mask_stride[2];
    s.queries       = (uint32_t) p->n_queries;
    s.mask_seqs     = (uint32_t) p->mask_seqs;
    s.n_kv          = (uint32_t) p->n_kv;
    s.chunks        = (uint32_t) l.chunks;
    s.most          = (uint32_t) most;
    s.padded        = (uint32_t) l.padded;
    s.seq_repeats   = (uint32_t) (p->n_seqs/p->n_seqs_kv);
    s.rows[0]       = (const uint8_t *) p->k;
    s.rows[1]       = l.rows[1] ? (const uint8_t *) p->v : NULL;
    s.counts        = (uint32_t *) (base + l.counts);
    s.gathered_mask = (uint16_t *) (base + l.mask);
    for (int which = 0; which < 2; ++which) {
        s.row_stride[which] = which ? p->v_stride[0] : p->k_stride[0];
        s.seq_stride[which] = which ? p->v_stride[2] : p->k_stride[2];
        s.row_bytes[which]  = (uint32_t) l.row_bytes[which];
        s.gathered[which]   = base + l.rows[which];
    }
    const dim3 grid(s.chunks, (unsigned int) l.tokens, 1);
    count_visible<<<grid, THREADS, 0, (cudaStream_t) stream>>>(s);
    gather_visible<<<grid, THREADS, 0, (cudaStream_t) stream>>>(s);
    const int launched = ggmlq_cuda_launched();
    return launched ? launched : ggmlq_cuda_attend(&l.dense, base + l.attention, stream);
}
