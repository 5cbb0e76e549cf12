#include "ggml-common.h"

#include "ggml-quants.h"
// pyggmlq:begin core-validate-include
#include "ggml-ggmlq.h"
// pyggmlq:end core-validate-include
#include "ggml-impl.h"
