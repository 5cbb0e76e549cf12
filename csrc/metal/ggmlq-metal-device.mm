/* SPDX-License-Identifier: MIT
 *
 * Metal for Python: ggmlq-metal-run.h and the devices and memory of ggmlq-cuda-memory.h. Memory is shared with the CPU, so an address is the
 * same on both; each allocation is a Metal buffer, and a launch finds its buffers by address. Every launch waits for the GPU.
 */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include "ggmlq-cuda-memory.h"
#include "ggmlq-metal-run.h"

#include <map>
#include <mutex>
#include <string>

static const char kernels_source[] =
#include "ggmlq-metal-source.inc" /* ggmlq-metal.metal, pasted by CMake */
;

static thread_local std::string last_error = "no error";

static int fail(NSString * what, NSError * error) {
    last_error = [what UTF8String];
    if (error != nil) {
        last_error += std::string(": ") + [[error localizedDescription] UTF8String];
    }
    return GGMLQ_ERROR_DEVICE;
}

/* --- the device ------------------------------------------------------------------------------------------------- */

struct metal_state {
    id<MTLDevice>       device;
    id<MTLCommandQueue> queue;
    id<MTLLibrary>      kernels;
    std::string         reason; /* why there is no library */
    std::mutex          mutex;  /* of what follows */
    std::map<std::string, id<MTLComputePipelineState>> pipelines;
    std::map<const char *, id<MTLBuffer>> buffers; /* by their first byte */
};

static metal_state & state() {
    static metal_state s;
    static std::once_flag once;
    std::call_once(once, [] {
        @autoreleasepool {
            s.device = MTLCreateSystemDefaultDevice();
            if (s.device == nil) {
                s.reason = "this Mac has no Metal device";
                return;
            }
            if (![s.device supportsFamily:MTLGPUFamilyApple7]) {
                s.reason = "the kernels need an Apple GPU of the M1's family or newer";
                return;
            }
            s.queue = [s.device newCommandQueue];
            MTLCompileOptions * options = [MTLCompileOptions new];
            [options setFastMathEnabled:NO]; /* the encoder's bytes depend on plain arithmetic */
            NSError * error = nil;
            s.kernels = [s.device newLibraryWithSource:[NSString stringWithUTF8String:kernels_source] options:options error:&error];
            if (s.kernels == nil) {
                s.reason = std::string("the kernels don't compile: ") + [[error localizedDescription] UTF8String];
            }
        }
    });
    return s;
}

static int require_library() {
    if (state().kernels == nil) {
        last_error = state().reason;
        return GGMLQ_ERROR_DEVICE;
    }
    return GGMLQ_OK;
}

/* The caller holds the mutex. */
static id<MTLComputePipelineState> pipeline_of(const struct ggmlq_metal_launch * launch, NSError ** error) {
    std::string name = launch->kernel;
    MTLFunctionConstantValues * constants = [MTLFunctionConstantValues new];
    for (int i = 0; i < GGMLQ_METAL_CONSTANTS; ++i) {
        name += "_" + std::to_string(launch->constants[i]);
        [constants setConstantValue:&launch->constants[i] type:MTLDataTypeInt atIndex:(NSUInteger) i];
    }
    __strong id<MTLComputePipelineState> & pipeline = state().pipelines[name];
    if (pipeline == nil) {
        id<MTLFunction> function = [state().kernels newFunctionWithName:[NSString stringWithUTF8String:launch->kernel] constantValues:constants error:error];
        pipeline = function == nil ? nil : [state().device newComputePipelineStateWithFunction:function error:error];
    }
    return pipeline;
}

/* The caller holds the mutex. Nil: the address is in no buffer of ours. */
static id<MTLBuffer> buffer_of(const void * address, NSUInteger * offset) {
    auto after = state().buffers.upper_bound((const char *) address);
    if (after == state().buffers.begin()) {
        return nil;
    }
    --after;
    *offset = (NSUInteger) ((const char *) address - after->first);
    return *offset < [after->second length] ? after->second : nil;
}

const char * ggmlq_metal_device_error(void) { return last_error.c_str(); }

int ggmlq_metal_run(const struct ggmlq_metal_launch * launch, const void * const * operands, void * stream) {
    (void) stream;
    const int missing = require_library();
    if (missing) {
        return missing;
    }
    @autoreleasepool {
        std::unique_lock<std::mutex> lock(state().mutex);
        NSError * error = nil;
        id<MTLComputePipelineState> pipeline = pipeline_of(launch, &error);
        if (pipeline == nil) {
            return fail(@"Metal refuses a kernel", error);
        }
        id<MTLCommandBuffer> commands = [state().queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:pipeline];
        [encoder setBytes:&launch->args length:launch->args_bytes atIndex:0];
        bool found = true;
        for (int i = 0; i < launch->n_operands; ++i) {
            NSUInteger offset = 0;
            id<MTLBuffer> buffer = buffer_of(operands[i] ? operands[i] : operands[0], &offset);
            found = found && buffer != nil;
            [encoder setBuffer:buffer offset:offset atIndex:(NSUInteger) i + 1];
        }
        if (launch->shared_bytes > 0) {
            [encoder setThreadgroupMemoryLength:launch->shared_bytes atIndex:0];
        }
        if (found) {
            [encoder dispatchThreadgroups:MTLSizeMake(launch->groups[0], launch->groups[1], launch->groups[2])
                    threadsPerThreadgroup:MTLSizeMake(GGMLQ_METAL_THREADS, 1, 1)];
        }
        [encoder endEncoding];
        if (!found) {
            return fail(@"an address is in no memory that ggmlq_cuda_allocate gave", nil);
        }
        [commands commit];
        lock.unlock();
        [commands waitUntilCompleted];
        return [commands error] == nil ? GGMLQ_OK : fail(@"Metal couldn't run a kernel", [commands error]);
    }
}

/* --- devices and memory: ggmlq-cuda-memory.h -------------------------------------------------------------------- */

const char * ggmlq_cuda_memory_error_text(int error) { return ggmlq_cuda_error_text(error); }

/* Metal 3 is what the kernels are written in; there is no driver to ask. */
int ggmlq_cuda_versions(int * driver, int * runtime) {
    *driver = *runtime = 3000;
    return GGMLQ_OK;
}

int ggmlq_cuda_device_count(int * count) {
    *count = state().device == nil ? 0 : 1;
    return GGMLQ_OK;
}

int ggmlq_cuda_device_get(int * device) { *device = 0; return GGMLQ_OK; }
int ggmlq_cuda_device_set(int device)   { return device == 0 ? GGMLQ_OK : fail(@"there is one Metal device", nil); }
int ggmlq_cuda_device_probe(void)       { return require_library(); }

int ggmlq_cuda_device_info(int device, struct ggmlq_cuda_device * info) {
    if (device != 0 || state().device == nil) {
        return fail(@"there is no such Metal device", nil);
    }
    memset(info, 0, sizeof(*info));
    strncpy(info->name, [[state().device name] UTF8String], sizeof(info->name) - 1);
    info->memory_bytes = (int64_t) [state().device recommendedMaxWorkingSetSize];
    return GGMLQ_OK;
}

int ggmlq_cuda_pointer_device(const void * pointer, int * device) {
    std::lock_guard<std::mutex> lock(state().mutex);
    NSUInteger offset = 0;
    *device = buffer_of(pointer, &offset) == nil ? -1 : 0;
    return GGMLQ_OK;
}

int ggmlq_cuda_allocate(void ** pointer, int64_t bytes) {
    *pointer = NULL;
    if (bytes < 0 || bytes > INT64_MAX - 256) {
        return GGMLQ_ERROR_LENGTH;
    }
    if (state().device == nil) {
        return fail(@"there is no Metal device", nil);
    }
    id<MTLBuffer> buffer = [state().device newBufferWithLength:(NSUInteger) ((bytes/256 + 1)*256) options:MTLResourceStorageModeShared];
    if (buffer == nil) {
        return fail(@"out of memory", nil);
    }
    std::lock_guard<std::mutex> lock(state().mutex);
    *pointer = [buffer contents];
    state().buffers[(const char *) *pointer] = buffer;
    return GGMLQ_OK;
}

int ggmlq_cuda_release(void * pointer) {
    std::lock_guard<std::mutex> lock(state().mutex);
    return pointer == NULL || state().buffers.erase((const char *) pointer) == 1 ? GGMLQ_OK : fail(@"this memory is not of ggmlq_cuda_allocate", nil);
}

int ggmlq_cuda_upload  (void * device, const void * host, int64_t bytes, void *) { memcpy(device, host, (size_t) bytes); return GGMLQ_OK; }
int ggmlq_cuda_download(void * host, const void * device, int64_t bytes, void *) { memcpy(host, device, (size_t) bytes); return GGMLQ_OK; }
int ggmlq_cuda_fill    (void * device, int byte, int64_t bytes, void *)          { memset(device, byte, (size_t) bytes); return GGMLQ_OK; }
int ggmlq_cuda_synchronize(void *)                                               { return GGMLQ_OK; }

int ggmlq_cuda_pack(void * dst, const void * src, int item_bytes, int n_axes, const int64_t * shape, const int64_t * strides, void *) {
    if (n_axes < 0 || n_axes > GGMLQ_CUDA_MAX_AXES) {
        return GGMLQ_ERROR_SHAPE;
    }
    if (item_bytes != 1 && item_bytes != 2 && item_bytes != 4 && item_bytes != 8) {
        return GGMLQ_ERROR_TYPE;
    }
    int64_t n = 1;
    for (int axis = 0; axis < n_axes; ++axis) {
        n *= shape[axis];
    }
    for (int64_t i = 0; i < n; ++i) {
        const char * item = (const char *) src;
        int64_t rest = i;
        for (int axis = n_axes - 1; axis >= 0; --axis) {
            item += rest % shape[axis] * strides[axis];
            rest /= shape[axis];
        }
        memcpy((char *) dst + i*item_bytes, item, (size_t) item_bytes);
    }
    return GGMLQ_OK;
}

/* The exponent lies in the last two bytes of both kinds of float. */
int ggmlq_cuda_find_not_finite(const void * data, int value_bytes, int64_t stride, int64_t n, uint64_t * result, void *) {
    if (value_bytes != 2 && value_bytes != 4) {
        return GGMLQ_ERROR_TYPE;
    }
    const unsigned int mask = value_bytes == 2 ? 0x7c00 : 0x7f80;
    *result = UINT64_MAX;
    for (int64_t i = 0; i < n; ++i) {
        const uint8_t * top = (const uint8_t *) data + i*stride + value_bytes - 2;
        if (((unsigned int) (top[0] | top[1] << 8) & mask) == mask) {
            *result = (uint64_t) i;
            break;
        }
    }
    return GGMLQ_OK;
}
