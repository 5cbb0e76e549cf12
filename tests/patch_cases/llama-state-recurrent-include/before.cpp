#include "llama-io.h"
#include "llama-batch.h"
