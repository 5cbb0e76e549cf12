#pragma once

#include "ggml.h"
#include "ggml-cuda.h"
// pyggmlq:begin cuda-include
#include "ggml-cuda-ggmlq.cuh"
// pyggmlq:end cuda-include

#include <cstdint>
