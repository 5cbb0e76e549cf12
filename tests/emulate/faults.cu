/* SPDX-License-Identifier: MIT
 *
 * Kernels with an error that the emulator must see, one per name: faults NAME prints ok or wrong, or is ended.
 */
#include <cuda_runtime.h>

#include <string>

enum { THREADS = 128 };

static __global__ void fault(const std::string & name, int * out) {
    __shared__ int values[THREADS];
    const int i = (int) threadIdx.x, other = (i + 1) % THREADS, far = (i + 64) % THREADS;
    const bool plain = name == "nothing";
    if (name != "shared memory unwritten" || i > 0) {
        values[i] = i;
    }
    if (name == "barrier in a branch") {
        if (i < 64) {
            __syncthreads();
        }
    } else if (name == "two barriers for one") {
        if (i < 64) {
            __syncthreads();
        } else {
            __syncthreads();
        }
    } else if (name == "barrier missing: across waves") {
        out[i] = values[far] - far;
        return;
    } else if (name != "barrier missing: read after write") {
        __syncthreads();
    }
    int sum = values[other] - other;
    if (plain) {
        __syncthreads();
    }
    if (plain || name == "barrier missing: write after read") {
        values[i] = 1000;
    }
    if (name == "shuffle in a branch" && i % 32 == 0) {
        out[i] = sum;
        return;
    }
    sum += __shfl_xor(i, 5, 32) - (i ^ 5);
    out[i] = sum;
}

int main(int, char ** argv) {
    const std::string name = argv[1];
    int out[THREADS], wrong = 0;
    for (int i = 0; i < THREADS; ++i) {
        out[i] = -1;
    }
    fault<<<dim3(1), THREADS, 0, NULL>>>(name, out);
    for (int i = 0; i < THREADS; ++i) {
        wrong += out[i] != 0;
    }
    printf(wrong ? "wrong\n" : "ok\n");
    return wrong != 0;
}
