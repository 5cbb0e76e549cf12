/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: a calibration of centered keys in a file of its own, which `pyggmlq calibrate` makes and --kv-center reads; and those that are kept,
 * so that a model is calibrated once.
 */
#pragma once

#include "llama-ggmlq-center.h"

#include <cstdint>
#include <functional>
#include <memory>
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

// A calibration: moments of the layers of a model, and what they come from; mean and scale are fitted to them for the context at hand.
// A fresh one passes through the same record as one from a file, so that both give the same bits.
struct ggmlq_llama_center_record {
    struct layer {
        int32_t il;
        int64_t head_size, n_head_kv;
        std::vector<int32_t> rope;                // facts
        std::vector<float> mean, k_square, query; // [KV head][value]: mean of keys, mean squares of keys and queries
        std::vector<float> score_error;           // expected, for each of GGMLQ_LLAMA_CENTER_TYPES; empty in one from a file, which nothing is made of
    };
    std::string key;                              // of one that was kept for later contexts: of which it may be. Else empty
    std::string name, architecture, fingerprint;  // of the model
    ggmlq_llama_center_text text;
    std::vector<layer> layers;
};

// Of layers that were calibrated just now.
ggmlq_llama_center_record ggmlq_llama_center_record_of(const llama_model & model, const std::vector<ggmlq_llama_center *> & centers,
    const ggmlq_llama_center_text & text);

// Sets the moments of all layers that can be centered. Throws if the record is of another model or of another RoPE.
void ggmlq_llama_center_apply(const ggmlq_llama_center_record & record, const llama_model & model, const std::vector<ggmlq_llama_center *> & centers);

// Whole or not at all. Both throw, with the reason.
void                      ggmlq_llama_center_save(const std::string & path, const ggmlq_llama_center_record & record);
ggmlq_llama_center_record ggmlq_llama_center_load(const std::string & path);

// --- kept for later contexts, in this process and in others (docs/CENTERING.md)

// What a model is known by: its metadata, and its weights sampled. backend_of: the context's of a device, or null.
std::vector<uint8_t> ggmlq_llama_center_sample(const llama_model & model, const std::function<ggml_backend_t(ggml_backend_dev_t)> & backend_of);

// By what a calibration depends on: the model, the text, every layer's RoPE and cache. The same in every process.
std::string ggmlq_llama_center_key(std::vector<uint8_t> sample, const std::string & text, const std::vector<ggmlq_llama_center *> & centers);

// One of this key whose windows are at least this long or the whole text, and where it was found; null if there is none. A file that can't be used is named in the log.
std::shared_ptr<const ggmlq_llama_center_record> ggmlq_llama_center_find(const std::string & key, uint32_t n_window, std::string & where);

// Returns where it was kept, or why only this process keeps it.
std::string ggmlq_llama_center_keep(const std::shared_ptr<const ggmlq_llama_center_record> & record);
