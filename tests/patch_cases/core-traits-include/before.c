#include "first.h"

#include "ggml-quants.h"

int x;
