#include "ggml-impl.h"
#include "quants.h"
#include "vec.h"
