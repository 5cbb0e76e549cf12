#include "llama-kv-cells.h"
#include "llama-memory.h"
