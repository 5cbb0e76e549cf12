/* SPDX-License-Identifier: MIT
 *
 * What compute-sanitizer's racecheck makes of barriers that a part of a block shares. The kernel has no race: a pair of warps exchanges values
 * through memory of its own, two buffers in turn, and a barrier of the pair lies between write and read; what the whole block shares is
 * written before a __syncthreads() and read after it. Half of the pairs meet once more than the others, or, with "even", all meet as often.
 *
 *   nvcc -arch=native -lineinfo racecheck_barriers.cu -o racecheck_barriers
 *   compute-sanitizer --tool racecheck --racecheck-report all ./racecheck_barriers [even]
 *
 * docs/CUDA-ATTENTION.md says what it shows, and what follows for the decode kernels.
 */
#include <cstdio>
#include <cstring>

enum { WARPS = 16, PAIRS = WARPS/2, THREADS = 32*WARPS };

static __device__ void meet(int pair) { asm volatile("bar.sync %0, 64;" :: "r"(1 + pair) : "memory"); }

static __global__ void exchange(int turns, bool even, int * out) {
    __shared__ int buffer[PAIRS][2][2][32], sums[THREADS];
    const int lane = threadIdx.x % 32, pair = threadIdx.x/64, half = threadIdx.x/32 % 2;
    const bool longer = pair < PAIRS/2;
    int sum = threadIdx.x;
    for (int turn = 0; turn < turns + longer; ++turn) {
        buffer[pair][turn % 2][half][lane] = sum;
        meet(pair);
        sum += buffer[pair][turn % 2][1 - half][lane];
    }
    if (even && !longer) {
        meet(pair);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    int total = 0;
    for (int warp = 0; warp < WARPS; ++warp) {
        total += sums[32*warp + lane];
    }
    out[threadIdx.x] = total;
}

int main(int argc, char ** argv) {
    const bool even = argc > 1 && strcmp(argv[1], "even") == 0;
    int * out, first = 0;
    cudaMalloc(&out, sizeof(int)*THREADS);
    exchange<<<1, THREADS>>>(3, even, out);
    const cudaError_t error = cudaMemcpy(&first, out, sizeof(first), cudaMemcpyDeviceToHost);
    printf("pairs meet %s: %s, %d\n", even ? "4 times" : "3 or 4 times", cudaGetErrorString(error), first);
    return error != cudaSuccess;
}
