#include "ggml-cpu.h"
#include "ggml-impl.h"
// pyggmlq:begin cpu-ops-include
#include "ggml-cpu-ggmlq.h"
// pyggmlq:end cpu-ops-include
#include "vec.h"
