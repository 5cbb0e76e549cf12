/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: a calibration of centered keys in a file of its own, which `pyggmlq calibrate` makes and --kv-center reads.
 */
#pragma once

#include "llama-ggmlq-center.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_model;

// What the moments are of.
struct ggmlq_llama_center_text {
    uint32_t n_tokens;
    uint32_t n_window; // tokens that see each other
    uint64_t n_bytes;
    uint64_t checksum;
};

// Writes the moments of all centered layers, whole or not at all. Throws, with the reason.
void ggmlq_llama_center_save(const std::string & path, const llama_model & model, const std::vector<ggmlq_llama_center *> & centers,
    const ggmlq_llama_center_text & text);

// Sets the moments of all layers that can be centered, which are then fitted for the context at hand; returns the number of tokens they come from.
// Throws if the file is damaged, of another model or of another RoPE.
uint32_t ggmlq_llama_center_load(const std::string & path, const llama_model & model, const std::vector<ggmlq_llama_center *> & centers);
