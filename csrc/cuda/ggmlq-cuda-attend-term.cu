/* SPDX-License-Identifier: MIT
 *
 * The term part*(w . c) of centered keys (docs/CENTERING.md) for the decode kernel: docs/CUDA-ATTENTION.md, "Centered keys".
 *
 * c is shared by all KV heads. In the decode kernel each of them would read it again, more bytes than its K and V; so a kernel before it computes the terms
 * of all query heads at once and leaves them in the workspace, as the fragments in which the scores of a tile begin.
 */
#include "ggmlq-cuda-deps.cuh"

#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA)

#include "ggmlq-cuda-attend-decode.cuh"

/* w becomes halves: divided by this it may be as large as 1e7, and what is rounded away of small values is far below a score's error. */
static constexpr float UNIT = 256.0f;

enum { WARPS = 8 };

/* Terms of a unit and tile: [pair of columns][row g]: tokens g and g + 8 of both. */
struct term_plan {
    int     tiles, pairs;       /* of 16 tokens; of columns of a unit          */
    int     unit_fragments;     /* of 8 columns, in a unit                     */
    int     seq_fragments;      /* in the units of a sequence                  */
    int     fragments;          /* a block takes so many                       */
    int     columns, columns_at_once, group, heads_kv, seqs_per_kv;
    float   factor;             /* of the scores                               */
    uint8_t * terms;
};

/* What a block takes at most: their w lies in its shared memory. */
static constexpr __host__ __device__ int most_fragments(int size) { return size > 256 ? 4 : 8; }

/* A warp: tiles, whose rows c it keeps in registers, times fragments of w. The order of a contraction is free, so thread t of four takes 8 values in a row,
 * t + 4*j, which are what two mma want of it. SIZE: values of c, at most. */
template <int SIZE> static __global__ void __launch_bounds__(32*WARPS) attend_terms(const GGMLQ_GRID_CONSTANT ggmlq_attend_params p, const GGMLQ_GRID_CONSTANT term_plan plan) {
#ifdef GGMLQ_DECODE_DEVICE
    __shared__ __align__(16) uint8_t shared[most_fragments(SIZE)*(SIZE/32)*512]; /* [fragment][j][lane] */
    const int lane = threadIdx.x % 32, warp = threadIdx.x/32, g = lane/4, t = lane % 4;
    const int seq = blockIdx.z, seq_kv = seq/plan.seqs_per_kv, first_fragment = blockIdx.y*plan.fragments, fragments = min(plan.fragments, plan.seq_fragments - first_fragment);

    ggmlq_wait_for_previous();
    ggmlq_let_next_start(); /* what it reads before it waits for this kernel was written by kernels before: they have ended */

    const uint8_t * const c = (const uint8_t *) p.c + seq_kv*p.c_stride[1] + 16*t;
    const uint8_t * const part = p.part ? (const uint8_t *) p.part + seq_kv*p.part_stride : NULL;
    uint4 rows[2][SIZE/32];
    float factors[2];
    auto load = [&](int tile) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int token = 16*tile + ggmlq_decode_token(g) + 8*h;
            const bool there = token < (int) p.n_kv;
#pragma unroll
            for (int j = 0; j < SIZE/32; ++j) {
                rows[h][j] = there && 32*j + 8*t < (int) p.c_size ? *(const uint4 *) (c + token*p.c_stride[0] + 64*j) : make_uint4(0, 0, 0, 0);
            }
            factors[h] = UNIT*(!there ? 0.0f : part ? ggmlq_half_value(*(const uint16_t *) (part + 2*token)) : 1.0f);
        }
    };
    int tile = blockIdx.x*WARPS + warp;
    load(min(tile, plan.tiles - 1));

    /* w: all loads before the first use. */
    enum { ITEMS = most_fragments(SIZE)*SIZE/(32*WARPS) };
    float4 w[ITEMS][2];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int item = threadIdx.x + k*32*WARPS, fragment = first_fragment + item/SIZE, value = item/32 % (SIZE/32)*32 + 8*(item % 4);
        const int unit = fragment/plan.unit_fragments, chunk = unit/plan.heads_kv, head_kv = unit - chunk*plan.heads_kv;
        const int column = chunk*plan.columns_at_once + 8*(fragment - unit*plan.unit_fragments) + item/4 % 8, token = column/plan.group, head = head_kv*plan.group + column - token*plan.group;
        w[k][0] = w[k][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (item < fragments*SIZE && column < plan.columns && value < (int) p.c_size) {
            const float4 * const from = (const float4 *) ((const uint8_t *) p.w + token*p.w_stride[0] + head*p.w_stride[1] + seq*p.w_stride[2] + 4*value);
            w[k][0] = from[0];
            w[k][1] = from[1];
        }
    }
    const float f = plan.factor*(1.0f/UNIT);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        *(uint4 *) (shared + 16*(threadIdx.x + k*32*WARPS)) = make_uint4(
            ggmlq_half2_bits(__floats2half2_rn(w[k][0].x*f, w[k][0].y*f)), ggmlq_half2_bits(__floats2half2_rn(w[k][0].z*f, w[k][0].w*f)),
            ggmlq_half2_bits(__floats2half2_rn(w[k][1].x*f, w[k][1].y*f)), ggmlq_half2_bits(__floats2half2_rn(w[k][1].z*f, w[k][1].w*f)));
    }
    __syncthreads();

#pragma unroll 1
    for (; tile < plan.tiles; tile += gridDim.x*WARPS) {
#pragma unroll 4
        for (int i = 0; i < fragments; ++i) {
            const int fragment = first_fragment + i, unit = fragment/plan.unit_fragments, pair = 4*(fragment - unit*plan.unit_fragments) + t;
            float s[2][4] = {};
#pragma unroll
            for (int j = 0; j < SIZE/32; ++j) {
                const uint4 b = *(const uint4 *) (shared + (i*(SIZE/32) + j)*512 + 16*lane);
                const uint32_t a0[4] = { rows[0][j].x, rows[1][j].x, rows[0][j].y, rows[1][j].y }, a1[4] = { rows[0][j].z, rows[1][j].z, rows[0][j].w, rows[1][j].w };
                ggmlq_mma_f16(s[0], a0, make_uint2(b.x, b.y));
                ggmlq_mma_f16(s[1], a1, make_uint2(b.z, b.w));
            }
            if (pair < plan.pairs) {
                const int64_t at = ((int64_t) (seq*(plan.seq_fragments/plan.unit_fragments) + unit)*plan.tiles + tile)*plan.pairs + pair;
                *(float4 *) (plan.terms + at*128 + 16*g) = make_float4(factors[0]*(s[0][0] + s[1][0]), factors[0]*(s[0][1] + s[1][1]), factors[1]*(s[0][2] + s[1][2]), factors[1]*(s[0][3] + s[1][3]));
            }
        }
        if (tile + (int) gridDim.x*WARPS < plan.tiles) {
            load(tile + gridDim.x*WARPS);
        }
    }
#endif
}

/* Rows of c, w and part are read in pieces of 16 bytes. */
bool ggmlq_term_supports(const ggmlq_attend_params * p) {
    const int64_t c = (int64_t) (uintptr_t) p->c | p->c_stride[0] | p->c_stride[1], w = (int64_t) (uintptr_t) p->w | p->w_stride[0] | p->w_stride[1] | p->w_stride[2];
    return p->c_size % 8 == 0 && p->c_size <= 512 && (c | w) % 16 == 0;
}

template <int SIZE> static int launch(const ggmlq_attend_params * p, const ggmlq_decode_plan * plan, term_plan * term, void * stream) {
    int device, multiprocessors;
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
        return ggmlq_cuda_launched();
    }
    /* About a block on a multiprocessor, beside which blocks of the decode kernel have room: of few tokens, several take different columns. */
    int64_t x = (term->tiles + WARPS - 1)/WARPS;
    const int64_t wanted = (x*term->seq_fragments*p->n_seqs + multiprocessors - 1)/multiprocessors;
    term->fragments = (int) (wanted < most_fragments(SIZE) ? wanted : most_fragments(SIZE));
    const int64_t y = (term->seq_fragments + term->fragments - 1)/term->fragments, most = (multiprocessors + y*p->n_seqs - 1)/(y*p->n_seqs);
    x = x < most ? x : most;
    const dim3 blocks((unsigned) x, (unsigned) y, (unsigned) p->n_seqs);
    ggmlq_attend_params params = *p;
    void * args[2] = { &params, term };
    const void * const kernel = (const void *) attend_terms<SIZE>;
    if (!plan->overlaps || !ggmlq_launch_waiting(kernel, blocks, dim3(32*WARPS), 0, (cudaStream_t) stream, args)) {
        (void) cudaLaunchKernel(kernel, blocks, dim3(32*WARPS), args, 0, (cudaStream_t) stream);
    }
    return ggmlq_cuda_launched();
}

int ggmlq_term_launch(const ggmlq_attend_params * p, const ggmlq_decode_plan * plan, int tiles, uint8_t * terms, void * stream) {
    term_plan term;
    term.tiles           = plan->term_tiles;
    term.pairs           = plan->term_pairs;
    term.unit_fragments  = (plan->term_pairs + 3)/4;
    term.seq_fragments   = term.unit_fragments*plan->chunks*plan->heads_kv;
    term.columns         = plan->columns;
    term.columns_at_once = 8*tiles;
    term.group           = plan->group;
    term.heads_kv        = plan->heads_kv;
    term.seqs_per_kv     = plan->seqs_per_kv;
    term.factor          = p->logit_softcap != 0.0f ? p->scale/p->logit_softcap : p->scale*1.44269504f;
    term.terms           = terms;
    return p->c_size <= 128 ? launch<128>(p, plan, &term, stream) : p->c_size <= 256 ? launch<256>(p, plan, &term, stream) : launch<512>(p, plan, &term, stream);
}

#endif
