#include "llama-kv-cells.h"
#include "llama-memory.h"
// pyggmlq:begin center-cache-include
#include "llama-ggmlq-center.h"
// pyggmlq:end center-cache-include
