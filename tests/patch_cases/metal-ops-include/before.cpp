#include "ggml-metal-common.h"
#include "ggml-metal-device.h"
