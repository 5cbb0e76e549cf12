#include "ggml-metal-common.h"
#include "ggml-metal-device.h"
// pyggmlq:begin metal-ops-include
#include "ggml-metal-ggmlq.h"
// pyggmlq:end metal-ops-include
