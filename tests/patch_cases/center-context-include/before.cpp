#include "llama-memory.h"
#include "llama-mmap.h"
