/* SPDX-License-Identifier: MIT
 *
 * What compute-sanitizer's racecheck makes of barriers of a part of a block. The kernel has no race: a pair of warps exchanges values through
 * memory of its own, two buffers in turn, and a barrier of the pair lies between write and read; what the whole block shares is written
 * before a __syncthreads() and read after it. The first pairs meet once more than the others, or, with "even", all the same number of times.
 *
 *   nvcc -arch=native -lineinfo racecheck_barriers.cu -o racecheck_barriers
 *   compute-sanitizer --tool racecheck ./racecheck_barriers [even]
 *
 * docs/CUDA-ATTENTION.md says what it showed, and why the decode kernels let their groups of warps meet the same number of times.
 */
#include <cstdio>
#include <cstring>

enum { WARPS = 8, PAIRS = WARPS/2, THREADS = 32*WARPS };

static __device__ void meet(int pair) { asm volatile("bar.sync %0, 64;" :: "r"(1 + pair) : "memory"); }

/* Pairs up to `last_longer` exchange turns + 1 times. */
static __global__ void exchange(int turns, int last_longer, bool even, int * out) {
    __shared__ int buffer[PAIRS][2][2][32], shared[THREADS];
    const int lane = threadIdx.x % 32, pair = threadIdx.x/64, half = threadIdx.x/32 % 2, mine = turns + (pair <= last_longer);
    int sum = threadIdx.x;
    for (int turn = 0; turn < mine; ++turn) {
        buffer[pair][turn % 2][half][lane] = sum;
        meet(pair);
        sum += buffer[pair][turn % 2][1 - half][lane];
    }
    if (even && pair > last_longer) {
        meet(pair);
    }
    __syncthreads();
    shared[threadIdx.x] = sum;
    __syncthreads();
    out[threadIdx.x] = shared[(threadIdx.x + 32) % THREADS] + shared[(threadIdx.x + THREADS - 32) % THREADS];
}

int main(int argc, char ** argv) {
    const bool even = argc > 1 && strcmp(argv[1], "even") == 0;
    int * out, got[THREADS];
    cudaMalloc(&out, sizeof(got));
    exchange<<<1, THREADS>>>(3, 1, even, out);
    const cudaError_t error = cudaMemcpy(got, out, sizeof(got), cudaMemcpyDeviceToHost);
    printf("pairs meet %s: %s, checksum", even ? "as often as each other" : "3 or 4 times", cudaGetErrorString(error));
    unsigned sum = 0;
    for (int i = 0; i < THREADS; ++i) {
        sum = 31*sum + (unsigned) got[i];
    }
    printf(" %08x\n", sum);
    return error != cudaSuccess;
}
