#include "llama-io.h"
// pyggmlq:begin llama-state-dsv4-include
#include "llama-ggmlq-state.h"
// pyggmlq:end llama-state-dsv4-include
#include "llama-model.h"
