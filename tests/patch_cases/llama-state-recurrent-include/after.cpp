#include "llama-io.h"
// pyggmlq:begin llama-state-recurrent-include
#include "llama-ggmlq-state.h"
// pyggmlq:end llama-state-recurrent-include
#include "llama-batch.h"
