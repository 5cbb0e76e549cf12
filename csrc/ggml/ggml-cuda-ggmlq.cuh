/* SPDX-License-Identifier: MIT
 *
 * ggmlq in ggml-cuda (CUDA and HIP): what the hooks call. The operations return false, having done nothing, if none of our types is
 * involved; the rest of a hooked function is then as it was.
 */
#pragma once

#include "ggml.h"

struct ggml_backend_cuda_context;
struct ggml_cgraph;

/* Upstream's functions that are handed in, because not every tree has them or lets others see them. */
typedef bool (*ggmlq_ggml_cuda_attention_supported_t)(int device, const ggml_tensor * dst);
typedef void (*ggmlq_ggml_cuda_mul_mat_t)(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, const ggml_tensor * src1, ggml_tensor * dst);

bool ggmlq_ggml_cuda_involved(const ggml_tensor * op);

/* Nothing is computed and no byte moves. */
bool ggmlq_ggml_cuda_is_view(const ggml_tensor * op);

/* For an operation in which one of our types is involved: whether the functions below do it. */
bool ggmlq_ggml_cuda_supports_op(int device, const ggml_tensor * op, ggmlq_ggml_cuda_attention_supported_t attention_supported);

/* Computes node i of the graph together with later ones in one launch, if they are rows of K and of V that are stored one after the other,
 * for planar3 and for keys that are rounded for queries also llama.cpp's own rotations right before (planar3's in two launches if these are many), for few tokens also
 * RoPE; or if they center keys (ggml-ggmlq-center-graph.h); or attention and the rotation of its output: how many nodes after i are done with it, 0: nothing was
 * done. All nodes must belong to the context's stream. */
int  ggmlq_ggml_cuda_fuse(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i, ggmlq_ggml_cuda_attention_supported_t attention_supported);

bool ggmlq_ggml_cuda_set_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
bool ggmlq_ggml_cuda_get_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
bool ggmlq_ggml_cuda_cpy(ggml_backend_cuda_context & ctx, const ggml_tensor * src, ggml_tensor * dst);
bool ggmlq_ggml_cuda_concat(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
bool ggmlq_ggml_cuda_mul_mat(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, const ggml_tensor * src1, ggml_tensor * dst,
                             ggmlq_ggml_cuda_mul_mat_t mul_mat);
bool ggmlq_ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst,
                                    ggmlq_ggml_cuda_attention_supported_t attention_supported);
bool ggmlq_ggml_cuda_lightning_indexer(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
