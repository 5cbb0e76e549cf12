/* SPDX-License-Identifier: MIT
 *
 * See Foundation.h.
 */
#pragma once
#include <Foundation/Foundation.h>

typedef struct { NSUInteger width, height, depth; } MTLSize;
static inline MTLSize MTLSizeMake(NSUInteger width, NSUInteger height, NSUInteger depth) { return { width, height, depth }; }
enum MTLGPUFamily : long { MTLGPUFamilyApple7 = 1007 };
enum MTLDataType : NSUInteger { MTLDataTypeInt = 29 };
enum MTLResourceOptions : NSUInteger { MTLResourceStorageModeShared = 0 };

@interface MTLCompileOptions : NSObject
- (void) setFastMathEnabled:(BOOL) enabled;
@end
@interface MTLFunctionConstantValues : NSObject
- (void) setConstantValue:(const void *) value type:(MTLDataType) type atIndex:(NSUInteger) index;
@end
@protocol MTLFunction
@end
@protocol MTLComputePipelineState
@end
@protocol MTLBuffer
- (void *) contents;
- (NSUInteger) length;
@end
@protocol MTLComputeCommandEncoder
- (void) setComputePipelineState:(id<MTLComputePipelineState>) pipeline;
- (void) setBytes:(const void *) bytes length:(NSUInteger) length atIndex:(NSUInteger) index;
- (void) setBuffer:(id<MTLBuffer>) buffer offset:(NSUInteger) offset atIndex:(NSUInteger) index;
- (void) setThreadgroupMemoryLength:(NSUInteger) length atIndex:(NSUInteger) index;
- (void) dispatchThreadgroups:(MTLSize) groups threadsPerThreadgroup:(MTLSize) threads;
- (void) endEncoding;
@end
@protocol MTLCommandBuffer
- (id<MTLComputeCommandEncoder>) computeCommandEncoder;
- (void) commit;
- (void) waitUntilCompleted;
- (NSError *) error;
@end
@protocol MTLCommandQueue
- (id<MTLCommandBuffer>) commandBuffer;
@end
@protocol MTLLibrary
- (id<MTLFunction>) newFunctionWithName:(NSString *) name constantValues:(MTLFunctionConstantValues *) values error:(NSError **) error;
@end
@protocol MTLDevice
- (NSString *) name;
- (uint64_t) recommendedMaxWorkingSetSize;
- (BOOL) supportsFamily:(MTLGPUFamily) family;
- (id<MTLCommandQueue>) newCommandQueue;
- (id<MTLBuffer>) newBufferWithLength:(NSUInteger) length options:(MTLResourceOptions) options;
- (id<MTLLibrary>) newLibraryWithSource:(NSString *) source options:(MTLCompileOptions *) options error:(NSError **) error;
- (id<MTLComputePipelineState>) newComputePipelineStateWithFunction:(id<MTLFunction>) function error:(NSError **) error;
@end
id<MTLDevice> MTLCreateSystemDefaultDevice(void);
