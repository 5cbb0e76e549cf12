#include "ggml-metal-context.h"
#include "ggml-metal-ops.h"
// pyggmlq:begin metal-buffer-include
#include "ggml-metal-ggmlq.h"
// pyggmlq:end metal-buffer-include
