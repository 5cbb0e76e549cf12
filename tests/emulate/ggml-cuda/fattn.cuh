/* SPDX-License-Identifier: MIT */
#pragma once
#include "common.cuh"

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
