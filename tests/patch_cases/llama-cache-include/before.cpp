#include "llama-context.h"

#include "llama-impl.h"
#include "llama-io.h"
