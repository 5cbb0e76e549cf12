/* SPDX-License-Identifier: MIT
 *
 * Launches of the decode attention's kernels, which all have the same arguments.
 */
#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-cuda-attend-decode.h"

cudaError_t cudaLaunchKernel(const void * kernel, dim3 grid, dim3 block, void ** arguments, size_t shared_bytes, cudaStream_t stream) {
    typedef void (* kernel_t)(ggmlq_attend_params, ggmlq_decode_plan, void *);
    emulated_dynamic_bytes = shared_bytes;
    emulated_launch(grid, block, stream, [&] {
        ((kernel_t) (uintptr_t) kernel)(*(const ggmlq_attend_params *) arguments[0], *(const ggmlq_decode_plan *) arguments[1], *(void * const *) arguments[2]);
    });
    emulated_dynamic_bytes = 0;
    return cudaSuccess;
}
