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

#endif
