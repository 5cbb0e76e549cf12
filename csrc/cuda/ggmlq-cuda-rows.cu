/* SPDX-License-Identifier: MIT
 *
 * Rows between encoded and plain: set_rows, get_rows, copy, decode_rotated, rotate; and the error text. See ggmlq-cuda.h.
 */
#include "ggmlq-cuda-rows.cuh"

/* --- errors ----------------------------------------------------------------------------------------------------- */

static thread_local cudaError_t last_error = cudaSuccess;

int ggmlq_cuda_launched(void) {
    const cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) {
        return GGMLQ_OK;
    }
    last_error = error;
    return GGMLQ_ERROR_DEVICE;
}

const char * ggmlq_cuda_error_text(int error) {
    return error == GGMLQ_ERROR_DEVICE ? cudaGetErrorString(last_error) : ggmlq_error_text(error);
}

/* --- kernels ---------------------------------------------------------------------------------------------------- */

/* MANY_PLANES: from so many of planar3 on, a thread decodes the four of a block. WIDE_VALUES: up to so many a call, a warp a block is faster (48
 * tokens of 8 heads of 128, on an H100). SMALL_GRID, SMALL_WIDE_GRID: the next kernel's thread blocks that come early take places at random, which a larger grid
 * of theirs then lacks: 512 tokens took 9 instead of 5 us. */
enum { THREADS = ENCODE_THREADS, PLANE_THREADS = 4, WIDE_VALUES = 49152, SMALL_GRID = 64, SMALL_WIDE_GRID = 200, MANY_PLANES = 16384 };

/* So many encodings in one launch, as planes of the grid. */
template <int n> struct encodings { struct encoding e[n]; };

template <int type, bool wide, int n, bool turns> static __global__ void __launch_bounds__(THREADS)
encode_rows(const struct encodings<n> all) {
    __shared__ __align__(16) float shared[ggmlq_encoder<type, wide>::SHARED];
    encode_block<type, wide, turns>(all.e[n == 1 ? 0 : blockIdx.y], blockIdx.x, gridDim.x*gridDim.y <= (wide ? SMALL_WIDE_GRID : SMALL_GRID), shared);
}

/* Queries of a launch that stores keys after RoPE; a ggmlq_rope_unit a thread. */
struct roped_queries {
    const float * q;
    float       * out;
    struct ggmlq_cuda_rope rope;
    struct divider units_of_head, heads;
    uint32_t n_units;
    int      turned;
    float    turn_scale;
};

GGMLQ_DEVICE void rope_queries(const struct roped_queries & b, uint32_t part, bool let_next_start) {
    const uint32_t number = part*THREADS + threadIdx.x, mine = number < b.n_units ? number : b.n_units - 1;
    const uint32_t row = divide(mine, b.units_of_head), token = divide(row, b.heads), u = mine - row*b.units_of_head.d;
    const struct ggmlq_rope_unit unit = ggmlq_rope_unit_of(u, b.rope.n_rot, b.rope.neox);
    const int64_t first = (int64_t) row*8*b.units_of_head.d;
    float v[2][4], power[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        power[i] = ggmlq_rope_power(b.rope, 4*u + i);
    }
    if (let_next_start) {
        ggmlq_let_next_start();
    }
    if (part*THREADS >= b.n_units) { /* keys and values have more */
        return;
    }
    ggmlq_wait_for_previous();
    for (int h = 0; h < 2; ++h) {
        ggmlq_load_floats(GGMLQ_CUDA_F32, (const uint8_t *) (b.q + first + unit.at[h]), 4, v[h]);
    }
    if (unit.turns) {
        const int32_t position = b.rope.positions[token];
        float2 angle[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            angle[i] = ggmlq_rope_angle(b.rope, position, 4*u + i, power[i]);
        }
        ggmlq_turn_unit(v[0], v[1], unit.apart, angle);
    }
    if (b.turned) {
        ggmlq_turn_quads(v, threadIdx.x % 32, b.turned, b.rope.neox ? b.rope.n_rot/2 : 4, b.turn_scale);
    }
    if (number < b.n_units) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            ggmlq_store_floats(GGMLQ_CUDA_F32, (uint8_t *) (b.out + first + unit.at[h]), v[h]);
        }
    }
}

/* Keys, values and queries, as planes of the grid. */
struct roped_rows {
    struct encoding e[2];
    struct roping   rope[2];
    struct roped_queries q;
};

template <int type> static __global__ void __launch_bounds__(THREADS) store_roped(const struct roped_rows all) {
    const bool let_next_start = gridDim.x*gridDim.y <= SMALL_WIDE_GRID, turns = type == GGMLQ_TYPE_PLANAR3;
    if (blockIdx.y < 2) {
        __shared__ __align__(16) float shared[ggmlq_encoder<type, true>::SHARED];
        encode_block<type, true, turns>(all.e[blockIdx.y], blockIdx.x, let_next_start, shared, &all.rope[blockIdx.y]);
    } else {
        rope_queries(all.q, blockIdx.x, let_next_start);
    }
}

/* Four threads a plane pair, or PLANES of them one after the other, whose places they compute once. */
template <int type, int PLANES> static __global__ void __launch_bounds__(THREADS)
decode_rows(const struct walk values, const struct walk encoded, const struct row_index index, uint32_t n_planes, bool rotated) {
    typedef ggmlq_cache_type<type> T;
    const int lane = threadIdx.x % 32, t = lane % PLANE_THREADS;
    const uint32_t number = PLANES*(blockIdx.x*(THREADS/PLANE_THREADS) + threadIdx.x/PLANE_THREADS);
    const uint32_t pair   = number < n_planes ? number : n_planes - PLANES;
    const int      first  = pair % T::PLANES;
    const struct place p  = place_of(values, pair/T::PLANES);
    const struct target from = target_of(encoded, index, pair/T::PLANES, p);
    ggmlq_wait_for_previous();
    const uint8_t * in = target_address(from, load_index(from, index.bytes), index.bytes);
    uint8_t * const out = address(values, p, p.i1);
    float values_of[PLANES][2][4] = {}; /* all are loaded before the first is stored: for all that compilers know, that changes what is loaded */
#pragma unroll
    for (int i = 0; i < 2*PLANES && in; ++i) {
        ggmlq_decode_quad<type>(in, GGMLQ_PLANE*(first + i/2) + 16*(i%2) + 4*t, values_of[i/2][i%2]);
    }
#pragma unroll
    for (int i = 0; i < PLANES; ++i) {
        const int plane = first + i;
        float (& v)[2][4] = values_of[i];
        if (!rotated) {
            ggmlq_unrotate_plane<type>(v, lane, plane % T::PLANES);
        }
        if (number < n_planes && in) {
            for (int h = 0; h < 2; ++h) {
                ggmlq_store_floats(values.type, out + (GGMLQ_PLANE*plane + 16*h + 4*t)*(values.type == GGMLQ_CUDA_F32 ? 4 : 2), v[h]);
            }
        }
    }
}

template <int type> static __global__ void __launch_bounds__(THREADS)
rotate_rows(const struct walk dst, const struct walk src, uint32_t n_planes, bool back) {
    typedef ggmlq_cache_type<type> T;
    const int lane = threadIdx.x % 32, t = lane % PLANE_THREADS;
    const uint32_t number = blockIdx.x*(THREADS/PLANE_THREADS) + threadIdx.x/PLANE_THREADS;
    const uint32_t pair   = number < n_planes ? number : n_planes - 1;
    const int      plane  = pair % T::PLANES;
    const struct place p  = place_of(src, pair/T::PLANES);
    const int64_t  at     = 4*(GGMLQ_PLANE*plane + 4*t);
    ggmlq_wait_for_previous();
    float v[2][4];
    for (int h = 0; h < 2; ++h) {
        ggmlq_load_floats(GGMLQ_CUDA_F32, address(src, p, p.i1) + at + 64*h, 4, v[h]);
    }
    if (back) {
        ggmlq_unrotate_plane<type>(v, lane, plane);
    } else {
        ggmlq_rotate_plane<type>(v, lane, plane);
    }
    for (int h = 0; h < 2 && number < n_planes; ++h) {
        ggmlq_store_floats(GGMLQ_CUDA_F32, address(dst, p, p.i1) + at + 64*h, v[h]);
    }
}

/* --- launches --------------------------------------------------------------------------------------------------- */

/* Of n units, each worked on by `each` threads. */
static unsigned int grid_of(int64_t n, int each) { return (unsigned int) ((n*each + THREADS - 1)/THREADS); }

template <int type, bool wide, int n, bool turns> static void launch_encode(const struct encodings<n> & all, int planes, int64_t most, void * stream) {
    const dim3 grid(encode_grid<type, wide>(most), planes);
    if (!ggmlq_launch_early<encode_rows<type, wide, n, turns>>(grid, THREADS, (cudaStream_t) stream, all)) {
        encode_rows<type, wide, n, turns><<<grid, THREADS, 0, (cudaStream_t) stream>>>(all);
    }
}

/* The first `planes` of them; rows of one type. */
template <int type, int n, bool turns> static int encode_all(const struct encodings<n> & all, int planes, void * stream) {
    int64_t most = 0, sum = 0;
    for (int i = 0; i < planes; ++i) {
        most = all.e[i].n_blocks > most ? all.e[i].n_blocks : most;
        sum += all.e[i].n_blocks;
    }
    if (sum <= WIDE_VALUES/ggmlq_cache_type<type>::LENGTH) {
        launch_encode<type, true, n, turns>(all, planes, most, stream);
    } else {
        launch_encode<type, false, n, turns>(all, planes, most, stream);
    }
    return ggmlq_cuda_launched();
}

template <int n> static int encode(int type, const struct encodings<n> & all, void * stream) {
    return type == GGMLQ_TYPE_TQ3_0 ? encode_all<GGMLQ_TYPE_TQ3_0, n, false>(all, n, stream) : encode_all<GGMLQ_TYPE_PLANAR3, n, false>(all, n, stream);
}

static const struct row_index no_index = { NULL, 0, 0, 0, 0, 0, 1, 1 };

static int encode_one(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, const struct row_index & index, void * stream) {
    struct encodings<1> one;
    const int64_t n_blocks = make_encoding(&one.e[0], rows->type, values, rows, index, 0);
    return n_blocks <= 0 ? (int) n_blocks : encode(rows->type, one, stream);
}

template <int type, int PLANES> static void launch_decode(const struct walk & to, const struct walk & from, const struct row_index & index, int64_t n, bool rotated, void * stream) {
    const unsigned int grid = grid_of(n/PLANES, PLANE_THREADS);
    if (!ggmlq_launch_early<decode_rows<type, PLANES>>(grid, THREADS, (cudaStream_t) stream, to, from, index, (uint32_t) n, rotated)) {
        decode_rows<type, PLANES><<<grid, THREADS, 0, (cudaStream_t) stream>>>(to, from, index, (uint32_t) n, rotated);
    }
}

template <int type> static void launch_rotate(const struct walk & to, const struct walk & from, int64_t n, bool back, void * stream) {
    const unsigned int grid = grid_of(n, PLANE_THREADS);
    if (!ggmlq_launch_early<rotate_rows<type>>(grid, THREADS, (cudaStream_t) stream, to, from, (uint32_t) n, back)) {
        rotate_rows<type><<<grid, THREADS, 0, (cudaStream_t) stream>>>(to, from, (uint32_t) n, back);
    }
}

static int decode(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, const struct row_index & index, bool rotated, void * stream) {
    const int64_t n = count_blocks(values, GGMLQ_PLANE);
    if (n <= 0) {
        return (int) n;
    }
    const struct walk to = make_walk(values, rows->type), from = make_walk(rows, rows->type);
    if (rows->type == GGMLQ_TYPE_TQ3_0) { /* with four planes a thread 15 % slower */
        launch_decode<GGMLQ_TYPE_TQ3_0, 1>(to, from, index, n, rotated, stream);
    } else {
        (n < MANY_PLANES ? launch_decode<GGMLQ_TYPE_PLANAR3, 1> : launch_decode<GGMLQ_TYPE_PLANAR3, 4>)(to, from, index, n, rotated, stream);
    }
    return ggmlq_cuda_launched();
}

/* --- entry points ----------------------------------------------------------------------------------------------- */

static int countable(const struct ggmlq_cuda_view * v, int64_t length) {
    const int64_t n = count_blocks(v, length);
    return n < 0 ? (int) n : GGMLQ_OK;
}

int ggmlq_cuda_set_rows_check(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                              const struct ggmlq_cuda_view * indices, int index_bytes) {
    int error = ggmlq_check_rows_and_values(rows, values, true);
    error = error ? error : ggmlq_check_indices(rows, values, indices, index_bytes, true);
    return error ? error : countable(values, ggmlq_type_info_get(rows->type)->block_length);
}

int ggmlq_cuda_set_rows(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                        const struct ggmlq_cuda_view * indices, int index_bytes, void * stream) {
    const int error = ggmlq_cuda_set_rows_check(rows, values, indices, index_bytes);
    return error ? error : encode_one(values, rows, make_index(indices, index_bytes, rows->ne[1]), stream);
}

int ggmlq_cuda_set_rows_pair(const struct ggmlq_cuda_view rows[2], const struct ggmlq_cuda_view values[2],
                             const struct ggmlq_cuda_view indices[2], int index_bytes, void * stream) {
    struct encodings<2> both;
    int64_t n_blocks[2];
    for (int i = 0; i < 2; ++i) {
        const int error = ggmlq_cuda_set_rows_check(&rows[i], &values[i], &indices[i], index_bytes);
        if (error) {
            return error;
        }
        n_blocks[i] = make_encoding(&both.e[i], rows[i].type, &values[i], &rows[i], make_index(&indices[i], index_bytes, rows[i].ne[1]), 0);
    }
    if (rows[0].type != rows[1].type) {
        return GGMLQ_ERROR_TYPE;
    }
    if (n_blocks[0] == 0 || n_blocks[1] == 0) { /* a thread needs a block to follow */
        const int i = n_blocks[0] == 0;
        return ggmlq_cuda_set_rows(&rows[i], &values[i], &indices[i], index_bytes, stream);
    }
    return encode(rows[0].type, both, stream);
}

int ggmlq_cuda_set_rows_turned_check(const struct ggmlq_cuda_view rows[2], const struct ggmlq_cuda_view values[2], const struct ggmlq_cuda_view indices[2],
                                     int index_bytes, const struct ggmlq_cuda_view * to, const struct ggmlq_cuda_view * from, const int turned[3]) {
    for (int i = 0; i < (to ? 3 : 2); ++i) {
        const struct ggmlq_cuda_view * out = i < 2 ? &rows[i] : to, * in = i < 2 ? &values[i] : from;
        const bool stored = i < 2;
        if (stored ? out->type != GGMLQ_TYPE_PLANAR3 : out->type != GGMLQ_CUDA_F32 || in->type != GGMLQ_CUDA_F32) {
            return GGMLQ_ERROR_TYPE;
        }
        if (turned[i] != 64 && turned[i] != 128 && (turned[i] != 0 || !stored)) {
            return GGMLQ_ERROR_LENGTH;
        }
        int error = stored ? ggmlq_cuda_set_rows_check(out, in, &indices[i], index_bytes) : ggmlq_check_view(in, 128);
        error = error || stored ? error : ggmlq_check_view(out, 128);
        error = error ? error : countable(in, 128);
        if (error) {
            return error;
        }
        for (int axis = 0; axis < 4; ++axis) {
            if (in->ne[axis] == 0 || (!stored && in->ne[axis] != out->ne[axis])) {
                return GGMLQ_ERROR_SHAPE; /* no caller stores nothing, and a thread needs a block to follow */
            }
        }
    }
    return GGMLQ_OK;
}

int ggmlq_cuda_set_rows_turned(const struct ggmlq_cuda_view rows[2], const struct ggmlq_cuda_view values[2], const struct ggmlq_cuda_view indices[2],
                               int index_bytes, const struct ggmlq_cuda_view * to, const struct ggmlq_cuda_view * from, const int turned[3], void * stream) {
    const int error = ggmlq_cuda_set_rows_turned_check(rows, values, indices, index_bytes, to, from, turned);
    if (error) {
        return error;
    }
    struct encodings<3> all;
    for (int i = 0; i < 2; ++i) {
        (void) make_encoding(&all.e[i], GGMLQ_TYPE_PLANAR3, &values[i], &rows[i], make_index(&indices[i], index_bytes, rows[i].ne[1]), turned[i]);
    }
    if (to) {
        (void) make_encoding(&all.e[2], GGMLQ_TYPE_PLANAR3, from, to, no_index, turned[2]);
    }
    return encode_all<GGMLQ_TYPE_PLANAR3, 3, true>(all, to ? 3 : 2, stream);
}

int ggmlq_cuda_store_roped_check(const struct ggmlq_cuda_roped_rows * p) {
    const int type = p->rows[0].type;
    int64_t sum = 0;
    for (int i = 0; i < 2; ++i) {
        const int error = ggmlq_cuda_set_rows_check(&p->rows[i], &p->values[i], &p->indices[i], p->index_bytes);
        if (error || p->rows[i].type != type) {
            return error ? error : GGMLQ_ERROR_TYPE;
        }
        if (p->turned[i] != 0 && (type != GGMLQ_TYPE_PLANAR3 || (p->turned[i] != 64 && p->turned[i] != 128))) {
            return GGMLQ_ERROR_LENGTH;
        }
        const int64_t n = count_blocks(&p->values[i], ggmlq_type_info_get(type)->block_length);
        if (n < 1) { /* a thread needs a block to follow */
            return GGMLQ_ERROR_SHAPE;
        }
        sum += n;
    }
    const struct ggmlq_cuda_view * k = &p->values[0];
    if (k->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    if (sum*ggmlq_type_info_get(type)->block_length > WIDE_VALUES || p->head_size < 1 || k->ne[0] % p->head_size != 0 || k->ne[2] != 1 || k->ne[3] != 1 || !ggmlq_can_rope(&p->k_rope, p->head_size) ||
        k->nb[1] != 4*k->ne[0]) {
        return GGMLQ_ERROR_SHAPE;
    }
    if (p->q == NULL) {
        return GGMLQ_OK;
    }
    const int64_t head = p->q_ne[0], turned = p->turned[2], half = p->q_rope.n_rot/2, most = INT32_MAX/2;
    if (head < 1 || p->q_ne[1] < 1 || p->q_ne[2] < 1 || head > most || p->q_ne[1] > most/head || p->q_ne[2] > most/head/p->q_ne[1] || !ggmlq_can_rope(&p->q_rope, head) ||
        (uintptr_t) p->q % 16 != 0 || (uintptr_t) p->q_out % 16 != 0) {
        return GGMLQ_ERROR_SHAPE;
    }
    const bool whole = !p->q_rope.neox || (p->q_rope.n_rot == head && (turned == head || half % (turned ? turned : 1) == 0)); /* its values lie in lanes side by side, and in one thread */
    return turned != 0 && ((turned != 64 && turned != 128 && turned != 256) || head % turned != 0 || !whole || (p->q_rope.neox && turned != head && turned > 128)) ? GGMLQ_ERROR_LENGTH : GGMLQ_OK;
}

template <int type> static int launch_roped(const struct roped_rows & all, uint32_t q_blocks, void * stream) {
    const uint32_t k_blocks = encode_grid<type, true>(all.e[0].n_blocks), v_blocks = encode_grid<type, true>(all.e[1].n_blocks), most = k_blocks > v_blocks ? k_blocks : v_blocks;
    const dim3 grid(most > q_blocks ? most : q_blocks, q_blocks ? 3 : 2);
    if (!ggmlq_launch_early<store_roped<type>>(grid, THREADS, (cudaStream_t) stream, all)) {
        store_roped<type><<<grid, THREADS, 0, (cudaStream_t) stream>>>(all);
    }
    return ggmlq_cuda_launched();
}

int ggmlq_cuda_store_roped(const struct ggmlq_cuda_roped_rows * p, void * stream) {
    const int error = ggmlq_cuda_store_roped_check(p);
    if (error) {
        return error;
    }
    struct roped_rows all = {};
    const int type = p->rows[0].type;
    for (int i = 0; i < 2; ++i) {
        (void) make_encoding(&all.e[i], type, &p->values[i], &p->rows[i], make_index(&p->indices[i], p->index_bytes, p->rows[i].ne[1]), p->turned[i]);
    }
    all.rope[0].rope     = p->k_rope;
    all.rope[0].row      = make_divider(p->values[0].ne[0]);
    all.rope[0].head     = make_divider(p->head_size);
    all.rope[0].n_values = (uint32_t) (p->values[0].ne[0]*p->values[0].ne[1]);
    if (p->q) {
        all.q.q             = p->q;
        all.q.out           = p->q_out;
        all.q.rope          = p->q_rope;
        all.q.units_of_head = make_divider(p->q_ne[0]/8);
        all.q.heads         = make_divider(p->q_ne[1]);
        all.q.n_units       = (uint32_t) (p->q_ne[0]/8*p->q_ne[1]*p->q_ne[2]);
        all.q.turned        = p->turned[2];
        all.q.turn_scale    = p->turned[2] ? 1/sqrtf((float) p->turned[2]) : 0.0f;
    }
    const uint32_t q_blocks = (all.q.n_units + THREADS - 1)/THREADS;
    return type == GGMLQ_TYPE_TQ3_0 ? launch_roped<GGMLQ_TYPE_TQ3_0>(all, q_blocks, stream) : launch_roped<GGMLQ_TYPE_PLANAR3>(all, q_blocks, stream);
}

int ggmlq_cuda_get_rows_check(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows,
                              const struct ggmlq_cuda_view * indices, int index_bytes) {
    int error = ggmlq_check_rows_and_values(rows, values, false);
    error = error ? error : ggmlq_check_indices(rows, values, indices, index_bytes, false);
    return error ? error : countable(values, GGMLQ_PLANE);
}

int ggmlq_cuda_get_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows,
                        const struct ggmlq_cuda_view * indices, int index_bytes, void * stream) {
    const int error = ggmlq_cuda_get_rows_check(values, rows, indices, index_bytes);
    return error ? error : decode(values, rows, make_index(indices, index_bytes, rows->ne[1]), false, stream);
}

/* Both hold equally many values; axes are at most 2^31 - 1. */
static bool same_count(const struct ggmlq_cuda_view * a, const struct ggmlq_cuda_view * b) {
    const int64_t n = count_blocks(a, 1 << 5), m = count_blocks(b, 1 << 5);
    return n == m;
}

int ggmlq_cuda_copy_check(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src) {
    const bool encoding = ggmlq_is_cache_type(dst->type);
    if (encoding && ggmlq_is_cache_type(src->type)) {
        return GGMLQ_ERROR_TYPE;
    }
    const struct ggmlq_cuda_view * rows = encoding ? dst : src, * values = encoding ? src : dst;
    const int error = ggmlq_check_rows_and_values(rows, values, encoding);
    if (error) {
        return error;
    }
    return same_count(rows, values) ? countable(values, GGMLQ_PLANE) : GGMLQ_ERROR_SHAPE;
}

static int convert(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool rotated, void * stream) {
    const bool encoding = ggmlq_is_cache_type(dst->type);
    const int error = encoding && rotated ? GGMLQ_ERROR_TYPE : ggmlq_cuda_copy_check(dst, src);
    if (error) {
        return error;
    }
    return encoding ? encode_one(src, dst, no_index, stream) : decode(dst, src, no_index, rotated, stream);
}

int ggmlq_cuda_copy(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) {
    return convert(dst, src, false, stream);
}

int ggmlq_cuda_decode_rotated(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) {
    return convert(dst, src, true, stream);
}

static int rotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool back, void * stream) {
    const int error = ggmlq_check_rotation(type, dst, src);
    if (error) {
        return error;
    }
    const int64_t n = count_blocks(src, GGMLQ_PLANE);
    if (n <= 0) {
        return (int) n;
    }
    const struct walk to = make_walk(dst, type), from = make_walk(src, type);
    (type == GGMLQ_TYPE_TQ3_0 ? launch_rotate<GGMLQ_TYPE_TQ3_0> : launch_rotate<GGMLQ_TYPE_PLANAR3>)(to, from, n, back, stream);
    return ggmlq_cuda_launched();
}

int ggmlq_cuda_rotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) {
    return rotate(type, dst, src, false, stream);
}

int ggmlq_cuda_unrotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) {
    return rotate(type, dst, src, true, stream);
}
