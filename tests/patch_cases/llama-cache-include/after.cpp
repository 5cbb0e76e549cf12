#include "llama-context.h"

#include "llama-impl.h"
// pyggmlq:begin llama-cache-include
#include "llama-ggmlq.h"
// pyggmlq:end llama-cache-include
#include "llama-io.h"
