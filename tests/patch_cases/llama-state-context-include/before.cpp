#include "llama-impl.h"
#include "llama-io.h"
#include "llama-mmap.h"
