#pragma once

#include "ggml.h"
#include "ggml-cuda.h"

#include <cstdint>
