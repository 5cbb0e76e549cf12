#include "llama-kv-cache.h"

#include "llama-io.h"
#include "llama-model.h"
// pyggmlq:begin center-state-include
#include "llama-ggmlq-center-state.h"
// pyggmlq:end center-state-include
#include "llama-context.h"
