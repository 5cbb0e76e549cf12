/* SPDX-License-Identifier: MIT
 *
 * What prefill through an f16 kernel adds to it: queries rotated, K and V decoded to f16, the output rotated back. 512 query tokens, 32 heads of 128 values,
 * 8 KV heads, 8192 cached tokens. Medians of 11 replays of a graph of 16 repetitions, microseconds a repetition.
 *
 *   nvcc -O3 -std=c++17 -arch=sm_90 -use_fast_math -extended-lambda -Icsrc -Icsrc/cuda tests/cuda/bench_prefill.cu csrc/cuda/ggmlq-cuda-rows.cu csrc/ggmlq-codec.c -o bench_prefill
 */
#include "ggmlq-cuda-deps.cuh"

#include <algorithm>
#include <cstdio>
#include <vector>

static void check_cuda(cudaError_t error, int line) {
    if (error != cudaSuccess) {
        printf("line %d: %s\n", line, cudaGetErrorString(error));
        exit(2);
    }
}
#define CUDA(call) check_cuda(call, __LINE__)

static void * allocate(int64_t bytes) {
    void * data;
    CUDA(cudaMalloc(&data, bytes));
    CUDA(cudaMemset(data, 0x33, bytes));
    return data;
}

/* [n, a, b] at strides row and plane. */
static ggmlq_cuda_view view_of(void * data, int type, int64_t value_bytes, int64_t n, int64_t a, int64_t b, int64_t row, int64_t plane) {
    return { data, type, { n, a, b, 1 }, { value_bytes, row, plane, plane*b } };
}

int main() {
    enum { N = 128, KV = 8192, HEADS_KV = 8, HEADS = 32, QUERIES = 512, REPEAT = 16 };
    cudaStream_t stream;
    CUDA(cudaStreamCreate(&stream));
    for (int type : { GGMLQ_TYPE_TQ3_0, GGMLQ_TYPE_PLANAR3 }) {
        const int64_t row = ggmlq_row_bytes(type, N);
        const ggmlq_cuda_view q   = view_of(allocate(4*N*QUERIES*HEADS), GGMLQ_CUDA_F32, 4, N, QUERIES, HEADS, 4*N, 4*N*QUERIES), rotated = view_of(allocate(4*N*QUERIES*HEADS), GGMLQ_CUDA_F32, 4, N, QUERIES, HEADS, 4*N, 4*N*QUERIES);
        const ggmlq_cuda_view out = view_of(allocate(4*N*QUERIES*HEADS), GGMLQ_CUDA_F32, 4, N, HEADS, QUERIES, 4*N, 4*N*HEADS);
        ggmlq_cuda_view rows[2], f16[2];
        for (int i = 0; i < 2; ++i) {
            rows[i] = view_of(allocate(row*KV*HEADS_KV), type, 0, N, KV, HEADS_KV, row*HEADS_KV, row);
            f16[i]  = view_of(allocate(2*N*KV*HEADS_KV), GGMLQ_CUDA_F16, 2, N, KV, HEADS_KV, 2*N, 2*N*KV);
        }
        const struct { const char * name; int parts; } what[] = { { "all", 15 }, { "queries", 1 }, { "K", 2 }, { "K and V", 6 }, { "output", 8 } };
        for (auto & w : what) {
            cudaGraph_t graph; cudaGraphExec_t exec; cudaEvent_t e0, e1;
            CUDA(cudaEventCreate(&e0)); CUDA(cudaEventCreate(&e1));
            CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
            int error = 0;
            for (int i = 0; i < REPEAT; ++i) {
                error |= w.parts & 1 ? ggmlq_cuda_rotate(type, &rotated, &q, stream) : 0;
                error |= w.parts & 2 ? ggmlq_cuda_decode_rotated(&f16[0], &rows[0], stream) : 0;
                error |= w.parts & 4 ? ggmlq_cuda_decode_rotated(&f16[1], &rows[1], stream) : 0;
                error |= w.parts & 8 ? ggmlq_cuda_unrotate(type, &out, &out, stream) : 0;
            }
            CUDA(cudaStreamEndCapture(stream, &graph));
            if (error) {
                printf("%s: refused\n", w.name);
                return 2;
            }
            CUDA(cudaGraphInstantiate(&exec, graph, 0));
            std::vector<float> times;
            for (int i = 0; i < 13; ++i) {
                float ms;
                CUDA(cudaEventRecord(e0, stream)); CUDA(cudaGraphLaunch(exec, stream)); CUDA(cudaEventRecord(e1, stream)); CUDA(cudaEventSynchronize(e1));
                CUDA(cudaEventElapsedTime(&ms, e0, e1));
                if (i > 1) times.push_back(1000*ms/REPEAT);
            }
            std::sort(times.begin(), times.end());
            printf("%-8s %-8s %6.2f us\n", ggmlq_type_info_get(type)->name, w.name, times[times.size()/2]);
            CUDA(cudaGraphExecDestroy(exec)); CUDA(cudaGraphDestroy(graph)); CUDA(cudaEventDestroy(e0)); CUDA(cudaEventDestroy(e1));
        }
    }
    return 0;
}
