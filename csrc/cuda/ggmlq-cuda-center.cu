/* SPDX-License-Identifier: MIT
 *
 * See ggmlq-cuda-center.h.
 */
#include "ggmlq-cuda-codec.cuh"
#include "ggmlq-cuda-center.h"
#include "ggmlq-cuda-checks.h"

enum { THREADS = 256 };

/* As the surrounding build rounds in kernels with a single operation: llama.cpp's -use_fast_math flushes subnormals in them. */
#if defined(GGMLQ_HIP) || defined(GGMLQ_MUSA)
GGMLQ_DEVICE float mul(float a, float b)          { return ggmlq_mul(a, b); }
GGMLQ_DEVICE float add(float a, float b)          { return ggmlq_add(a, b); }
GGMLQ_DEVICE float sub(float a, float b)          { return ggmlq_sub(a, b); }
GGMLQ_DEVICE float fma_of(float a, float b, float c) { return ggmlq_fma(a, b, c); }
#else
GGMLQ_DEVICE float mul(float a, float b)          { return __fmul_rn(a, b); }
GGMLQ_DEVICE float add(float a, float b)          { return __fadd_rn(a, b); }
GGMLQ_DEVICE float sub(float a, float b)          { return __fsub_rn(a, b); }
GGMLQ_DEVICE float fma_of(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#endif

struct quad { float v[4]; };

GGMLQ_DEVICE struct quad load(const void * p) {
    const float4 x = *(const float4 *) p;
    const struct quad q = { { x.x, x.y, x.z, x.w } };
    return q;
}
GGMLQ_DEVICE void store(void * p, const struct quad & q) { *(float4 *) p = make_float4(q.v[0], q.v[1], q.v[2], q.v[3]); }

GGMLQ_DEVICE struct quad mul(const struct quad & a, const struct quad & b) {
    struct quad r;
    for (int i = 0; i < 4; ++i) {
        r.v[i] = mul(a.v[i], b.v[i]);
    }
    return r;
}

GGMLQ_DEVICE void rope(struct quad x[2], const struct ggmlq_cuda_rope & r, int32_t position, int u, bool apart) {
    float2 angle[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        angle[i] = ggmlq_rope_angle(r, position, 4*u + i, ggmlq_rope_power(r, 4*u + i));
    }
    ggmlq_turn_unit(x[0].v, x[1].v, apart, angle);
}

struct centering {
    struct ggmlq_cuda_centering p;
    uint32_t k_blocks, q_blocks, k_quads, q_units, v_quads; /* the rest of the grid is of v */
};

/* The thread block's token. Read twice, because the output may replace it and a token may have any number of values. */
GGMLQ_DEVICE void center_key(const struct centering & c, uint32_t token) {
    __shared__ float sums[THREADS/32];
    const struct ggmlq_cuda_centering & p = c.p;
    const uint32_t quads_of_head = (uint32_t) p.k.ne[0]/4;
    const uint8_t * k = (const uint8_t *) p.k.data + token*p.k.nb[2];
    const bool ropes = p.k_rope.positions != NULL;
    /* On their way before the first sum is waited for: memory is far, and in a model none of it is in a cache. */
    const uint8_t * const index = (const uint8_t *) p.indices.data + token*p.indices.nb[0];
    const uint32_t row_low = ((const uint32_t *) index)[0], row_high = ((const uint32_t *) index)[p.index_bytes == 8];
    const int32_t position = ropes ? p.k_rope.positions[token] : 0;
    const float threshold = *p.s_mu_2;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < c.k_quads; i += THREADS) {
        const uint32_t head = i/quads_of_head;
        const struct quad x = mul(load(k + head*p.k.nb[1] + 16*(i - head*quads_of_head)), load(p.s + 4*i)), mu = load(p.s_mu + 4*i);
        for (int j = 0; j < 4; ++j) {
            sum = fma_of(x.v[j], mu.v[j], sum);
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        sum += ggmlq_shuffle_xor(sum, step);
    }
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x/32] = sum;
    }
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < THREADS/32; ++i) {
        sum += sums[i];
    }
    const float part = sub(sum, threshold) > 0.0f ? 1.0f : 0.0f;
    for (uint32_t i = threadIdx.x; i < c.k_quads/2 && ropes; i += THREADS) {
        const uint32_t head = i/(quads_of_head/2), u = i - head*(quads_of_head/2), first = 4*quads_of_head*head;
        const struct ggmlq_rope_unit unit = ggmlq_rope_unit_of(u, p.k_rope.n_rot, p.k_rope.neox);
        struct quad x[2];
        for (int h = 0; h < 2; ++h) {
            x[h] = mul(load(k + head*p.k.nb[1] + 4*unit.at[h]), load(p.s + first + unit.at[h]));
            const struct quad mu = load(p.s_mu + first + unit.at[h]);
            for (int j = 0; j < 4; ++j) {
                x[h].v[j] = sub(x[h].v[j], mul(mu.v[j], part));
            }
        }
        if (unit.turns) {
            rope(x, p.k_rope, position, u, unit.apart);
        }
        for (int h = 0; h < 2; ++h) {
            store(p.k_out + (int64_t) token*4*c.k_quads + first + unit.at[h], x[h]);
        }
    }
    for (uint32_t i = threadIdx.x; i < c.k_quads && !ropes; i += THREADS) {
        const uint32_t head = i/quads_of_head;
        struct quad x = mul(load(k + head*p.k.nb[1] + 16*(i - head*quads_of_head)), load(p.s + 4*i));
        const struct quad mu = load(p.s_mu + 4*i);
        for (int j = 0; j < 4; ++j) {
            x.v[j] = sub(x.v[j], mul(mu.v[j], part));
        }
        store(p.k_out + (int64_t) token*4*c.k_quads + 4*i, x);
    }
    if (threadIdx.x == 0) {
        const int64_t row = p.index_bytes == 8 ? (int64_t) ((uint64_t) row_high << 32 | row_low) : (int32_t) row_low;
        if (row >= 0 && row < p.part.ne[1]) {
            *(__half *) ((uint8_t *) p.part.data + row*p.part.nb[1]) = __float2half_rn(part);
        }
    }
}

/* A ggmlq_rope_unit. */
GGMLQ_DEVICE void center_query(const struct centering & c, uint32_t number) {
    const struct ggmlq_cuda_centering & p = c.p;
    const uint32_t units_of_head = (uint32_t) p.q.ne[0]/8, heads = (uint32_t) p.q.ne[1];
    const uint32_t row = number/units_of_head, token = row/heads, head = row - token*heads, u = number - row*units_of_head;
    const struct ggmlq_rope_unit unit = ggmlq_rope_unit_of(u, p.n_rot, p.neox);
    const uint8_t * q = (const uint8_t *) p.q.data + token*p.q.nb[2] + head*p.q.nb[1];
    const int64_t factors = (int64_t) head*p.q.ne[0], out = (int64_t) row*p.q.ne[0];
    const int32_t position = p.q_rope.positions ? p.q_rope.positions[token] : 0, turn_position = p.positions ? p.positions[token] : 0;
    struct quad x[2], same[2], turned[2], inverse[2]; /* all are loaded before the first is stored: for all that compilers know, that changes what is loaded */
    for (int h = 0; h < 2; ++h) {
        x[h]       = load(q + 4*unit.at[h]);
        same[h]    = load(p.mu_same + factors + unit.at[h]);
        turned[h]  = load(p.mu_turn + factors + unit.at[h]);
        inverse[h] = load(p.s_inv + factors + unit.at[h]);
    }
    if (unit.turns && p.q_rope.positions) {
        rope(x, p.q_rope, position, u, unit.apart);
    }
    struct quad t[2] = { x[0], x[1] };
    if (unit.turns) {
        const float  angle  = p.turn*(float) turn_position;
        const float2 turn   = make_float2(cosf(angle), sinf(angle)), all[4] = { turn, turn, turn, turn };
        ggmlq_turn_unit(t[0].v, t[1].v, unit.apart, all);
    }
    for (int h = 0; h < 2; ++h) {
        const struct quad a = mul(x[h], same[h]), b = mul(t[h], turned[h]);
        struct quad w;
        for (int i = 0; i < 4; ++i) {
            w.v[i] = add(a.v[i], b.v[i]);
        }
        store(p.w + out + unit.at[h], w);
        store(p.q_out + out + unit.at[h], mul(x[h], inverse[h]));
    }
}

static __global__ void __launch_bounds__(THREADS) center_tokens(const struct centering c) {
    if (gridDim.x <= 64) { /* as encode_rows does */
        ggmlq_let_next_start();
    }
    ggmlq_wait_for_previous();
    if (blockIdx.x < c.k_blocks) {
        center_key(c, blockIdx.x);
        return;
    }
    const uint32_t block = blockIdx.x - c.k_blocks;
    if (block < c.q_blocks) {
        const uint32_t unit = block*THREADS + threadIdx.x;
        if (unit < c.q_units) {
            center_query(c, unit);
        }
        return;
    }
    const uint32_t i = (block - c.q_blocks)*THREADS + threadIdx.x;
    if (i < c.v_quads) {
        struct quad x = load(c.p.v + 4*(int64_t) i);
        for (int j = 0; j < 4; ++j) {
            x.v[j] = fma_of(c.p.v_scale, x.v[j], c.p.v_bias);
        }
        store(c.p.v_out + 4*(int64_t) i, x);
    }
}

static bool whole_quads(const void * address) { return (uintptr_t) address % 16 == 0; }

/* Floats [head size, heads, tokens] of whole groups of `length`, numbered in 31 bits with room for a rounded-up grid. */
static int check_tokens(const struct ggmlq_cuda_view * x, int64_t length) {
    if (x->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    const int error = ggmlq_check_view(x, length);
    if (error) {
        return error;
    }
    const int64_t most = INT32_MAX/4;
    return x->ne[0] == 0 || x->ne[3] != 1 || x->nb[1] % 16 != 0 || x->nb[2] % 16 != 0 || !whole_quads(x->data) ||
        (x->ne[1] > 0 && x->ne[2] > 0 && x->ne[0] > most/x->ne[1]/x->ne[2]) ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

int ggmlq_cuda_center_check(const struct ggmlq_cuda_centering * p) {
    if (p->k.data) {
        const int error = check_tokens(&p->k, 4);
        if (error || p->part.type != GGMLQ_CUDA_F16 || (p->index_bytes != 4 && p->index_bytes != 8)) {
            return error ? error : GGMLQ_ERROR_TYPE;
        }
        if (p->part.ne[0] != 1 || p->part.ne[2] != 1 || p->part.ne[3] != 1 || p->part.nb[1] % 2 != 0 || p->indices.ne[0] != p->k.ne[2] ||
            !whole_quads(p->s) || !whole_quads(p->s_mu) || !whole_quads(p->k_out)) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    if (p->k.data && p->k_rope.positions && !ggmlq_can_rope(&p->k_rope, p->k.ne[0])) {
        return GGMLQ_ERROR_SHAPE;
    }
    if (p->q.data) {
        const int error = check_tokens(&p->q, 8);
        if (error) {
            return error;
        }
        if ((p->q_rope.positions && (!ggmlq_can_rope(&p->q_rope, p->q.ne[0]) || p->q_rope.n_rot != p->n_rot || !p->q_rope.neox != !p->neox)) ||
            p->n_rot < 0 || p->n_rot > p->q.ne[0] || p->n_rot % 8 != 0 || !whole_quads(p->s_inv) || !whole_quads(p->mu_same) || !whole_quads(p->mu_turn) ||
            !whole_quads(p->q_out) || !whole_quads(p->w)) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    return p->v && (p->n_v < 0 || p->n_v % 4 != 0 || p->n_v > INT32_MAX/4 || !whole_quads(p->v) || !whole_quads(p->v_out)) ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

int ggmlq_cuda_center(const struct ggmlq_cuda_centering * p, void * stream) {
    const int error = ggmlq_cuda_center_check(p);
    if (error) {
        return error;
    }
    struct centering c = {};
    c.p = *p;
    if (p->k.data && p->k.ne[1] > 0) {
        c.k_blocks = (uint32_t) p->k.ne[2];
        c.k_quads  = (uint32_t) (p->k.ne[0]*p->k.ne[1]/4);
    }
    c.q_units  = p->q.data ? (uint32_t) (p->q.ne[0]/8*p->q.ne[1]*p->q.ne[2]) : 0;
    c.q_blocks = (c.q_units + THREADS - 1)/THREADS;
    c.v_quads  = p->v ? (uint32_t) (p->n_v/4) : 0;
    const unsigned int grid = c.k_blocks + c.q_blocks + (c.v_quads + THREADS - 1)/THREADS;
    if (grid == 0) {
        return GGMLQ_OK;
    }
    if (!ggmlq_launch_early<center_tokens>(grid, THREADS, (cudaStream_t) stream, c)) {
        center_tokens<<<grid, THREADS, 0, (cudaStream_t) stream>>>(c);
    }
    return ggmlq_cuda_launched();
}
