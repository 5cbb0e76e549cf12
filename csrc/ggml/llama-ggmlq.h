/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: what is refused when a context is made, and in which words.
 */
#pragma once

#include "llama-impl.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-ggmlq-center.h"
#include "ggml.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

static inline bool ggmlq_llama_is_cache_type(ggml_type type) {
    switch ((int) type) {
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) case id:
#include "ggmlq-types.def"
            return true;
        default:
            return false;
    }
}

// True unless `type` is ours and the head size of layer `il` isn't a whole number of its blocks; then one sentence says
// what would fit. `which` is "K" or "V".
static inline bool ggmlq_llama_fits(const char * which, ggml_type type, uint32_t head_size, uint32_t il) {
    if (!ggmlq_llama_is_cache_type(type) || head_size % ggml_blck_size(type) == 0) {
        return true;
    }
    std::string fits;
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) \
    if (head_size % block_length == 0) { \
        fits += fits.empty() ? #name : ", " #name; \
    }
#include "ggmlq-types.def"
    if (fits.empty()) {
        fits = "f16";
    }
    LLAMA_LOG_ERROR("%s: %s cache type %s needs a head size that is a multiple of %d, but that of layer %u is %u: use %s\n",
        __func__, which, ggml_type_name(type), (int) ggml_blck_size(type), il, head_size, fits.c_str());
    return false;
}

// Throws, which llama_init_from_model reports, if the device that is to hold the cache can't store rows of `type`: without
// this, llama.cpp would abort at the first token.
static inline void ggmlq_llama_require_device(ggml_backend_dev_t dev, ggml_type type) {
    if (!ggmlq_llama_is_cache_type(type)) {
        return;
    }
    ggml_init_params params = { 4*ggml_tensor_overhead(), nullptr, true };
    ggml_context_ptr ctx { ggml_init(params) };
    const int64_t n = 8*ggml_blck_size(type);
    ggml_tensor * store = ggml_set_rows(ctx.get(), ggml_new_tensor_2d(ctx.get(), type, n, 1),
        ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, 1), ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, 1));
    if (!ggml_backend_dev_supports_op(dev, store)) {
        throw std::runtime_error(std::string(ggml_backend_dev_name(dev)) + " cannot store a cache of type " + ggml_type_name(type) +
            ": keep the cache on the CPU (-nkvo) or use another type");
    }
}

// Whether llama.cpp's own rotation (attn_rot) is for rows of `type`: of those that it rotates, the quantized ones, not the types
// that it would harm (docs/LAB.md). Where a row is K and V at once it is for all: DeepSeek-V4's lose twice as much without it
// (docs/DEEPSEEK.md), and those of MLA no graph rotates.
static inline bool ggmlq_llama_wants_attn_rot(ggml_type type, bool k_is_v) {
    if (!k_is_v) {
        switch ((int) type) {
#define GGMLQ_UNTURNED_TYPE(NAME, name) case GGML_TYPE_##NAME:
#include "ggmlq-types.def"
                return false;
            default:
                break;
        }
    }
    return ggml_is_quantized(type);
}

// Whether a GPU rotates, for caches of keys of this type, in the launch that stores them (ggmlq_ggml_cuda_fuse): a graph puts rotations and
// stores together then.
static inline bool ggmlq_llama_joins_attn_rot(ggml_type type_k) {
    return ggmlq_llama_is_cache_type(type_k);
}

// For a cache of ours what RoPE of queries and keys reads comes before both RoPEs in the graph, so that they, too, stand right before the stores. Not where a norm is before
// RoPE: ggml-cuda joins these.
static inline void ggmlq_llama_puts_ropes_together(ggml_cgraph * gf, ggml_type type_k, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v) {
    if (ggmlq_llama_joins_attn_rot(type_k) && k && v && q->op == GGML_OP_ROPE && k->op == GGML_OP_ROPE && q->src[0]->op != GGML_OP_MUL && k->src[0]->op != GGML_OP_MUL) {
        for (ggml_tensor * before : { q->src[0], v, k->src[0] }) {
            ggml_build_forward_expand(gf, before);
        }
    }
}

// llama.cpp's own rotations stand right before the stores, too. That of the queries has sources which it doesn't read, what RoPE has read: until it is done their memory isn't
// given to a result, so that one launch can read and write all.
static inline void ggmlq_llama_puts_rotations_together(ggml_cgraph * gf, ggml_type type_k, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v) {
    if (!ggmlq_llama_joins_attn_rot(type_k)) {
        return;
    }
    ggml_tensor * rotation = q->view_src ? q->view_src : q;
    const ggml_tensor * rope = rotation->op == GGML_OP_MUL_MAT && rotation->src[1]->view_src ? rotation->src[1]->view_src : nullptr;
    if (rope && rope->op == GGML_OP_ROPE && k->op == GGML_OP_ROPE) {
        rotation->src[2] = rope->src[0];
        rotation->src[3] = k->src[0];
    }
    ggml_build_forward_expand(gf, v);
    ggml_build_forward_expand(gf, k);
}

// Attention's output after llama.cpp's own rotation: a GPU does both in one launch if what attention reads isn't overwritten by the rotation's result. So queries, and
// what centered keys lack, are sources of the rotation too, which doesn't read them: until it is done their memory isn't given to a result.
static inline void ggmlq_llama_keeps_queries(ggml_tensor * turned_back) {
    ggml_tensor * rotation = turned_back->view_src ? turned_back->view_src : turned_back;
    const ggml_tensor * attention = rotation->op == GGML_OP_MUL_MAT ? rotation->src[1] : nullptr;
    if (attention && attention->view_src) {
        attention = attention->view_src;
    }
    if (attention && attention->op == GGML_OP_FLASH_ATTN_EXT && ggmlq_llama_is_cache_type(attention->src[2]->type)) {
        rotation->src[2] = attention->src[0];
        rotation->src[3] = attention->src[GGMLQ_GGML_ATTEND_W];
    }
}

// llama.cpp's condition for rotating a cache that wants it. `head_size_all`: of all layers; not positive if they differ.
static inline bool ggmlq_llama_can_attn_rot(int32_t head_size_all, uint32_t head_size) {
    const char * disable = getenv("LLAMA_ATTN_ROT_DISABLE");
    return !(disable && atoi(disable)) && head_size_all > 0 && head_size % 64 == 0;
}

// planar3 turns pairs of values only, so an outlier stays one unless llama.cpp's own rotation (attn_rot) spreads it first.
// Whoever runs it without is told, because nothing else would say so.
static inline void ggmlq_llama_warn_if_unrotated(ggml_type type_k, bool rotated) {
    if (type_k == GGML_TYPE_PLANAR3 && !rotated) {
        LLAMA_LOG_WARN("%s: the K cache is of type planar3 but attention rotation is off or unknown here: many models will answer nonsense; use tq3_0\n",
            __func__);
    }
}

// A saved state holds rows of another type than the context.
static inline void ggmlq_llama_explain_state_type(const char * which, int32_t type_saved, int32_t type_context) {
    const char * saved = type_saved >= 0 && type_saved < GGML_TYPE_COUNT ? ggml_type_name((ggml_type) type_saved) : nullptr;
    LLAMA_LOG_ERROR("%s: the saved state has a %s cache of type %s, this context one of type %s: restore it with the type it was saved with\n",
        __func__, which, saved ? saved : std::to_string(type_saved).c_str(), ggml_type_name((ggml_type) type_context));
}
