/* SPDX-License-Identifier: MIT
 *
 * The term part*<w, positional row> of centered keys (docs/CENTERING.md) in the decode kernel: docs/CUDA-ATTENTION.md, "Centered keys".
 *
 * Each warp has the terms of `rows` positions in a row, for all columns, in shared memory, as floats: with 8 columns those of its next tokens, with more those that tiles are looked up in. Where positions follow one another, as those of a text do, they come from the distances to the
 * middle: the terms of a distance d, before and after it, are E(d) - O(d) and E(d) + O(d); the E are products of cosines and the O of sines, which are a table of the block, with what w
 * becomes when it is turned back by the middle. Slot s holds pairs 4s .. 4s + 3 of a slice, pair 4s + t in lanes t of four.
 */
#ifndef GGMLQ_CUDA_ATTEND_TERM_CUH
#define GGMLQ_CUDA_ATTEND_TERM_CUH

/* w becomes halves: divided by this, with which the table is multiplied, it may be as large as 1e7, and what is rounded away of small values is far below a score's error. */
#define GGMLQ_TERM_UNIT 256.0f

/* In shared memory, behind the pipelines: half of what each pair turns from one position to the next; w, in the order of the fragments, [8 columns][slice][32 values][lane]; the table, a row for
 * each of the distances 1/2, 3/2, ...: cosines of all pairs, then sines; of each warp the terms, a row for each position; while they are made what turns w lies there, and, with more than 8 columns, w turned. */
template <int SLICE, int COLUMNS> struct ggmlq_term_shape {
    enum {
        PIECES = SLICE/32, /* 16 bytes a lane: four slots */
        W_BYTES = 512*PIECES, /* 8 columns of a slice */
        TURN_PITCH = 16*(PIECES | 1), TURN_BYTES = 4*TURN_PITCH, /* a row for each lane of four */
        PITCH = 32*(COLUMNS/8 | 1), /* of the terms; rows in a row lie in different banks */
        KEPT = COLUMNS == 8, /* w as turned, in registers */
        ZERO_BYTES = COLUMNS == 8 ? 0 : (int) PITCH, /* a row of zeros, number -1, for tokens without a part: with more columns those are looked up by position */
        ROWS_BYTES = 2048 /* of a warp's 16 tokens, see make_of_tokens */
    };
    static constexpr __host__ __device__ int larger(int a, int b)            { return a > b ? a : b; }
    static constexpr __host__ __device__ int w_at(int slices)                { return 4*SLICE*slices; }
    static constexpr __host__ __device__ int table_at(int slices)            { return w_at(slices) + COLUMNS/8*slices*W_BYTES; }
    static constexpr __host__ __device__ int table_pitch(int slices)         { return 2*SLICE*slices + 16; } /* an odd number of 16 bytes: rows in a row lie in different banks */
    static constexpr __host__ __device__ int warps_at(int slices, int rows)  { return table_at(slices) + rows/2*table_pitch(slices) + ZERO_BYTES; }
    static constexpr __host__ __device__ int turned_at(int rows)             { return larger((rows - 16)*PITCH, TURN_BYTES); } /* of a warp; the last rows of terms are written once it isn't needed */
    static constexpr __host__ __device__ int warp_bytes(int rows)            { return larger(ROWS_BYTES, larger(turned_at(rows) + (KEPT ? 0 : COLUMNS/8*W_BYTES), rows*PITCH)) + ZERO_BYTES; }
    static constexpr __host__ __device__ int bytes(int slices, int warps, int rows) { return warps_at(slices, rows) + warps*warp_bytes(rows); }
};

#ifdef GGMLQ_DECODE_DEVICE

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

/* The block's table, and half of what each pair turns. Pairs that aren't there don't turn. A thread has two pairs, four apart, which lie together in a row. */
struct ggmlq_term_turns { uint64_t of[2]; };

/* Of the thread's two pairs. */
template <int SLICE> GGMLQ_DEVICE ggmlq_term_turns ggmlq_term_load_turns(const ggmlq_attend_params & p, int slices) {
    const int twos = SLICE/4*slices, two = threadIdx.x % twos;
    ggmlq_term_turns turns;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int pair = two/4*8 + two % 4 + 4*i;
        turns.of[i] = pair < (int) p.n_pairs ? p.turns[pair] : 0;
    }
    return turns;
}

template <int SLICE, int COLUMNS, int WARPS> GGMLQ_DEVICE void ggmlq_term_make_table(const ggmlq_term_turns & turns, const ggmlq_decode_plan & plan, int slices, uint8_t * term) {
    typedef ggmlq_term_shape<SLICE, COLUMNS> M;
    const int twos = SLICE/4*slices, runs = 32*WARPS/twos, run = threadIdx.x/twos, two = threadIdx.x - run*twos, rows = plan.term_rows/2, count = (rows + runs - 1)/runs, row = run*count;
    if (M::ZERO_BYTES > 0 && threadIdx.x % 32 < M::ZERO_BYTES/16) {
        ((uint4 *) (term + plan.term_warps_at + threadIdx.x/32*plan.term_warp_bytes - M::ZERO_BYTES))[threadIdx.x % 32] = make_uint4(0, 0, 0, 0);
    }
    if (run < runs) {
        float2 at[2], before[2];
        float twice[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int pair = two/4*8 + two % 4 + 4*i;
            const uint64_t turn = turns.of[i], half = turn >> 1;
            if (run == 0) {
                ((uint64_t *) term)[pair] = half;
            }
            at[i] = ggmlq_term_turn((uint32_t) (half*(2*row + 1) >> 32));
            at[i].x *= GGMLQ_TERM_UNIT;
            at[i].y *= GGMLQ_TERM_UNIT;
            const float2 step = ggmlq_term_turn((uint32_t) (turn >> 32));
            before[i] = make_float2(at[i].x*step.x + at[i].y*step.y, at[i].y*step.x - at[i].x*step.y);
            twice[i] = 2.0f*step.x;
        }
        uint8_t * to = term + M::table_at(slices) + row*M::table_pitch(slices) + 4*two;
#pragma unroll 4 /* more instructions take longer to fetch than these to run */
        for (int n = min(count, rows - row); n > 0; --n) {
            *(uint32_t *) to                    = ggmlq_half2_bits(__floats2half2_rn(at[0].x, at[1].x));
            *(uint32_t *) (to + SLICE*slices)   = ggmlq_half2_bits(__floats2half2_rn(at[0].y, at[1].y));
            to += M::table_pitch(slices);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float2 now = at[i]; /* cos(x + step) = 2 cos(step) cos(x) - cos(x - step), and so the sine */
                at[i] = make_float2(fmaf(twice[i], now.x, -before[i].x), fmaf(twice[i], now.y, -before[i].y));
                before[i] = now;
            }
        }
    }
}

/* An item of w: four pairs of a column, what lane item % 32 has of 32 values; columns and pairs that aren't there are 0. */
struct ggmlq_term_w {
    const float * from; /* its first pair's first value */
    int left;           /* pairs from that on */

    template <int SLICE, int COLUMNS> static __device__ __forceinline__ ggmlq_term_w place(const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int slices, int item, int first_column, int head_kv, int seq) {
        const int pieces = slices*ggmlq_term_shape<SLICE, COLUMNS>::PIECES;
        const int lane = item % 32, n = item/32/pieces, column = first_column + 8*n + lane/4, pair = 16*(item/32 - n*pieces) + lane % 4;
        int token = 0, head = 0;
        ggmlq_decode_place_column(plan, column, token, head);
        const uint8_t * const row = (const uint8_t *) p.w + token*p.w_stride[0] + (head_kv*plan.group + head)*p.w_stride[1] + seq*p.w_stride[2];
        ggmlq_term_w w;
        w.from = (const float *) row + (p.pairs_are_halves ? pair : 2*pair);
        w.left = n < COLUMNS/8 && column < plan.columns ? (int) p.n_pairs - pair : 0;
        return w;
    }

    __device__ __forceinline__ void fetch(float2 v[4], const ggmlq_attend_params & p) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v[i] = make_float2(0.0f, 0.0f);
        }
        if (p.pairs_are_halves) {
            const float * const second = from + p.n_pairs;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (4*i < left) {
                    v[i] = make_float2(from[4*i], second[4*i]);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (4*i < left) {
                    v[i] = make_float2(from[8*i], from[8*i + 1]);
                }
            }
        }
    }
};

/* w of all columns, times the factor of the scores. FETCHED: v is what was fetched for threadIdx.x, and no thread has a second item. */
template <int SLICE, int COLUMNS, bool FETCHED> GGMLQ_DEVICE void ggmlq_term_load_w(float2 v[4], const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int slices, uint8_t * term, int first_column, int head_kv, int seq,
                                                                     float factor) {
    typedef ggmlq_term_shape<SLICE, COLUMNS> M;
    uint4 * const to = (uint4 *) (term + M::w_at(slices));
#pragma unroll 1
    for (int item = threadIdx.x; item < COLUMNS/8*slices*M::PIECES*32; item += blockDim.x) {
        if (!FETCHED) {
            ggmlq_term_w::place<SLICE, COLUMNS>(p, plan, slices, item, first_column, head_kv, seq).fetch(v, p);
        }
        uint32_t halves[2][2]; /* of a pair the first or second value; of two pairs at once */
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            halves[0][i] = ggmlq_half2_bits(__floats2half2_rn(v[2*i].x*factor, v[2*i + 1].x*factor));
            halves[1][i] = ggmlq_half2_bits(__floats2half2_rn(v[2*i].y*factor, v[2*i + 1].y*factor));
        }
        to[item] = make_uint4(halves[0][0], halves[0][1], halves[1][0], halves[1][1]);
    }
}

/* The terms of a warp. `slice`: this warp's. */
/* Positions and parts of a warp's next tokens, number 32i + lane; there is no part beyond the end. */
struct ggmlq_term_window {
    enum { EACH = GGMLQ_TERM_MOST_ROWS/32 };
    uint32_t position[EACH], part[EACH];

    __device__ __forceinline__ void load(const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int seq_kv, int tile) {
        const int token = 16*tile + ggmlq_thread_anew() % 32, end = min(16*tile + plan.term_rows, plan.n_kv);
        const int32_t  * const positions = p.positions + (seq_kv*plan.positions_step + token);
        const uint16_t * const parts     = p.part      + (seq_kv*plan.parts_step     + token);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            position[i] = 0;
            part[i]     = 0;
            if (token + 32*i < end) {
                position[i] = (uint32_t) positions[32*i];
                part[i]     = 0x3c00;
            }
        }
        if (plan.has_parts) {
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                if (token + 32*i < end) {
                    part[i] = parts[32*i];
                }
            }
        }
    }
};

template <int SLICE, int COLUMNS> struct ggmlq_term {
    typedef ggmlq_term_shape<SLICE, COLUMNS> M;
    enum { N = COLUMNS/8 };

    /* Of the positions first .. first + rows - 1. */
    static __device__ __forceinline__ void make(uint8_t * term, const ggmlq_decode_plan & plan, int slices, int first) {
        const unsigned thread = (unsigned) ggmlq_thread_anew(), lane = thread % 32, warp = thread/32, slice = slices == 1 ? 0 : warp % (unsigned) slices, g = lane/4, t = lane % 4;
        uint8_t * const terms = term + plan.term_warps_at + warp*plan.term_warp_bytes, * const turned = terms + plan.term_turned_at + 16*lane;
        __syncwarp();
        if (SLICE == 128 || g < SLICE/16) { /* slots 2g and 2g + 1 */
            const uint64_t * const halves = (const uint64_t *) term + slice*(SLICE/2) + 8*g + t;
            const uint64_t middle = (uint64_t) (2*(int64_t) first + (plan.term_rows - 1));
            const float2 turn0 = ggmlq_term_turn((uint32_t) (middle*halves[0] >> 32)), turn1 = ggmlq_term_turn((uint32_t) (middle*halves[4] >> 32));
            uint32_t * const to = (uint32_t *) (terms + t*M::TURN_PITCH + g/2*16 + g%2*4);
            to[0] = ggmlq_half2_bits(__floats2half2_rn(turn0.x, turn1.x));
            to[2] = ggmlq_half2_bits(__floats2half2_rn(turn0.y, turn1.y));
        }
        __syncwarp();
        uint4 kept[M::KEPT ? M::PIECES : 1];
        {
            const uint8_t * const w = term + M::w_at(slices) + slice*M::W_BYTES + 16*lane;
#pragma unroll
            for (int q = 0; q < M::PIECES; ++q) {
                const uint4 turns = *(const uint4 *) (terms + t*M::TURN_PITCH + 16*q);
                const __half2 cosines[2] = { ggmlq_half2_from_bits(turns.x), ggmlq_half2_from_bits(turns.y) }, sines[2] = { ggmlq_half2_from_bits(turns.z), ggmlq_half2_from_bits(turns.w) };
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    const uint4 pairs = *(const uint4 *) (w + n*slices*M::W_BYTES + 512*q);
                    const __half2 w0[2] = { ggmlq_half2_from_bits(pairs.x), ggmlq_half2_from_bits(pairs.y) }, w1[2] = { ggmlq_half2_from_bits(pairs.z), ggmlq_half2_from_bits(pairs.w) };
                    uint32_t same[2], other[2]; /* what cosines are multiplied by, and sines */
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        same[i]  = ggmlq_half2_bits(__hfma2(w1[i], sines[i], __hmul2(w0[i], cosines[i])));
                        other[i] = ggmlq_half2_bits(__hfma2(__hneg2(w0[i]), sines[i], __hmul2(w1[i], cosines[i])));
                    }
                    const uint4 halves = make_uint4(same[0], same[1], other[0], other[1]);
                    if (M::KEPT) {
                        kept[q] = halves;
                    } else { /* read by this lane alone */
                        *(uint4 *) (turned + n*M::W_BYTES + 512*q) = halves;
                    }
                }
            }
        }
        __syncwarp();
        const int half = plan.term_rows/2;
        uint32_t row = ggmlq_shared_address(term + M::table_at(slices)) + lane % 16*M::table_pitch(slices) + slice*SLICE + lane/16*16;
        uint8_t * after = terms + (half + g)*M::PITCH + 8*t, * before = terms + (half - 1 - (int) g)*M::PITCH + 8*t;
#pragma unroll 1
        for (int left = half; left > 0; left -= 16) {
            float even[N][4], odd[N][4];
#pragma unroll
            for (int n = 0; n < N; ++n) {
                even[n][0] = even[n][1] = even[n][2] = even[n][3] = odd[n][0] = odd[n][1] = odd[n][2] = odd[n][3] = 0.0f;
            }
#pragma unroll
            for (int q = 0; q < M::PIECES; ++q) {
                uint32_t cosines[4], sines[4];
                ggmlq_term_load_rows(cosines, row + 32*q);
                ggmlq_term_load_rows(sines, row + SLICE*slices + 32*q);
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    const uint4 b = M::KEPT ? kept[M::KEPT ? q : 0] : *(const uint4 *) (turned + n*M::W_BYTES + 512*q);
                    ggmlq_mma_f16(even[n], cosines, make_uint2(b.x, b.y));
                    ggmlq_mma_f16(odd[n], sines, make_uint2(b.z, b.w));
                }
            }
            if (!M::KEPT) {
                __syncwarp();
            }
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) { /* distances of rows g and g + 8 */
                    const float e0 = even[n][2*i], e1 = even[n][2*i + 1], o0 = odd[n][2*i], o1 = odd[n][2*i + 1];
                    *(float2 *) (after  + 8*i*M::PITCH + 32*n) = make_float2(e0 + o0, e1 + o1);
                    *(float2 *) (before - 8*i*M::PITCH + 32*n) = make_float2(e0 - o0, e1 - o1);
                }
            }
            row    += 16*M::table_pitch(slices);
            after  += 16*M::PITCH;
            before -= 16*M::PITCH;
        }
        __syncwarp();
    }

    /* Of 16 tokens, position being that of token `lane` (below 16), in the rows from at_row on, 0 or behind the first ROWS_BYTES: positional rows are computed, 32 pairs at a time. */
    static __device__ __forceinline__ void make_of_tokens(const ggmlq_attend_params & p, uint8_t * term, const ggmlq_decode_plan & plan, int slices, int position, int at_row) {
        const int thread = ggmlq_thread_anew(), lane = thread % 32, warp = thread/32, slice = slices == 1 ? 0 : warp % slices;
        uint8_t * const rows = term + plan.term_warps_at + warp*plan.term_warp_bytes; /* 128 bytes each; 16 bytes number i of row r lie at place i ^ r % 8, which spreads them over the banks */
        const uint8_t * const w = term + M::w_at(slices) + slice*M::W_BYTES + 16*lane;
        const uint32_t row = ggmlq_shared_address(rows) + 128*(lane % 16);
        float s[N][4];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
        }
#pragma unroll 1
        for (int first = 0; first < SLICE/2; first += 32) {
            /* a lane has the pairs of two slots, of every other token: 16 bytes of a row are cosines of four lanes, the next 16 sines, as w has them */
            const int two = lane/4 % 4, in_slice = first + 8*two + lane % 4, pair = slice*(SLICE/2) + in_slice;
            uint64_t turns[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                turns[i] = in_slice + 4*i < SLICE/2 && pair + 4*i < (int) p.n_pairs ? p.turns[pair + 4*i] : 0;
            }
            __syncwarp();
#pragma unroll 2
            for (int k = 0; k < 8; ++k) {
                const int i = 2*k + lane/16;
                const uint64_t at = (uint64_t) (int64_t) __shfl_sync(0xffffffffu, position, i);
                const float2 turn0 = ggmlq_term_turn((uint32_t) (at*turns[0] >> 32)), turn1 = ggmlq_term_turn((uint32_t) (at*turns[1] >> 32));
                uint8_t * const to = rows + 128*i + 4*(lane % 4);
                *(uint32_t *) (to + 16*((2*two)     ^ (i % 8))) = ggmlq_half2_bits(__floats2half2_rn(GGMLQ_TERM_UNIT*turn0.x, GGMLQ_TERM_UNIT*turn1.x));
                *(uint32_t *) (to + 16*((2*two + 1) ^ (i % 8))) = ggmlq_half2_bits(__floats2half2_rn(GGMLQ_TERM_UNIT*turn0.y, GGMLQ_TERM_UNIT*turn1.y));
            }
            __syncwarp();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (SLICE % 64 != 0 && first + 8*j >= SLICE/2) {
                    break;
                }
                uint32_t a[4];
                ggmlq_load_matrices<false>(a, row + 16*((2*j + lane/16) ^ (lane % 8)));
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    const uint32_t * const b = (const uint32_t *) (w + n*slices*M::W_BYTES + 32*first + 512*(j/2) + 4*(j % 2));
                    ggmlq_mma_f16(s[n], a, make_uint2(b[0], b[2]));
                }
            }
        }
        __syncwarp();
        uint8_t * const to = rows + (at_row + lane/4)*M::PITCH + 8*(lane % 4);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            *(float2 *) (to + 32*n)              = make_float2(s[n][0], s[n][1]);
            *(float2 *) (to + 32*n + 8*M::PITCH) = make_float2(s[n][2], s[n][3]);
        }
        __syncwarp();
    }

    /* Of the tokens from tile's first one on, times their parts, a row for each from at_row on. Returns of how many tiles: all that fit if their positions follow one another (tokens without a part may
     * have any), or those before the first that breaks that, or some that all break it. */
    static __device__ __forceinline__ int fill(const ggmlq_attend_params & p, uint8_t * term, const ggmlq_decode_plan & plan, int slices, const ggmlq_term_window & window, int seq_kv, int tile, int & at_row) {
        enum { EACH = ggmlq_term_window::EACH };
        const int thread = ggmlq_thread_anew(), lane = thread % 32;
        uint32_t position[EACH];
        uint32_t zero = 0; /* which rows become 0 */
        bool unlike[EACH], any_unlike = false, odd = false;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            position[i] = window.position[i] - (uint32_t) (32*i + lane);
            zero |= window.part[i] == 0 ? 1u << i : 0;
            odd  |= window.part[i] != 0 && window.part[i] != 0x3c00;
        }
        int first = ggmlq_least(window.part[0] != 0 ? (int) position[0] : INT32_MAX); /* the position of token 0, if they follow one another */
        if (__builtin_expect(first == INT32_MAX, 0)) { /* the first two tiles have no part, most likely */
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                first = window.part[i] != 0 ? min(first, (int) position[i]) : first;
            }
            first = ggmlq_least(first);
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            unlike[i] = window.part[i] != 0 && (int) position[i] != first;
            any_unlike |= unlike[i];
        }
        const uint32_t weighted = __ballot_sync(0xffffffffu, odd);
        int count = plan.term_rows/16;
        if (__builtin_expect(__ballot_sync(0xffffffffu, any_unlike) != 0, 0)) {
#pragma unroll
            for (int i = EACH - 1; i >= 0; --i) {
                const uint32_t where = __ballot_sync(0xffffffffu, unlike[i]);
                count = where ? 2*i + ((where & 0xffff) == 0) : count;
            }
        }
        if (first > INT32_MAX - (plan.term_rows - 1)) { /* on both sides of an overflow they don't; or no token has a part, and all become 0 */
            count = __ballot_sync(0xffffffffu, zero != (1u << EACH) - 1) ? 0 : count;
            first = 0;
        }
        at_row = 0;
        if (__builtin_expect(count > 0, 1)) {
            make(term, plan, slices, first);
        } else { /* of all tiles in a row of which that is so, as far as there is room beside what is computed with */
            enum { BEHIND = (M::ROWS_BYTES + M::PITCH - 1)/M::PITCH };
            const int room = plan.term_warp_bytes/(16*M::PITCH) - (BEHIND + 15)/16;
            uint32_t broken = 0;
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const uint32_t next = __shfl_down_sync(0xffffffffu, position[i], 1), next_part = __shfl_down_sync(0xffffffffu, window.part[i], 1);
                const uint32_t where = __ballot_sync(0xffffffffu, lane % 16 != 15 && window.part[i] != 0 && next_part != 0 && next != position[i]);
                broken |= (where & 0xffff ? 1u << 2*i : 0) | (where >> 16 ? 2u << 2*i : 0);
            }
            count  = max(1, min(room, __ffs(~broken) - 1));
            at_row = room > 0 ? (int) BEHIND : 0;
#pragma unroll 1
            for (int i = 0; i < count; ++i) {
                make_of_tokens(p, term, plan, slices, p.positions[seq_kv*plan.positions_step + min(16*(tile + i) + lane % 16, plan.n_kv - 1)], at_row + 16*i);
            }
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                zero &= 2*i + lane/16 < count ? ~0u : ~(1u << i);
            }
        }
        float4 * const row = (float4 *) (term + plan.term_warps_at + thread/32*plan.term_warp_bytes + (at_row + lane)*M::PITCH);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if ((zero >> i & 1) && (i == 0 || 32*i < plan.term_rows)) {
#pragma unroll
                for (int j = 0; j < 2*N; ++j) {
                    row[32*i*M::PITCH/16 + j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                }
            }
        }
        if (__builtin_expect(weighted != 0, 0)) { /* loaded again rather than kept so long */
            const int token = 16*tile + lane, end = min(16*(tile + count), plan.n_kv);
            const uint16_t * const parts = p.part + (seq_kv*plan.parts_step + token);
#pragma unroll 1
            for (int i = 0; token + 32*i < end; ++i) {
                const float factor = zero >> i & 1 ? 0.0f : ggmlq_half_value(parts[32*i]);
#pragma unroll
                for (int j = 0; j < 2*N; ++j) {
                    float4 & four = row[32*i*M::PITCH/16 + j];
                    four = make_float4(four.x*factor, four.y*factor, four.z*factor, four.w*factor);
                }
            }
        }
        __syncwarp();
        return count;
    }
};

#endif

#endif
