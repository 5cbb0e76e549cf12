/* SPDX-License-Identifier: MIT
 *
 * Attention for any shape, in float and without tensor cores. See ggmlq-cuda-attend.h.
 *
 * A block of threads takes up to ROWS query rows of one KV head (all heads of the GQA group, and as many query tokens as fit) and a
 * range of tokens. Tiles of TILE tokens go through shared memory, SLICE values at a time: unpacked to float, in the rotated
 * space for our types. So do the positional rows of centered keys. Online softmax; the ranges are combined by a second kernel, which also rotates the output back.
 */
#include "ggmlq-cuda-codec.cuh"
#include "ggmlq-cuda-attend.h"

enum {
    THREADS      = 128,
    WARPS        = THREADS/32,
    TILE         = 32,       /* tokens: lanes of a warp                        */
    SLICE        = 64,       /* values                                         */
    STRIDE       = SLICE + 4, /* of a tile's rows: reads of a column don't collide */
    QUERY_FLOATS = 8192,     /* ROWS x head size: 32 KiB                       */
    FULL_GRID    = 512,      /* blocks that fill any GPU: fewer are split, the same on all so that results are */
    SPLIT_TOKENS = 128       /* a shorter range isn't worth the combining      */
};

struct foreign_block_q4_0 { uint8_t d[2]; uint8_t qs[16]; };
struct foreign_block_q8_0 { uint8_t d[2]; int8_t  qs[32]; };

struct plan { int64_t rows_per_kv; int rows, chunks, splits; };

static struct plan make_plan(const struct ggmlq_attend_params * p) {
    struct plan plan;
    plan.rows_per_kv = p->n_heads/p->n_heads_kv*p->n_queries;
    plan.rows   = p->head_size_k > 512 || p->head_size_v > 512 ? 8 : 16;
    plan.chunks = (int) ((plan.rows_per_kv + plan.rows - 1)/plan.rows);
    const int64_t blocks = (int64_t) plan.chunks*p->n_heads_kv*p->n_seqs;
    const int64_t most   = (p->n_kv + SPLIT_TOKENS - 1)/SPLIT_TOKENS;
    int64_t splits = (FULL_GRID + blocks - 1)/blocks;
    splits = splits > most ? most : splits;
    plan.splits = splits < 1 ? 1 : (int) splits;
    return plan;
}

/* Values j..j+3 of a row, those from n on as 0, in the rotated space for our types. */
static __device__ __forceinline__ void load_quad(int type, const uint8_t * row, int j, int n, float v[4]) {
    switch (type) {
        case GGMLQ_TYPE_TQ3_0:
            ggmlq_decode_quad<GGMLQ_TYPE_TQ3_0>(row, j, v);
            break;
        case GGMLQ_TYPE_PLANAR3:
            ggmlq_decode_quad<GGMLQ_TYPE_PLANAR3>(row, j, v);
            break;
        case GGMLQ_TYPE_Q4_0: {
            const struct foreign_block_q4_0 * block = (const struct foreign_block_q4_0 *) row + j/32;
            const float d = ggmlq_half_value(ggmlq_read_u16(block->d));
            for (int i = 0; i < 4; ++i) {
                v[i] = d*(float) ((block->qs[(j + i) % 16] >> (j & 16 ? 4 : 0) & 15) - 8);
            }
            break;
        }
        case GGMLQ_TYPE_Q8_0: {
            const struct foreign_block_q8_0 * block = (const struct foreign_block_q8_0 *) row + j/32;
            const float d = ggmlq_half_value(ggmlq_read_u16(block->d));
            for (int i = 0; i < 4; ++i) {
                v[i] = d*(float) block->qs[j % 32 + i];
            }
            break;
        }
        default:
            ggmlq_load_floats(type, row + (int64_t) j*(type == GGMLQ_TYPE_F32 ? 4 : 2), n - j, v);
    }
}

/* e^x within 4 ulp also under -use_fast_math, 0 below -103; NaN stays NaN. */
static __device__ __forceinline__ float exponential(float x) {
    x = x < -200.0f ? -200.0f : x;
    const float LOG2E = 1.44269504f, LOG2E_REST = 1.92596300e-8f;
    const float high = ggmlq_mul(x, LOG2E);
    const float rest = fmaf(x, LOG2E_REST, fmaf(x, LOG2E, -high));
    return fmaf(exp2f(high)*0.693147181f, rest, exp2f(high));
}

/* tanh from the exponential: within 4 ulp of 1, which is what a bounded score needs. */
static __device__ __forceinline__ float hyperbolic_tangent(float x) {
    x = x > 10.0f ? 10.0f : x < -10.0f ? -10.0f : x;
    return 1.0f - ggmlq_div(2.0f, exponential(2.0f*x) + 1.0f);
}

static __device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000) != 0x7f800000; }

/* A slice of `count` rows, from value j on -> tile, padded with zeros. Returns whether a value of this thread isn't finite. */
static __device__ __forceinline__ bool load_tile(int type, const uint8_t * rows, int64_t stride, int count, int j, int n, float tile[TILE][STRIDE]) {
    bool odd = false;
    j = ggmlq_opaque(j); /* or the addresses of every slice and type are computed ahead of the loop over tokens, in registers that spill */
    for (int i = threadIdx.x; i < TILE*SLICE/4; i += THREADS) {
        const int token = i/(SLICE/4), at = i % (SLICE/4)*4;
        float v[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        if (token < count && j + at < n) {
            load_quad(type, rows + token*stride, j + at, n, v);
        }
        odd |= !(is_finite(v[0]) && is_finite(v[1]) && is_finite(v[2]) && is_finite(v[3]));
        *(float4 *) &tile[token][at] = make_float4(v[0], v[1], v[2], v[3]);
    }
    return odd;
}

/* sums[i] += a slice of the thread's token times one of the warp's i-th query. */
template <int n> static __device__ __forceinline__ void add_products(float sums[n], const float token[SLICE], const float * queries, int width, int n_rows) {
#pragma unroll 4
    for (int d = 0; d < SLICE; d += 4) {
        const float4 key = *(const float4 *) (token + d);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const int row = threadIdx.x/32 + WARPS*i;
            if (row < n_rows) {
                const float4 q = *(const float4 *) (queries + row*width + d);
                sums[i] = fmaf(key.x, q.x, sums[i]);
                sums[i] = fmaf(key.y, q.y, sums[i]);
                sums[i] = fmaf(key.z, q.z, sums[i]);
                sums[i] = fmaf(key.w, q.w, sums[i]);
            }
        }
    }
}

/* `count` query rows -> q[row][width], rotated as K is. */
template <int type> static __device__ __forceinline__ void rotate_queries(float * q, int width, int n, int count) {
    const int lane = threadIdx.x % 32, t = lane % 4, planes = n/GGMLQ_PLANE;
    for (int first = 0; first < count*planes; first += THREADS/4) { /* uniform: shuffles need all lanes */
        const int  unit = first + threadIdx.x/4;
        const bool used = unit < count*planes;
        float * at = q + (used ? unit/planes*width + unit%planes*GGMLQ_PLANE : 0) + 4*t;
        float v[2][4] = { { 0.0f } };
        for (int h = 0; h < 2 && used; ++h) {
            ggmlq_load_floats(GGMLQ_CUDA_F32, (const uint8_t *) (at + 16*h), 4, v[h]);
        }
        ggmlq_rotate_plane<type>(v, lane, unit%planes%ggmlq_cache_type<type>::PLANES);
        for (int h = 0; h < 2 && used; ++h) {
            ggmlq_store_floats(GGMLQ_CUDA_F32, (uint8_t *) (at + 16*h), v[h]);
        }
    }
}

struct work {
    struct ggmlq_attend_params p;
    int     rows_per_kv, group, chunks, splits;
    float * stats; /* [sequence, KV head][row][split] of max, sum                                               */
    float * acc;   /* the same of the sums of weighted values; with one split they lie in the output: NULL      */
};

static __device__ __forceinline__ float * output_row(const struct ggmlq_attend_params & p, int token, int head, int seq) {
    return (float *) ((uint8_t *) p.out + token*p.out_stride[0] + head*p.out_stride[1] + seq*p.out_stride[2]);
}

/* SLICES: of V, at most. TERM: of centered keys. blockIdx.x: split, then chunk of rows; y: KV head; z: sequence. */
template <int ROWS, int SLICES, bool TERM> static __global__ void __launch_bounds__(THREADS, 1)
attend(const struct work w) {
    /* Thread of the second product: four values of PV_ROWS rows. */
    enum { PV_ROWS = ROWS*(SLICE/4)/THREADS, ROWS_PER_WARP = ROWS/WARPS };
    __shared__ __align__(16) float query[QUERY_FLOATS];
    __shared__ __align__(16) float tile[TILE][STRIDE];
    __shared__ __align__(16) float weights[ROWS][TILE]; /* first the mask's share of the score */
    __shared__ float shrink[ROWS];
    __shared__ const uint16_t * masks[ROWS];
    __shared__ float slopes[ROWS];
    __shared__ __align__(16) float term_query[TERM ? ROWS : 1][SLICE]; /* a slice of w, pairs side by side */

    const struct ggmlq_attend_params & p = w.p;
    const int lane  = threadIdx.x % 32, warp = threadIdx.x/32;
    const int split = blockIdx.x % w.splits, first = blockIdx.x/w.splits*ROWS;
    const int n_rows = w.rows_per_kv - first < ROWS ? w.rows_per_kv - first : ROWS;
    const int nk = (int) p.head_size_k, nv = (int) p.head_size_v, width = (nk + SLICE - 1)/SLICE*SLICE;
    const int64_t tiles = (p.n_kv + TILE - 1)/TILE;
    const int start = (int) (tiles* split     /w.splits)*TILE;
    const int64_t last = tiles*(split + 1)/w.splits*TILE;
    const int end   = (int) (last < p.n_kv ? last : p.n_kv);

    for (int head_kv = blockIdx.y; head_kv < p.n_heads_kv; head_kv += gridDim.y) {
    for (int seq = blockIdx.z; seq < p.n_seqs; seq += gridDim.z) {
        const int64_t seq_kv = seq/(p.n_seqs/p.n_seqs_kv);
        const uint8_t * k = (const uint8_t *) p.k + head_kv*p.k_stride[1] + seq_kv*p.k_stride[2];
        const uint8_t * v = (const uint8_t *) p.v + head_kv*p.v_stride[1] + seq_kv*p.v_stride[2];

        __syncthreads();
        for (int i = threadIdx.x; i < n_rows*(width/4); i += THREADS) {
            const int r = i/(width/4), j = i%(width/4)*4;
            const int token = (first + r)/w.group, head = head_kv*w.group + (first + r)%w.group;
            float f[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
            if (j < nk) {
                const uint8_t * q = (const uint8_t *) p.q + token*p.q_stride[0] + head*p.q_stride[1] + seq*p.q_stride[2];
                ggmlq_load_floats(GGMLQ_CUDA_F32, q + 4*j, nk - j, f);
            }
            *(float4 *) &query[r*width + j] = make_float4(f[0], f[1], f[2], f[3]);
        }
        for (int r = threadIdx.x; r < n_rows; r += THREADS) {
            const int token = (first + r)/w.group, head = head_kv*w.group + (first + r)%w.group;
            masks[r]  = p.mask == NULL ? NULL : (const uint16_t *) ((const uint8_t *) p.mask + token*p.mask_stride[0] +
                        head % p.mask_heads*p.mask_stride[1] + seq % p.mask_seqs*p.mask_stride[2]);
            slopes[r] = ggmlq_alibi_slope(p, head);
        }
        for (int i = threadIdx.x; i < ROWS*TILE; i += THREADS) {
            weights[i/TILE][i%TILE] = 0.0f;
        }
        for (int r = threadIdx.x; r < ROWS; r += THREADS) {
            shrink[r] = 1.0f;
        }
        __syncthreads();
        if (p.type_k == GGMLQ_TYPE_TQ3_0) {
            rotate_queries<GGMLQ_TYPE_TQ3_0>(query, width, nk, n_rows);
        } else if (p.type_k == GGMLQ_TYPE_PLANAR3) {
            rotate_queries<GGMLQ_TYPE_PLANAR3>(query, width, nk, n_rows);
        }
        __syncthreads();

        const float hidden = -__uint_as_float(0x7f800000);
        float max[ROWS_PER_WARP], sum[ROWS_PER_WARP], acc[SLICES][PV_ROWS][4];
        for (int i = 0; i < ROWS_PER_WARP; ++i) {
            max[i] = hidden;
            sum[i] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < SLICES; ++i) {
            for (int r = 0; r < PV_ROWS; ++r) {
                acc[i][r][0] = acc[i][r][1] = acc[i][r][2] = acc[i][r][3] = 0.0f;
            }
        }
        const int pv_row = threadIdx.x/(SLICE/4)*PV_ROWS, pv_at = threadIdx.x%(SLICE/4)*4;

        for (int from = start; from < end; from += TILE) {
            const int count = end - from < TILE ? end - from : TILE;
            /* Which tokens may be seen: warp by warp the rows that are its own below. */
            bool visible = false;
            for (int r = warp; r < n_rows; r += WARPS) {
                float bias = lane < count ? 0.0f : hidden;
                if (masks[r] && lane < count) {
                    const uint16_t half = masks[r][from + lane];
                    bias = half == 0xfc00 ? hidden : slopes[r]*ggmlq_half_value(half);
                }
                visible |= bias != hidden;
                weights[r][lane] = bias;
            }
            if (!__syncthreads_or(visible)) {
                continue;
            }

            float score[ROWS_PER_WARP];
            for (int i = 0; i < ROWS_PER_WARP; ++i) {
                score[i] = 0.0f;
            }
            for (int j = 0; j < nk; j += SLICE) {
                load_tile(p.type_k, k + from*p.k_stride[0], p.k_stride[0], count, j, nk, tile);
                __syncthreads();
                add_products<ROWS_PER_WARP>(score, tile[lane], query + j, width, n_rows);
                __syncthreads();
            }
            if constexpr (TERM) {
                const int32_t * positions = (const int32_t *) ((const uint8_t *) p.positions + seq_kv*p.positions_stride) + from;
                const uint16_t * part = p.part ? (const uint16_t *) ((const uint8_t *) p.part + seq_kv*p.part_stride) + from : NULL;
                const int pairs = (int) p.n_pairs, first_of = p.pairs_are_halves ? 1 : 2, second_of = p.pairs_are_halves ? pairs : 1;
                float term[ROWS_PER_WARP];
                for (int i = 0; i < ROWS_PER_WARP; ++i) {
                    term[i] = 0.0f;
                }
                for (int j = 0; j < pairs; j += SLICE/2) {
                    for (int i = threadIdx.x; i < TILE*SLICE/2; i += THREADS) {
                        const int token = i/(SLICE/2), pair = i % (SLICE/2);
                        float2 v = make_float2(0.0f, 0.0f);
                        if (token < count && j + pair < pairs) {
                            v = ggmlq_positional(positions[token], p.turns[j + pair]);
                        }
                        *(float2 *) &tile[token][2*pair] = v;
                    }
                    for (int i = threadIdx.x; i < n_rows*(SLICE/2); i += THREADS) {
                        const int r = i/(SLICE/2), pair = i % (SLICE/2);
                        const int token = (first + r)/w.group, head = head_kv*w.group + (first + r)%w.group;
                        float2 v = make_float2(0.0f, 0.0f);
                        if (j + pair < pairs) {
                            const float * of_query = (const float *) ((const uint8_t *) p.w + token*p.w_stride[0] + head*p.w_stride[1] + seq*p.w_stride[2]) + first_of*(j + pair);
                            v = make_float2(of_query[0], of_query[second_of]);
                        }
                        *(float2 *) &term_query[r][2*pair] = v;
                    }
                    __syncthreads();
                    add_products<ROWS_PER_WARP>(term, tile[lane], &term_query[0][0], SLICE, n_rows);
                    __syncthreads();
                }
                const float factor = !part ? 1.0f : lane < count ? ggmlq_half_value(part[lane]) : 0.0f;
#pragma unroll
                for (int i = 0; i < ROWS_PER_WARP; ++i) {
                    score[i] = fmaf(factor, term[i], score[i]);
                }
            }

#pragma unroll
            for (int i = 0; i < ROWS_PER_WARP; ++i) {
                const int r = warp + WARPS*i;
                if (r >= n_rows) {
                    break;
                }
                float s = score[i]*p.scale;
                if (p.logit_softcap != 0.0f) {
                    s = p.logit_softcap*hyperbolic_tangent(ggmlq_div(s, p.logit_softcap));
                }
                const float bias = weights[r][lane];
                s = bias == hidden ? hidden : s + bias; /* what is hidden may hold anything */
                float top = s;
                for (int mask = 16; mask > 0; mask /= 2) {
                    top = fmaxf(top, ggmlq_shuffle_xor(top, mask)); /* skips NaN */
                }
                const float now = top > max[i] ? top : max[i];
                const float down = now == max[i] ? 1.0f : exponential(max[i] - now);
                const float weight = s == hidden ? 0.0f : exponential(s - now);
                float total = weight;
                for (int mask = 16; mask > 0; mask /= 2) {
                    total += ggmlq_shuffle_xor(total, mask);
                }
                max[i] = now;
                sum[i] = sum[i]*down + total;
                weights[r][lane] = weight;
                if (lane == 0) {
                    shrink[r] = down;
                }
            }
            __syncthreads();

#pragma unroll
            for (int i = 0; i < SLICES; ++i) {
                if (SLICE*i < nv) {
                    const bool odd = __syncthreads_or(load_tile(p.type_v, v + from*p.v_stride[0], p.v_stride[0], count, SLICE*i, nv, tile));
                    for (int r = 0; r < PV_ROWS; ++r) {
                        for (int c = 0; c < 4; ++c) {
                            acc[i][r][c] *= shrink[pv_row + r];
                        }
                    }
                    if (!odd) {
#pragma unroll 8
                        for (int t = 0; t < TILE; ++t) {
                            const float4 value = *(const float4 *) &tile[t][pv_at];
                            for (int r = 0; r < PV_ROWS; ++r) {
                                const float weight = weights[pv_row + r][t];
                                acc[i][r][0] = fmaf(weight, value.x, acc[i][r][0]);
                                acc[i][r][1] = fmaf(weight, value.y, acc[i][r][1]);
                                acc[i][r][2] = fmaf(weight, value.z, acc[i][r][2]);
                                acc[i][r][3] = fmaf(weight, value.w, acc[i][r][3]);
                            }
                        }
                    } else { /* a token of weight 0 has no part in the sum, also where its row isn't finite */
#pragma unroll 1
                        for (int t = 0; t < TILE; ++t) {
                            for (int r = 0; r < PV_ROWS; ++r) {
                                const float weight = weights[pv_row + r][t];
                                for (int c = 0; c < 4; ++c) {
                                    acc[i][r][c] = weight == 0.0f ? acc[i][r][c] : fmaf(weight, tile[t][pv_at + c], acc[i][r][c]);
                                }
                            }
                        }
                    }
                    __syncthreads();
                }
            }
        }

        const int64_t row0 = ((int64_t) seq*p.n_heads_kv + head_kv)*w.rows_per_kv + first;
#pragma unroll
        for (int i = 0; i < ROWS_PER_WARP; ++i) {
            const int r = warp + WARPS*i;
            if (r < n_rows && lane == 0) {
                float * stats = w.stats + ((row0 + r)*w.splits + split)*2;
                stats[0] = max[i];
                stats[1] = sum[i];
            }
        }
#pragma unroll
        for (int i = 0; i < SLICES; ++i) {
            for (int r = 0; r < PV_ROWS; ++r) {
                if (pv_row + r < n_rows) {
                    float * out = w.acc ? w.acc + ((row0 + pv_row + r)*w.splits + split)*nv
                                        : output_row(p, (first + pv_row + r)/w.group, head_kv*w.group + (first + pv_row + r)%w.group, seq);
                    for (int c = 0; c < 4; ++c) {
                        if (SLICE*i + pv_at + c < nv) {
                            out[SLICE*i + pv_at + c] = acc[i][r][c];
                        }
                    }
                }
            }
        }
    }
    }
}

/* A block of threads finishes a row: adds up its splits in ascending order, sink, division, inverse rotation. */
static __global__ void __launch_bounds__(THREADS)
combine(const struct work w, int n_rows_all) {
    __shared__ __align__(16) float values[GGMLQ_ATTEND_MAX_HEAD_SIZE];
    const struct ggmlq_attend_params & p = w.p;
    const float hidden = -__uint_as_float(0x7f800000);
    const int nv = (int) p.head_size_v;
    for (int row = blockIdx.x; row < n_rows_all; row += gridDim.x) {
        const int kv = row/w.rows_per_kv, r = row%w.rows_per_kv;
        const int head = kv % (int) p.n_heads_kv*w.group + r%w.group;
        float * out = output_row(p, r/w.group, head, kv/(int) p.n_heads_kv);
        const float * stats = w.stats + (int64_t) row*w.splits*2;
        const float * acc   = w.acc ? w.acc + (int64_t) row*w.splits*nv : out;

        float max = hidden, sum = 0.0f;
        for (int split = 0; split < w.splits; ++split) {
            max = stats[2*split] > max ? stats[2*split] : max;
        }
        float mine[GGMLQ_ATTEND_MAX_HEAD_SIZE/THREADS];
#pragma unroll
        for (int i = 0; i < GGMLQ_ATTEND_MAX_HEAD_SIZE/THREADS; ++i) {
            mine[i] = 0.0f;
        }
        for (int split = 0; split < w.splits; ++split, acc += nv) {
            /* A range that is all hidden has the sum 0; one of NaN alone has a NaN sum and no maximum. */
            const float factor = stats[2*split] == hidden ? (stats[2*split + 1] == 0.0f ? 0.0f : __uint_as_float(0x7fc00000)) : exponential(stats[2*split] - max);
            if (factor == 0.0f) {
                continue;
            }
            sum = fmaf(factor, stats[2*split + 1], sum);
#pragma unroll
            for (int i = 0; i < GGMLQ_ATTEND_MAX_HEAD_SIZE/THREADS; ++i) {
                if ((int) threadIdx.x + THREADS*i < nv) {
                    mine[i] = fmaf(factor, acc[threadIdx.x + THREADS*i], mine[i]);
                }
            }
        }
        float factor = 1.0f;
        if (p.sinks) {
            const float sink = p.sinks[head], top = sink > max ? sink : max;
            factor = max == hidden ? 0.0f : exponential(max - top);
            sum = sum*factor + (sink == hidden ? 0.0f : exponential(sink - top));
        }
        factor = sum == 0.0f ? 0.0f : ggmlq_div(factor, sum);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < GGMLQ_ATTEND_MAX_HEAD_SIZE/THREADS; ++i) {
            if ((int) threadIdx.x + THREADS*i < nv) {
                values[threadIdx.x + THREADS*i] = mine[i]*factor;
            }
        }
        __syncthreads();
        if (p.type_v == GGMLQ_TYPE_TQ3_0 || p.type_v == GGMLQ_TYPE_PLANAR3) {
            const int lane = threadIdx.x % 32;
            for (int first = 0; first < nv; first += THREADS*8) {
                const int  at   = first + threadIdx.x/4*GGMLQ_PLANE + threadIdx.x%4*4;
                const bool used = at < nv;
                float v[2][4] = { { 0.0f } };
#pragma unroll
                for (int h = 0; h < 2 && used; ++h) {
                    ggmlq_load_floats(GGMLQ_CUDA_F32, (const uint8_t *) &values[at + 16*h], 4, v[h]);
                }
                if (p.type_v == GGMLQ_TYPE_TQ3_0) {
                    ggmlq_unrotate_plane<GGMLQ_TYPE_TQ3_0>(v, lane, 0);
                } else {
                    ggmlq_unrotate_plane<GGMLQ_TYPE_PLANAR3>(v, lane, at/GGMLQ_PLANE%4);
                }
#pragma unroll
                for (int h = 0; h < 2 && used; ++h) {
                    ggmlq_store_floats(GGMLQ_CUDA_F32, (uint8_t *) (out + at + 16*h), v[h]);
                }
            }
        } else {
            for (int i = threadIdx.x; i < nv; i += THREADS) {
                out[i] = values[i];
            }
        }
    }
}

/* --- entry points ----------------------------------------------------------------------------------------------- */

bool ggmlq_cuda_attend_plain_supports(const struct ggmlq_attend_params * p) {
    return ggmlq_cuda_attend_check(p) == GGMLQ_OK;
}

int64_t ggmlq_cuda_attend_plain_workspace_bytes(const struct ggmlq_attend_params * p) {
    const struct plan plan = make_plan(p);
    const int64_t rows = plan.rows_per_kv*p->n_heads_kv*p->n_seqs;
    return rows*plan.splits*(int64_t) sizeof(float)*(2 + (plan.splits > 1 ? p->head_size_v : 0));
}

template <bool TERM> static void launch_attend(const struct work & w, int rows, dim3 grid, cudaStream_t queue) {
    if (rows == 8) {
        attend<8, 16, TERM><<<grid, THREADS, 0, queue>>>(w);
    } else if (w.p.head_size_v <= 128) {
        attend<16, 2, TERM><<<grid, THREADS, 0, queue>>>(w);
    } else if (w.p.head_size_v <= 256) {
        attend<16, 4, TERM><<<grid, THREADS, 0, queue>>>(w);
    } else {
        attend<16, 8, TERM><<<grid, THREADS, 0, queue>>>(w);
    }
}

int ggmlq_cuda_attend_plain_launch(const struct ggmlq_attend_params * p, void * workspace, void * stream) {
    const struct plan plan = make_plan(p);
    const int64_t rows = plan.rows_per_kv*p->n_heads_kv*p->n_seqs;
    struct work w;
    w.p           = *p;
    w.rows_per_kv = (int) plan.rows_per_kv;
    w.group       = (int) (p->n_heads/p->n_heads_kv);
    w.chunks      = plan.chunks;
    w.splits      = plan.splits;
    w.stats       = (float *) workspace;
    w.acc         = plan.splits > 1 ? w.stats + 2*rows*plan.splits : NULL;

    const dim3 grid((unsigned int) (plan.chunks*plan.splits), (unsigned int) (p->n_heads_kv < 65535 ? p->n_heads_kv : 65535), (unsigned int) (p->n_seqs < 65535 ? p->n_seqs : 65535));
    const cudaStream_t queue = (cudaStream_t) stream;
    if (p->n_pairs > 0) {
        launch_attend<true>(w, plan.rows, grid, queue);
    } else {
        launch_attend<false>(w, plan.rows, grid, queue);
    }
    const int error = ggmlq_cuda_launched();
    if (error) {
        return error;
    }
    combine<<<(unsigned int) (rows < 1048576 ? rows : 1048576), THREADS, 0, queue>>>(w, (int) rows);
    return ggmlq_cuda_launched();
}
