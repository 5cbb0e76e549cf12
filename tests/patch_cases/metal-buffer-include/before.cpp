#include "ggml-metal-context.h"
#include "ggml-metal-ops.h"
