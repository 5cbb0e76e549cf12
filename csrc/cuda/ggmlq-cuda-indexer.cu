/* SPDX-License-Identifier: MIT
 *
 * Scores of the lightning indexer. See ggmlq-cuda-sparse.h.
 *
 * A thread holds the levels of one row in registers and meets the queries of all heads, which lie in shared memory and are read by all
 * threads at once: a row is unpacked once for each query token. Integer sums are exact per block; heads are added in their order.
 */
#include "ggmlq-cuda-checks.h"
#include "ggmlq-cuda-query.cuh"
#include "ggmlq-cuda-sparse.h"

enum { THREADS = GGMLQ_INDEXER_ROWS, LENGTH = GGMLQ_INDEXER_LENGTH, HEADS = 64 /* in shared memory at a time */, PLANES = LENGTH/GGMLQ_PLANE };

struct indexer {
    const uint8_t * rows;
    int64_t  row_stride, rows_seq;
    const uint8_t * weights;
    int64_t  weights_token, weights_seq;
    const uint8_t * mask;
    int64_t  mask_token, mask_seq;
    uint8_t * scores;
    int64_t  scores_token, scores_seq;
    uint32_t n_rows, heads, tokens, mask_seqs;
    const int8_t * values;  /* [seq][token][head][LENGTH] */
    const float  * d;
};

/* blockIdx.x: rows; y: tokens; z: sequences. */
template <int type> static __global__ void __launch_bounds__(THREADS)
score_rows(const struct indexer p) {
    typedef ggmlq_cache_type<type> T;
    enum { BLOCKS = LENGTH/T::LENGTH, WORDS = T::LENGTH/4 /* of four values, in a block */ };
    __shared__ uint4 values[HEADS][LENGTH/16];
    __shared__ float d[HEADS][BLOCKS];
    __shared__ float weights[HEADS];

    const uint32_t number = blockIdx.x*THREADS + threadIdx.x, seq = blockIdx.z;
    const uint32_t row    = number < p.n_rows ? number : p.n_rows - 1;
    const uint8_t * data  = p.rows + row*p.row_stride + seq*p.rows_seq;
    uint32_t levels[LENGTH/4];
    float    scales[BLOCKS];
    for (int plane = 0; plane < PLANES; ++plane) {
        const uint8_t * block = data + plane/T::PLANES*T::BYTES;
        const int at = plane%T::PLANES;
        const uint32_t q0 = ggmlq_read_u32(block + T::Q_AT + 8*at), q1 = ggmlq_read_u32(block + T::Q_AT + 8*at + 4);
        const uint32_t s  = ggmlq_read_u32(block + T::S_AT + 4*at);
        for (int i = 0; i < 8; ++i) {
            levels[8*plane + i] = ggmlq_unpack_quad<type>(i % 2 ? q1 : q0, s, i % 2, i/2);
        }
        if (at == 0) {
            scales[plane/T::PLANES] = ggmlq_half_value(ggmlq_read_u16(block + T::SCALE_AT))*T::UNIT;
        }
    }

    for (uint32_t token = blockIdx.y; token < p.tokens; token += gridDim.y) {
        const uint32_t first_query = (seq*p.tokens + token)*p.heads;
        float score = 0.0f;
        for (uint32_t first = 0; first < p.heads; first += HEADS) {
            const uint32_t heads = p.heads - first < HEADS ? p.heads - first : HEADS;
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < heads*(LENGTH/16); i += THREADS) {
                values[i/(LENGTH/16)][i%(LENGTH/16)] = ((const uint4 *) (p.values + (int64_t) (first_query + first)*LENGTH))[i];
            }
            for (uint32_t i = threadIdx.x; i < heads*BLOCKS; i += THREADS) {
                d[i/BLOCKS][i%BLOCKS] = p.d[(int64_t) (first_query + first)*BLOCKS + i];
            }
            for (uint32_t i = threadIdx.x; i < heads; i += THREADS) {
                weights[i] = ((const float *) (p.weights + token*p.weights_token + seq*p.weights_seq))[first + i];
            }
            __syncthreads();
            for (uint32_t head = 0; head < heads; ++head) {
                float product = 0.0f;
                for (int b = 0; b < BLOCKS; ++b) {
                    int dot = 0;
                    for (int w = 0; w < WORDS; w += 4) {
                        const uint4 four = values[head][(WORDS*b + w)/4];
                        dot = ggmlq_dot4(levels[WORDS*b + w],     four.x, dot);
                        dot = ggmlq_dot4(levels[WORDS*b + w + 1], four.y, dot);
                        dot = ggmlq_dot4(levels[WORDS*b + w + 2], four.z, dot);
                        dot = ggmlq_dot4(levels[WORDS*b + w + 3], four.w, dot);
                    }
                    product = fmaf(scales[b]*d[head][b], (float) dot, product);
                }
                score = fmaf(weights[head], product > 0.0f ? product : 0.0f, score);
            }
        }
        if (number < p.n_rows) {
            const uint16_t * mask = (const uint16_t *) (p.mask + token*p.mask_token + seq%p.mask_seqs*p.mask_seq);
            ((float *) (p.scores + token*p.scores_token + seq*p.scores_seq))[row] = score + ggmlq_half_value(mask[row]);
        }
    }
}

/* --- entry points ----------------------------------------------------------------------------------------------- */

int ggmlq_cuda_indexer_check(const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                             const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask) {
    return ggmlq_check_indexer(scores, q, rows, weights, mask);
}

int64_t ggmlq_cuda_indexer_workspace_bytes(int type, const struct ggmlq_cuda_view * q) { return ggmlq_cuda_mul_mat_workspace_bytes(type, q); }

template <int type> static void launch(const struct ggmlq_queries & q, const struct indexer & p, int64_t n_queries, uint32_t seqs, void * stream) {
    const uint32_t n_planes = (uint32_t) (n_queries*PLANES);
    ggmlq_encode_queries<type><<<(n_planes + GGMLQ_QUERY_PLANES - 1)/GGMLQ_QUERY_PLANES, GGMLQ_QUERY_THREADS, 0, (cudaStream_t) stream>>>(q, n_planes);
    const dim3 grid((p.n_rows + THREADS - 1)/THREADS, p.tokens < 65535 ? p.tokens : 65535, seqs);
    score_rows<type><<<grid, THREADS, 0, (cudaStream_t) stream>>>(p);
}

int ggmlq_cuda_indexer(const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                       const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask, void * workspace, void * stream) {
    const int error = ggmlq_cuda_indexer_check(scores, q, rows, weights, mask);
    if (error) {
        return error;
    }
    const int64_t n_queries = q->ne[1]*q->ne[2]*q->ne[3];
    if (n_queries == 0 || rows->ne[2] == 0) {
        return GGMLQ_OK;
    }
    int8_t * values = (int8_t *) workspace;
    float  * d      = (float *) (values + n_queries*LENGTH);
    const struct ggmlq_queries queries = {
        (const uint8_t *) q->data, q->nb[1], q->nb[2], q->nb[3], (uint32_t) q->ne[1], (uint32_t) q->ne[2], values, d, LENGTH,
    };
    const struct indexer p = {
        (const uint8_t *) rows->data, rows->nb[2], rows->nb[3], (const uint8_t *) weights->data, weights->nb[1], weights->nb[3],
        (const uint8_t *) mask->data, mask->nb[1], mask->nb[3], (uint8_t *) scores->data, scores->nb[1], scores->nb[3],
        (uint32_t) rows->ne[2], (uint32_t) q->ne[1], (uint32_t) q->ne[2], (uint32_t) mask->ne[3], values, d,
    };
    if (rows->type == GGMLQ_TYPE_TQ3_0) {
        launch<GGMLQ_TYPE_TQ3_0>(queries, p, n_queries, (uint32_t) q->ne[3], stream);
    } else {
        launch<GGMLQ_TYPE_PLANAR3>(queries, p, n_queries, (uint32_t) q->ne[3], stream);
    }
    return ggmlq_cuda_launched();
}
