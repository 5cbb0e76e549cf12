#include "ggml-common.h"

#include "ggml-quants.h"
#include "ggml-impl.h"
