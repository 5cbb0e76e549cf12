/* SPDX-License-Identifier: MIT
 *
 * For tests/cuda on HIP.
 */
#pragma once
#include "ggmlq-cuda-deps.cuh"

#include "cuda_names.h"
