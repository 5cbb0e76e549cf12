/* SPDX-License-Identifier: MIT */
#pragma once
#include "common.cuh"

void ggml_cuda_cpy(ggml_backend_cuda_context & ctx, const ggml_tensor * from, ggml_tensor * to);
