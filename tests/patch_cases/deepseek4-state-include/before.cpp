#include "llama-impl.h"
#include "llama-batch.h"
#include "llama-io.h"
