/* SPDX-License-Identifier: MIT
 *
 * ggmlq-metal-run.h on a CPU: the kernels of csrc/metal compiled as C++, their threads run by emulate.cpp.
 */
#include "ggmlq-metal-run.h"

#include <metal_stdlib>
#include <string>

namespace {
#include "ggmlq-metal-kernels.inc" /* what build_metal.py makes of the .metal file */
}
#undef kernel
#undef thread

static_assert(GGMLQ_METAL_CONSTANTS == 6, "set_constants");

__shared__ char threadgroup_memory[GGMLQ_METAL_SHARED_BYTES] __attribute__((aligned(16)));

static void set_constants(const int32_t * values) {
    ggmlq_type       = values[GGMLQ_METAL_TYPE];
    ggmlq_other_type = values[GGMLQ_METAL_OTHER_TYPE];
    ggmlq_head_k     = values[GGMLQ_METAL_HEAD_K];
    ggmlq_head_v     = values[GGMLQ_METAL_HEAD_V];
    ggmlq_columns    = values[GGMLQ_METAL_COLUMNS];
    ggmlq_pairs      = values[GGMLQ_METAL_PAIRS];
}

static const char * last_error = "no error";

extern "C" const char * ggmlq_metal_device_error(void) { return last_error; }

extern "C" int ggmlq_metal_run(const struct ggmlq_metal_launch * launch, const void * const * operands, void * stream) {
    const hipError_t before = hipGetLastError(); /* as with CUDA, what went wrong earlier is told by the next launch */
    if (before != hipSuccess) {
        last_error = hipGetErrorString(before);
        return GGMLQ_ERROR_DEVICE;
    }
    if (launch->shared_bytes > sizeof(threadgroup_memory) || launch->shared_bytes % 16 != 0) {
        last_error = "threadgroup memory that no device has";
        return GGMLQ_ERROR_DEVICE;
    }
    set_constants(launch->constants);
    struct ggmlq_metal_launch copy = *launch;
    char * const shared = threadgroup_memory + sizeof(threadgroup_memory) - launch->shared_bytes; /* beyond its end is nothing of ours */
    const auto at = [&](int i) { return static_cast<uint8_t *>(const_cast<void *>(operands[i])); };
    const std::string name = launch->kernel;
    const auto start = [&](const std::function<void()> & body) {
        emulated_launch(dim3(launch->groups[0], launch->groups[1], launch->groups[2]), dim3(GGMLQ_METAL_THREADS), stream, body);
    };
    const auto id    = [] { return blockIdx.x*GGMLQ_METAL_THREADS + threadIdx.x; };
    const auto group = [] { return uint3{ blockIdx.x, blockIdx.y, blockIdx.z }; };
    if (name == "kernel_ggmlq_encode") {
        start([&] { kernel_ggmlq_encode(copy.args.rows, at(0), at(1), at(2), id()); });
    } else if (name == "kernel_ggmlq_round") {
        start([&] {
            kernel_ggmlq_round(copy.args.round, at(0), at(1), at(2), at(3), reinterpret_cast<float *>(shared), id(), threadIdx.x/32, threadIdx.x % 32);
        });
    } else if (name == "kernel_ggmlq_decode") {
        start([&] { kernel_ggmlq_decode(copy.args.rows, at(0), at(1), at(2), id()); });
    } else if (name == "kernel_ggmlq_rotate") {
        start([&] { kernel_ggmlq_rotate(copy.args.rows, at(0), at(1), id()); });
    } else if (name == "kernel_ggmlq_fill") {
        start([&] { kernel_ggmlq_fill(copy.args.fill, at(0), at(1), id()); });
    } else if (name == "kernel_ggmlq_positional") {
        start([&] { kernel_ggmlq_positional(copy.args.positional, at(0), at(1), at(2), at(3), id()); });
    } else if (name == "kernel_ggmlq_copy") {
        start([&] { kernel_ggmlq_copy(copy.args.rows, at(0), at(1), id()); });
    } else if (name == "kernel_ggmlq_mul_mv") {
        start([&] { kernel_ggmlq_mul_mv(copy.args.product, at(0), at(1), at(2), reinterpret_cast<int8_t *>(shared), group(), threadIdx.x); });
    } else if (name == "kernel_ggmlq_attend") {
        start([&] {
            kernel_ggmlq_attend(copy.args.attend, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10), reinterpret_cast<float *>(shared), group(),
                threadIdx.x, threadIdx.x/32, threadIdx.x % 32);
        });
    } else if (name == "kernel_ggmlq_combine") {
        start([&] { kernel_ggmlq_combine(copy.args.attend, at(0), at(1), at(2), id()); });
    } else if (name == "kernel_ggmlq_select") {
        start([&] {
            kernel_ggmlq_select(copy.args.select, at(0), at(1), reinterpret_cast<uint32_t *>(shared), group(), threadIdx.x, threadIdx.x/32, threadIdx.x % 32);
        });
    } else if (name == "kernel_ggmlq_indexer") {
        start([&] {
            kernel_ggmlq_indexer(copy.args.indexer, at(0), at(1), at(2), at(3), at(4), reinterpret_cast<int8_t *>(shared), group(), threadIdx.x);
        });
    } else {
        last_error = "no kernel of that name";
        return GGMLQ_ERROR_DEVICE;
    }
    return GGMLQ_OK;
}
