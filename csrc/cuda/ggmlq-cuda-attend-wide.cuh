/* SPDX-License-Identifier: MIT
 *
 * Attention for few queries on tensor cores, 32 columns at once: the kernel that adds up the parts. The lean decode kernel (ggmlq-cuda-attend-decode.cuh) leaves them in the
 * workspace: the last block of a unit would read a quarter of a megabyte alone. Measurements: docs/CUDA-ATTENTION.md.
 */
#ifndef GGMLQ_CUDA_ATTEND_WIDE_CUH
#define GGMLQ_CUDA_ATTEND_WIDE_CUH

#include "ggmlq-cuda-attend-decode.cuh"

/* Parts of a unit -> output, rotated back. A block of threads takes 8 columns of one unit and 32 values; four groups of 64 threads share the parts. */
enum { GGMLQ_WIDE_MOST_SPLITS = 256 };

template <int type_v, int TILES> __global__ void __launch_bounds__(256) ggmlq_attend_wide_combine(const GGMLQ_GRID_CONSTANT ggmlq_attend_params p, const GGMLQ_GRID_CONSTANT ggmlq_decode_plan plan,
                                                                                      const uint8_t * workspace) {
#ifdef GGMLQ_DECODE_DEVICE
    enum { COLUMNS = 8*TILES, PART_ITEMS = TILES*8*32, BATCH = 8, PITCH = 32 + 4 };
    const float LOWEST = -1e30f;
    __shared__ float  factors[GGMLQ_WIDE_MOST_SPLITS*8], results[8];
    __shared__ float4 sums[4*64];
    __shared__ __align__(16) float rows[8*PITCH];

    const int lane = threadIdx.x % 32, warp = threadIdx.x/32, tile = blockIdx.x % TILES, plane = blockIdx.x/TILES % 4, unit = blockIdx.x/(4*TILES);
    const int head_kv = unit % plan.heads_kv, z = unit/plan.heads_kv, seq = z/plan.chunks, chunk = z - seq*plan.chunks, first_column = chunk*COLUMNS + 8*tile;
    ggmlq_wait_for_previous();
    ggmlq_let_next_start();
    if (first_column >= plan.columns) {
        return;
    }
    const int item = threadIdx.x % 64, quarter = threadIdx.x/64;
    const float4 * const from = (const float4 *) (workspace + plan.partials_at) + (int64_t) unit*plan.splits*PART_ITEMS + (tile*8 + item/8)*32 + 8*plane + item % 8; /* of M-tile item/8, thread groups 2*plane and the next */
    float4 x[BATCH];
    auto load_batch = [&](int first) {
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (first + 4*i < plan.splits) {
                x[i] = __ldcg(from + (int64_t) (first + 4*i)*PART_ITEMS);
            }
        }
    };
    load_batch(quarter);
    { /* a warp a column */
        const float2 * const stats = (const float2 *) (workspace + plan.stats_at) + (int64_t) unit*plan.splits*COLUMNS + 8*tile + warp;
        const float2 mine = lane < plan.splits ? __ldcg(stats + lane*COLUMNS) : make_float2(LOWEST, 0.0f);
        float top = mine.x;
#pragma unroll 1
        for (int i = lane + 32; i < plan.splits; i += 32) {
            top = fmaxf(top, __ldcg(stats + i*COLUMNS).x);
        }
#pragma unroll
        for (int i = 1; i < 32; i *= 2) {
            top = fmaxf(top, ggmlq_shuffle_xor(top, i));
        }
        float total = ggmlq_exp2(mine.x - top)*mine.y;
        factors[lane*8 + warp] = ggmlq_exp2(mine.x - top);
#pragma unroll 1
        for (int i = lane + 32; i < plan.splits; i += 32) {
            const float2 other = __ldcg(stats + i*COLUMNS);
            factors[i*8 + warp] = ggmlq_exp2(other.x - top);
            total += ggmlq_exp2(other.x - top)*other.y;
        }
#pragma unroll
        for (int i = 1; i < 32; i *= 2) {
            total += ggmlq_shuffle_xor(total, i);
        }
        if (lane == 0) {
            float shrink = 1.0f;
            if (p.sinks && first_column + warp < plan.columns) {
                const float sink = GGMLQ_LOG2E*p.sinks[head_kv*plan.group + (first_column + warp) % plan.group], higher = fmaxf(sink, top);
                shrink = ggmlq_exp2(top - higher);
                total  = total*shrink + ggmlq_exp2(sink - higher);
            }
            results[warp] = total == 0.0f ? 0.0f : ggmlq_decode_v_bytes<type_v>::UNIT*shrink/total;
        }
    }
    __syncthreads();
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int first = quarter; first < plan.splits; first += 4*BATCH) {
        if (first != quarter) {
            load_batch(first);
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (first + 4*i < plan.splits) {
                const float2 f = *(const float2 *) (factors + (first + 4*i)*8 + 2*(item % 4));
                v.x = fmaf(f.x, x[i].x, v.x); v.y = fmaf(f.y, x[i].y, v.y); v.z = fmaf(f.x, x[i].z, v.z); v.w = fmaf(f.y, x[i].w, v.w);
            }
        }
    }
    sums[threadIdx.x] = v;
    __syncthreads();
    if (threadIdx.x < 64) {
        const int column = 2*(item % 4), g = 2*plane + item % 8/4;
        const int value0 = ggmlq_decode_v_value<type_v, 128>(item/8, 0, g) - 32*plane, value1 = ggmlq_decode_v_value<type_v, 128>(item/8, 1, g) - 32*plane;
#pragma unroll
        for (int i = 1; i < 4; ++i) {
            const float4 other = sums[64*i + item];
            v.x += other.x; v.y += other.y; v.z += other.z; v.w += other.w;
        }
        float * const row = rows + column*PITCH;
        row[value0]         = results[column]*v.x;
        row[value0 + PITCH]     = results[column + 1]*v.y;
        row[value1]         = results[column]*v.z;
        row[value1 + PITCH] = results[column + 1]*v.w;
    }
    __syncthreads();
    if (warp == 0) {
        const int column = lane/4, t = lane % 4;
        float r[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            *(float4 *) r[h] = *(const float4 *) (rows + column*PITCH + 16*h + 4*t);
        }
        ggmlq_unrotate_plane<type_v>(r, lane, plane);
        if (first_column + column < plan.columns) {
            ggmlq_decode_store_output(p, plan, first_column + column, plane, head_kv, seq, r, plan.out_aligned);
        }
    }
#endif
}

template <int type_k, int type_v, bool TERM> ggmlq_decode_instance ggmlq_wide_make_instance(void) {
    enum { TILES = 4 };
    ggmlq_decode_instance instance = ggmlq_decode_make_instance<type_k, type_v, 128, TILES, 8, 16, 2, 1, 0, TERM, true>();
    instance.sum_bytes = 4*8*TILES*GGMLQ_WIDE_MOST_SPLITS;
    instance.combine   = (const void *) ggmlq_attend_wide_combine<type_v, TILES>;
    return instance;
}

#endif
