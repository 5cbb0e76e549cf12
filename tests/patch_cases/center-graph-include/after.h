#include "llama-arch.h"
#include "llama-batch.h"
// pyggmlq:begin center-graph-include
#include "llama-ggmlq-center.h"
// pyggmlq:end center-graph-include
