#include "llama-kv-cache.h"

#include "llama-io.h"
#include "llama-model.h"
#include "llama-context.h"
