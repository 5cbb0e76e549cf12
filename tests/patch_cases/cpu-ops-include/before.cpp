#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "vec.h"
