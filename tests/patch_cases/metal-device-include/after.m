#import "ggml-metal-device.h"
// pyggmlq:begin metal-device-include
#include "ggml-metal-ggmlq.h"
// pyggmlq:end metal-device-include

#import "ggml-impl.h"
