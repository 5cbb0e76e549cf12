#include "llama-impl.h"
// pyggmlq:begin deepseek4-state-include
#include "llama-ggmlq.h"
// pyggmlq:end deepseek4-state-include
#include "llama-batch.h"
#include "llama-io.h"
