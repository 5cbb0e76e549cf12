#include "llama-io.h"
#include "llama-model.h"
