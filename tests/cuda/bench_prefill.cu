/* SPDX-License-Identifier: MIT
 *
 * What prefill through an f16 kernel adds to it: K and V as f16 rows, the mean of centered keys added. 8 KV heads (of 64 values: 16, of 256: 4), every call with rows of its own that are in memory
 * and not in the L2. Medians of 11 replays of a graph of 16 calls, microseconds a call; GB/s: bytes read and written, beside what cudaMemcpyAsync moves.
 *
 *   nvcc -O3 -std=c++17 -arch=sm_90 -use_fast_math -Icsrc -Icsrc/cuda tests/cuda/bench_prefill.cu csrc/cuda/ggmlq-cuda-f16.cu csrc/cuda/ggmlq-cuda-rows.cu csrc/ggmlq-codec.c -o bench_prefill
 */
#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-cuda-f16.h"

#include <algorithm>
#include <cstdio>
#include <functional>
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

enum { REPEAT = 16 };

static double time_calls(cudaStream_t stream, const std::function<int(int)> & call) {
    cudaGraph_t graph; cudaGraphExec_t exec; cudaEvent_t e0, e1;
    CUDA(cudaEventCreate(&e0)); CUDA(cudaEventCreate(&e1));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    int error = 0;
    for (int i = 0; i < REPEAT; ++i) {
        error |= call(i);
    }
    CUDA(cudaStreamEndCapture(stream, &graph));
    if (error) {
        printf("refused: %s\n", ggmlq_cuda_error_text(error));
        exit(2);
    }
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < 13; ++i) {
        float ms;
        CUDA(cudaEventRecord(e0, stream)); CUDA(cudaGraphLaunch(exec, stream)); CUDA(cudaEventRecord(e1, stream)); CUDA(cudaEventSynchronize(e1));
        CUDA(cudaEventElapsedTime(&ms, e0, e1));
        if (i > 1) times.push_back(1000*ms/REPEAT);
    }
    CUDA(cudaGraphExecDestroy(exec)); CUDA(cudaGraphDestroy(graph)); CUDA(cudaEventDestroy(e0)); CUDA(cudaEventDestroy(e1));
    std::sort(times.begin(), times.end());
    return times[times.size()/2];
}

int main() {
    cudaStream_t stream;
    CUDA(cudaStreamCreate(&stream));
    const int64_t most = 512 << 20, rows_bytes = 512 << 20;
    uint8_t * rows = (uint8_t *) allocate(rows_bytes), * f16 = (uint8_t *) allocate(most);
    int32_t * positions = (int32_t *) allocate(4 << 17);
    uint16_t * part = (uint16_t *) allocate(2 << 17);
    float * mean = (float *) allocate(4*1024);
    uint64_t * turns = (uint64_t *) allocate(8*128);
    const double copy = time_calls(stream, [&](int) { return (int) cudaMemcpyAsync(f16, rows, most/2, cudaMemcpyDeviceToDevice, stream); });
    printf("copy: %.0f GB/s\n", most/copy/1e3);
    printf("%-8s %4s %7s %8s %8s %9s %9s\n", "type", "head", "kv", "K and V", "GB/s", "centered", "adjacent");
    for (const int type : { GGMLQ_TYPE_TQ3_0, GGMLQ_TYPE_PLANAR3 }) {
        for (const int64_t head : { 128, 64, 256 }) {
            if (type == GGMLQ_TYPE_PLANAR3 && head == 64) {
                continue;
            }
            const int64_t heads = 1024/head, row = ggmlq_row_bytes(type, head);
            for (const int64_t kv : { 512, 8192, 32768, 131072 }) {
                ggmlq_attend_params term = {};
                term.n_pairs          = head/2;
                term.turns            = turns;
                term.positions        = positions;
                term.part             = part;
                auto call = [&](int i, bool centered, bool halves) { /* always to the same place */
                    ggmlq_cuda_f16_rows p = {};
                    const int64_t bytes = row*heads*kv, of_call = (int64_t) i*2*bytes % (rows_bytes - 2*bytes);
                    for (int j = 0; j < 2; ++j) {
                        p.rows[j]   = { rows + of_call/16*16 + j*bytes, type, { head, kv, heads, 1 }, { 0, row*heads, row, bytes } };
                        p.values[j] = { f16 + j*2*head*kv*heads, GGMLQ_CUDA_F16, { head, kv, heads, 1 }, { 2, 2*head, 2*head*kv, 2*head*kv*heads } };
                    }
                    p.wanted[0] = p.wanted[1] = true;
                    p.mean   = mean;
                    p.factor = 1.0f;
                    p.turned = (int) head;
                    p.term   = centered ? &term : NULL;
                    term.pairs_are_halves = halves;
                    return ggmlq_cuda_to_f16(&p, stream);
                };
                const double plain    = time_calls(stream, [&](int i) { return call(i, false, false); });
                const double centered = time_calls(stream, [&](int i) { return call(i, true, true); });
                const double adjacent = time_calls(stream, [&](int i) { return call(i, true, false); });
                printf("%-8s %4d %7d %8.2f %8.0f %9.2f %9.2f\n", ggmlq_type_info_get(type)->name, (int) head, (int) kv, plain, 2*kv*heads*(2*head + row)/plain/1e3, centered, adjacent);
            }
        }
    }
    return 0;
}
