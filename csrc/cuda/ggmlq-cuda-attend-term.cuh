/* SPDX-License-Identifier: MIT
 *
 * The term part*(w . c) of centered keys (docs/CENTERING.md) in the decode kernel: docs/CUDA-ATTENTION.md, "Centered keys".
 *
 * A warp copies c of its next tile as soon as it has read this one's, so one place for it is enough. w is kept in shared memory, in the order of the fragments.
 */
#ifndef GGMLQ_CUDA_ATTEND_TERM_CUH
#define GGMLQ_CUDA_ATTEND_TERM_CUH

/* w becomes halves: divided by this, which the factors of c have too, it may be as large as 1e7, and what is rounded away of small values is far below a score's error. */
#define GGMLQ_TERM_UNIT 256.0f

/* Bytes in shared memory: of ROWS tokens SLICE values of c, as rows of f16 keys lie there, and then the factors; of w. */
template <int SLICE> struct ggmlq_term_rows : ggmlq_decode_rows<GGMLQ_TYPE_F16, SLICE> {};
template <int SLICE, int ROWS> constexpr __host__ __device__ int ggmlq_term_c_bytes(void) { return ROWS*ggmlq_term_rows<SLICE>::PITCH + 2*ROWS; }
constexpr __host__ __device__ int ggmlq_term_w_bytes(int slices, int columns) { return 2*slices*columns; }

#ifdef GGMLQ_DECODE_DEVICE

/* Before the first copy: values that c doesn't have are 0, factors 1. */
template <int SLICE, int ROWS> GGMLQ_DEVICE void ggmlq_term_clear(uint8_t * to, const ggmlq_attend_params & p, int lane) {
#pragma unroll 1
    for (int i = lane; i < ROWS*ggmlq_term_rows<SLICE>::PITCH/16; i += 32) {
        *(uint4 *) (to + 16*i) = make_uint4(0, 0, 0, 0);
    }
    if (lane < ROWS && p.part == NULL) {
        ((uint16_t *) (to + ROWS*ggmlq_term_rows<SLICE>::PITCH))[lane] = 0x3c00;
    }
    __syncwarp();
}

/* Rows of c -> shared memory; chunk: this lane's 16 bytes of its first row; left: of c's bytes from that lane's on. `count` rows are there. */
template <int SLICE, int ROWS, bool last> GGMLQ_DEVICE void ggmlq_term_copy(uint32_t to, const uint8_t * chunk, unsigned step, int left, int count, int lane, const void * anywhere) {
    typedef ggmlq_term_rows<SLICE> R;
    enum { STEP = 32/R::LANES };
    const int x = lane % R::LANES;
    to += lane/R::LANES*R::PITCH + 16*x;
    if ((R::CHUNKS == R::LANES || x < R::CHUNKS) && left > 0) {
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP) {
            const bool there = !last || i + lane/R::LANES < count;
            ggmlq_copy_async(to + i*R::PITCH, there ? chunk : anywhere, there ? 16 : 0);
            chunk += step;
        }
    }
}

/* w of all columns -> shared memory, times the factor of the scores: two B fragments in 16 bytes of a lane, [column / 8][j][lane]. */
template <int COLUMNS, int SLICE> GGMLQ_DEVICE void ggmlq_term_load_w(const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, uint8_t * to, int first_column, int head_kv, int seq, float factor) {
    const int pieces = plan.slices*(SLICE/32);
#pragma unroll 1
    for (int item = threadIdx.x; item < COLUMNS/8*pieces*32; item += blockDim.x) {
        const int lane = item % 32, n = item/32/pieces, column = 8*n + lane/4, value = 32*(item/32 - n*pieces) + 2*(lane % 4);
        uint4 halves = make_uint4(0, 0, 0, 0);
        if (first_column + column < plan.columns && value < (int) p.c_size) {
            int token, head;
            ggmlq_decode_place_column(plan, first_column + column, token, head);
            const float * w = (const float *) ((const uint8_t *) p.w + token*p.w_stride[0] + (head_kv*plan.group + head)*p.w_stride[1] + seq*p.w_stride[2]) + value;
            uint32_t pair[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                pair[i] = value + 8*i < (int) p.c_size ? ggmlq_half2_bits(__floats2half2_rn(w[8*i]*factor, w[8*i + 1]*factor)) : 0;
            }
            halves = make_uint4(pair[0], pair[1], pair[2], pair[3]);
        }
        *(uint4 *) (to + 16*item) = halves;
    }
}

/* s <- factors * <w, c>. c: the tile; w: this lane's first 16 bytes; pitch: of w, from 8 columns to the next. */
template <int SLICE, int TILES, int ROWS> GGMLQ_DEVICE void ggmlq_term_scores(float s[ROWS/16][TILES][4], const uint8_t * c, const uint8_t * w, int pitch, int lane) {
    typedef ggmlq_term_rows<SLICE> R;
    const uint8_t * const part = c + ROWS*R::PITCH + 2*ggmlq_decode_token(lane/4);
    const uint32_t address = ggmlq_shared_address(c) + ggmlq_decode_token(lane % 16)*R::PITCH + 16*(lane/16);
#pragma unroll
    for (int m = 0; m < ROWS/16; ++m) {
#pragma unroll
        for (int j = 0; j < SLICE/32; ++j) {
            uint32_t a0[4], a1[4];
            ggmlq_load_matrices<false>(a0, address + 16*m*R::PITCH + 64*j);
            ggmlq_load_matrices<false>(a1, address + 16*m*R::PITCH + 64*j + 32);
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const uint4 b = *(const uint4 *) (w + n*pitch + j*512);
                ggmlq_mma_f16(s[m][n], a0, make_uint2(b.x, b.y));
                ggmlq_mma_f16(s[m][n], a1, make_uint2(b.z, b.w));
            }
        }
        const float f0 = GGMLQ_TERM_UNIT*ggmlq_half_value((uint16_t) ggmlq_read_shared_u16(part + 32*m)), f1 = GGMLQ_TERM_UNIT*ggmlq_half_value((uint16_t) ggmlq_read_shared_u16(part + 32*m + 16));
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                s[m][n][i] *= i < 2 ? f0 : f1;
            }
        }
    }
}

#endif

/* --- the terms of all KV heads by a kernel ahead of the decode kernel: c is read once for all, not by each head --- */

/* Bytes of the terms of a tile of the loop: `rows` tokens, 8*tiles columns. They lie in the workspace as halves, in the order in which a warp holds its scores. */
constexpr __host__ __device__ int64_t ggmlq_ahead_tile_bytes(int rows, int tiles) { return (int64_t) rows/16*tiles*GGMLQ_AHEAD_BYTES; }

#ifdef GGMLQ_DECODE_DEVICE

/* A lane's terms, as halves, added to its scores. */
GGMLQ_DEVICE void ggmlq_ahead_add(float s[4], uint2 term) {
    const float2 x = __half22float2(ggmlq_half2_from_bits(term.x)), y = __half22float2(ggmlq_half2_from_bits(term.y));
    s[0] = fmaf(GGMLQ_TERM_UNIT, x.x, s[0]);
    s[1] = fmaf(GGMLQ_TERM_UNIT, x.y, s[1]);
    s[2] = fmaf(GGMLQ_TERM_UNIT, y.x, s[2]);
    s[3] = fmaf(GGMLQ_TERM_UNIT, y.y, s[3]);
}

/* SLICE values of c of 16 tokens. The order of a contraction is free: thread t of four takes 8 values in a row, number t + 4*j, which are what two A fragments want of it. */
template <int SLICE> struct ggmlq_ahead_rows {
    uint4    value[2][SLICE/32]; /* of the tokens of rows g and g + 8 */
    uint32_t part[2];
};

template <int SLICE> GGMLQ_DEVICE void ggmlq_ahead_load_c(ggmlq_ahead_rows<SLICE> & rows, const ggmlq_attend_params & p, int seq_kv, int tile, int first, int lane) {
    const uint8_t * const c = (const uint8_t *) p.c + seq_kv*p.c_stride[1] + 2*(first + 8*(lane % 4));
    const uint8_t * const part = (const uint8_t *) p.part + seq_kv*p.part_stride;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int token = 16*tile + ggmlq_decode_token(lane/4) + 8*h;
        const bool there = token < (int) p.n_kv;
#pragma unroll
        for (int j = 0; j < SLICE/32; ++j) {
            rows.value[h][j] = make_uint4(0, 0, 0, 0);
            if (there && first + 32*j + 8*(lane % 4) < (int) p.c_size) {
                rows.value[h][j] = *(const uint4 *) (c + token*p.c_stride[0] + 64*j);
            }
        }
        rows.part[h] = 0x3c00;
        if (p.part && there) {
            rows.part[h] = *(const uint16_t *) (part + 2*token);
        }
    }
}

/* Terms of a tile and N times 8 columns, from the block's number `first` on, which is the sequence's number first_group + first. `loaded`: rows holds the first values of c. to: the tile's terms of the first KV head;
 * step: bytes to the next head's. */
template <int N, int TILES, int SLICE> GGMLQ_DEVICE void ggmlq_ahead_columns(ggmlq_ahead_rows<SLICE> & rows, bool loaded, const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, const uint8_t * w,
                                                                           uint8_t * to, int64_t step, int first_group, int first, int seq_kv, int tile, int lane) {
    float s[N][4];
#pragma unroll
    for (int n = 0; n < N; ++n) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll 1
    for (int value = 0; value < plan.ahead_values; value += SLICE) {
        if (value > 0 || !loaded) {
            ggmlq_ahead_load_c(rows, p, seq_kv, tile, value, lane);
        }
#pragma unroll
        for (int j = 0; j < SLICE/32; ++j) {
            const uint4 x = rows.value[0][j], y = rows.value[1][j];
            const uint32_t a0[4] = { x.x, y.x, x.y, y.y }, a1[4] = { x.z, y.z, x.w, y.w };
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const uint4 b = *(const uint4 *) (w + 16*((first + n)*plan.ahead_values + value + 32*j + lane));
                ggmlq_mma_f16(s[n], a0, make_uint2(b.x, b.y));
                ggmlq_mma_f16(s[n], a1, make_uint2(b.z, b.w));
            }
        }
    }
    const float f0 = ggmlq_half_value((uint16_t) rows.part[0]), f1 = ggmlq_half_value((uint16_t) rows.part[1]);
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const uint2 halves = make_uint2(ggmlq_half2_bits(__floats2half2_rn(f0*s[n][0], f0*s[n][1])), ggmlq_half2_bits(__floats2half2_rn(f1*s[n][2], f1*s[n][3])));
        __stcg((uint2 *) (to + (first_group + first + n)/TILES*step + (first_group + first + n) % TILES*GGMLQ_AHEAD_BYTES + 8*lane), halves);
    }
}

#endif

/* Blocks: tiles of 16 tokens; 8 columns of the KV heads, plan.ahead_groups at once; chunks of columns and sequences. ROWS: tokens of a tile of the loop. */
template <int TILES, int SLICE, int ROWS> __global__ void __launch_bounds__(32*GGMLQ_AHEAD_WARPS, 2)
ggmlq_attend_ahead_kernel(const GGMLQ_GRID_CONSTANT ggmlq_attend_params p, const GGMLQ_GRID_CONSTANT ggmlq_decode_plan plan, uint8_t * workspace) {
#ifdef GGMLQ_DECODE_DEVICE
    __shared__ __align__(16) uint8_t w[GGMLQ_AHEAD_W_BYTES]; /* [8 columns][32 values][lane]: what a lane's two B fragments want */
    const int lane = threadIdx.x % 32, seq = blockIdx.z/plan.chunks, first_column = (blockIdx.z - seq*plan.chunks)*8*TILES, seq_kv = seq/plan.seqs_per_kv;
    const int first_group = blockIdx.y*plan.ahead_groups, groups = min(plan.ahead_groups, plan.heads_kv*TILES - first_group), pieces = plan.ahead_values/32;
    const int loop_tiles = (plan.n_kv + ROWS - 1)/ROWS, tiles = loop_tiles*(ROWS/16);
    const int64_t step = loop_tiles*ggmlq_ahead_tile_bytes(ROWS, TILES);
    int tile = (int) (threadIdx.x/32)*gridDim.x + blockIdx.x;

    ggmlq_let_next_start();
    ggmlq_wait_for_previous();
    ggmlq_ahead_rows<SLICE> rows;
    if (tile < tiles) {
        ggmlq_ahead_load_c(rows, p, seq_kv, tile, 0, lane);
    }
    const float factor = ggmlq_score_factor(p, p.logit_softcap != 0.0f)*(1.0f/GGMLQ_TERM_UNIT);
#pragma unroll 4
    for (int item = threadIdx.x; item < groups*pieces*32; item += 32*GGMLQ_AHEAD_WARPS) {
        const int i = item/32/pieces, group = first_group + i, value = 32*(item/32 - i*pieces) + 8*(item % 4), column = first_column + group % TILES*8 + item/4 % 8;
        float v[8] = {};
        if (column < plan.columns && value < (int) p.c_size) {
            int token, head;
            ggmlq_decode_place_column(plan, column, token, head);
            const float * const from = (const float *) ((const uint8_t *) p.w + token*p.w_stride[0] + (group/TILES*plan.group + head)*p.w_stride[1] + seq*p.w_stride[2]) + value;
            *(float4 *) v       = *(const float4 *) from;
            *(float4 *) (v + 4) = *(const float4 *) (from + 4);
        }
        *(uint4 *) (w + 16*item) = make_uint4(ggmlq_half2_bits(__floats2half2_rn(v[0]*factor, v[1]*factor)), ggmlq_half2_bits(__floats2half2_rn(v[2]*factor, v[3]*factor)),
                                              ggmlq_half2_bits(__floats2half2_rn(v[4]*factor, v[5]*factor)), ggmlq_half2_bits(__floats2half2_rn(v[6]*factor, v[7]*factor)));
    }
    __syncthreads();
    const bool whole = plan.ahead_values == SLICE; /* c is in registers */
#pragma unroll 1
    while (tile < tiles) {
        uint8_t * const to = workspace + plan.ahead_at + (int64_t) blockIdx.z*plan.heads_kv*step + (int64_t) tile*TILES*GGMLQ_AHEAD_BYTES;
        int first = 0;
#pragma unroll 1
        for (; first + 8 <= groups; first += 8) {
            ggmlq_ahead_columns<8, TILES>(rows, whole || first == 0, p, plan, w, to, step, first_group, first, seq_kv, tile, lane);
        }
        if (first + 4 <= groups) {
            ggmlq_ahead_columns<4, TILES>(rows, whole || first == 0, p, plan, w, to, step, first_group, first, seq_kv, tile, lane);
            first += 4;
        }
#pragma unroll 1
        for (; first < groups; ++first) {
            ggmlq_ahead_columns<1, TILES>(rows, whole || first == 0, p, plan, w, to, step, first_group, first, seq_kv, tile, lane);
        }
        tile += GGMLQ_AHEAD_WARPS*gridDim.x;
        if (tile < tiles) {
            ggmlq_ahead_load_c(rows, p, seq_kv, tile, 0, lane);
        }
    }
#endif
}

#endif
