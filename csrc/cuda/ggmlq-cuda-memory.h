/* SPDX-License-Identifier: MIT
 *
 * Devices and their memory, for programs that have no CUDA runtime of their own: Python. Not part of what llama.cpp gets.
 *
 * Every function returns 0 or a negative code for ggmlq_cuda_memory_error_text, and keeps no state. Work runs on the current
 * device of the calling thread; `stream` may be NULL, the legacy default stream.
 */
#ifndef GGMLQ_CUDA_MEMORY_H
#define GGMLQ_CUDA_MEMORY_H

#include "ggmlq-cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */
struct ggmlq_cuda_device {
    char    name[256];
    int     major, minor;  /* compute capability */
    int64_t memory_bytes;
};

/* What the driver said, for the code that one of these functions gave; never NULL. */
GGMLQ_CUDA_API const char * ggmlq_cuda_memory_error_text(int error);

/* CUDA versions, 1000 * major + 10 * minor: the newest that the driver serves (0: there is no driver), and the one built with. */
GGMLQ_CUDA_API int ggmlq_cuda_versions(int * driver, int * runtime);
GGMLQ_CUDA_API int ggmlq_cuda_device_count(int * count);
GGMLQ_CUDA_API int ggmlq_cuda_device_get(int * device);
GGMLQ_CUDA_API int ggmlq_cuda_device_set(int device);
GGMLQ_CUDA_API int ggmlq_cuda_device_info(int device, struct ggmlq_cuda_device * info);
/* An error if this library holds no code for the current device. */
GGMLQ_CUDA_API int ggmlq_cuda_device_probe(void);
/* The device that can read this address; -1: none, it is ordinary host memory. */
GGMLQ_CUDA_API int ggmlq_cuda_pointer_device(const void * pointer, int * device);

/* At least `bytes`, aligned to 256 and padded to a multiple of that: an aligned word that holds the last byte is inside. */
GGMLQ_CUDA_API int ggmlq_cuda_allocate(void ** pointer, int64_t bytes);
GGMLQ_CUDA_API int ggmlq_cuda_release (void * pointer);
/* upload and download return when the host memory may be used again. */
GGMLQ_CUDA_API int ggmlq_cuda_upload  (void * device, const void * host, int64_t bytes, void * stream);
GGMLQ_CUDA_API int ggmlq_cuda_download(void * host, const void * device, int64_t bytes, void * stream);
GGMLQ_CUDA_API int ggmlq_cuda_fill    (void * device, int byte, int64_t bytes, void * stream);
GGMLQ_CUDA_API int ggmlq_cuda_synchronize(void * stream);

/* dst, contiguous <- the strided array at src, last axis fastest. item_bytes: 1, 2, 4 or 8. Strides in bytes, any sign or 0. */
enum { GGMLQ_CUDA_MAX_AXES = 16 };
GGMLQ_CUDA_API int ggmlq_cuda_pack(void * dst, const void * src, int item_bytes, int n_axes, const int64_t * shape,
                                   const int64_t * strides, void * stream);

/* *result, device memory <- the lowest i for which the half (value_bytes 2) or float (4) at data + i*stride is NaN or infinite;
 * -1 (all bits set) if there is none. No alignment needed. */
GGMLQ_CUDA_API int ggmlq_cuda_find_not_finite(const void * data, int value_bytes, int64_t stride, int64_t n,
                                              uint64_t * result, void * stream);
/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
