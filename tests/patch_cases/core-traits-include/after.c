#include "first.h"

#include "ggml-quants.h"
// pyggmlq:begin core-traits-include
#include "ggml-ggmlq.h"
// pyggmlq:end core-traits-include

int x;
