/* SPDX-License-Identifier: MIT
 *
 * Devices and their memory: ggmlq-cuda-memory.h.
 */
#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-cuda-memory.h"

/* Codes carry the driver's own: no state is needed to word them later. Values of ggmlq_error lie above. */
enum { FIRST_CODE = -1000 };

static int code_of(cudaError_t error) {
    if (error == cudaSuccess) {
        return GGMLQ_OK;
    }
    (void) cudaGetLastError(); /* or the next launch would be taken for the one that failed */
    return FIRST_CODE - (int) error;
}

const char * ggmlq_cuda_memory_error_text(int error) {
    return error <= FIRST_CODE ? cudaGetErrorString((cudaError_t) (FIRST_CODE - error)) : ggmlq_cuda_error_text(error);
}

int ggmlq_cuda_versions(int * driver, int * runtime) {
    *driver = *runtime = 0;
    const int error = code_of(cudaDriverGetVersion(driver));
    return error ? error : code_of(cudaRuntimeGetVersion(runtime));
}

int ggmlq_cuda_device_count(int * count) {
    *count = 0;
    return code_of(cudaGetDeviceCount(count));
}

int ggmlq_cuda_device_get(int * device) { return code_of(cudaGetDevice(device)); }
int ggmlq_cuda_device_set(int device)   { return code_of(cudaSetDevice(device)); }

int ggmlq_cuda_device_info(int device, struct ggmlq_cuda_device * info) {
    cudaDeviceProp properties;
    const int error = code_of(cudaGetDeviceProperties(&properties, device));
    if (error) {
        return error;
    }
    static_assert(sizeof(info->name) == sizeof(properties.name), "a device's name");
    memcpy(info->name, properties.name, sizeof(info->name));
    info->name[sizeof(info->name) - 1] = 0;
#ifdef GGMLQ_HIP /* major and minor don't tell gfx906 from gfx90a */
    const size_t length = strlen(info->name);
    snprintf(info->name + length, sizeof(info->name) - length, " (%s)", properties.gcnArchName);
#endif
    info->major = properties.major;
    info->minor = properties.minor;
    info->memory_bytes = (int64_t) properties.totalGlobalMem;
    return GGMLQ_OK;
}

int ggmlq_cuda_pointer_device(const void * pointer, int * device) {
    cudaPointerAttributes attributes;
    const int error = code_of(cudaPointerGetAttributes(&attributes, pointer));
#if defined(GGMLQ_HIP) && HIP_VERSION_MAJOR < 6 /* host memory is an error there, and the field has another name */
    *device = error ? -1 : attributes.device;
#else
    *device = error || attributes.type == cudaMemoryTypeUnregistered ? -1 : attributes.device;
#endif
    return error;
}

int ggmlq_cuda_allocate(void ** pointer, int64_t bytes) {
    *pointer = NULL;
    if (bytes < 0 || bytes > INT64_MAX - 256) {
        return GGMLQ_ERROR_LENGTH;
    }
    return code_of(cudaMalloc(pointer, (size_t) (bytes/256 + 1)*256));
}

int ggmlq_cuda_release(void * pointer) { return code_of(cudaFree(pointer)); }

int ggmlq_cuda_upload(void * device, const void * host, int64_t bytes, void * stream) {
    const int error = code_of(cudaMemcpyAsync(device, host, (size_t) bytes, cudaMemcpyHostToDevice, (cudaStream_t) stream));
    return error ? error : ggmlq_cuda_synchronize(stream);
}

int ggmlq_cuda_download(void * host, const void * device, int64_t bytes, void * stream) {
    const int error = code_of(cudaMemcpyAsync(host, device, (size_t) bytes, cudaMemcpyDeviceToHost, (cudaStream_t) stream));
    return error ? error : ggmlq_cuda_synchronize(stream);
}

int ggmlq_cuda_fill(void * device, int byte, int64_t bytes, void * stream) {
    return code_of(cudaMemsetAsync(device, byte, (size_t) bytes, (cudaStream_t) stream));
}

int ggmlq_cuda_synchronize(void * stream) { return code_of(cudaStreamSynchronize((cudaStream_t) stream)); }

/* ---- pack ----------------------------------------------------------------------------------------------------------- */

struct axes {
    int     n;
    int64_t shape[GGMLQ_CUDA_MAX_AXES], strides[GGMLQ_CUDA_MAX_AXES];
};

/* Bytes, since a view may start anywhere. */
template <int item_bytes>
static __global__ void pack_kernel(uint8_t * dst, const uint8_t * src, const struct axes axes, int64_t n) {
    for (int64_t i = (int64_t) blockIdx.x*blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x*blockDim.x) {
        const uint8_t * item = src;
        int64_t rest = i;
        for (int axis = axes.n - 1; axis >= 0; --axis) {
            item += rest % axes.shape[axis] * axes.strides[axis];
            rest /= axes.shape[axis];
        }
#pragma unroll
        for (int byte = 0; byte < item_bytes; ++byte) {
            dst[i*item_bytes + byte] = item[byte];
        }
    }
}

enum { THREADS = 256, MAX_BLOCKS = 16384 };

static unsigned int blocks_for(int64_t n) {
    const int64_t blocks = (n + THREADS - 1) / THREADS;
    return blocks < MAX_BLOCKS ? (unsigned int) blocks : (unsigned int) MAX_BLOCKS;
}

int ggmlq_cuda_pack(void * dst, const void * src, int item_bytes, int n_axes, const int64_t * shape, const int64_t * strides, void * stream) {
    if (n_axes < 0 || n_axes > GGMLQ_CUDA_MAX_AXES) {
        return GGMLQ_ERROR_SHAPE;
    }
    struct axes axes = {};
    axes.n = n_axes;
    int64_t n = 1;
    for (int axis = 0; axis < n_axes; ++axis) {
        axes.shape[axis] = shape[axis];
        axes.strides[axis] = strides[axis];
        n *= shape[axis];
    }
    if (n == 0) {
        return GGMLQ_OK;
    }
    uint8_t * to = (uint8_t *) dst;
    const uint8_t * from = (const uint8_t *) src;
    const unsigned int blocks = blocks_for(n);
    switch (item_bytes) {
        case 1:  pack_kernel<1><<<blocks, THREADS, 0, (cudaStream_t) stream>>>(to, from, axes, n); break;
        case 2:  pack_kernel<2><<<blocks, THREADS, 0, (cudaStream_t) stream>>>(to, from, axes, n); break;
        case 4:  pack_kernel<4><<<blocks, THREADS, 0, (cudaStream_t) stream>>>(to, from, axes, n); break;
        case 8:  pack_kernel<8><<<blocks, THREADS, 0, (cudaStream_t) stream>>>(to, from, axes, n); break;
        default: return GGMLQ_ERROR_TYPE;
    }
    return code_of(cudaGetLastError());
}

int ggmlq_cuda_device_probe(void) {
    cudaFuncAttributes attributes;
    return code_of(cudaFuncGetAttributes(&attributes, (const void *) pack_kernel<1>));
}

/* ---- values that aren't finite --------------------------------------------------------------------------------------- */

/* The exponent lies in the last two bytes of both kinds of float. */
static __global__ void find_not_finite_kernel(const uint8_t * data, int value_bytes, int64_t stride, int64_t n, unsigned long long * result) {
    const unsigned int mask = value_bytes == 2 ? 0x7c00 : 0x7f80;
    for (int64_t i = (int64_t) blockIdx.x*blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x*blockDim.x) {
        const uint8_t * top = data + i*stride + value_bytes - 2;
        if (((top[0] | top[1] << 8) & mask) == mask) {
            atomicMin(result, (unsigned long long) i);
            return; /* what this thread would find next lies behind */
        }
    }
}

int ggmlq_cuda_find_not_finite(const void * data, int value_bytes, int64_t stride, int64_t n, uint64_t * result, void * stream) {
    if (value_bytes != 2 && value_bytes != 4) {
        return GGMLQ_ERROR_TYPE;
    }
    const int error = ggmlq_cuda_fill(result, 0xff, sizeof(*result), stream);
    if (error || n <= 0) {
        return error;
    }
    find_not_finite_kernel<<<blocks_for(n), THREADS, 0, (cudaStream_t) stream>>>(
        (const uint8_t *) data, value_bytes, stride, n, (unsigned long long *) result);
    return code_of(cudaGetLastError());
}
