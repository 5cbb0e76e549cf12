/* SPDX-License-Identifier: MIT
 *
 * Declarations alone, as many as ggmlq-metal-device.mm uses, from Apple's documentation: the compiler can check syntax and types elsewhere.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef unsigned long NSUInteger;
typedef bool BOOL;
#define NO false
#define nil nullptr

__attribute__((objc_root_class)) @interface NSObject
+ (instancetype) new;
@end
@interface NSString : NSObject
+ (instancetype) stringWithUTF8String:(const char *) text;
- (const char *) UTF8String;
@end
@interface NSConstantString : NSString
@end
@interface NSError : NSObject
- (NSString *) localizedDescription;
@end
