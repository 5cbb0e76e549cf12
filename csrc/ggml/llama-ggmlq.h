/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: what is refused when a context is made, and in which words.
 */
#pragma once

#include "llama-impl.h"

#include "ggml.h"

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
