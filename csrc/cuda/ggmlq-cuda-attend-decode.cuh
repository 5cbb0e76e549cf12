/* SPDX-License-Identifier: MIT
 *
 * Attention for few queries on tensor cores: the kernel. Design, fragments and measurements: docs/CUDA-ATTENTION.md.
 *
 * A column is a query row: query token i / group, head i % group of one KV head. A block of threads takes 8*TILES columns, all
 * of them in every warp, and a range of tokens; it reads every K and V row of the range once. Warps work alone, on tiles of ROWS
 * tokens that they copy to shared memory themselves, several tiles ahead. A head wider than SLICE is shared by a group
 * of warps, which add up their partial scores. Ranges are combined by the block that finishes last. Where V is the first part of K (MLA), K's
 * rows have a TAIL: one plane more for each of the first warps of a group.
 *
 * LEAN: for heads of one slice, V beside K, no softcap, one mask row for all columns or, from 16 columns on, one for each query, everything aligned to 16 bytes. With 32
 * columns another kernel combines the ranges (ggmlq-cuda-attend-wide.cuh).
 *
 *   scores   [token, column] = K (A operand, 16 tokens) x queries (B operand)   int8 m16n8k32, or f16 m16n8k16 for f16 rows
 *   output   [value, column] = V transposed (A, 16 values x 16 tokens) x weights (B)         f16 m16n8k16
 *
 * Lean and with 32 columns (BY_COLUMN) scores are [column, token] = queries (A, 16 columns) x K (B, 8 tokens), so that weights are where the B operand wants them, and the values of
 * a tile are added among the scores of the next: with two warps on a scheduler nothing else hides how long an instruction takes.
 *
 * The order of a contraction is free. So a thread takes from K the fields that lie in its 16 bits of a plane, queries being
 * stored in that order.
 */
#ifndef GGMLQ_CUDA_ATTEND_DECODE_CUH
#define GGMLQ_CUDA_ATTEND_DECODE_CUH

#include "ggmlq-cuda-codec.cuh"
#include "ggmlq-cuda-attend-decode.h"

/* --- instructions ----------------------------------------------------------------------------------------------- */

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
#    define GGMLQ_DECODE_DEVICE
#endif

#ifdef GGMLQ_DECODE_DEVICE
#    define GGMLQ_GRID_CONSTANT __grid_constant__
#else /* older devices: an empty kernel, never launched */
#    define GGMLQ_GRID_CONSTANT
#endif

#ifdef GGMLQ_DECODE_DEVICE

GGMLQ_DEVICE uint32_t ggmlq_shared_address(const void * p) { return (uint32_t) __cvta_generic_to_shared(p); }

/* Turing has neither copies beside the instructions nor the wide products, nor the least of a warp: there a copy is done when it is made, and a product is two or four.
 * GGMLQ_DECODE_AS_TURING has newer devices run that. */
#if __CUDA_ARCH__ >= 800 && !defined(GGMLQ_DECODE_AS_TURING)

/* 16 bytes, of which the first `valid` are read and the rest become 0. */
GGMLQ_DEVICE void ggmlq_copy_async(uint32_t to, const void * from, int valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(valid) : "memory");
}

GGMLQ_DEVICE void ggmlq_copy_async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> GGMLQ_DEVICE void ggmlq_copy_async_wait(void) { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

GGMLQ_DEVICE void ggmlq_mma_s8(int d[4], const uint32_t a[4], uint2 b, const int c[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

GGMLQ_DEVICE void ggmlq_mma_f16(float c[4], const uint32_t a[4], uint2 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

/* Of all lanes. */
GGMLQ_DEVICE int ggmlq_least(int x) { return __reduce_min_sync(0xffffffffu, x); }
GGMLQ_DEVICE int ggmlq_largest(int x) { return __reduce_max_sync(0xffffffffu, x); }

#else

GGMLQ_DEVICE void ggmlq_copy_async(uint32_t to, const void * from, int valid) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (valid == 16) {
        x = *(const uint4 *) from;
    } else {
        for (int i = 0; i < valid; ++i) { /* not an array of bytes, which would lie in local memory */
            const uint32_t byte = (uint32_t) ((const uint8_t *) from)[i] << 8*(i & 3);
            x.x |= i < 4 ? byte : 0; x.y |= i >= 4 && i < 8 ? byte : 0; x.z |= i >= 8 && i < 12 ? byte : 0; x.w |= i >= 12 ? byte : 0;
        }
    }
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" :: "r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

GGMLQ_DEVICE void ggmlq_copy_async_commit(void) {}
template <int N> GGMLQ_DEVICE void ggmlq_copy_async_wait(void) {}

GGMLQ_DEVICE void ggmlq_mma_s8(int d[4], const uint32_t a[4], uint2 b, const int c[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) { /* 8 of 16 rows */
        asm("{\n"
            "    .reg .b32 x, y;\n"
            "    mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {x, y}, {%2}, {%4}, {%6, %7};\n"
            "    mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%3}, {%5}, {x, y};\n"
            "}" : "=r"(d[2*i]), "=r"(d[2*i + 1]) : "r"(a[i]), "r"(a[i + 2]), "r"(b.x), "r"(b.y), "r"(c[2*i]), "r"(c[2*i + 1]));
    }
}

GGMLQ_DEVICE void ggmlq_mma_f16(float c[4], const uint32_t a[4], uint2 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%8}, {%0,%1,%2,%3};\n"
        "    mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%6,%7}, {%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

GGMLQ_DEVICE int ggmlq_largest(int x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x = max(x, __shfl_xor_sync(0xffffffffu, x, distance));
    }
    return x;
}

GGMLQ_DEVICE int ggmlq_least(int x) { return ~ggmlq_largest(~x); }

#endif

GGMLQ_DEVICE void ggmlq_mma_f16_k8(float c[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b));
}

/* 8 x 8 halves, element [lane/4][2*(lane%4) ..]: transposed. */
GGMLQ_DEVICE uint32_t ggmlq_transpose_halves(uint32_t a) {
    uint32_t d;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}

template <bool transposed> GGMLQ_DEVICE void ggmlq_load_matrices(uint32_t a[4], uint32_t address) {
    if (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address) : "memory");
    }
}

/* Scores are powers of 2, so their exponents carry this. */
#define GGMLQ_LOG2E 1.44269504f
GGMLQ_DEVICE float ggmlq_exp2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

/* Of a product of a query and a key, or of the term of centered keys. */
GGMLQ_DEVICE float ggmlq_score_factor(const ggmlq_attend_params & p, bool softcap) { return softcap ? p.scale/p.logit_softcap : p.scale*GGMLQ_LOG2E; }

/* Writes before it, also others' that a barrier ordered before it, are seen by who finds its result and reads afterwards. */
GGMLQ_DEVICE unsigned long long ggmlq_count_arrival(unsigned long long * counter, unsigned long long step) {
    unsigned long long before;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], %2;" : "=l"(before) : "l"(counter), "l"(step) : "memory");
    return before;
}

GGMLQ_DEVICE void ggmlq_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }

GGMLQ_DEVICE uint32_t ggmlq_half2_bits(__half2 h) { return *(const uint32_t *) &h; }
GGMLQ_DEVICE __half2 ggmlq_half2_from_bits(uint32_t u) { return *(const __half2 *) &u; }

/* Keeps the compiler from computing x again in every turn of a loop, which it does to save a register. */
template <typename T> GGMLQ_DEVICE void ggmlq_keep(T & x) { asm volatile("" : "+r"(x)); }

/* Not __byte_perm, which clears the top bits of the selector's nibbles first: here they are 0. */
GGMLQ_DEVICE uint32_t ggmlq_permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

/* low | high << 16 of two 16-bit values by a multiplication, because the units for logic and permutation are the busy ones. `unit` is
 * 65536; it comes from the plan so that the compiler doesn't know. */
GGMLQ_DEVICE uint32_t ggmlq_two_halves(uint32_t low, uint32_t high, uint32_t unit) { return high*unit + low; }

GGMLQ_DEVICE int ggmlq_thread_anew(void) { /* what is made of it isn't taken out of a loop */
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

GGMLQ_DEVICE uint32_t ggmlq_read_shared_u16(const uint8_t * p) { return *(const uint16_t *) p; }

/* Bits of a where mask is set, of b elsewhere. */
GGMLQ_DEVICE uint32_t ggmlq_choose_bits(uint32_t a, uint32_t b, uint32_t mask) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(d) : "r"(a), "r"(b), "r"(mask));
    return d;
}

#endif

/* --- rows in shared memory -------------------------------------------------------------------------------------- */

/* SLICE values of a row as they are copied: the 16-byte chunks around them, since smaller copies would pass through L1, whose few lines
 * limit what is in flight. In shared memory a row starts where it does in its first chunk. An odd number of chunks spreads rows over
 * the banks. */
template <int type, int SLICE, int TAIL = 0> struct ggmlq_decode_rows {
    enum {
        TQ3_0 = type == GGMLQ_TYPE_TQ3_0, PLANAR3 = type == GGMLQ_TYPE_PLANAR3, Q8_0 = type == GGMLQ_TYPE_Q8_0, F16 = type == GGMLQ_TYPE_F16,
        BYTES  = TQ3_0 ? SLICE/32*14 : PLANAR3 ? SLICE/128*50 : Q8_0 ? SLICE/32*34 : 2*SLICE,
        BITS   = BYTES | TAIL/32*14,
        ALIGN  = F16 ? 16 : BITS % 8 == 0 ? 8 : BITS % 4 == 0 ? 4 : 2, /* of addresses and strides */
        CHUNKS = (BYTES + 16 - ALIGN + 15)/16,
        PITCH  = 16*(CHUNKS | 1),
        LANES  = CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : 16, /* that copy a row together */
        BYTE_VALUES = !F16,          /* values are a byte times a scale */
        OURS   = TQ3_0 || PLANAR3,
        PLANES = SLICE/32,
        SCALES = PLANAR3 ? SLICE/128 : SLICE/32
    };
    static_assert(CHUNKS <= 16, "a row is copied by up to 16 lanes");
    static_assert(TAIL == 0 || (TQ3_0 && TAIL % 32 == 0), "a tail is whole blocks");

    static constexpr __host__ __device__ int q_at(int plane)     { return PLANAR3 ? 50*(plane/4) +  2 + 8*(plane%4) : 14*plane; }
    static constexpr __host__ __device__ int s_at(int plane)     { return PLANAR3 ? 50*(plane/4) + 34 + 4*(plane%4) : 14*plane + 8; }
    static constexpr __host__ __device__ int scale_at(int plane) { return PLANAR3 ? 50*(plane/4) : Q8_0 ? 34*plane : 14*plane + 12; }
};

/* Number of the tile's token that row i of a score fragment stands for, where they aren't in order. */
constexpr __host__ __device__ int ggmlq_decode_token(int i) { return i/2 % 4 + 4*(i % 2) + 8*(i/8); }

/* Position of value j of a plane pair: bits of word w, half h of the 2-bit plane; field p + 2n of those 16 bits is number n of parity p. */
constexpr __host__ __device__ int ggmlq_plane_value(int w, int h, int p, int n) {
    return 8*((2*(4*h + n) + p) % 4) + 4*w + (2*(4*h + n) + p)/4;
}

/* So where value j of 32 lies in a query row: thread t = 2w + h of four reads 8 bytes, first those of even parity. */
constexpr __host__ __device__ int ggmlq_plane_position(int j) {
    return 16*(j % 8/4) + 8*((4*(j % 4) + j/8)/8) + 4*(j/8 % 2) + (4*(j % 4) + j/8)/2 % 4;
}

/* What load_queries relies on: the values 16h + 4t + i of thread t go to byte 2*(i % 2) + h of the word at 16*(t % 2) + 4*(t/2) + 8*(i/2). */
constexpr bool ggmlq_plane_words_hold(int n) {
    return n == 32 || (ggmlq_plane_position(n) == 16*(n/4 % 2) + 4*(n/8 % 2) + 8*(n % 4/2) + 2*(n % 2) + n/16 && ggmlq_plane_words_hold(n + 1));
}
static_assert(ggmlq_plane_words_hold(0), "order of the queries");

/* --- the kernel ------------------------------------------------------------------------------------------------- */

#ifdef GGMLQ_DECODE_DEVICE

/* Token and head of a column; most often there is one token. */
GGMLQ_DEVICE void ggmlq_decode_place_column(const ggmlq_decode_plan & plan, int column, int & token, int & head) {
    token = 0;
    head  = column;
    if (plan.columns != plan.group) {
        token = column/plan.group;
        head -= token*plan.group;
    }
}

/* This thread's eight of a plane pair of the output: those that ggmlq_unrotate_plane leaves to it. */
GGMLQ_DEVICE void ggmlq_decode_store_output(const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int column, int plane, int head_kv, int seq, const float v[2][4], bool aligned) {
    const int t = threadIdx.x % 4;
    int token, head;
    ggmlq_decode_place_column(plan, column, token, head);
    float * const out = (float *) ((uint8_t *) p.out + token*p.out_stride[0] + (head_kv*plan.group + head)*p.out_stride[1] + seq*p.out_stride[2]) + 32*plane + 4*t;
    if (aligned) {
        *(float4 *) out        = *(const float4 *) v[0];
        *(float4 *) (out + 16) = *(const float4 *) v[1];
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            out[16*(i/4) + i%4] = v[i/4][i%4];
        }
    }
}

#endif

#include "ggmlq-cuda-attend-term.cuh"

/* Shared memory: pipelines of the warps, over which the end of the block lays its sums; then what lives all the time. */
template <int type_k, int type_v, int SLICE, int TILES, int WARPS, int ROWS, int STAGES, int TAIL_VALUES, bool TERM, bool LEAN> struct ggmlq_decode_shape {
    typedef ggmlq_decode_rows<type_k, SLICE, TAIL_VALUES> K;
    typedef ggmlq_decode_rows<type_v, SLICE, TAIL_VALUES> V;
    typedef ggmlq_decode_rows<type_k, TAIL_VALUES ? TAIL_VALUES : SLICE> T;
    enum {
        TAIL        = TAIL_VALUES,
        BY_COLUMN   = LEAN && TILES > 2 && !(TERM && K::PLANAR3), /* centered planar3 keys were slower so, by 1 to 4 % */
        QUERIES_AS_A = BY_COLUMN, /* operand of the scores */
        K_AS_HALVES = BY_COLUMN && K::TQ3_0,
        TAIL_PLANES = TAIL/32, /* one for each of the first slices' warps */
        COLUMNS     = 8*TILES,
        M_TILES     = V::BYTE_VALUES && SLICE == 96 ? 8 : SLICE/16, /* of 16 values of V; with 96 values every fourth thread group idles */
        K_BYTES     = ROWS*K::PITCH,
        V_BYTES     = ROWS*V::PITCH,
        IN_ORDER    = LEAN && SLICE == 128 && K::OURS && V::OURS && (TILES > 1 || !TERM), /* the tokens of a tile; and masks are added by an mma. Other lean instances could, but have not been run so. */
        MASK_ROWS   = IN_ORDER && TILES > 1, /* a mask row for each query, in registers; else one for all there, or in shared memory one for each column */
        MASK_BYTES  = IN_ORDER ? 0 : COLUMNS*ROWS*2,
        TAIL_AT     = K_BYTES + V_BYTES + MASK_BYTES,
        STAGE_BYTES = TAIL_AT + (TAIL ? (int) ROWS*T::PITCH : 0),
        PIPE_BYTES  = WARPS*STAGES*STAGE_BYTES,
        SUM_BYTES   = WARPS*TILES*M_TILES*32*16
    };
    static_assert(K_BYTES % 16 == 0 && V_BYTES % 16 == 0 && MASK_BYTES % 16 == 0, "stages stay aligned");
    static_assert(TAIL == 0 || ((int) K::PITCH == (int) V::PITCH && (int) K::PITCH == (int) ggmlq_decode_rows<type_k, SLICE>::PITCH), "V is read from K's rows");

    static_assert(!LEAN || TILES == 1 || IN_ORDER, "a mask row for each query");
    static_assert(!IN_ORDER || ROWS == 16, "a lane has a row of each half of one fragment");

    static constexpr __host__ __device__ int token(int i) { return IN_ORDER ? i : ggmlq_decode_token(i); }

    static constexpr __host__ __device__ int query_pitch(int slices) { return (K::BYTE_VALUES && !K_AS_HALVES ? 1 : 2)*(SLICE*slices + TAIL) + (BY_COLUMN ? 0 : 16); }
    static constexpr __host__ __device__ int query_scales(int slices) { return K::SCALES*slices + TAIL_PLANES; } /* of a column */
    static constexpr __host__ __device__ int row_pitch(int slices)   { return SLICE*slices + 4; }
    static constexpr __host__ __device__ int exchange_bytes(int slices) { return slices == 1 ? 0 : WARPS*2*(ROWS/16)*TILES*32*16; }
    static constexpr __host__ __device__ int out_bytes(int slices) { return SUM_BYTES + COLUMNS*row_pitch(slices)*4; }
    static constexpr __host__ __device__ int front_bytes(int slices, int term_bytes) {
        return (PIPE_BYTES + term_bytes > out_bytes(slices) ? PIPE_BYTES + term_bytes : out_bytes(slices)) + 15 & ~15;
    }

    /* From the start: what has a constant size; at `front`: pipelines and what the term needs, then sums and result rows; then what depends on the slices. */
    enum {
        MAXIMA_AT = 0, SUMS_AT = 4*COLUMNS*WARPS, TOTALS_AT = 2*SUMS_AT, SLOPES_AT = TOTALS_AT + 16*COLUMNS, MASK_ROWS_AT = SLOPES_AT + 4*COLUMNS,
        BIASES_AT = MASK_ROWS_AT + 8*COLUMNS, TAKEN_AT = BIASES_AT + (MASK_ROWS ? 32 : IN_ORDER ? 16 : 0)*COLUMNS,
        FLAG_AT = TAKEN_AT + (IN_ORDER && !MASK_ROWS ? 8*32 : 0), FRONT_AT = FLAG_AT + 16, TERM_AT = FRONT_AT + PIPE_BYTES
    };

    static void place(ggmlq_decode_plan * plan, const ggmlq_attend_params * p) {
        plan->k_step       = (unsigned) ((TERM ? 1 : WARPS/plan->slices)*ROWS*p->k_stride[0]);
        plan->v_step       = (unsigned) ((TERM ? 1 : WARPS/plan->slices)*ROWS*p->v_stride[0]);
        plan->k_copy_step  = (unsigned) (32/K::LANES*p->k_stride[0]);
        plan->v_copy_step  = (unsigned) (32/V::LANES*p->v_stride[0]);
        plan->queries_at   = FRONT_AT + front_bytes(plan->slices, TERM ? ggmlq_term_shape<SLICE, COLUMNS>::bytes(plan->slices, WARPS, plan->term_rows) : 0);
        plan->scales_at    = plan->queries_at + COLUMNS*query_pitch(plan->slices);
        plan->exchange_at  = plan->scales_at + (K::BYTE_VALUES ? TILES*query_scales(plan->slices)*4*16 : 0);
        plan->shared_bytes = plan->exchange_at + exchange_bytes(plan->slices);
        if (TERM) {
            plan->term_warps_at   = ggmlq_term_shape<SLICE, COLUMNS>::warps_at(plan->slices, plan->term_rows);
            plan->term_warp_bytes = ggmlq_term_shape<SLICE, COLUMNS>::warp_bytes(plan->term_rows);
            plan->term_turned_at  = ggmlq_term_shape<SLICE, COLUMNS>::turned_at(plan->term_rows);
            plan->has_parts     = p->part != NULL;
            plan->positions_step = (int) (p->positions_stride/4);
            plan->parts_step    = (int) (p->part_stride/2);
        }
    }
};

#ifdef GGMLQ_DECODE_DEVICE

/* ROWS rows -> shared memory. `chunk`: this lane's 16 bytes of its first row; `step`: bytes to its next. Bytes around the rows are read too. */
template <class R, int ROWS> GGMLQ_DEVICE void ggmlq_decode_copy(uint32_t to, const uint8_t * chunk, unsigned step, int lane) {
    enum { STEP = 32/R::LANES };
    const int x = lane % R::LANES;
    to += lane/R::LANES*R::PITCH + 16*x;
    if (R::CHUNKS == R::LANES || x < R::CHUNKS) {
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP) {
            if (STEP*R::ALIGN % 16 == 0) {
                ggmlq_copy_async(to + i*R::PITCH, chunk, 16);
            } else { /* chunk is where it is in a row that starts at a multiple of 16, plus what this row's start is off */
                ggmlq_copy_async(to + i*R::PITCH, (const uint8_t *) ((uintptr_t) chunk & ~(uintptr_t) 15), 16);
            }
            chunk += step;
        }
    }
}

template <class R> GGMLQ_DEVICE const uint8_t * ggmlq_decode_chunk(const uint8_t * rows, int64_t stride, int lane) {
    const uint8_t * const chunk = rows + lane/R::LANES*stride + 16*(lane % R::LANES);
    return 32/R::LANES*R::ALIGN % 16 == 0 ? (const uint8_t *) ((uintptr_t) chunk & ~(uintptr_t) 15) : chunk;
}

/* The last rows of a cache: `count` of ROWS, the others become zeros, and what follows a row isn't read since it may belong to nobody. */
template <class R, int ROWS> GGMLQ_DEVICE void ggmlq_decode_copy_last(uint32_t to, const uint8_t * rows, int64_t stride, int count, int lane) {
#pragma unroll 1
    for (int i = lane; i < ROWS*R::CHUNKS; i += 32) {
        const int row = i/R::CHUNKS, x = i % R::CHUNKS;
        const uint8_t * const start = rows + (row < count ? row : 0)*stride;
        const uint8_t * const chunk = (const uint8_t *) ((uintptr_t) start & ~(uintptr_t) 15) + 16*x;
        const int left = row < count ? (int) (start - chunk) + R::BYTES : 0;
        ggmlq_copy_async(to + row*R::PITCH + 16*x, left > 0 ? chunk : (const uint8_t *) ((uintptr_t) rows & ~(uintptr_t) 15), left > 16 ? 16 : left < 0 ? 0 : left);
    }
}

struct ggmlq_decode_lut { uint32_t low, high; };

/* Levels of the fields, signed bytes. */
template <int type> GGMLQ_DEVICE ggmlq_decode_lut ggmlq_decode_levels(uint32_t flip) {
    if constexpr (type == GGMLQ_TYPE_TQ3_0 || type == GGMLQ_TYPE_PLANAR3) {
        return { ggmlq_cache_type<type>::LOW ^ flip, ggmlq_cache_type<type>::HIGH ^ flip };
    }
    return { 0, 0 };
}

/* Levels, signed bytes -> halves of a 128th. */
constexpr __host__ __device__ uint32_t ggmlq_level_half(int level) { /* a level has 4 to 7 bits */
    const int m = level < 0 ? -level : level, e = m >= 64 ? 6 : m >= 32 ? 5 : m >= 16 ? 4 : 3;
    return (level < 0 ? 0x8000u : 0u) | (uint32_t) (e - 7 + 15) << 10 | (uint32_t) (m << (10 - e) & 0x3ff);
}
constexpr __host__ __device__ uint32_t ggmlq_two_level_halves(uint32_t bytes) { return ggmlq_level_half((int8_t) bytes) | ggmlq_level_half((int8_t) (bytes >> 8)) << 16; }
constexpr __host__ __device__ bool ggmlq_levels_mirror(uint32_t low, uint32_t high) {
    return (int8_t) low == -(int8_t) (high >> 24) && (int8_t) (low >> 8) == -(int8_t) (high >> 16) && (int8_t) (low >> 16) == -(int8_t) (high >> 8) && (int8_t) (low >> 24) == -(int8_t) high;
}

/* 16 bits of the 2-bit plane and of the 1-bit plane, of two rows -> selectors of their fields: four of each row. */
GGMLQ_DEVICE uint32_t ggmlq_selectors(uint32_t q, uint32_t s) { return (q & 0x33333333u) | (s & 0x44444444u); }

/* A fragment of plane pair `plane`: signed bytes of rows g and g + 8. `row`: of row g in shared memory. */
template <int type, int SLICE> GGMLQ_DEVICE void ggmlq_decode_k_fragment(uint32_t a[4], const uint8_t * row, int plane, int t, uint32_t shift, uint32_t unit, ggmlq_decode_lut lut) {
    typedef ggmlq_decode_rows<type, SLICE> K;
    if (type == GGMLQ_TYPE_Q8_0) {
        const uint8_t * p = row + 34*plane + 2 + 8*t;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint8_t * word = p + 8*K::PITCH*(i % 2) + 4*(i/2);
            a[i] = ggmlq_two_halves(ggmlq_read_shared_u16(word), ggmlq_read_shared_u16(word + 2), unit);
        }
        return;
    }
    const uint8_t * q_row = row + K::q_at(plane) + 2*t;
    const uint8_t * s_row = row + K::s_at(plane) + 2*(t % 2);
    const uint32_t q = ggmlq_two_halves(ggmlq_read_shared_u16(q_row), ggmlq_read_shared_u16(q_row + 8*K::PITCH), unit);
    /* shift: 4 or 1, brings the sign bits of word 0 or 1 into place; bits that cross into the other half are masked away */
    const uint32_t s = ggmlq_two_halves(ggmlq_read_shared_u16(s_row), ggmlq_read_shared_u16(s_row + 8*K::PITCH), unit)*shift;
    const uint32_t even = ggmlq_selectors(q, s), odd = ggmlq_selectors(q >> 2, s >> 1);
    a[0] = ggmlq_permute(lut.low, lut.high, even);
    a[1] = ggmlq_permute(lut.low, lut.high, even >> 16);
    a[2] = ggmlq_permute(lut.low, lut.high, odd);
    a[3] = ggmlq_permute(lut.low, lut.high, odd >> 16);
}

/* tq3_0 keys as halves, scale times level/128: from 32 columns on it takes fewer instructions than to scale the sums of every block of 32 in every column. Thread t of a row's four takes
 * block t, so it needs one scale, of rows g and g + 8: eight steps of the contraction, four values of both rows each. A row's eight levels are scaled first, a table of their low bytes
 * and one of their high ones: two lookups and two permutations make four halves. */
struct ggmlq_decode_k_halves {
    enum { TYPE = GGMLQ_TYPE_TQ3_0 };
    typedef ggmlq_decode_rows<TYPE, 128> K;
    uint32_t q[4], even[2], odd[2], low[2][2], high[2][2];

    static constexpr uint32_t LEVELS01 = ggmlq_two_level_halves(ggmlq_cache_type<TYPE>::LOW), LEVELS23 = ggmlq_two_level_halves(ggmlq_cache_type<TYPE>::LOW >> 16);
    static_assert(ggmlq_levels_mirror(ggmlq_cache_type<TYPE>::LOW, ggmlq_cache_type<TYPE>::HIGH), "level 7 - i is that of i, negative");

    static __device__ __forceinline__ ggmlq_decode_k_halves load(const uint8_t * row, int t, uint32_t unit) {
        ggmlq_decode_k_halves k;
        const uint8_t * const block = row + K::q_at(1)*t;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            k.q[i] = ggmlq_two_halves(ggmlq_read_shared_u16(block + 2*i), ggmlq_read_shared_u16(block + 2*i + 8*K::PITCH), unit);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t signs = ggmlq_two_halves(ggmlq_read_shared_u16(block + K::s_at(0) + 2*i), ggmlq_read_shared_u16(block + K::s_at(0) + 2*i + 8*K::PITCH), unit);
            k.even[i] = signs & 0x55555555u;
            k.odd[i]  = signs & 0xaaaaaaaau;
            ggmlq_keep(k.even[i]);
            ggmlq_keep(k.odd[i]);
            const __half2 scale = __half2half2(__ushort_as_half((uint16_t) ggmlq_read_shared_u16(block + K::scale_at(0) + 8*K::PITCH*i)));
            const uint32_t h01 = ggmlq_half2_bits(__hmul2(scale, ggmlq_half2_from_bits(LEVELS01))), h23 = ggmlq_half2_bits(__hmul2(scale, ggmlq_half2_from_bits(LEVELS23)));
            k.low[i][0]  = ggmlq_permute(h01, h23, 0x6420);
            k.low[i][1]  = ggmlq_permute(h01, h23, 0x0246);
            k.high[i][0] = ggmlq_permute(h01, h23, 0x7531);
            k.high[i][1] = ggmlq_permute(h01, h23, 0x1357) ^ 0x80808080u;
        }
        return k;
    }

    /* Step 4w + 2h + p of the contraction: fields of parity p of half h of word w. */
    __device__ __forceinline__ void step(int i, uint2 b[2]) const {
        const int w = i/4, h = i/2 % 2, p = i % 2;
        const uint32_t sign = w == 0 ? (p == 0 ? even[h] << 2 : odd[h] << 1) : p == 0 ? even[h] : odd[h] >> 1;
        const uint32_t fields = ggmlq_choose_bits(p ? q[i/2] >> 2 : q[i/2], sign, 0x33333333u);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t f = r ? fields >> 16 : fields, l = ggmlq_permute(low[r][0], low[r][1], f), u = ggmlq_permute(high[r][0], high[r][1], f);
            b[r] = make_uint2(ggmlq_permute(l, u, 0x5140), ggmlq_permute(l, u, 0x7362));
        }
    }
};

/* Bytes of V: thread group g takes M_TILES*2 values of a row, in groups of four, here those of two tokens.
 *
 * A byte u = level + 128 under the high byte of a power of two is the half p + u*r, r = p/1024. One fused operation makes
 * it scale*r*level + rest, rest = scale*(p + 128r) - c being what the rounding of c = scale*(p + 128r) left; it is a half
 * itself, and its weighted sum, from one more mma for all values of a block, is taken away at the end. p = 1/2 keeps
 * 65504*(p + 128r) finite; the scales of q8_0 are smaller, and so is r. */
template <int type> struct ggmlq_decode_v_bytes {
    enum { Q8_0 = type == GGMLQ_TYPE_Q8_0 };
    static constexpr uint32_t HIGH = Q8_0 ? 0x48484848u : 0x38383838u; /* p = 8, 1/2 */
    static constexpr uint32_t BIAS = Q8_0 ? 0x48804880u : 0x38803880u; /* p + 128r, twice */
    static constexpr float    UNIT = Q8_0 ? 128.0f : type == GGMLQ_TYPE_TQ3_0 ? 2048*GGMLQ_TQ3_0_UNIT : type == GGMLQ_TYPE_PLANAR3 ? 2048*GGMLQ_PLANAR3_UNIT : 1.0f; /* of the sums */
};

template <int type, int SLICE> struct ggmlq_decode_v_pair {
    typedef ggmlq_decode_rows<type, SLICE> V;
    uint32_t q[2], s[2], scale, bias; /* planes, bytes of both tokens in turn, the 1-bit plane's even and odd bits; of both tokens: scale, -c */
    const uint8_t * r0, * r1;

    static __device__ __forceinline__ ggmlq_decode_v_pair load(const uint8_t * row0, const uint8_t * row1, int g, uint32_t shift, uint32_t unit) {
        ggmlq_decode_v_pair v;
        const int plane = SLICE == 64 ? g/4 : SLICE == 96 && g >= 6 ? 2 : g/2;
        v.scale = ggmlq_two_halves(ggmlq_read_shared_u16(row0 + V::scale_at(plane)), ggmlq_read_shared_u16(row1 + V::scale_at(plane)), unit);
        if (SLICE == 96 && g >= 6) {
            v.scale = 0;
        }
        if (type == GGMLQ_TYPE_Q8_0) {
            const int at = V::scale_at(plane) + 2 + (SLICE == 64 ? 8*(g % 4) : 16*(g % 2));
            v.r0 = row0 + at;
            v.r1 = row1 + at;
            return v;
        }
        const int q_at = V::q_at(plane) + (SLICE == 64 ? 2*(g % 4) : 2*(g % 2)), s_at = V::s_at(plane) + 2*(g % 2);
        const uint32_t signs = ggmlq_permute(ggmlq_read_shared_u16(row0 + s_at), ggmlq_read_shared_u16(row1 + s_at), 0x5140)*(SLICE == 64 ? shift : 1);
        v.s[0] = signs & 0x55555555u;
        v.s[1] = signs & 0xaaaaaaaau;
        ggmlq_keep(v.s[0]); /* or they are shifted first and masked twice */
        ggmlq_keep(v.s[1]);
        v.q[0] = ggmlq_permute(ggmlq_read_shared_u16(row0 + q_at), ggmlq_read_shared_u16(row1 + q_at), 0x5140);
        if (SLICE != 64) {
            v.q[1] = ggmlq_permute(ggmlq_read_shared_u16(row0 + q_at + 4), ggmlq_read_shared_u16(row1 + q_at + 4), 0x5140);
        }
        return v;
    }

    __device__ __forceinline__ void clear(void) {
        q[0] = q[1] = s[0] = s[1] = scale = bias = 0;
        r0 = r1 = NULL;
    }

    /* -> rest */
    __device__ __forceinline__ uint32_t prepare(void) {
        const __half2 scales = ggmlq_half2_from_bits(scale), factor = ggmlq_half2_from_bits(ggmlq_decode_v_bytes<type>::BIAS);
        const __half2 minus_c = __hneg2(__hmul2(scales, factor));
        bias = ggmlq_half2_bits(minus_c);
        return ggmlq_half2_bits(__hfma2(scales, factor, minus_c));
    }

    /* The four values of group n, of two tokens each: u holds two values of the first token, then of the second. */
    __device__ __forceinline__ void values(int n, uint32_t h[4], uint32_t unit, ggmlq_decode_lut lut) const {
        uint32_t u[2];
        if (type == GGMLQ_TYPE_Q8_0) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                u[i] = ggmlq_two_halves(ggmlq_read_shared_u16(r0 + 4*n + 2*i), ggmlq_read_shared_u16(r1 + 4*n + 2*i), unit) ^ 0x80808080u;
            }
        } else { /* the sign's bit goes to place 2 of its nibble; place 3 becomes 0 since only every other bit is there */
            const int at = SLICE == 64 ? n + 2 : n;
            const uint32_t sign = at == 0 ? s[0] << 2 : at == 1 ? s[1] << 1 : at == 2 ? s[0] : s[1] >> 1;
            const uint32_t word = SLICE == 64 ? q[0] : q[n/2];
            const uint32_t fields = ggmlq_choose_bits(n % 2 ? word >> 2 : word, sign, 0x33333333u);
            u[0] = ggmlq_permute(lut.low, lut.high, fields);
            u[1] = ggmlq_permute(lut.low, lut.high, fields >> 16);
        }
        const uint32_t high = ggmlq_decode_v_bytes<type>::HIGH;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            h[i] = ggmlq_permute(u[i/2], high, i % 2 ? 0x4341 : 0x4240);
            h[i] = ggmlq_half2_bits(__hfma2(ggmlq_half2_from_bits(h[i]), ggmlq_half2_from_bits(scale), ggmlq_half2_from_bits(bias)));
        }
    }
};

/* Halves of a that are infinite or NaN -> 1, others -> 0; those become 0 in a. */
GGMLQ_DEVICE uint32_t ggmlq_take_out_nonfinite(uint32_t & a) {
    const uint32_t low = (a & 0x7c00u) == 0x7c00u ? 0xffffu : 0, high = (a & 0x7c000000u) == 0x7c000000u ? 0xffff0000u : 0;
    a &= ~(low | high);
    return (low | high) & 0x3c003c00u;
}

/* A positive factor as the sum of two halves, neither of which is 0. */
GGMLQ_DEVICE uint2 ggmlq_two_parts(float x) {
    const __half high = __float2half_rz(x);
    const uint32_t a = __half_as_ushort(high), b = __half_as_ushort(__float2half_rn(x - __half2float(high)));
    return make_uint2(a ? a : 1, b ? b : 1);
}

/* Masks, two halves: whether one hides its token, or isn't a number; 1 where they aren't 0. */
GGMLQ_DEVICE bool ggmlq_hides(uint32_t mask) { return !__hbge2(ggmlq_half2_from_bits(mask), ggmlq_half2_from_bits(0xfbfffbffu)); }
GGMLQ_DEVICE uint32_t ggmlq_ones(uint32_t a) { return ggmlq_half2_bits(__hne2(ggmlq_half2_from_bits(a), ggmlq_half2_from_bits(0))); }

/* Those that hide become 0 in `mask`; -> -65504 there, 0 elsewhere. */
GGMLQ_DEVICE uint32_t ggmlq_take_out_hidden(uint32_t & mask) {
    const uint32_t hidden = ((mask & 0xffffu) == 0xfc00u ? 0xffffu : 0) | (mask >> 16 == 0xfc00u ? 0xffff0000u : 0);
    mask &= ~hidden;
    return hidden & 0xfbfffbffu;
}

/* Scores -> -INFINITY where the product of a and b, whose sums have one term that isn't 0 at most, is -65504, which -INFINITY, times 0, can't say. Not where they are NaN, unless in the careful pass. */
GGMLQ_DEVICE void ggmlq_hide(float s[4], uint32_t a0, uint32_t a1, uint32_t b, bool careful) {
    float h[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
    ggmlq_mma_f16_k8(h, a0, a1, b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        s[i] = careful && h[i] != 0.0f ? -INFINITY : fmaf(h[i], 1e38f, s[i]);
    }
}

/* Which value of the slice is in row `half`*8 + g of m-tile i of the output; SLICE or more: none. */
template <int type, int SLICE> GGMLQ_DEVICE int ggmlq_decode_v_value(int i, int half, int g) {
    const int n = i/2, e = 2*(i % 2) + half;
    if (type == GGMLQ_TYPE_F16) {
        return 16*i + 8*half + g;
    }
    if (type == GGMLQ_TYPE_Q8_0) {
        return SLICE == 64 ? 8*g + 4*n + e : 16*g + 4*n + e;
    }
    return SLICE == 64 ? 32*(g/4) + ggmlq_plane_value(g/2 % 2, g % 2, n, e) : 32*(g/2) + ggmlq_plane_value(n/2, g % 2, n % 2, e);
}

/* An integer sum that starts with the bits of the float 1.5*2^23 ends with those of 1.5*2^23 + sum (|sum| < 2^22). */
#define GGMLQ_SUM_BITS  0x4b400000
#define GGMLQ_SUM_FLOAT 12582912.0f

/* item = column*planes + plane; a division by a constant where a head is one slice. */
template <int SLICE, int TAIL = 0> GGMLQ_DEVICE void ggmlq_decode_place_plane(int slices, int item, int & column, int & plane) {
    column = slices == 1 && TAIL == 0 ? item/(SLICE/32) : item/(slices*(SLICE/32) + TAIL/32);
    plane  = item - column*(slices*(SLICE/32) + TAIL/32);
}

/* Where thread t of four finds its eight values of a query row, those of plane pair `item` % planes of column `item`/planes: four, and four 16 further on; NULL: no such column. */
template <class S, int SLICE, bool LEAN = false> GGMLQ_DEVICE const float * ggmlq_decode_place_query(const ggmlq_attend_params & p, const ggmlq_decode_plan & plan, int item, int first_column, int head_kv, int seq) {
    int column, plane, token, head;
    ggmlq_decode_place_plane<SLICE, S::TAIL>(LEAN ? 1 : plan.slices, item, column, plane);
    if (column >= S::COLUMNS || first_column + column >= plan.columns) {
        return NULL;
    }
    ggmlq_decode_place_column(plan, first_column + column, token, head);
    return (const float *) ((const uint8_t *) p.q + token*p.q_stride[0] + (head_kv*plan.group + head)*p.q_stride[1] + seq*p.q_stride[2]) + 32*plane + 4*(threadIdx.x % 4);
}

GGMLQ_DEVICE void ggmlq_decode_fetch_query(float v[2][4], const float * q, bool aligned) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        v[i/4][i%4] = 0.0f;
    }
    if (q && aligned) {
        *(float4 *) v[0] = *(const float4 *) q;
        *(float4 *) v[1] = *(const float4 *) (q + 16);
    } else if (q) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            v[i/4][i%4] = q[16*(i/4) + i%4];
        }
    }
}

/* One place forward: what an index that changes would put into local memory. */
template <int AHEAD> GGMLQ_DEVICE void ggmlq_decode_next_item(float (* items)[2][4]) {
#pragma unroll
    for (int i = 8; i < 8*AHEAD; ++i) {
        items[i/8 - 1][i/4%2][i%4] = items[i/8][i/4%2][i%4];
    }
}

/* Query rows -> shared memory in the order of the B fragments, rotated like K and multiplied by the factor of the scores. Bytes: scales
 * in threes of a fragment's columns, see scores(); by column, one for each, never 0, then their inverses. `first_items`: what fetch_query got for the first AHEAD items of the thread. */
template <class S, int type, int SLICE, int AHEAD = 1, bool LEAN = false> GGMLQ_DEVICE void ggmlq_decode_load_queries(float (* first_items)[2][4], const ggmlq_attend_params & p, const ggmlq_decode_plan & plan,
                                                                                                    uint8_t * queries, float * scales, int first_column, int head_kv, int seq, float factor) {
    typedef typename S::K K;
    float (& v)[2][4] = first_items[0];
    const int slices = LEAN ? 1 : plan.slices, lane = threadIdx.x % 32, t = lane % 4, planes = slices*SLICE/32 + S::TAIL_PLANES, pitch = S::query_pitch(slices);
#pragma unroll 1
    for (int first = 0; first < S::COLUMNS*planes; first += blockDim.x/4) { /* uniform: shuffles need all lanes */
        int column, plane;
        ggmlq_decode_place_plane<SLICE, S::TAIL>(slices, first + threadIdx.x/4, column, plane);
        if (first != 0 && AHEAD == 1) {
            ggmlq_decode_fetch_query(v, ggmlq_decode_place_query<S, SLICE, LEAN>(p, plan, first + threadIdx.x/4, first_column, head_kv, seq), LEAN || plan.q_aligned);
        } else if (first != 0) {
            ggmlq_decode_next_item<AHEAD>(first_items);
        }
        if constexpr (K::OURS) {
            ggmlq_rotate_plane<type>(v, lane, plane % 4);
        }
        if (!K::BYTE_VALUES) {
            if (column < S::COLUMNS) {
                __half * row = (__half *) (queries + column*pitch) + 32*plane + 4*t;
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    row[16*(i/4) + i%4] = __float2half_rn(v[i/4][i%4]*factor);
                }
            }
            continue;
        }
        uint32_t max = 0; /* of the bits, which puts NaN above all numbers */
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            v[i/4][i%4] *= factor;
            const uint32_t bits = __float_as_uint(v[i/4][i%4]) & 0x7fffffff;
            max = bits > max ? bits : max;
        }
#pragma unroll
        for (int mask = 1; mask < (K::PLANAR3 || S::K_AS_HALVES ? 16 : 4); mask *= 2) {
            const uint32_t other = ggmlq_shuffle_xor(max, mask);
            max = other > max ? other : max;
        }
        if constexpr (S::K_AS_HALVES) { /* a column's largest becomes 2^11 to 2^12; its scale, a power of two, takes that back */
            const uint32_t exponent = max >> 23;
            const float up = __uint_as_float((265 - exponent) << 23);
            if (column < S::COLUMNS) {
                uint32_t * const words = (uint32_t *) queries + ((column/16*8 + 4*(t % 2) + t/2)*32 + column % 8*4 + plane)*4 + column/8 % 2;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    words[i/2*2*128 + i % 2*2] = exponent < 32 ? 0 : ggmlq_half2_bits(__floats2half2_rn(v[0][i]*up, v[1][i]*up));
                }
                if (t == 0 && plane == 0) {
                    const float unit_q = exponent == 255 ? __uint_as_float(0x7fffffff) : exponent < 32 ? 1.0f : 128*GGMLQ_TQ3_0_UNIT*__uint_as_float((exponent - 11) << 23);
                    scales[column] = unit_q;
                    scales[S::COLUMNS + column] = 1.0f/unit_q;
                }
            }
            continue;
        }
        /* A step of 16 bits, rounded up: its product with 1.5*2^23 is then exact, and no value exceeds 127 steps. */
        float step = __uint_as_float((__float_as_uint(__uint_as_float(max)*(1.0f/127.0f)) + 0x1ff) & ~0xffu);
        const bool finite = max < 0x7f800000;
        step = !finite ? __uint_as_float(0x7fffffff) : step < 1e-30f ? 0.0f : step;
        const float inverse = step > 0.0f ? 1.0f/step : 0.0f;
        if (column >= S::COLUMNS) {
            continue;
        }
        uint8_t * row = queries + column*pitch + 32*plane;
        uint32_t bytes[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) { /* the low byte of 1.5*2^23 + x is that of the integer x */
            bytes[i/4][i%4] = __float_as_uint(fmaf(v[i/4][i%4], inverse, GGMLQ_SUM_FLOAT));
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) { /* what a thread holds fills two words: see plane_position for OURS */
            const uint32_t a = K::OURS ? bytes[0][2*i] : bytes[i][0], b = K::OURS ? bytes[1][2*i] : bytes[i][1], c = K::OURS ? bytes[0][2*i + 1] : bytes[i][2],
                           d = K::OURS ? bytes[1][2*i + 1] : bytes[i][3];
            if constexpr (S::QUERIES_AS_A) {
                ((uint32_t *) queries)[((column/16*4 + plane)*32 + column % 8*4 + 2*(t % 2) + i)*4 + 2*(t/2) + column/8 % 2] = ggmlq_permute(ggmlq_permute(a, b, 0x0040), ggmlq_permute(c, d, 0x0040), 0x5410);
                continue;
            }
            *(uint32_t *) (row + (K::OURS ? 16*(t % 2) + 4*(t/2) + 8*i : 4*t + 16*i)) = ggmlq_permute(ggmlq_permute(a, b, 0x0040), ggmlq_permute(c, d, 0x0040), 0x5410);
        }
        if constexpr (S::QUERIES_AS_A) {
            if (t == 0 && plane == 0) {
                const float unit_q = step == 0.0f ? 1.0f : step*ggmlq_cache_type<type>::UNIT;
                scales[column] = unit_q;
                scales[S::COLUMNS + column] = 1.0f/unit_q;
            }
            continue;
        }
        if (t == 0 && (!K::PLANAR3 || plane % 4 == 0)) {
            const int n_scales = K::PLANAR3 ? planes/4 : planes, scale = K::PLANAR3 ? plane/4 : plane;
            const float unit_k = type == GGMLQ_TYPE_TQ3_0 ? GGMLQ_TQ3_0_UNIT : type == GGMLQ_TYPE_PLANAR3 ? GGMLQ_PLANAR3_UNIT : 1.0f; /* powers of two */
            float * pair = scales + (((column/8)*n_scales + scale)*4 + column/2 % 4)*4 + column % 2;
            pair[0] = step*unit_k;
            pair[2] = -GGMLQ_SUM_FLOAT*(step*unit_k);
        }
    }
}

#endif

/* The blocks of a unit count their arrivals in the workspace, which holds anything at first. So a count isn't a small number but one of a
 * few 64-bit words, START + n*STEP: a word that is none of them is set to START by whichever block sees it first, before any can arrive,
 * and the last arrival leaves START behind. No launch has to clear anything. That older data pass for a count takes 64 equal bits, and
 * half a word overwritten never does: any two counts differ in both halves. */
#define GGMLQ_COUNT_START 0x6767d1c5b2f9a38full
#define GGMLQ_COUNT_STEP  0x9e3779b97f4a7c15ull
#define GGMLQ_COUNT_STEP_INVERSE 0xf1de83e19937733dull /* modulo 2^64 */

#ifdef GGMLQ_DECODE_DEVICE

/* 0, which the compiler doesn't know, and can't compute again. */
GGMLQ_DEVICE uint32_t ggmlq_zero_anew(void) {
    uint32_t z;
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(z));
    return z >> 16;
}

/* What a thread works on, made of the special registers anew wherever it is asked for: kept over the loop it would take registers that the loop needs. */
struct ggmlq_decode_place {
    int lane, warp, g, t, slice, group, groups;
    int head_kv, split, unit, chunk, seq, seq_kv, tile0, tile1;

    template <int WARPS, bool LEAN> static __device__ __forceinline__ ggmlq_decode_place here(const ggmlq_decode_plan & plan) {
        ggmlq_decode_place p;
        int x, y, z, thread;
        asm volatile("mov.u32 %0, %%tid.x;"   : "=r"(thread));
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
        asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(y));
        asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(z));
        p.lane = thread % 32; p.warp = thread/32; p.g = p.lane/4; p.t = p.lane % 4;
        const int slices = LEAN ? 1 : plan.slices;
        p.slice = p.warp % slices; p.group = p.warp/slices; p.groups = WARPS/slices;
        /* Neighbouring heads share sectors of memory: blocks that start together take them together. */
        p.head_kv = x; p.split = y; p.unit = z*plan.heads_kv + x;
        p.chunk = 0; p.seq = z; p.seq_kv = 0; /* divisions are slow, and most often there is nothing to divide */
        if (plan.chunks > 1) {
            p.seq   = z/plan.chunks;
            p.chunk = z - p.seq*plan.chunks;
        }
        if (p.seq > 0) {
            p.seq_kv = p.seq/plan.seqs_per_kv;
        }
        p.tile0 = p.split*plan.tiles_per_split + min(p.split, plan.longer_splits);
        p.tile1 = p.tile0 + plan.tiles_per_split + (p.split < plan.longer_splits);
        return p;
    }

    /* Groups take tiles in turn, or, where there is a term, a range each: positions of neighbours are alike. */
    __device__ __forceinline__ int end(int of_group) const { return tile0 + (int) ((unsigned) (tile1 - tile0)*(of_group + 1)/groups); }
    template <bool TERM> __device__ __forceinline__ int first(void) const { return TERM ? end(group - 1) : tile0 + group; }
    __device__ __forceinline__ bool is_short(void) const { return (end(group) - end(group - 1))*groups < tile1 - tile0; } /* by a tile */
};

#endif

template <int type_k, int type_v, int SLICE, int TILES, int WARPS, int ROWS, int STAGES, int BLOCKS, int TAIL, bool TERM, bool LEAN>
__global__ void __launch_bounds__(32*WARPS, BLOCKS) ggmlq_attend_decode_kernel(const GGMLQ_GRID_CONSTANT ggmlq_attend_params p, const GGMLQ_GRID_CONSTANT ggmlq_decode_plan plan,
                                                                               uint8_t * workspace) {
#ifdef GGMLQ_DECODE_DEVICE
    typedef ggmlq_decode_shape<type_k, type_v, SLICE, TILES, WARPS, ROWS, STAGES, TAIL, TERM, LEAN> S;
    typedef typename S::K K;
    typedef typename S::V V;
    typedef typename S::T T;
    enum { M_TILES = S::M_TILES, COLUMNS = S::COLUMNS, BY_COLUMN = S::BY_COLUMN, BLOCK_ROWS = ROWS/16, COMBINED_LATER = LEAN && TILES > 2 };

    extern __shared__ __align__(16) uint8_t shared[];
    uint8_t * const front    = shared + S::FRONT_AT;
    uint8_t * const queries  = shared + plan.queries_at;
    float   * const q_scales = (float *) (shared + plan.scales_at);
    float   * const exchange = (float *) (shared + plan.exchange_at);
    float   * const maxima   = (float *) (shared + S::MAXIMA_AT), * const group_sums = (float *) (shared + S::SUMS_AT); /* [group][column] */
    float   * const totals   = (float *) (shared + S::TOTALS_AT); /* [column][4]: max, sum, the result's factor */
    float   * const slopes   = (float *) (shared + S::SLOPES_AT);
    uint4   * const biases   = (uint4 *) (shared + S::BIASES_AT); /* what masks are multiplied by: fragments of an mma */
    uint2   * const taken    = (uint2 *) (shared + S::TAKEN_AT);  /* bits of the mask that a lane takes, in an mma's rows g, g + 8 */
    int     * const last_flag = (int *) (shared + S::FLAG_AT);
    const uint8_t ** const mask_rows = (const uint8_t **) (shared + S::MASK_ROWS_AT); /* of the columns */

    const int slices = LEAN ? 1 : plan.slices;
    const bool v_in_k = LEAN ? false : plan.v_in_k;
    static_assert(!LEAN || (STAGES == 2 && TAIL == 0 && K::BYTE_VALUES), "lean: a mask is loaded with the next tile");
    static_assert(!TERM || (STAGES == 2 && ROWS == 16), "terms are of tiles of 16 tokens, and positions may be loaded with the next tile");

    /* Sums of weights times values; of weights times rests and, from [2] on, of the weights, as rounded to halves; maxima. */
    float o[TILES][M_TILES][4], sum[TILES][4], max[TILES][2]; /* by column: in the loop, maxima of columns 16i + g, + 8 */
    const float LOWEST = -1e30f;
    /* The end of the block uses the pipelines' memory. */
    float4 * const sums = (float4 *) front;
    float  * const rows = (float *) (front + S::SUM_BYTES);

    { /* up to the end of the loop; what comes after it makes its own of these */
    const ggmlq_decode_place at0 = ggmlq_decode_place::here<WARPS, LEAN>(plan);
    const int lane = at0.lane, warp = at0.warp, g = at0.g, t = at0.t, slice = at0.slice, group = at0.group, groups = at0.groups;
    const int head_kv = at0.head_kv, unit = at0.unit, seq = at0.seq, seq_kv = at0.seq_kv, first_column = at0.chunk*COLUMNS;

    ggmlq_term_turns turns;
    if constexpr (TERM) { /* on their way while addresses are found */
        turns = ggmlq_term_load_turns<SLICE>(p, slices);
    }
    const int tiles  = (plan.n_kv + ROWS - 1)/ROWS;
    const int tile0  = at0.tile0, tile1 = TERM ? at0.end(at0.group) : at0.tile1, tile_step = TERM ? 1 : groups; /* the first and the last tile of this group, or the block's */

    auto k_rows_of = [&](const ggmlq_decode_place & w) { return (const uint8_t *) p.k + w.seq_kv*p.k_stride[2] + w.head_kv*p.k_stride[1] + w.slice*K::BYTES; };
    auto v_rows_of = [&](const ggmlq_decode_place & w) { return (const uint8_t *) p.v + w.seq_kv*p.v_stride[2] + w.head_kv*p.v_stride[1] + w.slice*V::BYTES; };
    const uint8_t * const k_rows = k_rows_of(at0);
    const uint8_t * const v_rows = v_rows_of(at0);
    const uint8_t * const tail_rows = (const uint8_t *) p.k + seq_kv*p.k_stride[2] + head_kv*p.k_stride[1] + slices*K::BYTES;
    const bool has_tail = slice < S::TAIL_PLANES;
    uint8_t * const pipe = front + warp*STAGES*S::STAGE_BYTES;

    const uint8_t * const mask = (const uint8_t *) p.mask;
    auto mask_row = [&](int column) {
        int token = 0, head = 0;
        ggmlq_decode_place_column(plan, first_column + column < plan.columns ? first_column + column : 0, token, head);
        return mask + token*p.mask_stride[0] + ((head_kv*plan.group + head) % (int) p.mask_heads)*p.mask_stride[1] + (seq % (int) p.mask_seqs)*p.mask_stride[2];
    };
    const bool many_masks = LEAN ? false : mask && !plan.one_mask;
    if (many_masks) {
        if (threadIdx.x < COLUMNS) {
            mask_rows[threadIdx.x] = mask_row(threadIdx.x);
        }
        __syncthreads();
    }
    const uint8_t * one_mask = mask;
    if (S::MASK_ROWS && mask) {
        one_mask += min(g, (int) p.n_queries - 1)*p.mask_stride[0];
    }
    if ((LEAN ? mask != NULL : plan.one_mask) && seq > 0) {
        one_mask += (seq % (int) p.mask_seqs)*p.mask_stride[2];
    }

    /* Of the next tile to copy. Around the rows of the cache's last tile nothing may be read. */
    const uint8_t * k_chunk = NULL, * v_chunk = NULL, * tail_chunk = NULL;
    const int inner1 = min(tile1, tiles - 1);

    /* In registers a mask is two tokens of a tile a word. One row for all columns, or none: number 2*(lane % (ROWS/2)) and the next, or, in order, those among which is this lane's row of a score
     * fragment's first half if t is even, of its second half if t is odd. A row for each query: tokens 2t, 2t + 1 of query g, and 8 further. */
    enum { MASK_WORDS = S::MASK_ROWS ? 2 : 1 };
    struct mask_words { uint32_t w[MASK_WORDS]; };
    mask_words next_mask = {};
    const int mask_at = S::MASK_ROWS ? 2*t : (g & ~1) + 8*(t % 2); /* in order */
    const uint8_t * const lane_mask = one_mask + (S::MASK_ROWS ? 2*mask_at : 0); /* not to be read if there is none; a register pair that only those kernels have left */
    auto load_next_mask = [&](bool inner, int tile) {
        const int token = tile*ROWS + (S::IN_ORDER ? mask_at : 2*(lane % (ROWS/2))), from = S::MASK_ROWS ? tile*ROWS : token;
        next_mask = {};
        if (__builtin_expect(inner && (LEAN || mask == NULL || plan.mask_aligned), 1)) {
            if (mask) {
#pragma unroll
                for (int i = 0; i < MASK_WORDS; ++i) {
                    next_mask.w[i] = *(const uint32_t *) (lane_mask + 2*(from + 8*i));
                }
            }
        } else if (tile < tile1) {
#pragma unroll
            for (int i = 0; i < 2*MASK_WORDS; ++i) {
                const int at = 8*(i/2) + i % 2;
                next_mask.w[i/2] |= (uint32_t) (token + at >= plan.n_kv ? 0xfc00 : mask ? *(const uint16_t *) (lane_mask + 2*(from + at)) : 0) << 16*(i % 2);
            }
        }
    };
    /* The term of centered keys. */
    typedef ggmlq_term<SLICE, COLUMNS> W;
    typedef ggmlq_term_shape<SLICE, COLUMNS> M;
    uint8_t * const term = shared + S::TERM_AT;
    /* With 8 columns a tile's terms are those of its tokens. With more, where a warp has half of a scheduler and nothing hides what it waits for, it looks its tokens up by position: position and part of
     * this lane's token of the next tile, S::token(lane % 16), are loaded with that. */
    enum { BY_TOKEN = TILES == 1, BY_POSITION = TERM && !BY_TOKEN };
    int next_position = 0, terms_from = 0; /* the first position whose terms the warp has, */
    uint32_t positions_end = 0; /* and how many there are */
    uint32_t next_part = 0x3c00;
    const int position_at = LEAN && BY_POSITION ? seq_kv*plan.positions_step + S::token(lane % 16) : 0, part_at = LEAN && BY_POSITION ? seq_kv*plan.parts_step + S::token(lane % 16) : 0;
    auto load_next_position = [&](bool inner, int tile) {
        const int of_tile = S::token((LEAN ? lane : ggmlq_thread_anew()) % 16);
        const int token = inner ? tile*ROWS : min(tile*ROWS, plan.n_kv - 1 - of_tile); /* what follows the last token is hidden */
        next_position = p.positions[(LEAN ? position_at : seq_kv*plan.positions_step + of_tile) + token]; /* others have no registers for it */
        if (plan.has_parts) {
            next_part = p.part[(LEAN ? part_at : seq_kv*plan.parts_step + of_tile) + token];
        }
    };
    auto copy_tile = [&](int tile, int at) { /* at: the stage's first byte in the pipeline */
        const uint32_t to = ggmlq_shared_address(pipe) + at;
        if (__builtin_expect(tile < inner1, 1)) {
            ggmlq_decode_copy<K, ROWS>(to, k_chunk, plan.k_copy_step, lane);
            if (!v_in_k) {
                ggmlq_decode_copy<V, ROWS>(to + S::K_BYTES, v_chunk, plan.v_copy_step, lane);
            }
            if (TAIL > 0 && has_tail) {
                ggmlq_decode_copy<T, ROWS>(to + S::TAIL_AT, tail_chunk, K::LANES/T::LANES*plan.k_copy_step, lane);
            }
            if (LEAN) {
                load_next_mask(true, tile);
            }
            if (BY_POSITION) {
                load_next_position(true, tile);
            }
        } else if (tile < tile1) {
            if (LEAN) {
                load_next_mask(false, tile);
            }
            if (BY_POSITION) {
                load_next_position(false, tile);
            }
            const int token = tile*ROWS, count = plan.n_kv - token;
            const ggmlq_decode_place w = ggmlq_decode_place::here<WARPS, LEAN>(plan);
            ggmlq_decode_copy_last<K, ROWS>(to, k_rows_of(w) + token*p.k_stride[0], p.k_stride[0], count, w.lane);
            if (!v_in_k) {
                ggmlq_decode_copy_last<V, ROWS>(to + S::K_BYTES, v_rows_of(w) + token*p.v_stride[0], p.v_stride[0], count, w.lane);
            }
            if (TAIL > 0 && has_tail) {
                ggmlq_decode_copy_last<T, ROWS>(to + S::TAIL_AT, tail_rows + token*p.k_stride[0], p.k_stride[0], count, lane);
            }
        }
        if (__builtin_expect(many_masks && tile < tile1, 0)) {
            const int token = tile*ROWS, count = plan.n_kv - token;
            if (__builtin_expect(plan.mask_aligned && count >= ROWS, 1)) {
#pragma unroll
                for (int i = lane; i < COLUMNS*ROWS/8; i += 32) {
                    ggmlq_copy_async(to + S::K_BYTES + S::V_BYTES + 16*i, mask_rows[i/(ROWS/8)] + 2*token + 16*(i % (ROWS/8)), 16);
                }
            } else { /* these loads wait */
#pragma unroll 1
                for (int i = lane; i < COLUMNS*ROWS; i += 32) {
                    *(uint16_t *) (pipe + at + S::K_BYTES + S::V_BYTES + 2*i) = i % ROWS >= count ? 0xfc00 : *(const uint16_t *) (mask_rows[i/ROWS] + 2*(token + i % ROWS));
                }
            }
        }
        ggmlq_copy_async_commit();
        k_chunk += plan.k_step;
        v_chunk += plan.v_step;
        if (TAIL > 0) {
            tail_chunk += plan.k_step;
        }
    };

    const bool softcap = LEAN ? false : p.logit_softcap != 0.0f;
    enum { STEPS = K::BYTE_VALUES ? SLICE/32 : SLICE/16 };
    enum { KEEP_QUERIES = TILES <= 2 }; /* in registers */
    uint2 q[KEEP_QUERIES ? TILES : 1][STEPS]; /* B fragments of the queries: bytes of plane pairs, or halves of 16 values */
    auto load_query = [&](int n, int i) {
        const uint8_t * const row = queries + (8*n + g)*S::query_pitch(slices) +
            (TAIL > 0 && i == STEPS ? slices*SLICE + 32*(has_tail ? slice : 0) : slice*SLICE*(K::BYTE_VALUES ? 1 : 2) + 32*i);
        return K::BYTE_VALUES ? *(const uint2 *) (row + 8*t) : make_uint2(*(const uint32_t *) (row + 4*t), *(const uint32_t *) (row + 16 + 4*t));
    };
    ggmlq_decode_lut lut_k = ggmlq_decode_levels<type_k>(0), lut_v = ggmlq_decode_levels<type_v>(0x80808080u);

    /* Where this thread's rows of a tile lie. */
    const int k_token = S::token(g), v_token = S::token(2*t);
    enum { NEXT = S::IN_ORDER ? 1 : 4 }; /* its next one */
    int k_row  =  k_token     *K::PITCH + (int) ((uintptr_t) (k_rows +  k_token     *p.k_stride[0]) & 15);
    int v_row  =  v_token     *V::PITCH + (int) ((uintptr_t) (v_rows +  v_token     *p.v_stride[0]) & 15);
    const int tail_row = k_token*T::PITCH + (int) ((uintptr_t) (tail_rows + k_token*p.k_stride[0]) & 15);
    int v_row1 = (v_token + NEXT)*V::PITCH + (int) ((uintptr_t) (v_rows + (v_token + NEXT)*p.v_stride[0]) & 15); /* + 8 tokens is a multiple of 16 bytes, + 1 or 4 need not be */
    int k_scale  =  v_token     *K::PITCH + (int) ((uintptr_t) (k_rows +  v_token     *p.k_stride[0]) & 15) + (int) (pipe - shared);
    int k_scale1 = (v_token + NEXT)*K::PITCH + (int) ((uintptr_t) (k_rows + (v_token + NEXT)*p.k_stride[0]) & 15) + (int) (pipe - shared);
    k_row  += (int) (pipe - shared);
    v_row  += (int) (pipe - shared) + (v_in_k ? 0 : (int) S::K_BYTES);
    v_row1 += (int) (pipe - shared) + (v_in_k ? 0 : (int) S::K_BYTES);
    const uint32_t zero = ggmlq_zero_anew(), shifting = TILES <= 2 ? zero + 65536 : plan.unit; /* what the compiler doesn't know it keeps in a register */
    if (BY_COLUMN) { /* with 32 columns there is a register for this alone */
        lut_v.low ^= zero;
    }
    if (TILES <= 2) {
        const uint32_t lane_zero = TERM && LEAN ? (uint32_t) ggmlq_thread_anew() >> 16 : zero; /* or uniform registers hold these, from where they must be moved each time */
        lut_k.low ^= lane_zero;
        lut_v.low ^= lane_zero;
        ggmlq_keep(k_row);
        ggmlq_keep(v_row);
        ggmlq_keep(v_row1);
    }
    const uint32_t k_shift = t/2 ? 1 : 4, v_shift = g/2 % 2 ? 1 : 4;
    const int start[4] = { GGMLQ_SUM_BITS, GGMLQ_SUM_BITS, GGMLQ_SUM_BITS, GGMLQ_SUM_BITS };

    auto add_sums = [&](uint32_t rest0, uint32_t rest1, const uint2 weights[TILES]) {
        const uint32_t a[4] = { rest0, 0x3c003c00u, rest1, 0x3c003c00u };
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            ggmlq_mma_f16(sum[n], a, weights[n]);
        }
    };

    auto place_copies = [&](const ggmlq_decode_place & w) {
        const int64_t first_token = (int64_t) w.first<TERM>()*ROWS;
        k_chunk = ggmlq_decode_chunk<K>(k_rows_of(w), p.k_stride[0], w.lane) + first_token*p.k_stride[0];
        v_chunk = ggmlq_decode_chunk<V>(v_rows_of(w), p.v_stride[0], w.lane) + first_token*p.v_stride[0];
        if (TAIL > 0) {
            tail_chunk = ggmlq_decode_chunk<T>(tail_rows, p.k_stride[0], w.lane) + first_token*p.k_stride[0];
        }
    };
    auto start_copies = [&](const ggmlq_decode_place & w) {
#pragma unroll 1
        for (int i = 0; i < STAGES - 1; ++i) {
            copy_tile(w.first<TERM>() + i*w.groups, i*S::STAGE_BYTES);
        }
        if (!LEAN && !many_masks) {
            load_next_mask(w.first<TERM>() < inner1, w.first<TERM>());
        }
    };
    /* What the warp's first tile is made of: in a model weights drive it out of the L2 cache between two layers. While keys are rounded for queries, there is time. */
    auto prefetch_first_tile = [&](const ggmlq_decode_place & w) {
        const int token = w.first<TERM>()*ROWS, row = token + w.lane % ROWS;
        if (row < plan.n_kv) {
            ggmlq_prefetch(w.lane < ROWS ? k_rows_of(w) + row*p.k_stride[0] : v_rows_of(w) + row*p.v_stride[0]);
        }
        if (token < plan.n_kv && w.lane == 0) {
            if (mask) {
                ggmlq_prefetch(one_mask + 2*token);
            }
            ggmlq_prefetch(p.positions + (w.seq_kv*plan.positions_step + token));
            if (plan.has_parts) {
                ggmlq_prefetch(p.part + (w.seq_kv*plan.parts_step + token));
            }
        }
    };
    ggmlq_term_window window;
    int terms_end = tile1, terms_at = 0; /* the tile after those whose terms the warp has; where this lane's are, were they of tile 0 */
    auto fill_terms = [&](int tile) {
        if (__ballot_sync(0xffffffffu, tile < tile1)) { /* all lanes alike, which the compiler sees by this alone */
            const ggmlq_decode_place w = LEAN ? at0 : ggmlq_decode_place::here<WARPS, LEAN>(plan); /* others have no registers for it */
            int at_row;
            terms_end = min(tile1, tile + W::fill(p, term, plan, slices, window, w.seq_kv, tile, at_row));
            terms_at  = at_row*M::PITCH + S::TERM_AT + plan.term_warps_at + w.warp*plan.term_warp_bytes - 16*M::PITCH*tile + S::token(w.g)*M::PITCH + 8*w.t;
        }
    };
    {
        if (threadIdx.x < COLUMNS && (S::IN_ORDER || mask)) {
            int query = 0, head = 0;
            ggmlq_decode_place_column(plan, first_column + threadIdx.x < plan.columns ? first_column + threadIdx.x : 0, query, head);
            const float slope = GGMLQ_LOG2E*ggmlq_alibi_slope(p, head_kv*plan.group + head);
            const uint2 parts = ggmlq_two_parts(slope);
            slopes[threadIdx.x] = slope;
            if constexpr (S::MASK_ROWS) { /* columns 16i + g, + 8 and queries 2t, 2t + 1: the first parts, then the second ones; 0 but for the column's query */
                uint32_t * const words = (uint32_t *) biases + (threadIdx.x/16*32 + threadIdx.x % 8*4)*4 + threadIdx.x/8 % 2;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    words[4*i]     = i == query/2 ? parts.x << 16*(query % 2) : 0;
                    words[4*i + 2] = i == query/2 ? parts.y << 16*(query % 2) : 0;
                }
            } else if constexpr (S::IN_ORDER) { /* [column][t]: all tokens alike, half of the rows each part */
                biases[threadIdx.x] = make_uint4(parts.x*0x10001, parts.x*0x10001, parts.y*0x10001, parts.y*0x10001);
            }
        }
        if (S::IN_ORDER && !S::MASK_ROWS && threadIdx.x < 32) {
            const uint32_t half = g % 2 ? 0xffff0000u : 0xffffu;
            taken[threadIdx.x] = t % 2 ? make_uint2(0, half) : make_uint2(half, 0);
        }
        enum { AHEAD = LEAN && COLUMNS*(SLICE/32) > 8*WARPS ? COLUMNS*(SLICE/32)/(8*WARPS) : 1 }; /* pairs of planes that a thread prepares and fetches at once */
        const float * query[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            query[i] = ggmlq_decode_place_query<S, SLICE, LEAN>(p, plan, 8*WARPS*i + threadIdx.x/4, first_column, head_kv, seq);
        }
        place_copies(at0);
        float first_query[AHEAD][2][4];
        if constexpr (TERM) {
            ggmlq_term_make_table<SLICE, COLUMNS, WARPS>(turns, plan, slices, term); /* of turns, which that kernel doesn't write */
        }
        enum { W_FETCHED = LEAN && COLUMNS*SLICE <= 8*32*WARPS };
        ggmlq_term_w w_at;
        if constexpr (TERM && W_FETCHED) {
            w_at = ggmlq_term_w::place<SLICE, COLUMNS>(p, plan, slices, threadIdx.x, first_column, head_kv, seq);
        }
        if constexpr (TERM && LEAN && TILES == 1) {
            prefetch_first_tile(at0);
        }
        ggmlq_wait_for_previous();
        if (plan.short_loop) {
            ggmlq_let_next_start();
        }
        unsigned long long * const counter = (unsigned long long *) workspace + unit;
        unsigned long long found = 0; /* judged once it is here, after the copies have started */
        if (!COMBINED_LATER && plan.splits > 1 && threadIdx.x == 32*WARPS - 32) {
            found = *(volatile unsigned long long *) counter;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            ggmlq_decode_fetch_query(first_query[i], query[i], LEAN || plan.q_aligned);
        }
        float2 first_w[4];
        if constexpr (TERM && W_FETCHED) {
            w_at.fetch(first_w, p);
        }
        if constexpr (TERM && BY_TOKEN) {
            window.load(p, plan, seq_kv, at0.first<TERM>());
        }
        start_copies(at0);
        /* While the first tiles are on their way: */
        if (!COMBINED_LATER && plan.splits > 1 && threadIdx.x == 32*WARPS - 32 && (found - GGMLQ_COUNT_START)*GGMLQ_COUNT_STEP_INVERSE >= (unsigned long long) plan.splits) {
            atomicCAS(counter, found, GGMLQ_COUNT_START);
        }
        ggmlq_decode_load_queries<S, type_k, SLICE, AHEAD, LEAN>(first_query, p, plan, queries, q_scales, first_column, head_kv, seq, ggmlq_score_factor(p, softcap));
        if constexpr (TERM) {
            ggmlq_term_load_w<SLICE, COLUMNS, W_FETCHED>(first_w, p, plan, slices, term, first_column, head_kv, seq, ggmlq_score_factor(p, softcap)*(1.0f/GGMLQ_TERM_UNIT));
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
#pragma unroll
            for (int i = 0; i < STEPS && KEEP_QUERIES; ++i) {
                q[KEEP_QUERIES ? n : 0][i] = load_query(n, i);
            }
        }
        if constexpr (TERM && BY_TOKEN) {
            fill_terms(at0.first<TERM>());
        }
    }

    /* The second pass is taken only if a sum isn't finite: then values that aren't are kept from columns that don't see them. */
    for (bool careful = false;; careful = true) {
        if (careful) {
            const ggmlq_decode_place w = ggmlq_decode_place::here<WARPS, LEAN>(plan);
            place_copies(w);
            start_copies(w);
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
#pragma unroll
            for (int i = 0; i < M_TILES; ++i) {
                o[n][i][0] = o[n][i][1] = o[n][i][2] = o[n][i][3] = 0.0f;
            }
            sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.0f;
            max[n][0] = max[n][1] = LOWEST;
        }
        typedef ggmlq_decode_v_pair<type_v, SLICE> v_pair;
        v_pair pending0, pending1;
        uint2 pending[TILES];
        if constexpr (BY_COLUMN) {
            pending0.clear();
            pending1.clear();
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                pending[n] = make_uint2(0, 0);
            }
        }
        auto poison = [&](int first, int last, const uint32_t odd[4], const uint2 weights[TILES]) {
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const uint32_t x = weights[n].x & 0x7fff7fffu, y = weights[n].y & 0x7fff7fffu;
                const uint2 seen = make_uint2((x & 0xffffu ? 0x3c00u : 0) | (x >> 16 ? 0x3c000000u : 0), (y & 0xffffu ? 0x3c00u : 0) | (y >> 16 ? 0x3c000000u : 0)); /* 1 where a weight isn't 0 */
                float hit[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
                ggmlq_mma_f16(hit, odd, seen);
#pragma unroll
                for (int i = first; i < last; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        o[n][i][e] = hit[e] > 0.0f ? __uint_as_float(0x7fffffff) : o[n][i][e];
                    }
                }
            }
        };
        auto check_scales = [&](v_pair & a0, v_pair & a1, const uint2 weights[TILES]) { /* a thread's values share a scale, which alone can be odd */
            uint32_t odd[4];
            odd[0] = odd[1] = ggmlq_take_out_nonfinite(a0.scale);
            odd[2] = odd[3] = ggmlq_take_out_nonfinite(a1.scale);
            poison(0, M_TILES, odd, weights);
        };
        auto add_values = [&](int i, const v_pair & a0, const v_pair & a1, const uint2 weights[TILES]) { /* the four of group i */
            uint32_t x[4], y[4];
            a0.values(i, x, shifting, lut_v);
            a1.values(i, y, shifting, lut_v);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const uint32_t a[4] = { x[2*j], x[2*j + 1], y[2*j], y[2*j + 1] };
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    ggmlq_mma_f16(o[n][2*i + j], a, weights[n]);
                }
            }
        };
        int stage = 0, parity = 0;
        int tile = at0.first<TERM>();
        int end = TERM && BY_TOKEN ? careful ? tile : terms_end : tile1; /* before the second pass the terms are made anew */
#pragma unroll 1
        do {
#pragma unroll 1
        for (; tile < end; tile += tile_step) {
            const mask_words mask_now = next_mask;
            uint32_t any = 0, differs = 0;
#pragma unroll
            for (int i = 0; i < MASK_WORDS; ++i) {
                any     |= mask_now.w[i];
                differs |= mask_now.w[i] ^ 0xfc00fc00u;
            }
            const bool lean_biased = LEAN && __any_sync(0xffffffffu, any != 0);
            int position = 0;
            uint32_t part = 0;
            const int terms = S::TERM_AT + plan.term_warps_at + warp*plan.term_warp_bytes;
            uint32_t row = 0, weighted = 0; /* of the terms, that of this lane's token; tokens whose part is neither 0 nor 1 */
            auto find_terms = [&]() { /* sees to it that the warp has the terms of the tile, and where */
                row = (uint32_t) position - (uint32_t) terms_from;
                const bool unlike = (part != 0) & ((row >= positions_end) | (part != 0x3c00));
                row = part == 0 ? ~0u : row; /* of zeros */
                if (__builtin_expect(__any_sync(0xffffffffu, unlike), 0)) {
                    const bool none = (part & 0x7fff) == 0;
                    if (__any_sync(0xffffffffu, row >= positions_end && !none)) {
                        const int low = ggmlq_least(none ? INT32_MAX : position), high = ggmlq_largest(none ? INT32_MIN : position);
                        if ((uint32_t) high - (uint32_t) low < (uint32_t) plan.term_rows) {
                            terms_from = min(low, INT32_MAX - (plan.term_rows - 1)); /* no difference below that is of positions on both sides of an overflow */
                            positions_end  = plan.term_rows;
                            W::make(term, plan, slices, terms_from);
                            row = (uint32_t) position - (uint32_t) terms_from;
                        } else {
                            positions_end = 0;
                            W::make_of_tokens(p, term, plan, slices, position, 0);
                            row = lane % 16;
                        }
                    }
                    row = none ? ~0u : row;
                    weighted = __ballot_sync(0xffffffffu, !none && part != 0x3c00);
                }
            };
            ggmlq_copy_async_wait<STAGES - 2>();
            __syncwarp();
            if (BY_POSITION) {
                position = next_position;
                part     = next_part;
            }
            copy_tile(tile + (STAGES - 1)*tile_step, stage == 0 ? (STAGES - 1)*S::STAGE_BYTES : stage - S::STAGE_BYTES);
            const int turn_at = stage;
            const uint8_t * const k_tile = pipe + stage, * const from = shared + stage;
            const uint8_t * const v_tile = v_in_k ? k_tile : k_tile + S::K_BYTES;
            uint16_t * const mask_tile = (uint16_t *) (pipe + turn_at + S::K_BYTES + S::V_BYTES);
            stage = stage == (STAGES - 1)*S::STAGE_BYTES ? 0 : stage + S::STAGE_BYTES;

            /* Where the mask is all zeros there is nothing to do. */
            uint32_t all = differs == 0 ? 0xfc00fc00u : 0;
            if (many_masks) {
                any = 0;
                all = 0xfc00fc00u;
#pragma unroll
                for (int i = 0; i < (COLUMNS*ROWS/8 + 31)/32; ++i) {
                    const uint4 words = ((const uint4 *) mask_tile)[COLUMNS*ROWS/8 < 32 ? lane % (COLUMNS*ROWS/8) : 32*i + lane];
                    any |= words.x | words.y | words.z | words.w;
                    all  = words.x == all && words.y == all && words.z == all && words.w == all ? all : 0;
                }
            } else if (!LEAN) {
                load_next_mask(tile + tile_step < inner1, tile + tile_step);
            }
            const bool biased = LEAN ? lean_biased : __any_sync(0xffffffffu, any != 0);
            if (__builtin_expect(biased, 0) && __all_sync(0xffffffffu, all == 0xfc00fc00u)) {
                if (slices > 1) {
                    ggmlq_barrier(1 + group, 32*slices);
                }
                continue; /* all hidden */
            }

            auto load_terms = [&](float s[TILES][4]) {
                if constexpr (BY_TOKEN) {
                    const uint8_t * const from = shared + terms_at + 16*M::PITCH*tile;
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const float2 two = *(const float2 *) (from + 8*j*M::PITCH);
                        s[0][2*j]     = two.x;
                        s[0][2*j + 1] = two.y;
                    }
                    return;
                }
                find_terms();
                if constexpr (BY_COLUMN) { /* columns 8i + g, tokens 2t, 2t + 1 of a fragment and of the next */
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const float * const from = (const float *) (shared + terms + (int) __shfl_sync(0xffffffffu, row, 2*t + j % 2 + 8*(j/2))*M::PITCH) + g;
#pragma unroll
                        for (int i = 0; i < TILES; ++i) {
                            s[i/2*2 + j/2][i%2*2 + j%2] = from[8*i];
                        }
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const uint8_t * const from = shared + terms + 8*t + (int) __shfl_sync(0xffffffffu, row, g + 8*j)*M::PITCH;
#pragma unroll
                        for (int n = 0; n < TILES; ++n) {
                            const float2 two = *(const float2 *) (from + 32*n);
                            s[n][2*j]     = two.x;
                            s[n][2*j + 1] = two.y;
                        }
                    }
                }
                if (__builtin_expect(weighted != 0, 0)) {
                    const float mine = ggmlq_half_value((uint16_t) part);
                    float f[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) { /* of a fragment's rows g, g + 8; by column, of its columns 2t, 2t + 1, and those of the next fragment */
                        f[i] = __shfl_sync(0xffffffffu, mine, BY_COLUMN ? 2*t + i % 2 + 8*(i/2) : g + 8*(i % 2));
                    }
#pragma unroll
                    for (int i = 0; i < 4*TILES; ++i) {
                        s[i/4][i%4] *= BY_COLUMN ? f[i % 2 + 2*(i/4 % 2)] : f[i % 4/2];
                    }
                }
            };
            if constexpr (BY_COLUMN) { /* scores [column, token]: what an mma leaves is what the next one takes as its B operand */
                static_assert(BLOCK_ROWS == 1, "two fragments of eight tokens");
                float s[TILES/2][2][4]; /* columns 16i + g, + 8; tokens 2t, 2t + 1, and 8 further */
                if (__builtin_expect(careful, 0)) {
                    check_scales(pending0, pending1, pending);
                }
                if constexpr (TERM) { /* in units of the column's scale, as what follows */
                    load_terms(s[0]);
#pragma unroll
                    for (int i = 0; i < TILES; ++i) {
                        const float inverse = q_scales[COLUMNS + 8*i + g];
#pragma unroll
                        for (int j = 0; j < 4; ++j) {
                            s[i/2][j/2][i%2*2 + j%2] *= inverse;
                        }
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < TILES; ++i) {
                        s[i/2][i%2][0] = s[i/2][i%2][1] = s[i/2][i%2][2] = s[i/2][i%2][3] = 0.0f;
                    }
                }
                if constexpr (S::K_AS_HALVES) {
                    const ggmlq_decode_k_halves k = ggmlq_decode_k_halves::load(from + k_row, t, shifting);
#pragma unroll
                    for (int step = 0; step < 8; ++step) {
                        uint2 b[2];
                        k.step(step, b);
#pragma unroll
                        for (int i = 0; i < TILES/2; ++i) {
                            const uint4 words = *(const uint4 *) (queries + ((i*8 + step)*32 + lane)*16);
                            const uint32_t a[4] = { words.x, words.y, words.z, words.w };
                            ggmlq_mma_f16(s[i][0], a, b[0]);
                            ggmlq_mma_f16(s[i][1], a, b[1]);
                        }
                        if (step == 0) {
                            add_sums(pending0.prepare(), pending1.prepare(), pending);
                        }
                        if (step % 2) {
                            add_values(step/2, pending0, pending1, pending);
                        }
                    }
                } else {
                    const uint8_t * const row = from + k_row;
                    int acc[TILES/2][2][4];
#pragma unroll
                    for (int plane = 0; plane < 4; ++plane) {
                        uint32_t a[4];
                        ggmlq_decode_k_fragment<type_k, SLICE>(a, row, plane, t, k_shift, shifting, lut_k);
                        const uint2 b[2] = { make_uint2(a[0], a[2]), make_uint2(a[1], a[3]) };
#pragma unroll
                        for (int i = 0; i < TILES/2; ++i) {
                            const uint4 words = *(const uint4 *) (queries + ((i*4 + plane)*32 + lane)*16);
                            const uint32_t q[4] = { words.x, words.y, words.z, words.w };
                            ggmlq_mma_s8(acc[i][0], q, b[0], plane ? acc[i][0] : start);
                            ggmlq_mma_s8(acc[i][1], q, b[1], plane ? acc[i][1] : start);
                        }
                        if (plane == 0) {
                            add_sums(pending0.prepare(), pending1.prepare(), pending);
                        }
                        add_values(plane, pending0, pending1, pending);
                    }
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const float scale = ggmlq_half_value((uint16_t) ggmlq_read_shared_u16(from + (j % 2 ? k_scale1 : k_scale) + 8*(j/2)*K::PITCH)), minus = -GGMLQ_SUM_FLOAT*scale; /* 11 + 2 bits: exact */
#pragma unroll
                        for (int i = 0; i < TILES; ++i) {
                            float & x = s[i/2][j/2][i%2*2 + j%2];
                            const float product = fmaf(__int_as_float(acc[i/2][j/2][i%2*2 + j%2]), scale, minus);
                            x = TERM ? x + product : product;
                        }
                    }
                }
                pending0 = v_pair::load(from + v_row, from + v_row1, g, v_shift, shifting);
                pending1 = v_pair::load(from + v_row + 8*V::PITCH, from + v_row1 + 8*V::PITCH, g, v_shift, shifting);
                float factor[TILES/2][2];
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    factor[i/2][i%2] = q_scales[8*i + g];
                }
                if (__builtin_expect(biased, 0)) {
#pragma unroll
                    for (int i = 0; i < 4*TILES; ++i) {
                        s[i/8][i/4 % 2][i % 4] *= factor[i/8][i % 4/2];
                    }
#pragma unroll
                    for (int i = 0; i < TILES; ++i) {
                        factor[i/2][i%2] = 1.0f;
                    }
                    const uint4 * const bias = biases + (uint32_t) ggmlq_thread_anew() % 32;
                    uint32_t values[2] = { ggmlq_transpose_halves(mask_now.w[0]), ggmlq_transpose_halves(mask_now.w[1]) };
                    if (__builtin_expect(__any_sync(0xffffffffu, ggmlq_hides(mask_now.w[0]) || ggmlq_hides(mask_now.w[1])), 0)) {
#pragma unroll
                        for (int j = 0; j < 2; ++j) {
                            const uint32_t hidden = ggmlq_take_out_hidden(values[j]);
#pragma unroll
                            for (int i = 0; i < TILES/2; ++i) {
                                ggmlq_hide(s[i][j], ggmlq_ones(bias[32*i].x), ggmlq_ones(bias[32*i].y), hidden, careful);
                            }
                        }
                    }
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
#pragma unroll
                        for (int i = 0; i < TILES/2; ++i) {
                            const uint4 words = bias[32*i];
                            const uint32_t a[4] = { words.x, words.y, words.z, words.w };
                            ggmlq_mma_f16(s[i][j], a, make_uint2(values[j], values[j]));
                        }
                    }
                }
                float top[TILES/2][2];
                bool exceeds = false;
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    const int e = i%2*2;
                    float & x = top[i/2][i%2];
                    x = fmaxf(fmaxf(s[i/2][0][e], s[i/2][0][e + 1]), fmaxf(s[i/2][1][e], s[i/2][1][e + 1]))*factor[i/2][i%2];
                    exceeds |= x > max[i/2][i%2] + 8.0f;
                }
                if (__builtin_expect(__any_sync(0xffffffffu, exceeds), 0)) {
                    const int thread = ggmlq_thread_anew();
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        float x = top[n/2][n%2];
                        x = fmaxf(x, ggmlq_shuffle_xor(x, 1));
                        x = fmaxf(x, ggmlq_shuffle_xor(x, 2));
                        const float next = fmaxf(max[n/2][n%2], x), shrink_mine = ggmlq_exp2(max[n/2][n%2] - next);
                        max[n/2][n%2] = next;
#pragma unroll
                        for (int e = 0; e < 2; ++e) { /* sums are [value, column] */
                            const float shrink = __shfl_sync(0xffffffffu, shrink_mine, 4*(2*(thread % 4) + e));
                            sum[n][e]     *= shrink;
                            sum[n][e + 2] *= shrink;
#pragma unroll
                            for (int i = 0; i < M_TILES; ++i) {
                                o[n][i][e]     *= shrink;
                                o[n][i][e + 2] *= shrink;
                            }
                        }
                    }
                }
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    float w[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        w[j] = ggmlq_exp2(fmaf(s[n/2][j/2][n%2*2 + j%2], factor[n/2][n%2], -max[n/2][n%2]));
                    }
                    pending[n] = make_uint2(ggmlq_half2_bits(__floats2half2_rn(w[0], w[1])), ggmlq_half2_bits(__floats2half2_rn(w[2], w[3])));
                }
            } else {
                float s[BLOCK_ROWS][TILES][4];
                if constexpr (TERM) {
                    load_terms(s[0]);
                } else {
#pragma unroll
                    for (int m = 0; m < BLOCK_ROWS; ++m) {
#pragma unroll
                        for (int n = 0; n < TILES; ++n) {
                            s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
                        }
                    }
                }
                if constexpr (K::BYTE_VALUES) {
                    const uint8_t * const row = from + k_row;
                    int acc[BLOCK_ROWS][TILES][4];
#pragma unroll
                    for (int plane = 0; plane < K::PLANES + (TAIL > 0); ++plane) {
                        const bool in_tail = plane == K::PLANES; /* known when the loop is unrolled */
                        if (in_tail && !has_tail) {
                            break;
                        }
                        const uint8_t * const tail = k_tile + S::TAIL_AT + tail_row;
#pragma unroll
                        for (int m = 0; m < BLOCK_ROWS; ++m) {
                            uint32_t a[4];
                            if (in_tail) {
                                ggmlq_decode_k_fragment<type_k, TAIL ? TAIL : SLICE>(a, tail + 16*m*T::PITCH, slice, t, k_shift, shifting, lut_k);
                            } else {
                                ggmlq_decode_k_fragment<type_k, SLICE>(a, row + 16*m*K::PITCH, plane, t, k_shift, shifting, lut_k);
                            }
#pragma unroll
                            for (int n = 0; n < TILES; ++n) {
                                ggmlq_mma_s8(acc[m][n], a, KEEP_QUERIES && !in_tail ? q[KEEP_QUERIES ? n : 0][plane] : load_query(n, plane), K::PLANAR3 && plane % 4 != 0 ? acc[m][n] : start);
                            }
                        }
                        if (K::PLANAR3 && plane % 4 != 3) {
                            continue;
                        }
                        float scale[BLOCK_ROWS][2];
#pragma unroll
                        for (int m = 0; m < BLOCK_ROWS; ++m) {
                            const uint8_t * const at = in_tail ? tail + 16*m*T::PITCH + T::scale_at(slice) : row + 16*m*K::PITCH + K::scale_at(plane);
                            scale[m][0] = ggmlq_half_value((uint16_t) ggmlq_read_shared_u16(at));
                            scale[m][1] = ggmlq_half_value((uint16_t) ggmlq_read_shared_u16(at + 8*(in_tail ? (int) T::PITCH : (int) K::PITCH)));
                        }
#pragma unroll
                        for (int n = 0; n < TILES; ++n) {
                            const float4 f = *(const float4 *) (q_scales + ((n*S::query_scales(slices) + (in_tail ? slices*K::SCALES + slice : slice*K::SCALES + (K::PLANAR3 ? plane/4 : plane)))*4 + t)*4);
#pragma unroll
                            for (int m = 0; m < BLOCK_ROWS; ++m) {
#pragma unroll
                                for (int i = 0; i < 4; ++i) {
                                    s[m][n][i] = fmaf(scale[m][i/2], fmaf(__int_as_float(acc[m][n][i]), i % 2 ? f.y : f.x, i % 2 ? f.w : f.z), s[m][n][i]);
                                }
                            }
                        }
                    }
                } else {
#pragma unroll
                    for (int m = 0; m < BLOCK_ROWS; ++m) {
                        const uint32_t address = ggmlq_shared_address(k_tile) + (16*m + S::token(lane % 16))*K::PITCH + 16*(lane/16);
#pragma unroll
                        for (int i = 0; i < STEPS; ++i) {
                            uint32_t a[4];
                            ggmlq_load_matrices<false>(a, address + 32*i);
#pragma unroll
                            for (int n = 0; n < TILES; ++n) {
                                ggmlq_mma_f16(s[m][n], a, KEEP_QUERIES ? q[KEEP_QUERIES ? n : 0][i] : load_query(n, i));
                            }
                        }
                    }
                }
                if (__builtin_expect(slices > 1, 0)) { /* partial scores of the slices, added in the same order by all */
                    float4 * const mine = (float4 *) exchange + ((group*2 + parity)*slices + slice)*BLOCK_ROWS*TILES*32 + lane;
                    const float4 * const all = (const float4 *) exchange + (group*2 + parity)*slices*BLOCK_ROWS*TILES*32 + lane;
                    parity ^= 1;
#pragma unroll
                    for (int i = 0; i < BLOCK_ROWS*TILES; ++i) {
                        mine[32*i] = *(const float4 *) s[i/TILES][i%TILES];
                    }
                    ggmlq_barrier(1 + group, 32*slices);
#pragma unroll
                    for (int i = 0; i < BLOCK_ROWS*TILES; ++i) {
                        float4 total = all[32*i];
#pragma unroll 1
                        for (int j = 1; j < slices; ++j) {
                            const float4 other = all[32*(j*BLOCK_ROWS*TILES + i)];
                            total.x += other.x; total.y += other.y; total.z += other.z; total.w += other.w;
                        }
                        s[i/TILES][i%TILES][0] = total.x; s[i/TILES][i%TILES][1] = total.y; s[i/TILES][i%TILES][2] = total.z; s[i/TILES][i%TILES][3] = total.w;
                    }
                }

                /* Scores in units of log 2. */
                if (__builtin_expect(softcap, 0)) { /* tanh(x) = 1 - 2/(1 + exp(2x)) */
#pragma unroll
                    for (int i = 0; i < 4*BLOCK_ROWS*TILES; ++i) {
                        float & x = s[i/4/TILES][i/4%TILES][i%4];
                        x = p.logit_softcap*GGMLQ_LOG2E*(1.0f - __fdividef(2.0f, 1.0f + ggmlq_exp2(fminf(2.0f*GGMLQ_LOG2E*x, 80.0f))));
                    }
                }
                if (__builtin_expect(biased, 0)) {
                    const uint32_t lane = (uint32_t) ggmlq_thread_anew() % 32; /* unsigned: its parts are shifts */
                    if constexpr (S::MASK_ROWS) {
                        uint32_t values[2] = { ggmlq_transpose_halves(mask_now.w[0]), ggmlq_transpose_halves(mask_now.w[1]) };
                        if (__builtin_expect(__any_sync(0xffffffffu, ggmlq_hides(mask_now.w[0]) || ggmlq_hides(mask_now.w[1])), 0)) {
                            const uint32_t hidden[2] = { ggmlq_take_out_hidden(values[0]), ggmlq_take_out_hidden(values[1]) };
#pragma unroll
                            for (int n = 0; n < TILES; ++n) {
                                ggmlq_hide(s[0][n], hidden[0], hidden[1], ggmlq_ones(n % 2 ? biases[n/2*32 + lane].y : biases[n/2*32 + lane].x), careful);
                            }
                        }
                        const uint32_t a[4] = { values[0], values[1], values[0], values[1] };
#pragma unroll
                        for (int n = 0; n < TILES; ++n) {
                            const uint4 bias = biases[n/2*32 + lane];
                            ggmlq_mma_f16(s[0][n], a, n % 2 ? make_uint2(bias.y, bias.w) : make_uint2(bias.x, bias.z));
                        }
                    } else if constexpr (S::IN_ORDER) { /* -INFINITY times either part of a slope is that */
                        const uint2 take = taken[lane];
                        const uint32_t a0 = mask_now.w[0] & take.x, a1 = mask_now.w[0] & take.y;
#pragma unroll
                        for (int n = 0; n < TILES; ++n) {
                            const uint32_t b = ((const uint32_t *) biases)[32*n + lane];
                            ggmlq_mma_f16_k8(s[0][n], a0, a1, b);
                            if (__builtin_expect(careful, 0)) { /* a hidden token's NaN passed at first, and made this pass necessary */
                                float h[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
                                ggmlq_mma_f16_k8(h, a0, a1, b);
#pragma unroll
                                for (int i = 0; i < 4; ++i) {
                                    s[0][n][i] = h[i] == -INFINITY ? -INFINITY : s[0][n][i];
                                }
                            }
                        }
                    } else {
                        /* Halves; 0xfc00 hides. A hidden token's NaN passes at first, and makes the careful pass necessary. */
                        const uint32_t first = S::token(lane/4);
                        auto add = [&](int n, int e, int row, uint16_t half) { /* of token 8*row + first */
                            const float bias = ggmlq_half_value(half);
                            float & x = s[row/2][n][row%2*2 + e];
                            x = fmaf(bias, mask ? slopes[8*n + 2*(lane % 4) + e] : 1.0f, x);
                            x = careful && bias == -INFINITY ? -INFINITY : x;
                        };
                        if (many_masks) {
#pragma unroll
                            for (int i = 0; i < 4*BLOCK_ROWS*TILES; ++i) {
                                const int n = i/(4*BLOCK_ROWS), e = i/(2*BLOCK_ROWS) % 2, row = i % (2*BLOCK_ROWS);
                                add(n, e, row, mask_tile[ROWS*(int) (8*n + 2*(lane % 4) + e) + 8*row + first]);
                            }
                        } else {
#pragma unroll
                            for (int row = 0; row < 2*BLOCK_ROWS; ++row) {
                                const uint16_t half = (uint16_t) (__shfl_sync(0xffffffffu, mask_now.w[0], 4*row + first/2) >> 16*(first % 2));
#pragma unroll
                                for (int i = 0; i < 2*TILES; ++i) {
                                    add(i/2, i%2, row, half);
                                }
                            }
                        }
                    }
                }

                /* The maximum is followed lazily: weights up to 2^8 do no harm. */
                float top[TILES][2];
                bool  exceeds = false;
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        top[n][e] = fmaxf(s[0][n][e], s[0][n][e + 2]);
#pragma unroll
                        for (int m = 1; m < BLOCK_ROWS; ++m) {
                            top[n][e] = fmaxf(top[n][e], fmaxf(s[m][n][e], s[m][n][e + 2]));
                        }
                        exceeds |= top[n][e] > max[n][e] + 8.0f;
                    }
                }
                if (__builtin_expect(__any_sync(0xffffffffu, exceeds), 0)) {
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
#pragma unroll
                            for (int x = 4; x < 32; x *= 2) {
                                top[n][e] = fmaxf(top[n][e], ggmlq_shuffle_xor(top[n][e], x));
                            }
                            const float next = fmaxf(max[n][e], top[n][e]), shrink = ggmlq_exp2(max[n][e] - next);
                            max[n][e]  = next;
                            sum[n][e]     *= shrink;
                            sum[n][e + 2] *= shrink;
#pragma unroll
                            for (int i = 0; i < M_TILES; ++i) {
                                o[n][i][e]     *= shrink;
                                o[n][i][e + 2] *= shrink;
                            }
                        }
                    }
                }
                uint2 weights[BLOCK_ROWS][TILES];
#pragma unroll
                for (int m = 0; m < BLOCK_ROWS; ++m) {
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        float w[4];
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            w[i] = ggmlq_exp2(s[m][n][i] - max[n][i % 2]);
                        }
                        weights[m][n].x = ggmlq_transpose_halves(ggmlq_half2_bits(__floats2half2_rn(w[0], w[1])));
                        weights[m][n].y = ggmlq_transpose_halves(ggmlq_half2_bits(__floats2half2_rn(w[2], w[3])));
                    }
                }

                /* Columns of an A fragment: tokens v_token, + NEXT, and 8 further. */
#pragma unroll
                for (int m = 0; m < BLOCK_ROWS; ++m) {
                    if constexpr (V::BYTE_VALUES) {
                        const uint8_t * const row = from + v_row + 16*m*V::PITCH, * const row1 = from + v_row1 + 16*m*V::PITCH;
                        v_pair a0 = v_pair::load(row, row1, g, v_shift, shifting), a1 = v_pair::load(row + 8*V::PITCH, row1 + 8*V::PITCH, g, v_shift, shifting);
                        if (__builtin_expect(careful, 0)) {
                            check_scales(a0, a1, weights[m]);
                        }
                        add_sums(a0.prepare(), a1.prepare(), weights[m]);
#pragma unroll
                        for (int i = 0; i < M_TILES/2; ++i) {
                            add_values(i, a0, a1, weights[m]);
                        }
                    } else {
                        add_sums(0, 0, weights[m]);
                        /* Matrices: tokens 0..7 of the fragment x values 0..7, 8..15, then tokens 8..15; transposed on the way. */
                        const uint32_t address = ggmlq_shared_address(v_tile) + (16*m + S::token(lane % 8 + 8*(lane/16)))*V::PITCH + 16*(lane/8 % 2);
#pragma unroll
                        for (int i = 0; i < M_TILES; ++i) {
                            uint32_t a[4];
                            ggmlq_load_matrices<true>(a, address + 32*i);
                            if (careful) {
                                uint32_t odd[4];
#pragma unroll
                                for (int j = 0; j < 4; ++j) {
                                    odd[j] = ggmlq_take_out_nonfinite(a[j]);
                                }
                                poison(i, i + 1, odd, weights[m]);
                            }
#pragma unroll
                            for (int n = 0; n < TILES; ++n) {
                                ggmlq_mma_f16(o[n][i], a, weights[m][n]);
                            }
                        }
                    }
                }
            }
        }
        if constexpr (TERM && BY_TOKEN) {
            if (__ballot_sync(0xffffffffu, tile < tile1)) {
                window.load(p, plan, (LEAN ? at0 : ggmlq_decode_place::here<WARPS, LEAN>(plan)).seq_kv, tile);
                fill_terms(tile);
                end = terms_end;
            }
        }
        } while (TERM && BY_TOKEN && __ballot_sync(0xffffffffu, tile < tile1));
        if constexpr (BY_COLUMN) {
            if (careful) {
                check_scales(pending0, pending1, pending);
            }
            add_sums(pending0.prepare(), pending1.prepare(), pending);
#pragma unroll
            for (int i = 0; i < M_TILES/2; ++i) {
                add_values(i, pending0, pending1, pending);
            }
        }
        /* Groups with a tile less, as those with hidden ones, meet as often as the others: else compute-sanitizer's racecheck takes what their warps do on either side of
         * a __syncthreads() to be unordered (docs/CUDA-ATTENTION.md). */
        if (__builtin_expect(slices > 1, 0) && (TERM ? at0.is_short() : (tile1 - tile0 - 1) % groups < group)) {
            ggmlq_barrier(1 + group, 32*slices);
        }
        const ggmlq_decode_place w = ggmlq_decode_place::here<WARPS, LEAN>(plan);
        float odd = 0.0f; /* 0 times a value that isn't finite is NaN */
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
#pragma unroll
            for (int i = 0; i < M_TILES; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    o[n][i][e] -= sum[n][e % 2];
                    asm("fma.rn.f32 %0, %1, 0f00000000, %0;" : "+f"(odd) : "f"(o[n][i][e]));
                }
            }
#pragma unroll
            for (int e = 0; e < 2 && !BY_COLUMN; ++e) {
                if (w.g == 0 && w.slice == 0) {
                    maxima[w.group*COLUMNS + 8*n + 2*w.t + e] = max[n][e];
                }
            }
            if (BY_COLUMN && w.t == 0) {
                maxima[w.group*COLUMNS + 8*n + w.g] = max[n/2][n%2];
            }
        }
        ggmlq_copy_async_wait<0>();
        if (!__syncthreads_or(odd != 0.0f) || careful) {
            break;
        }
    }
    }
    const ggmlq_decode_place at1 = ggmlq_decode_place::here<WARPS, LEAN>(plan);
    const int lane = at1.lane, warp = at1.warp, g = at1.g, t = at1.t, slice = at1.slice, group = at1.group, groups = at1.groups;
    const int head_kv = at1.head_kv, split = at1.split, unit = at1.unit, seq = at1.seq, first_column = at1.chunk*COLUMNS;
    unsigned long long * const counter = (unsigned long long *) workspace + unit;
    ggmlq_let_next_start(); /* not before a long loop: the next kernel's blocks would take the places of those that end first, and that is slower */

    /* Groups of warps -> one sum, under a common maximum. Sums lie as float4 [slice][TILES][M_TILES][32]. */
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int column = 8*n + 2*t + e;
            const float mine = BY_COLUMN ? maxima[group*COLUMNS + column] : max[n][e];
            float top = LOWEST;
#pragma unroll
            for (int i = 0; i < WARPS; i += 8) {
                top = i + g < groups ? fmaxf(top, maxima[(i + g)*COLUMNS + column]) : top;
            }
#pragma unroll
            for (int x = 4; x < 32; x *= 2) {
                top = fmaxf(top, ggmlq_shuffle_xor(top, x));
            }
            const float factor = ggmlq_exp2(mine - top);
            if (g == 0 && slice == 0) {
                group_sums[group*COLUMNS + column] = sum[n][e + 2]*factor;
            }
            if (g == 0 && warp == 0) {
                totals[4*column] = top;
            }
#pragma unroll
            for (int i = 0; i < M_TILES; ++i) {
                o[n][i][e]     *= factor;
                o[n][i][e + 2] *= factor;
            }
        }
#pragma unroll
        for (int i = 0; i < M_TILES; ++i) {
            sums[((warp*TILES + n)*M_TILES + i)*32 + lane] = *(const float4 *) o[n][i];
        }
    }
    __syncthreads();
    auto total_of_groups = [&](int column) {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) {
            total += i < groups ? group_sums[i*COLUMNS + column] : 0.0f;
        }
        return total;
    };
    enum { SLICE_ITEMS = TILES*M_TILES*32 };
    const int n_items = slices*SLICE_ITEMS; /* float4 of the block's result */
    auto used = [&](int item) { return first_column + 8*(item/32/M_TILES % TILES) + 2*(item % 4) < plan.columns; };
    float4 * const partial = (float4 *) (workspace + plan.partials_at) + (int64_t) unit*plan.splits*n_items; /* [slice][split][item]: splits are a constant apart */
    auto partial_of = [&](int item) { return partial + (slices == 1 ? item : item/SLICE_ITEMS*plan.splits*SLICE_ITEMS + item % SLICE_ITEMS); };
    float2 * const partial_stats = (float2 *) (workspace + plan.stats_at) + (int64_t) unit*plan.splits*COLUMNS;

    auto store_row = [&](int item, float4 v) { /* rows[column][value] */
        const int i = item/32 % M_TILES, n = item/32/M_TILES % TILES, at_slice = item/32/M_TILES/TILES, l = item % 32;
        float * const row = rows + (8*n + 2*(l % 4))*S::row_pitch(slices) + at_slice*SLICE;
        const float f0 = totals[4*(8*n + 2*(l % 4)) + 2], f1 = totals[4*(8*n + 2*(l % 4)) + 6];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int value = ggmlq_decode_v_value<type_v, SLICE>(i, half, l/4);
            if (value < SLICE) {
                row[value] = f0*(half ? v.z : v.x);
                row[value + S::row_pitch(slices)] = f1*(half ? v.w : v.y);
            }
        }
    };
    auto finish_column = [&](int column, float top, float total) {
        if (p.sinks && first_column + column < plan.columns) {
            const float sink = GGMLQ_LOG2E*p.sinks[head_kv*plan.group + (first_column + column) % plan.group];
            const float higher = fmaxf(sink, top);
            total = total*ggmlq_exp2(top - higher) + ggmlq_exp2(sink - higher);
            totals[4*column + 2] = total == 0.0f ? 0.0f : ggmlq_decode_v_bytes<type_v>::UNIT*ggmlq_exp2(top - higher)/total;
        } else {
            totals[4*column + 2] = total == 0.0f ? 0.0f : ggmlq_decode_v_bytes<type_v>::UNIT/total;
        }
    };
    auto group_sum = [&](int item) {
        const float4 * from = sums + item; /* [group][slice][...] */
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int i = 0; i < WARPS; ++i) {
            if (i < groups) {
                const float4 x = from[i*n_items];
                v.x += x.x; v.y += x.y; v.z += x.z; v.w += x.w;
            }
        }
        return v;
    };

    if (plan.splits == 1 && !COMBINED_LATER) {
        if (threadIdx.x < COLUMNS) {
            finish_column(threadIdx.x, totals[4*threadIdx.x], total_of_groups(threadIdx.x));
        }
        __syncthreads();
#pragma unroll 1
        for (int item = threadIdx.x; item < n_items; item += 32*WARPS) {
            store_row(item, group_sum(item));
        }
    } else {
#pragma unroll 1
        for (int item = threadIdx.x; item < n_items; item += 32*WARPS) {
            if (used(item)) {
                __stcg(partial_of(item) + split*SLICE_ITEMS, group_sum(item));
            }
        }
        if (threadIdx.x < COLUMNS) {
            __stcg(partial_stats + split*COLUMNS + threadIdx.x, make_float2(totals[4*threadIdx.x], total_of_groups(threadIdx.x)));
        }
        if (COMBINED_LATER) {
            return;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            const unsigned long long before = ggmlq_count_arrival(counter, GGMLQ_COUNT_STEP); /* its order covers what the barriers order */
            const bool last = before == GGMLQ_COUNT_START + (unsigned long long) (plan.splits - 1)*GGMLQ_COUNT_STEP;
            if (last) {
                *(volatile unsigned long long *) counter = GGMLQ_COUNT_START;
            }
            *last_flag = last;
        }
        __syncthreads();
        if (!*last_flag) {
            return;
        }
        /* BATCH: splits whose sums are on their way together; a lane keeps the statistics of KEPT of its splits. Two blocks on each of 132 multiprocessors and 8 heads make 33 splits:
         * two batches, and no statistics that are loaded twice. Where terms have made the loop longer that isn't faster. */
        enum { TWICE = LEAN && TILES == 1 && !TERM, BATCH = TWICE ? 17 : 16, KEPT = TWICE ? 2 : 1 };
        float4 x[BATCH];
        auto load_batch = [&](int item, int first) {
            const float4 * const from = partial_of(item) + first*SLICE_ITEMS;
            const int count = item < n_items && used(item) ? plan.splits - first : 0;
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                if (i < count) {
                    x[i] = __ldcg(from + i*SLICE_ITEMS);
                }
            }
        };
        load_batch(threadIdx.x, 0);
        float * const split_factors = (float *) front; /* where the sums were */
#pragma unroll 1
        for (int column = warp; column < COLUMNS; column += WARPS) {
            float2 mine[KEPT];
            float top = LOWEST;
#pragma unroll
            for (int i = 0; i < KEPT; ++i) {
                mine[i] = lane + 32*i < plan.splits ? __ldcg(partial_stats + (lane + 32*i)*COLUMNS + column) : make_float2(LOWEST, 0.0f);
                top = i == 0 ? mine[i].x : fmaxf(top, mine[i].x);
            }
#pragma unroll 1
            for (int i = lane + 32*KEPT; i < plan.splits; i += 32) {
                top = fmaxf(top, __ldcg(partial_stats + i*COLUMNS + column).x);
            }
#pragma unroll
            for (int i = 1; i < 32; i *= 2) {
                top = fmaxf(top, ggmlq_shuffle_xor(top, i));
            }
            float total = 0.0f;
#pragma unroll
            for (int i = 0; i < KEPT; ++i) {
                const float factor = ggmlq_exp2(mine[i].x - top);
                total = i == 0 ? factor*mine[i].y : total + factor*mine[i].y;
                if (i == 0 || lane + 32*i < plan.splits) {
                    split_factors[(lane + 32*i)*COLUMNS + column] = factor;
                }
            }
#pragma unroll 1
            for (int i = lane + 32*KEPT; i < plan.splits; i += 32) {
                const float2 other = __ldcg(partial_stats + i*COLUMNS + column);
                split_factors[i*COLUMNS + column] = ggmlq_exp2(other.x - top);
                total += ggmlq_exp2(other.x - top)*other.y;
            }
#pragma unroll
            for (int i = 1; i < 32; i *= 2) {
                total += ggmlq_shuffle_xor(total, i);
            }
            if (lane == 0) {
                finish_column(column, top, total);
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int item = threadIdx.x; item < n_items; item += 32*WARPS) {
            const int column = 8*(item/32/M_TILES % TILES) + 2*(item % 4);
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
            for (int first = 0; first < plan.splits; first += BATCH) {
                if (__builtin_expect(item != threadIdx.x || first != 0, 0)) {
                    load_batch(item, first);
                }
                const float * const factors = split_factors + first*COLUMNS + column;
                const int count = used(item) ? plan.splits - first : 0;
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    if (i < count) {
                        const float2 f = *(const float2 *) (factors + i*COLUMNS);
                        v.x = fmaf(f.x, x[i].x, v.x); v.y = fmaf(f.y, x[i].y, v.y); v.z = fmaf(f.x, x[i].z, v.z); v.w = fmaf(f.y, x[i].w, v.w);
                    }
                }
            }
            store_row(item, v);
        }
    }
    __syncthreads();

    /* Rows -> output, rotated back. */
    const int planes = slices*SLICE/32;
#pragma unroll 1
    for (int first = 0; first < COLUMNS*planes; first += 32*WARPS/4) {
        int column, plane;
        ggmlq_decode_place_plane<SLICE>(slices, first + threadIdx.x/4, column, plane);
        const bool holds = column < COLUMNS && first_column + column < plan.columns;
        float v[2][4] = {};
        if (holds) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                *(float4 *) v[h] = *(const float4 *) (rows + column*S::row_pitch(slices) + 32*plane + 16*h + 4*t);
            }
        }
        if constexpr (V::OURS) {
            ggmlq_unrotate_plane<type_v>(v, lane, plane % 4);
        }
        if constexpr (V::BYTE_VALUES && !V::TQ3_0 && SLICE % 64 == 0) {
            if (__builtin_expect(plan.out_turned, 0)) {
                ggmlq_turn_planes(v, lane, 64, 0.125f);
            }
        }
        if (holds) {
            ggmlq_decode_store_output(p, plan, first_column + column, plane, head_kv, seq, v, LEAN || plan.out_aligned);
        }
    }
#endif
}

template <int type_k, int type_v, int SLICE, int TILES, int WARPS, int ROWS, int STAGES, int BLOCKS, int TAIL, bool TERM, bool LEAN = false> ggmlq_decode_instance ggmlq_decode_make_instance(void) {
    typedef ggmlq_decode_shape<type_k, type_v, SLICE, TILES, WARPS, ROWS, STAGES, TAIL, TERM, LEAN> S;
    ggmlq_decode_instance instance = { type_k, type_v, SLICE, TAIL, TILES, WARPS, ROWS, S::M_TILES, S::SUM_BYTES, S::K::ALIGN, S::V::ALIGN, TERM, LEAN, S::place,
                                       (const void *) ggmlq_attend_decode_kernel<type_k, type_v, SLICE, TILES, WARPS, ROWS, STAGES, BLOCKS, TAIL, TERM, LEAN>, NULL };
    return instance;
}

#endif
