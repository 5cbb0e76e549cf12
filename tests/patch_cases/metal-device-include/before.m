#import "ggml-metal-device.h"

#import "ggml-impl.h"
