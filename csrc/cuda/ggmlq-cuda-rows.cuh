/* SPDX-License-Identifier: MIT
 *
 * Where blocks lie in views, and encoding some of them: what kernels that store rows share.
 */
#ifndef GGMLQ_CUDA_ROWS_CUH
#define GGMLQ_CUDA_ROWS_CUH

#include "ggmlq-cuda-checks.h"
#include "ggmlq-cuda-codec.cuh"

/* --- where a block lies ----------------------------------------------------------------------------------------- */

/* Division by an invariant of numbers below 2^31: multiply by 2^32*(2^shift/d - 1), rounded up, and shift. */
struct divider { uint32_t d, factor, shift; };

static inline struct divider make_divider(int64_t d) {
    struct divider result = { (uint32_t) (d < 1 ? 1 : d), 0, 0 }; /* an empty axis is never divided by */
    while ((int64_t) 1 << result.shift < d) {
        ++result.shift;
    }
    result.factor = (uint32_t) (((((uint64_t) 1 << result.shift) - result.d) << 32)/result.d + 1);
    return result;
}

GGMLQ_DEVICE uint32_t divide(uint32_t n, struct divider by) { return (__umulhi(n, by.factor) + n) >> by.shift; }

/* A view, and how a block's number becomes a place: block i0 of row (i1, i2, i3). */
struct walk {
    uint8_t * data;
    int       type;
    int64_t   block_bytes, nb1, nb2, nb3;
    struct divider blocks, ne1, ne2;
    bool      one_plane; /* ne2 = ne3 = 1 */
};

struct place { uint32_t i0, i1, i2, i3; };

/* Row numbers, [i1, i2 % ne1, i3 % ne2]; data NULL: none. */
struct row_index {
    const uint8_t * data;
    int     bytes;
    int64_t nb0, nb1, nb2, n_rows;
    uint32_t ne1, ne2;
};

GGMLQ_DEVICE struct place place_of(const struct walk & w, uint32_t block) {
    struct place p;
    uint32_t row = divide(block, w.blocks);
    p.i0 = block - row*w.blocks.d;
    if (w.one_plane) {
        p.i1 = row;
        p.i2 = p.i3 = 0;
        return p;
    }
    p.i2 = divide(row, w.ne1);
    p.i1 = row - p.i2*w.ne1.d;
    p.i3 = divide(p.i2, w.ne2);
    p.i2 = p.i2 - p.i3*w.ne2.d;
    return p;
}

GGMLQ_DEVICE uint8_t * address(const struct walk & w, const struct place & p, int64_t row) {
    return w.data + (int64_t) p.i0*w.block_bytes + row*w.nb1 + (int64_t) p.i2*w.nb2 + (int64_t) p.i3*w.nb3;
}

/* Where the values at p go, in two steps: what is known before a row's number is (and before ggmlq_wait_for_previous: arguments of a kernel
 * come from memory, too), and the rest. */
struct target {
    const uint32_t * index; /* the row's number; NULL: base is the address */
    uint64_t base, row_bytes, n_rows;
};

struct raw_index { uint32_t low, high; };

GGMLQ_DEVICE struct target target_of(const struct walk & encoded, const struct row_index & index, uint32_t block, const struct place & p) {
    struct target t = { NULL, 0, (uint64_t) encoded.nb1, (uint64_t) index.n_rows };
    if (index.data == NULL) {
        const struct place place = place_of(encoded, block);
        t.base = (uint64_t) address(encoded, place, place.i1);
        return t;
    }
    const uint32_t i2 = index.ne1 == 1 ? 0 : p.i2 % index.ne1, i3 = index.ne2 == 1 ? 0 : p.i3 % index.ne2;
    t.index = (const uint32_t *) (index.data + (int64_t) p.i1*index.nb0 + (int64_t) i2*index.nb1 + (int64_t) i3*index.nb2);
    t.base  = (uint64_t) address(encoded, p, 0);
    return t;
}

GGMLQ_DEVICE struct raw_index load_index(const struct target & t, int bytes) {
    struct raw_index raw = { 0, 0 };
    if (t.index) {
        raw.low  = t.index[0];
        raw.high = t.index[bytes == 8]; /* whatever it is otherwise: a choice after the load would wait for it */
    }
    return raw;
}

/* NULL: the row's number is out of range. */
GGMLQ_DEVICE uint8_t * target_address(const struct target & t, struct raw_index raw, int bytes) {
    if (t.index == NULL) {
        return (uint8_t *) t.base;
    }
    const int64_t row = bytes == 8 ? (int64_t) ((uint64_t) raw.high << 32 | raw.low) : (int32_t) raw.low;
    return row < 0 || row >= (int64_t) t.n_rows ? NULL : (uint8_t *) (t.base + (uint64_t) row*t.row_bytes);
}

/* --- encoding --------------------------------------------------------------------------------------------------- */

enum { ENCODE_THREADS = 128 };

/* What is encoded from where to where. `turned`: how many adjacent values llama.cpp's own rotation turns before, 0: none; then `encoded` may
 * also be floats. */
struct encoding {
    struct walk values, encoded;
    struct row_index index;
    uint32_t n_blocks;
    int      turned;
    float    turn_scale;
};

/* RoPE before, of contiguous f32 values [head*heads, tokens]; positions NULL: none. */
struct roping {
    struct ggmlq_cuda_rope rope;
    struct divider row, head; /* of a token, of a head */
    uint32_t n_values;
};

/* The values of a thread block's encoders after RoPE -> shared memory, the same few for each thread: what is known before the kernel's wait, and the rest. */
template <int COUNT> struct roped_values {
    float    power[COUNT];
    int      pair[COUNT], other[COUNT]; /* where the pair's other value lies; 0: there is none */
    uint32_t at[COUNT], token[COUNT];
};

template <int COUNT> GGMLQ_DEVICE void place_roped(struct roped_values<COUNT> & v, const struct roping & r, uint32_t first) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const uint32_t number = first + i*ENCODE_THREADS + threadIdx.x;
        v.at[i]    = number < r.n_values ? number : r.n_values - 1;
        v.token[i] = divide(v.at[i], r.row);
        const uint32_t of_row = v.at[i] - v.token[i]*r.row.d;
        const int of_head = (int) (of_row - divide(of_row, r.head)*r.head.d), half = r.rope.n_rot/2;
        v.pair[i]  = !r.rope.neox ? of_head/2 : of_head < half ? of_head : of_head - half;
        v.other[i] = of_head >= 2*half ? 0 : !r.rope.neox ? 1 - 2*(of_head % 2) : of_head < half ? half : -half;
        v.power[i] = ggmlq_rope_power(r.rope, v.pair[i]);
    }
}

template <int COUNT> GGMLQ_DEVICE void load_roped(const struct roped_values<COUNT> & v, const struct roping & r, const float * from, float values[COUNT*ENCODE_THREADS]) {
    float mine[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        mine[i] = from[v.at[i]];
        if (v.other[i] != 0) {
            const float its = from[v.at[i] + v.other[i]];
            float a = v.other[i] > 0 ? mine[i] : its, b = v.other[i] > 0 ? its : mine[i];
            ggmlq_turn_pair(a, b, ggmlq_rope_angle(r.rope, r.rope.positions[v.token[i]], v.pair[i], v.power[i]));
            mine[i] = v.other[i] > 0 ? a : b;
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        values[i*ENCODE_THREADS + threadIdx.x] = mine[i];
    }
    __syncthreads();
}

/* By thread block number `part` of those that do it: its first access to memory that the call was given is behind ggmlq_wait_for_previous. shared: of the
 * thread block, on a multiple of 16 bytes; memory that a kernel has for something else, too, or fewer thread blocks fit. `roped`: NULL: no RoPE. */
template <int type, bool wide, bool turns>
GGMLQ_DEVICE void encode_block(const struct encoding & e, uint32_t part, bool let_next_start, float shared[ggmlq_encoder<type, wide>::SHARED], const struct roping * roped = NULL) {
    typedef ggmlq_encoder<type, wide> E;
    enum { BLOCKS = ENCODE_THREADS/E::THREADS, LENGTH = ggmlq_cache_type<type>::LENGTH, ROPED = BLOCKS*LENGTH/ENCODE_THREADS };
    const int lane = threadIdx.x % 32;
    const uint32_t number = BLOCKS == 1 ? part : part*BLOCKS + threadIdx.x/E::THREADS;
    const uint32_t block  = number < e.n_blocks ? number : e.n_blocks - 1; /* threads without work follow the last one: shuffles need them */
    const struct place p  = place_of(e.values, block);
    uint64_t in = (uint64_t) address(e.values, p, p.i1);
    struct target to = target_of(e.encoded, e.index, block, p);
    const bool ropes = roped && roped->rope.positions;
    struct roped_values<ROPED> places;
    if (ropes) {
        place_roped(places, *roped, part*BLOCKS*LENGTH);
    }
    const typename E::constants constants = E::load_constants(lane);
    if (let_next_start) {
        ggmlq_let_next_start();
    }
    ggmlq_keep(in);
    ggmlq_keep(to.base);
    ggmlq_keep(to.row_bytes);
    ggmlq_keep(to.n_rows);
    if (wide && part*BLOCKS >= e.n_blocks) { /* another plane of the grid has more */
        return;
    }
    ggmlq_wait_for_previous();
    struct raw_index raw; /* loaded early: compilers compute the address from it before they encode */
    float v[E::VALUES];
    if (ropes) {
        raw = load_index(to, e.index.bytes);
        __shared__ __align__(16) float values[BLOCKS*LENGTH];
        load_roped(places, *roped, (const float *) e.values.data, values);
        E::load(GGMLQ_CUDA_F32, (const uint8_t *) (values + threadIdx.x/E::THREADS*LENGTH), lane, v);
    } else {
        if (e.values.type == GGMLQ_CUDA_F32) {
            E::load(GGMLQ_CUDA_F32, (const uint8_t *) in, lane, v);
        } else {
            E::load(GGMLQ_CUDA_F16, (const uint8_t *) in, lane, v);
        }
        raw = load_index(to, e.index.bytes);
    }
    if constexpr (turns) {
        if (e.turned != 0) {
            E::turn(v, lane, e.turned, e.turn_scale);
        }
        if (e.encoded.type == GGMLQ_CUDA_F32) {
            for (int i = 0; i < E::VALUES && number < e.n_blocks && threadIdx.x % E::THREADS < E::GROUP; i += 4) {
                ggmlq_store_floats(GGMLQ_CUDA_F32, (uint8_t *) to.base + 4*(8*i + 4*(lane % E::GROUP)), v + i);
            }
            return;
        }
    }
    const typename E::fields fields = E::encode(v, lane, constants, shared);
    uint8_t * out = target_address(to, raw, e.index.bytes);
    E::store(fields, lane, number < e.n_blocks ? out : NULL);
}

/* --- what a launch needs ---------------------------------------------------------------------------------------- */

/* Blocks of `length` values in a view, or GGMLQ_ERROR_SHAPE: a launch numbers them in 31 bits. */
static inline int64_t count_blocks(const struct ggmlq_cuda_view * v, int64_t length) {
    int64_t n = v->ne[0]/length;
    for (int i = 1; i < 4; ++i) {
        if (v->ne[i] == 0) {
            return 0;
        }
        if (n > INT32_MAX/v->ne[i]) {
            return GGMLQ_ERROR_SHAPE;
        }
        n *= v->ne[i];
    }
    return n;
}

static inline struct walk make_walk(const struct ggmlq_cuda_view * v, int type) {
    const struct ggmlq_type_info * info = ggmlq_type_info_get(type);
    struct walk w;
    w.data = (uint8_t *) v->data;
    w.type = v->type;
    w.block_bytes = ggmlq_is_cache_type(v->type) ? info->block_bytes : info->block_length*ggmlq_value_bytes(v->type);
    w.nb1 = v->nb[1];
    w.nb2 = v->nb[2];
    w.nb3 = v->nb[3];
    w.blocks = make_divider(v->ne[0]/info->block_length);
    w.ne1    = make_divider(v->ne[1]);
    w.ne2    = make_divider(v->ne[2]);
    w.one_plane = v->ne[2] == 1 && v->ne[3] == 1;
    return w;
}

static inline struct row_index make_index(const struct ggmlq_cuda_view * v, int bytes, int64_t n_rows) {
    const struct row_index index = { (const uint8_t *) v->data, bytes, v->nb[0], v->nb[1], v->nb[2], n_rows, (uint32_t) v->ne[1], (uint32_t) v->ne[2] };
    return index;
}

/* Thread blocks that encode n blocks. */
template <int type, bool wide> static uint32_t encode_grid(int64_t n) {
    enum { BLOCKS = ENCODE_THREADS/ggmlq_encoder<type, wide>::THREADS };
    return (uint32_t) ((n + BLOCKS - 1)/BLOCKS);
}

/* Blocks to encode, or an error. `type`: of the blocks; rows may also be floats. */
static inline int64_t make_encoding(struct encoding * e, int type, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, const struct row_index & index, int turned) {
    const int64_t n_blocks = count_blocks(values, ggmlq_type_info_get(type)->block_length);
    e->values     = make_walk(values, type);
    e->encoded    = make_walk(rows, type);
    e->index      = index;
    e->n_blocks   = (uint32_t) n_blocks;
    e->turned     = turned;
    e->turn_scale = turned ? 1/sqrtf((float) turned) : 0.0f;
    return n_blocks;
}

#endif
