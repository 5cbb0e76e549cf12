#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
// pyggmlq:begin center-cpu-include
#include "ggml-cpu-ggmlq.h"
// pyggmlq:end center-cpu-include
