#include "llama-impl.h"
#include "llama-io.h"
// pyggmlq:begin llama-state-context-include
#include "llama-ggmlq-state.h"
// pyggmlq:end llama-state-context-include
#include "llama-mmap.h"
