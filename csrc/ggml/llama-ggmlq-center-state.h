/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: saved states of centered keys. What such a state holds beside rows of K and V stands in docs/STATES.md.
 */
#pragma once

#include "llama-ggmlq-center.h"
#include "llama-ggmlq-state.h"
#include "llama-kv-cells.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// Mean, scale and moments of every centered layer, and how its RoPE turns, as bytes: equal bytes are the same calibration.
std::vector<uint8_t> ggmlq_llama_center_to_bytes(const ggmlq_llama_center & center);

// A checksum of bytes (FNV-1a), by which logs name a calibration; of more of them, if it goes on from that of the first ones.
uint64_t    ggmlq_llama_center_checksum(const void * bytes, size_t size, uint64_t sum = 0xcbf29ce484222325);
uint64_t    ggmlq_llama_center_checksum(const std::vector<uint8_t> & bytes);
std::string ggmlq_llama_center_name    (const std::vector<uint8_t> & bytes);

// What is written before the number of streams, and between cells and rows of a stream: nothing where keys aren't centered.
void ggmlq_llama_center_write(const ggmlq_llama_center & center, llama_io_write_i & io);
void ggmlq_llama_center_write_cells(const ggmlq_llama_center & center, llama_io_write_i & io, uint32_t stream,
    const std::vector<std::pair<uint32_t, uint32_t>> & ranges);

// One restore of one cache, from the number of streams on. Keys of the context's own calibration are stored as they are. Of another,
// that calibration is taken over if no other keys are left in the cache; if there are some, or one side isn't centered, rows are converted.
class ggmlq_llama_center_restore {
public:
    // `n_stream` is the first number of the saved cache: the mark of centered keys is replaced by the number behind what it announces.
    // n_layers and n_values: of the context's cache, and of a key of all its layers. Throws if the saved calibration is damaged.
    ggmlq_llama_center_restore(ggmlq_llama_center & center, llama_io_read_i & io, uint32_t & n_stream, size_t n_layers, size_t n_values,
        const llama_kv_cells_vec & cells, llama_seq_id seq_id, bool on_device);
    ~ggmlq_llama_center_restore();

    // What lies between cells and rows of a stream, whose cells are now at idxs. False, after an error message, if it can't be used.
    bool read_cells(llama_io_read_i & io, uint32_t stream, const std::vector<uint32_t> & idxs);

    // Whether K rows of a layer aren't those of this context as they are: then `convert`, which reads from behind the type. False,
    // after an error message, if that can't be done.
    bool converts(int32_t type_saved, const ggml_tensor * k) const;
    bool convert(llama_io_read_i & io, int32_t type_saved, ggml_tensor * k, uint32_t il, uint32_t n, const std::vector<uint32_t> & idxs,
        const ggmlq_llama_rotation & rotation, bool announce);

    // One side of a restore: how keys are centered, or that they aren't.
    struct side {
        struct rope  { uint32_t n_rot; bool neox; float magnitude; std::vector<uint64_t> turns; };
        struct layer { uint32_t il, rope, head_size, n_head_kv; std::vector<float> mean, scale, query; bool has_rope() const { return rope != UINT32_MAX; } };

        bool active  = false;
        bool rotates = false;
        std::vector<uint8_t> bytes;
        std::vector<rope>    ropes;
        std::vector<layer>   layers;

        const layer * find(uint32_t il) const;
        std::string   describe(ggml_type type) const;
    };

private:
    using parts = std::vector<std::vector<uint8_t>>; // [layer][cell]

    void adopt();

    ggmlq_llama_center & center;
    const llama_kv_cells_vec & v_cells;
    const bool on_device;
    bool takes_over = false;
    uint32_t stream = 0;

    std::shared_ptr<side> saved, own;

    // Of the cells of one stream.
    std::vector<int32_t> positions;
    std::shared_ptr<parts> saved_parts, own_parts;
};
