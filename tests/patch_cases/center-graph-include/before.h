#include "llama-arch.h"
#include "llama-batch.h"
