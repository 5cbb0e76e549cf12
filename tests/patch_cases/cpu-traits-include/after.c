#include "ggml-impl.h"
#include "quants.h"
// pyggmlq:begin cpu-traits-include
#include "ggml-cpu-ggmlq.h"
// pyggmlq:end cpu-traits-include
#include "vec.h"
