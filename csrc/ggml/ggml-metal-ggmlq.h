/* SPDX-License-Identifier: MIT
 *
 * ggmlq in ggml-metal: what the hooks call. C, because ggml-metal-device.m includes it.
 */
#ifndef GGML_METAL_GGMLQ_H
#define GGML_METAL_GGMLQ_H

#include "ggml-backend.h"
#include "ggml-metal-device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One of our types takes part, or centered keys of whatever type do. */
bool ggmlq_ggml_metal_involved(const struct ggml_tensor * op);

/* Where one is: whether ggmlq_ggml_metal_encode does it on this device. The kernels are compiled when this is first asked. */
bool ggmlq_ggml_metal_supports_op(ggml_metal_device_t dev, const struct ggml_tensor * op);

/* This text is our kernels, whose bytes depend on plain float arithmetic. */
bool ggmlq_ggml_metal_is_source(const char * source);

typedef struct ggml_metal_buffer_id (*ggmlq_ggml_metal_buffer_id_t)(const struct ggml_tensor * tensor);

/* Where one is: the bytes of this tensor and of the scratch memory behind it, as upstream keeps it for its own kernels. */
size_t ggmlq_ggml_metal_alloc_size(ggml_metal_device_t dev, ggml_backend_buffer_type_t buft, const struct ggml_tensor * tensor);

#ifdef __cplusplus
}

#include <functional>

/* False, having done nothing, if it isn't involved. wait: what comes after it sees what was written before. attend_f16: encodes
 * upstream's attention for `op`, which asks ggmlq_ggml_metal_in_place_of what to work on. */
bool ggmlq_ggml_metal_encode(ggml_metal_device_t dev, ggml_metal_encoder_t encoder, const ggml_tensor * op, ggmlq_ggml_metal_buffer_id_t buffer_id,
                             const std::function<void()> & wait, const std::function<void()> & attend_f16);

/* Attention with K and V in f16 and rotated queries; of centered keys some heads of it, with longer rows. Tensors that point at each other, so
 * no copies. */
struct ggmlq_ggml_metal_stand_in {
    ggml_tensor q, k, v, sinks, op;

    ggmlq_ggml_metal_stand_in() = default;
    ggmlq_ggml_metal_stand_in(const ggmlq_ggml_metal_stand_in &) = delete;
    ggmlq_ggml_metal_stand_in & operator=(const ggmlq_ggml_metal_stand_in &) = delete;
};

/* `op` itself if it isn't involved. */
ggml_tensor * ggmlq_ggml_metal_in_place_of(ggml_tensor * op, ggmlq_ggml_metal_stand_in * stand_in);
#endif

#endif
