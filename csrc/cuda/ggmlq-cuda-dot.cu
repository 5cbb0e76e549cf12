/* SPDX-License-Identifier: MIT
 *
 * mul_mat: encoded rows times queries that are rotated and rounded to 8 bits once. See ggmlq-cuda.h.
 *
 * The workspace holds the queries, one after the other: all 8-bit values, then all factors d. Four threads share a row: of tq3_0
 * each takes every fourth block, of planar3 a plane pair of every block. Integer sums are exact per block; the order in which
 * blocks are added is fixed.
 */
#include "ggmlq-cuda-query.cuh"

enum { THREADS = 128, ROW_THREADS = 4, MOST_COLUMNS = 8 };

struct product {
    const uint8_t * rows;
    int64_t  rows_nb1, rows_nb2, rows_nb3;
    uint8_t * out;
    int64_t  out_nb1, out_nb2, out_nb3;
    int64_t  n_rows;
    uint32_t columns, heads, batch, head_repeats, seq_repeats;
    const int8_t * values;
    const float  * d;
    int      n;
};

/* blockIdx.x: rows; y: groups of COLUMNS columns; z: head and sequence of the queries. */
template <int type, int COLUMNS> static __global__ void __launch_bounds__(THREADS)
multiply(const struct product p) {
    typedef ggmlq_cache_type<type> T;
    const int     t        = threadIdx.x % ROW_THREADS;
    const int64_t number   = (int64_t) blockIdx.x*(THREADS/ROW_THREADS) + threadIdx.x/ROW_THREADS;
    const int64_t row      = number < p.n_rows ? number : p.n_rows - 1;
    const int     n_blocks = p.n/T::LENGTH;

    for (uint32_t batch = blockIdx.z; batch < p.batch; batch += gridDim.z) {
        const uint32_t head = batch % p.heads, seq = batch/p.heads;
        const uint8_t * data = p.rows + row*p.rows_nb1 + head/p.head_repeats*p.rows_nb2 + seq/p.seq_repeats*p.rows_nb3;
        for (uint32_t first = blockIdx.y*COLUMNS; first < p.columns; first += gridDim.y*COLUMNS) {
            int64_t query[COLUMNS];
            float   sum[COLUMNS];
            for (int c = 0; c < COLUMNS; ++c) { /* beyond the last column: that one again, not stored */
                query[c] = (int64_t) batch*p.columns + (first + c < p.columns ? first + c : p.columns - 1);
                sum[c]   = 0.0f;
            }
            /* planar3: the same number of turns in all threads of a row, which exchange their sums. */
            for (int b = type == GGMLQ_TYPE_TQ3_0 ? t : 0; b < n_blocks; b += type == GGMLQ_TYPE_TQ3_0 ? ROW_THREADS : 1) {
                const uint8_t * block = data + b*T::BYTES;
                const int plane = type == GGMLQ_TYPE_TQ3_0 ? 0 : t;
                const uint32_t q0 = ggmlq_read_u32(block + T::Q_AT + 8*plane), q1 = ggmlq_read_u32(block + T::Q_AT + 8*plane + 4);
                const uint32_t s  = ggmlq_read_u32(block + T::S_AT + 4*plane);
                const float scale = ggmlq_half_value(ggmlq_read_u16(block + T::SCALE_AT))*T::UNIT;
                uint32_t levels[8];
                for (int i = 0; i < 8; ++i) {
                    levels[i] = ggmlq_unpack_quad<type>(i % 2 ? q1 : q0, s, i % 2, i/2);
                }
                for (int c = 0; c < COLUMNS; ++c) {
                    const uint4 * values = (const uint4 *) (p.values + query[c]*p.n + b*T::LENGTH + GGMLQ_PLANE*plane);
                    const uint4 a = values[0], z = values[1];
                    int dot = ggmlq_dot4(levels[0], a.x, 0);
                    dot = ggmlq_dot4(levels[1], a.y, dot);
                    dot = ggmlq_dot4(levels[2], a.z, dot);
                    dot = ggmlq_dot4(levels[3], a.w, dot);
                    dot = ggmlq_dot4(levels[4], z.x, dot);
                    dot = ggmlq_dot4(levels[5], z.y, dot);
                    dot = ggmlq_dot4(levels[6], z.z, dot);
                    dot = ggmlq_dot4(levels[7], z.w, dot);
                    if (type == GGMLQ_TYPE_PLANAR3) {
                        dot += ggmlq_shuffle_xor(dot, 1);
                        dot += ggmlq_shuffle_xor(dot, 2);
                    }
                    sum[c] = fmaf(scale*p.d[query[c]*n_blocks + b], (float) dot, sum[c]);
                }
            }
            for (int c = 0; c < COLUMNS; ++c) {
                if (type == GGMLQ_TYPE_TQ3_0) {
                    sum[c] += ggmlq_shuffle_xor(sum[c], 1);
                    sum[c] += ggmlq_shuffle_xor(sum[c], 2);
                }
                if (c % ROW_THREADS == t && first + c < p.columns && number < p.n_rows) {
                    *(float *) (p.out + 4*row + (int64_t) (first + c)*p.out_nb1 + head*p.out_nb2 + seq*p.out_nb3) = sum[c];
                }
            }
        }
    }
}

/* --- entry points ----------------------------------------------------------------------------------------------- */

static int check(int type, const struct ggmlq_cuda_view * x) {
    if ((type != GGMLQ_TYPE_TQ3_0 && type != GGMLQ_TYPE_PLANAR3) || x->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    if (x->ne[0] < 0 || x->ne[0] % ggmlq_type_info_get(type)->block_length != 0) {
        return GGMLQ_ERROR_LENGTH;
    }
    /* Plane pairs are numbered in 31 bits. */
    int64_t n = x->ne[0]/GGMLQ_PLANE;
    for (int i = 1; i < 4; ++i) {
        if (x->ne[i] < 0 || x->ne[i] > INT32_MAX || (x->ne[i] > 0 && n > INT32_MAX/x->ne[i])) {
            return GGMLQ_ERROR_SHAPE;
        }
        n *= x->ne[i];
    }
    return x->ne[0] > INT32_MAX || x->nb[0] != 4 ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

int64_t ggmlq_cuda_mul_mat_workspace_bytes(int type, const struct ggmlq_cuda_view * x) {
    const int error = check(type, x);
    return error ? error : x->ne[1]*x->ne[2]*x->ne[3]*(x->ne[0] + x->ne[0]/ggmlq_type_info_get(type)->block_length*(int64_t) sizeof(float));
}

template <int type> static void launch(const struct ggmlq_queries & q, const struct product & p, int64_t n_queries, void * stream) {
    const uint32_t n_planes = (uint32_t) (n_queries*(q.n/GGMLQ_PLANE));
    if (n_planes > 0) {
        ggmlq_encode_queries<type><<<(n_planes + GGMLQ_QUERY_PLANES - 1)/GGMLQ_QUERY_PLANES, GGMLQ_QUERY_THREADS, 0, (cudaStream_t) stream>>>(q, n_planes);
    }
    const uint32_t each   = p.columns == 1 ? 1 : p.columns <= 4 ? 4 : MOST_COLUMNS;
    const uint32_t groups = (p.columns + each - 1)/each;
    const dim3 grid((unsigned int) ((p.n_rows + THREADS/ROW_THREADS - 1)/(THREADS/ROW_THREADS)), groups < 65535 ? groups : 65535, p.batch < 65535 ? p.batch : 65535);
    switch (each) {
        case 1:  multiply<type, 1><<<grid, THREADS, 0, (cudaStream_t) stream>>>(p); break;
        case 4:  multiply<type, 4><<<grid, THREADS, 0, (cudaStream_t) stream>>>(p); break;
        default: multiply<type, MOST_COLUMNS><<<grid, THREADS, 0, (cudaStream_t) stream>>>(p); break;
    }
}

int ggmlq_cuda_mul_mat_check(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * x) {
    const int error = check(rows->type, x);
    if (error) {
        return error;
    }
    if (out->type != GGMLQ_CUDA_F32) {
        return GGMLQ_ERROR_TYPE;
    }
    if (rows->ne[0] != x->ne[0] || rows->ne[1] < 0 || rows->ne[1] > INT32_MAX || out->nb[0] != 4 ||
        out->ne[0] != rows->ne[1] || out->ne[1] != x->ne[1] || out->ne[2] != x->ne[2] || out->ne[3] != x->ne[3]) {
        return GGMLQ_ERROR_SHAPE;
    }
    for (int i = 2; i < 4; ++i) {
        if (rows->ne[i] < 0 || (rows->ne[i] == 0 ? x->ne[i] != 0 : x->ne[i] % rows->ne[i] != 0)) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    return GGMLQ_OK;
}

int ggmlq_cuda_mul_mat(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows,
                       const struct ggmlq_cuda_view * x, void * workspace, void * stream) {
    const int error = ggmlq_cuda_mul_mat_check(out, rows, x);
    if (error) {
        return error;
    }
    const int64_t n_queries = x->ne[1]*x->ne[2]*x->ne[3];
    if (n_queries == 0 || rows->ne[1] == 0) {
        return GGMLQ_OK;
    }
    int8_t * values = (int8_t *) workspace;
    float  * d      = (float *) (values + n_queries*x->ne[0]);
    const struct ggmlq_queries q = {
        (const uint8_t *) x->data, x->nb[1], x->nb[2], x->nb[3], (uint32_t) x->ne[1], (uint32_t) x->ne[2], values, d, (int) x->ne[0],
    };
    const struct product p = {
        (const uint8_t *) rows->data, rows->nb[1], rows->nb[2], rows->nb[3], (uint8_t *) out->data, out->nb[1], out->nb[2], out->nb[3], rows->ne[1],
        (uint32_t) x->ne[1], (uint32_t) x->ne[2], (uint32_t) (x->ne[2]*x->ne[3]), (uint32_t) (x->ne[2]/rows->ne[2]), (uint32_t) (x->ne[3]/rows->ne[3]),
        values, d, (int) x->ne[0],
    };
    if (rows->type == GGMLQ_TYPE_TQ3_0) {
        launch<GGMLQ_TYPE_TQ3_0>(q, p, n_queries, stream);
    } else {
        launch<GGMLQ_TYPE_PLANAR3>(q, p, n_queries, stream);
    }
    return ggmlq_cuda_launched();
}
