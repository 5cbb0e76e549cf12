/* SPDX-License-Identifier: MIT
 *
 * The term part*<w, positional row> of centered keys (docs/CENTERING.md) in the decode kernel: docs/CUDA-ATTENTION.md, "Centered keys".
 *
 * A position is rows*h + r. The positional rows of r = 0 .. rows - 1, halves, are a table in shared memory. Each warp turns w back by rows*h and multiplies what comes of it by those
 * rows of the table that its tokens are; it takes tokens in order, so that h seldom changes. Slot s holds pairs 4s .. 4s + 3 of a slice, pair 4s + t in lanes t of four.
 */
#ifndef GGMLQ_CUDA_ATTEND_TERM_CUH
#define GGMLQ_CUDA_ATTEND_TERM_CUH

/* w becomes halves: divided by this, with which the table is multiplied, it may be as large as 1e7, and what is rounded away of small values is far below a score's error. */
#define GGMLQ_TERM_UNIT 256.0f

enum { GGMLQ_TERM_RUN = 1 << GGMLQ_TERM_LEAST_SHIFT }; /* rows of the table that a thread makes */

/* In shared memory, behind the pipelines: what each pair turns from one h to the next; w, in the order of the fragments, [8 columns][slice][32 values][lane]; of each warp
 * w turned back, then what turned it; a row of zeros, number -1 of the table; the table. */
template <int SLICE, int COLUMNS> struct ggmlq_term_shape {
    enum {
        PIECES = SLICE/32, /* 16 bytes a lane: four slots */
        W_BYTES = 512*PIECES, /* 8 columns of a slice */
        TURN_PITCH = 16*(PIECES | 1), TURN_BYTES = 9*TURN_PITCH, /* a row for each of eight thread groups, one of zeros */
        WARP_BYTES = COLUMNS/8*W_BYTES + TURN_BYTES
    };
    static constexpr __host__ __device__ int w_at(int slices)                { return 4*SLICE*slices; }
    static constexpr __host__ __device__ int warps_at(int slices)            { return w_at(slices) + COLUMNS/8*slices*W_BYTES; }
    static constexpr __host__ __device__ int table_pitch(int slices)         { return 2*SLICE*slices + 16; } /* an odd number of 16 bytes: rows in a row lie in different banks */
    static constexpr __host__ __device__ int row_at(int slices, int warps, int row)  { return warps_at(slices) + warps*WARP_BYTES + (row + 1)*table_pitch(slices); }
    static constexpr __host__ __device__ int bytes(int slices, int warps, int shift) { return row_at(slices, warps, 1 << shift); }
};

#ifdef GGMLQ_DECODE_DEVICE

/* D = A x B, halves: what the queries of g and g + 8 have of four pairs, and how the pairs turn. */
GGMLQ_DEVICE void ggmlq_mma_f16_k8(float d[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a0), "r"(a1), "r"(b), "f"(0.0f));
}

/* Not volatile: what the table holds never changes, so the compiler may move this among other instructions. */
GGMLQ_DEVICE void ggmlq_term_load_rows(uint32_t a[4], uint32_t address) {
    asm("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address));
}

/* Cosine and sine of a fraction of a turn, in units of 2^-32. */
GGMLQ_DEVICE float2 ggmlq_term_turn(uint32_t fraction) {
    const float angle = 1.46291807927e-9f*(float) (int) fraction; /* 2 pi / 2^32 */
    float2 turn;
    __sincosf(angle, &turn.y, &turn.x);
    return turn;
}

/* The block's table, and what turns w from one h to the next. Pairs that aren't there don't turn. */
template <int SLICE, int COLUMNS, int WARPS> GGMLQ_DEVICE void ggmlq_term_make_table(const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int slices, uint8_t * term) {
    typedef ggmlq_term_shape<SLICE, COLUMNS> M;
    const int pairs = SLICE/2*slices, runs = (1 << plan.term_shift)/GGMLQ_TERM_RUN, pitch = M::table_pitch(slices);
    uint8_t * const table = term + M::row_at(slices, WARPS, 0);
#pragma unroll 1
    for (int item = threadIdx.x; item < pairs*runs; item += 32*WARPS) {
        const int pair = item % pairs, row = item/pairs*GGMLQ_TERM_RUN;
        const uint64_t turn = pair < (int) p.n_pairs ? p.turns[pair] : 0;
        if (row == 0) {
            ((uint64_t *) term)[pair] = turn << plan.term_shift;
        }
        float2 at = ggmlq_term_turn((uint32_t) (turn*row >> 32));
        at.x *= GGMLQ_TERM_UNIT;
        at.y *= GGMLQ_TERM_UNIT;
        const float2 step = ggmlq_term_turn((uint32_t) (turn >> 32));
        uint8_t * to = table + row*pitch + 4*pair;
#pragma unroll 4 /* more instructions take longer to fetch than these to run */
        for (int i = 0; i < GGMLQ_TERM_RUN; ++i) {
            *(uint32_t *) to = ggmlq_half2_bits(__floats2half2_rn(at.x, at.y));
            to += pitch;
            at = make_float2(at.x*step.x - at.y*step.y, at.x*step.y + at.y*step.x);
        }
    }
    uint4 * const zeros = (uint4 *) (table - pitch);
    for (int i = threadIdx.x; i < pitch/16; i += 32*WARPS) {
        zeros[i] = make_uint4(0, 0, 0, 0);
    }
    uint4 * const turned = (uint4 *) (term + M::warps_at(slices)); /* a row of zeros in what turns it; and until it is, it is multiplied by 0 */
    for (int i = threadIdx.x; i < WARPS*M::WARP_BYTES/16; i += 32*WARPS) {
        turned[i] = make_uint4(0, 0, 0, 0);
    }
}

/* An item of w: four pairs of a column, what lane item % 32 has of 32 values; columns and pairs that aren't there are 0. */
template <int SLICE, int COLUMNS> GGMLQ_DEVICE void ggmlq_term_fetch_w(float2 v[4], const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int slices, int item, int first_column, int head_kv, int seq) {
    const int pieces = slices*ggmlq_term_shape<SLICE, COLUMNS>::PIECES, first = p.pairs_are_halves ? 1 : 2, second = p.pairs_are_halves ? (int) p.n_pairs : 1;
    const int lane = item % 32, n = item/32/pieces, column = first_column + 8*n + lane/4, pair = 16*(item/32 - n*pieces) + lane % 4;
    int token = 0, head = 0;
    ggmlq_decode_place_column(plan, column, token, head);
    const float * const w = (const float *) ((const uint8_t *) p.w + token*p.w_stride[0] + (head_kv*plan.group + head)*p.w_stride[1] + seq*p.w_stride[2]) + first*pair;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v[i] = make_float2(0.0f, 0.0f);
        if (n < COLUMNS/8 && column < plan.columns && pair + 4*i < (int) p.n_pairs) {
            v[i] = make_float2(w[4*first*i], w[4*first*i + second]);
        }
    }
}

/* w of all columns, times the factor of the scores. FETCHED: v is what fetch_w got for threadIdx.x, and no thread has a second item. */
template <int SLICE, int COLUMNS, bool FETCHED> GGMLQ_DEVICE void ggmlq_term_load_w(float2 v[4], const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int slices, uint8_t * term, int first_column, int head_kv, int seq,
                                                                     float factor) {
    typedef ggmlq_term_shape<SLICE, COLUMNS> M;
    uint4 * const to = (uint4 *) (term + M::w_at(slices));
#pragma unroll 1
    for (int item = threadIdx.x; item < COLUMNS/8*slices*M::PIECES*32; item += blockDim.x) {
        if (!FETCHED) {
            ggmlq_term_fetch_w<SLICE, COLUMNS>(v, p, plan, slices, item, first_column, head_kv, seq);
        }
        uint32_t halves[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            halves[i] = ggmlq_half2_bits(__floats2half2_rn(v[i].x*factor, v[i].y*factor));
        }
        to[item] = make_uint4(halves[0], halves[1], halves[2], halves[3]);
    }
}

/* BY_COLUMN: scores are [column, token], so w is the A operand, of 16 columns, and rows are the B operand, of 8 tokens: each lane holds the same as the other way round.
 *
 * What a warp needs in its loop: addresses in shared memory. Of the table: of this lane's 16 bytes of row 0; of w and what it becomes: this lane's. */
template <int SLICE, int COLUMNS, int WARPS, bool BY_COLUMN> struct ggmlq_term {
    typedef ggmlq_term_shape<SLICE, COLUMNS> M;
    enum { N = COLUMNS/8, PAIR = N > 1 ? 2 : 1 };

    /* The warp's w, turned back by h times the table's rows. `slice`: this warp's. */
    static __device__ __forceinline__ void turn_w(uint8_t * term, int slices, int h) {
        const int thread = ggmlq_thread_anew(), lane = thread % 32, warp = thread/32, slice = slices == 1 ? 0 : warp % slices;
        uint8_t * const turned = term + M::warps_at(slices) + warp*M::WARP_BYTES, * const turns = turned + N*M::W_BYTES;
        const uint8_t * const w = term + M::w_at(slices) + slice*M::W_BYTES + 16*lane;
        const int g = lane/4, t = lane % 4;
        __syncwarp();
        if (SLICE == 128 || g < SLICE/16) { /* slots 2g and 2g + 1 */
            const uint64_t * const steps = (const uint64_t *) term + slice*(SLICE/2) + 8*g + t;
            uint32_t same[2], other[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float2 turn = ggmlq_term_turn((uint32_t) ((uint64_t) (int64_t) h*steps[4*i] >> 32));
                same[i]  = ggmlq_half2_bits(__floats2half2_rn(turn.x, turn.y));
                other[i] = ggmlq_half2_bits(__floats2half2_rn(-turn.y, turn.x));
            }
            *(uint2 *) (turns + 2*t*M::TURN_PITCH + 8*g)       = make_uint2(same[0], same[1]);
            *(uint2 *) (turns + (2*t + 1)*M::TURN_PITCH + 8*g) = make_uint2(other[0], other[1]);
        }
        __syncwarp();
        const uint8_t * const mine = turns + (g/2 == t ? g : 8)*M::TURN_PITCH; /* a pair is turned by itself: other products are 0 */
        auto of = [](const uint4 & v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; };
#pragma unroll
        for (int q = 0; q < M::PIECES; ++q) {
            const uint4 b = *(const uint4 *) (mine + 16*q);
#pragma unroll
            for (int n = 0; n < N; n += PAIR) {
                const uint4 a0 = *(const uint4 *) (w + n*slices*M::W_BYTES + 512*q), a1 = PAIR > 1 ? *(const uint4 *) (w + (n + 1)*slices*M::W_BYTES + 512*q) : make_uint4(0, 0, 0, 0);
                uint32_t d0[4], d1[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float d[4];
                    ggmlq_mma_f16_k8(d, of(a0, i), of(a1, i), of(b, i));
                    d0[i] = ggmlq_half2_bits(__floats2half2_rn(d[0], d[1]));
                    d1[i] = ggmlq_half2_bits(__floats2half2_rn(d[2], d[3]));
                }
                *(uint4 *) (turned + n*M::W_BYTES + 512*q + 16*lane) = BY_COLUMN ? make_uint4(d0[0], d1[0], d0[1], d1[1]) : make_uint4(d0[0], d0[1], d0[2], d0[3]); /* read by this lane alone */
                if (PAIR > 1) {
                    *(uint4 *) (turned + (n + 1)*M::W_BYTES + 512*q + 16*lane) = BY_COLUMN ? make_uint4(d0[2], d1[2], d0[3], d1[3]) : make_uint4(d1[0], d1[1], d1[2], d1[3]);
                }
            }
        }
    }

    static __device__ __forceinline__ void add_both(float s0[4], float s1[4], const uint32_t columns[4], const uint32_t rows[4]) {
        ggmlq_mma_f16(s0, columns, make_uint2(rows[0], rows[2]));
        ggmlq_mma_f16(s1, columns, make_uint2(rows[1], rows[3]));
    }

    /* s += the products of w and the rows of 16 tokens, position being that of token lane % 16: the rows are computed, 32 pairs at a time, in the place of w turned back. */
    static __device__ __forceinline__ void add_rows(float s[N][4], const ggmlq_attend_params & p, uint8_t * term, int slices, int position) {
        const int thread = ggmlq_thread_anew(), lane = thread % 32, warp = thread/32, slice = slices == 1 ? 0 : warp % slices;
        uint8_t * const rows = term + M::warps_at(slices) + warp*M::WARP_BYTES; /* 128 bytes each; 16 bytes number i of row r lie at place i ^ r % 8, which spreads them over the banks */
        const uint8_t * const w = term + M::w_at(slices) + slice*M::W_BYTES + 16*lane;
        const uint32_t row = ggmlq_shared_address(rows) + 128*(lane % 16);
#pragma unroll 1
        for (int first = 0; first < SLICE/2; first += 32) {
            const int pair = slice*(SLICE/2) + first + lane;
            const uint64_t turn = first + lane < SLICE/2 && pair < (int) p.n_pairs ? p.turns[pair] : 0;
            __syncwarp();
#pragma unroll 4
            for (int i = 0; i < 16; ++i) {
                const float2 at = ggmlq_term_turn((uint32_t) ((uint64_t) (int64_t) __shfl_sync(0xffffffffu, position, i)*turn >> 32));
                *(uint32_t *) (rows + 128*i + 16*((lane/4) ^ (i % 8)) + 4*(lane % 4)) = ggmlq_half2_bits(__floats2half2_rn(GGMLQ_TERM_UNIT*at.x, GGMLQ_TERM_UNIT*at.y));
            }
            __syncwarp();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (SLICE % 64 != 0 && first + 8*j >= SLICE/2) {
                    break;
                }
                uint32_t a[4];
                ggmlq_load_matrices<false>(a, row + 16*((2*j + lane/16) ^ (lane % 8)));
                const uint8_t * const at = w + 32*first + 512*(j/2) + 8*(j % 2);
#pragma unroll
                for (int n = 0; n < N; n += BY_COLUMN ? 2 : 1) {
                    const uint2 b = *(const uint2 *) (at + n*slices*M::W_BYTES);
                    if constexpr (BY_COLUMN) {
                        const uint2 next = *(const uint2 *) (at + (n + 1)*slices*M::W_BYTES);
                        const uint32_t columns[4] = { b.x, next.x, b.y, next.y };
                        add_both(s[n], s[n + 1], columns, a);
                    } else {
                        ggmlq_mma_f16(s[n], a, b);
                    }
                }
            }
        }
    }

    /* s += the products of w as turned and the rows whose addresses the lanes give: 16 bytes of the row of token lane % 16, the second 16 in the upper lanes. turned: this lane's. */
    static __device__ __forceinline__ void add(float s[N][4], uint32_t row, const uint8_t * turned) {
#pragma unroll
        for (int q = 0; q < M::PIECES; ++q) {
            uint32_t a0[4], a1[4];
            ggmlq_term_load_rows(a0, row + 64*q);
            ggmlq_term_load_rows(a1, row + 64*q + 32);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const uint4 b = *(const uint4 *) (turned + n*M::W_BYTES + 512*q);
                if constexpr (BY_COLUMN) {
                    const uint32_t columns[4] = { b.x, b.y, b.z, b.w };
                    add_both(s[n/2*2], s[n/2*2 + 1], columns, n % 2 ? a1 : a0);
                } else {
                    ggmlq_mma_f16(s[n], a0, make_uint2(b.x, b.y));
                    ggmlq_mma_f16(s[n], a1, make_uint2(b.z, b.w));
                }
            }
        }
    }
};

#endif

#endif
