#include "llama-context.h"

#include "llama-impl.h"
// pyggmlq:begin llama-context-include
#include "llama-ggmlq.h"
// pyggmlq:end llama-context-include
#include "llama-io.h"
