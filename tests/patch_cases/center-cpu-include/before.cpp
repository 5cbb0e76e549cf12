#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
