/* SPDX-License-Identifier: MIT
 *
 * ggmlq in ggml-metal: what the hooks call. C, because ggml-metal-device.m includes it.
 */
#ifndef GGML_METAL_GGMLQ_H
#define GGML_METAL_GGMLQ_H

#include "ggml-metal-device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One of our types takes part. */
bool ggmlq_ggml_metal_involved(const struct ggml_tensor * op);

/* Where one is: whether ggmlq_ggml_metal_encode does it on this device. The kernels are compiled when this is first asked. */
bool ggmlq_ggml_metal_supports_op(ggml_metal_device_t dev, const struct ggml_tensor * op);

/* This text is our kernels, whose bytes depend on plain float arithmetic. */
bool ggmlq_ggml_metal_is_source(const char * source);

typedef struct ggml_metal_buffer_id (*ggmlq_ggml_metal_buffer_id_t)(const struct ggml_tensor * tensor);

#ifdef __cplusplus
}

/* False, having done nothing, if none of our types is involved. */
bool ggmlq_ggml_metal_encode(ggml_metal_device_t dev, ggml_metal_encoder_t encoder, const struct ggml_tensor * op, ggmlq_ggml_metal_buffer_id_t buffer_id);
#endif

#endif
