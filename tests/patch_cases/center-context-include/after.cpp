#include "llama-memory.h"
// pyggmlq:begin center-context-include
#include "llama-ggmlq-center.h"
// pyggmlq:end center-context-include
#include "llama-mmap.h"
