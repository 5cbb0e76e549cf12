/* SPDX-License-Identifier: MIT
 *
 * What ggml-cuda-ggmlq.cu uses of ggml-cuda, stood in for: see check_adapter.cpp.
 */
#pragma once

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "ggml.h"

#include <cstdlib>
#include <cstring>

typedef uint16_t half;
struct ggml_cuda_pool {};
struct ggml_backend_cuda_context {
    int device = 0;
    ggml_cuda_pool the_pool;
    void * stream() { return nullptr; }
    ggml_cuda_pool & pool() { return the_pool; }
};

/* Memory that holds NaN at first, of exactly that size, which the address sanitizer watches. */
template <typename T> struct ggml_cuda_pool_alloc {
    T * ptr = nullptr;
    explicit ggml_cuda_pool_alloc(ggml_cuda_pool &) {}
    ggml_cuda_pool_alloc(ggml_cuda_pool &, size_t n) { alloc(n); }
    ggml_cuda_pool_alloc(const ggml_cuda_pool_alloc &) = delete;
    ~ggml_cuda_pool_alloc() { free(ptr); }
    T * alloc(size_t n) {
        GGML_ASSERT(ptr == nullptr);
        ptr = (T *) aligned_alloc(64, (n*sizeof(T) + 63)/64*64);
        memset((void *) ptr, 0xff, (n*sizeof(T) + 63)/64*64);
        return ptr;
    }
    T * get() { return ptr; }
};

inline void ggml_cuda_set_device(int) {}
