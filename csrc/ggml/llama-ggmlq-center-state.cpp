/* SPDX-License-Identifier: MIT */
#include "llama-ggmlq-center-state.h"
#include "llama-ggmlq-round.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

// In place of a number of streams, so that a llama.cpp that knows nothing of centered keys refuses the state.
static constexpr uint32_t GGMLQ_LLAMA_CENTER_MARK    = 0x63716767; // "ggqc"
static constexpr uint32_t GGMLQ_LLAMA_CENTER_VERSION = 2;

using ggmlq_llama_side = ggmlq_llama_center_restore::side;

// --- a calibration as bytes: u32 ropes, for each u32 n_rot (0: of no centered layer), u32 neox, f32 magnitude, u64 turns[n_rot/2]; u32 layers, for each u32 layer,
// u32 rope (all bits: none, a row of MLA), u32 head size, u32 KV heads, f32 mean[head size * KV heads], f32 scale[the same], f32 mean square of queries[the same]

template <typename T>
static void ggmlq_llama_append(std::vector<uint8_t> & bytes, const T * values, size_t n) {
    const auto * first = (const uint8_t *) values;
    bytes.insert(bytes.end(), first, first + n*sizeof(T));
}

std::vector<uint8_t> ggmlq_llama_center_to_bytes(const ggmlq_llama_center & center) {
    std::vector<uint8_t> bytes;
    const auto number = [&](uint32_t value) { ggmlq_llama_append(bytes, &value, 1); };
    number((uint32_t) center.ropes.size());
    for (const auto & rope : center.ropes) {
        number((uint32_t) (2*rope.turns.size()));
        number(rope.neox);
        ggmlq_llama_append(bytes, &rope.magnitude, 1);
        ggmlq_llama_append(bytes, rope.turns.data(), rope.turns.size());
    }
    const auto is_centered = [](const ggmlq_llama_center_layer & layer) { return layer.is_centered(); };
    number((uint32_t) std::count_if(center.layers.begin(), center.layers.end(), is_centered));
    for (const auto & layer : center.layers) {
        if (is_centered(layer)) {
            number((uint32_t) layer.il);
            number((uint32_t) layer.rope);
            number((uint32_t) layer.head_size);
            number((uint32_t) layer.n_head_kv);
            ggmlq_llama_append(bytes, layer.mean.data(),  layer.mean.size());
            ggmlq_llama_append(bytes, layer.scale.data(), layer.scale.size());
            ggmlq_llama_append(bytes, layer.query.data(), layer.query.size());
        }
    }
    return bytes;
}

// Throws if the bytes can't be a calibration.
static void ggmlq_llama_side_from_bytes(ggmlq_llama_side & side, std::vector<uint8_t> bytes) {
    size_t at = 0;
    const auto take = [&](void * values, size_t size) {
        if (size > bytes.size() - at) {
            throw std::runtime_error("the calibration of the saved keys is damaged");
        }
        memcpy(values, bytes.data() + at, size);
        at += size;
    };
    const auto number = [&](uint32_t most) {
        uint32_t value;
        take(&value, sizeof(value));
        if (value > most) {
            throw std::runtime_error(format("the calibration of the saved keys is damaged: found %u, wanted at most %u", value, most));
        }
        return value;
    };
    const uint32_t most = (uint32_t) bytes.size(); // of anything
    side.ropes.resize(number(most/(3*sizeof(uint32_t))));
    for (auto & rope : side.ropes) {
        rope.n_rot = number(most/sizeof(uint32_t));
        rope.neox  = number(1) != 0;
        take(&rope.magnitude, sizeof(rope.magnitude));
        rope.turns.resize(rope.n_rot/2);
        take(rope.turns.data(), rope.turns.size()*sizeof(uint64_t));
        if (rope.n_rot % 2 != 0 || !(rope.magnitude > 0) || !std::isfinite(rope.magnitude)) {
            throw std::runtime_error(format("the calibration of the saved keys is damaged: found a RoPE of %u values and a magnitude of %g", rope.n_rot, rope.magnitude));
        }
    }
    side.layers.resize(number(most/(4*sizeof(uint32_t))));
    for (auto & layer : side.layers) {
        layer.il        = number(UINT32_MAX);
        layer.rope      = number(UINT32_MAX);
        layer.head_size = number(most);
        layer.n_head_kv = number(most);
        const size_t n = (size_t) layer.head_size*layer.n_head_kv;
        if ((layer.has_rope() && (layer.rope >= side.ropes.size() || side.ropes[layer.rope].n_rot > layer.head_size)) || n > most/(3*sizeof(float))) {
            throw std::runtime_error("the calibration of the saved keys is damaged");
        }
        layer.mean.resize(n);
        layer.scale.resize(n);
        layer.query.resize(n);
        take(layer.mean.data(),  n*sizeof(float));
        take(layer.scale.data(), n*sizeof(float));
        take(layer.query.data(), n*sizeof(float));
        for (size_t i = 0; i < n; ++i) {
            if (!std::isfinite(layer.mean[i]) || !(layer.scale[i] > 0) || !std::isfinite(layer.scale[i]) || !(layer.query[i] >= 0) || !std::isfinite(layer.query[i])) {
                throw std::runtime_error("the calibration of the saved keys is damaged: a mean isn't finite, a scale not positive or a square negative");
            }
        }
    }
    for (uint32_t i = 0; i < side.ropes.size(); ++i) {
        const bool used = std::any_of(side.layers.begin(), side.layers.end(), [i](const ggmlq_llama_side::layer & layer) { return layer.rope == i; });
        if (used != (side.ropes[i].n_rot != 0)) {
            throw std::runtime_error(format("the calibration of the saved keys is damaged: found a RoPE of %u values", side.ropes[i].n_rot));
        }
    }
    if (at != bytes.size()) {
        throw std::runtime_error("the calibration of the saved keys is damaged: it goes on behind its end");
    }
    side.bytes = std::move(bytes);
}

uint64_t ggmlq_llama_center_checksum(const void * bytes, size_t size, uint64_t sum) {
    for (size_t i = 0; i < size; ++i) {
        sum = (sum ^ ((const uint8_t *) bytes)[i])*0x100000001b3;
    }
    return sum;
}

uint64_t ggmlq_llama_center_checksum(const std::vector<uint8_t> & bytes) { return ggmlq_llama_center_checksum(bytes.data(), bytes.size()); }

std::string ggmlq_llama_center_name(const std::vector<uint8_t> & bytes) {
    return format("%08x", (unsigned) (ggmlq_llama_center_checksum(bytes) >> 32));
}

const ggmlq_llama_side::layer * ggmlq_llama_side::find(uint32_t il) const {
    const auto it = std::find_if(layers.begin(), layers.end(), [il](const layer & l) { return l.il == il; });
    return it == layers.end() ? nullptr : &*it;
}

std::string ggmlq_llama_side::describe(ggml_type type) const {
    return std::string(ggml_type_name(type)) + (active ? ", centered by calibration " + ggmlq_llama_center_name(bytes) : ", not centered");
}

// The same layers with the same RoPE, so that one side's mean, scale and turns fit the other. Turns of another machine may differ by what its pow and cos round.
static bool ggmlq_llama_same_layers(const ggmlq_llama_side & a, const ggmlq_llama_side & b) {
    const auto same_turns = [](uint64_t x, uint64_t y) { return std::fabs((double) (int64_t) (x - y)) <= 0x1p-16*std::fabs((double) (int64_t) x) + 0x1p20; };
    const auto same_rope  = [&](const ggmlq_llama_side::rope & x, const ggmlq_llama_side::rope & y) {
        return x.n_rot == y.n_rot && x.neox == y.neox && std::fabs(x.magnitude - y.magnitude) <= 0x1p-16*x.magnitude &&
            std::equal(x.turns.begin(), x.turns.end(), y.turns.begin(), y.turns.end(), same_turns);
    };
    const auto same_layer = [](const ggmlq_llama_side::layer & x, const ggmlq_llama_side::layer & y) {
        return x.il == y.il && x.rope == y.rope && x.head_size == y.head_size && x.n_head_kv == y.n_head_kv;
    };
    return a.active && b.active &&
        std::equal(a.ropes .begin(), a.ropes .end(), b.ropes .begin(), b.ropes .end(), same_rope) &&
        std::equal(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end(), same_layer);
}

// --- cells in memory

// Calls run(first cell, cells, place in idxs) for cells that follow each other.
template <typename F>
static void ggmlq_llama_runs(const std::vector<uint32_t> & idxs, F run) {
    for (size_t i = 0, n; i < idxs.size(); i += n) {
        for (n = 1; i + n < idxs.size() && idxs[i + n] == idxs[i] + n; ++n) {}
        run(idxs[i], n, i);
    }
}

// Rows of a small f16 tensor of cells, as float or from it.
static void ggmlq_llama_set_cells(ggml_tensor * tensor, const std::vector<uint32_t> & idxs, const std::vector<float> & values) {
    const int64_t n = tensor->ne[0];
    std::vector<uint8_t> bytes(idxs.size()*tensor->nb[1]);
    ggml_get_type_traits(tensor->type)->from_float_ref(values.data(), bytes.data(), (int64_t) idxs.size()*n);
    ggmlq_llama_runs(idxs, [&](size_t first, size_t count, size_t i) {
        ggml_backend_tensor_set(tensor, &bytes[i*tensor->nb[1]], first*tensor->nb[1], count*tensor->nb[1]);
    });
}

static std::vector<float> ggmlq_llama_get_cells(const ggml_tensor * tensor, uint32_t first, uint32_t end) {
    std::vector<uint8_t> bytes((end - first)*tensor->nb[1]);
    std::vector<float>   values((size_t) (end - first)*tensor->ne[0]);
    ggml_backend_tensor_get(tensor, bytes.data(), first*tensor->nb[1], bytes.size());
    ggml_get_type_traits(tensor->type)->to_float(bytes.data(), values.data(), (int64_t) values.size());
    return values;
}

// --- saving

void ggmlq_llama_center_write(const ggmlq_llama_center & center, llama_io_write_i & io) {
    if (!center.active) {
        return;
    }
    const auto bytes = ggmlq_llama_center_to_bytes(center);
    const uint32_t head[] = { GGMLQ_LLAMA_CENTER_MARK, GGMLQ_LLAMA_CENTER_VERSION, center.rotates, (uint32_t) bytes.size() };
    const uint64_t sum = ggmlq_llama_center_checksum(bytes);
    io.write(head, sizeof(head));
    io.write(bytes.data(), bytes.size());
    io.write(&sum, sizeof(sum));
}

void ggmlq_llama_center_write_cells(const ggmlq_llama_center & center, llama_io_write_i & io, uint32_t stream,
        const std::vector<std::pair<uint32_t, uint32_t>> & ranges) {
    if (!center.active) {
        return;
    }
    for (const auto & layer : center.layers) {
        if (layer.rope < 0) {
            continue;
        }
        for (const auto & range : ranges) {
            const auto part = ggmlq_llama_get_cells(layer.part_stream[stream], range.first, range.second);
            const std::vector<uint8_t> bytes(part.begin(), part.end());
            io.write(bytes.data(), bytes.size());
        }
    }
}

// --- restoring

ggmlq_llama_center_restore::ggmlq_llama_center_restore(ggmlq_llama_center & center, llama_io_read_i & io, uint32_t & n_stream, size_t n_layers,
        size_t n_values, const llama_kv_cells_vec & cells, llama_seq_id seq_id, bool on_device) :
    center(center), v_cells(cells), on_device(on_device), saved(std::make_shared<side>()), own(std::make_shared<side>()) {
    own->active  = center.active;
    own->rotates = center.active && center.rotates;
    if (own->active) {
        ggmlq_llama_side_from_bytes(*own, ggmlq_llama_center_to_bytes(center));
    }
    if (n_stream == GGMLQ_LLAMA_CENTER_MARK) {
        uint32_t head[3]; // version, rotates, bytes
        uint64_t sum;
        io.read(head, sizeof(head));
        if (head[0] != GGMLQ_LLAMA_CENTER_VERSION) {
            throw std::runtime_error(format("the saved keys are centered in a way (version %u) that this llama.cpp doesn't know, wanted version %u: "
                "let the prompt be computed again", head[0], GGMLQ_LLAMA_CENTER_VERSION));
        }
        if (head[1] > 1 || head[2] > sizeof(uint32_t)*(2 + 3*n_layers + 4*n_layers) + (3 + 1)*sizeof(float)*n_values) { // a turn has 4 bytes a value
            throw std::runtime_error(format("the calibration of the saved keys is damaged, or of another model: found %u bytes", head[2]));
        }
        std::vector<uint8_t> bytes(head[2]);
        io.read(bytes.data(), bytes.size());
        io.read(&sum, sizeof(sum));
        if (sum != ggmlq_llama_center_checksum(bytes)) {
            throw std::runtime_error("the calibration of the saved keys is damaged: its checksum is wrong");
        }
        saved->active  = true;
        saved->rotates = head[1] != 0;
        ggmlq_llama_side_from_bytes(*saved, std::move(bytes));
        io.read(&n_stream, sizeof(n_stream));
    }
    takes_over = saved->bytes != own->bytes && ggmlq_llama_same_layers(*saved, *own);
    for (const auto & stream_cells : cells) { // of other sequences than those that are replaced
        for (uint32_t i = 0; takes_over && seq_id >= 0 && i < stream_cells.size(); ++i) {
            takes_over = stream_cells.is_empty(i) || (stream_cells.seq_has(i, seq_id) && stream_cells.seq_count(i) == 1);
        }
    }
    center.restore = this;
}

ggmlq_llama_center_restore::~ggmlq_llama_center_restore() {
    center.restore = nullptr;
}

void ggmlq_llama_center_restore::adopt() {
    LLAMA_LOG_INFO("%s: keys are centered by the saved calibration %s from now on, not by this context's own, %s\n", __func__,
        ggmlq_llama_center_name(saved->bytes).c_str(), ggmlq_llama_center_name(own->bytes).c_str());
    const auto action = [&center = center, saved = saved]() {
        for (size_t i = 0; i < saved->ropes.size(); ++i) {
            center.ropes[i].turns     = saved->ropes[i].turns;
            center.ropes[i].magnitude = saved->ropes[i].magnitude;
        }
        for (const auto & layer : saved->layers) {
            for (auto & mine : center.layers) {
                if (mine.is_centered() && mine.il == (int32_t) layer.il) {
                    mine.mean  = layer.mean;
                    mine.scale = layer.scale;
                    mine.query = layer.query;
                }
            }
        }
        center.fill();
    };
    if (!ggmlq_llama_postpone(action)) {
        action();
    }
    own = std::make_shared<side>(*saved);
    own->rotates = center.rotates;
    takes_over   = false;
}

bool ggmlq_llama_center_restore::read_cells(llama_io_read_i & io, uint32_t stream, const std::vector<uint32_t> & idxs) {
    if (!saved->active && !own->active) {
        return true;
    }
    this->stream = stream;
    if (takes_over) { // whatever these replace is gone
        adopt();
    }
    positions.clear();
    for (const uint32_t i : idxs) {
        positions.push_back(v_cells[stream].pos_get(i));
    }
    saved_parts = std::make_shared<parts>();
    for (const auto & layer : saved->layers) {
        std::vector<uint8_t> part(idxs.size(), 1);
        if (layer.has_rope()) {
            io.read(part.data(), part.size());
        }
        if (std::any_of(part.begin(), part.end(), [](uint8_t value) { return value > 1; })) {
            LLAMA_LOG_ERROR("%s: which keys of layer %u are centered is damaged in this state\n", __func__, layer.il);
            return false;
        }
        saved_parts->push_back(std::move(part));
    }
    if (!own->active) {
        return true;
    }
    if (saved->bytes == own->bytes) {
        own_parts = saved_parts;
    } else {
        own_parts = std::make_shared<parts>(own->layers.size(), std::vector<uint8_t>(idxs.size(), 0)); // `convert` decides
    }
    const auto action = [&center = center, own_parts = own_parts, idxs, stream]() {
        size_t i = 0;
        for (const auto & layer : center.layers) {
            if (!layer.is_centered()) {
                continue;
            }
            const auto & part = (*own_parts)[i++];
            if (layer.part) {
                ggmlq_llama_set_cells(layer.part_stream[stream], idxs, std::vector<float>(part.begin(), part.end()));
            }
        }
    };
    if (!ggmlq_llama_postpone(action)) {
        action();
    }
    return true;
}

bool ggmlq_llama_center_restore::converts(int32_t type_saved, const ggml_tensor * k) const {
    return (saved->active || own->active) && (saved->bytes != own->bytes || saved->rotates != own->rotates || type_saved != (int32_t) k->type);
}

// R mu of a cell, of all KV heads.
static std::vector<float> ggmlq_llama_turned_mean(const ggmlq_llama_side::layer & layer, const std::vector<ggmlq_llama_side::rope> & ropes, int32_t position) {
    if (!layer.has_rope()) {
        return layer.mean;
    }
    const auto & rope = ropes[layer.rope];
    const size_t half = rope.n_rot/2;
    std::vector<float> c(rope.n_rot), result(layer.mean.size(), 0.0f);
    ggmlq_llama_center_row(rope.turns, rope.neox, position, c.data());
    for (size_t h = 0; h < result.size(); h += layer.head_size) {
        const float * m = &layer.mean[h];
        for (size_t pair = 0; pair < half; ++pair) {
            const size_t i = rope.neox ? pair : 2*pair;
            const size_t j = rope.neox ? pair + half : 2*pair + 1;
            result[h + i] = rope.magnitude*(m[i]*c[i] - m[j]*c[j]);
            result[h + j] = rope.magnitude*(m[i]*c[j] + m[j]*c[i]);
        }
    }
    return result;
}

bool ggmlq_llama_center_restore::convert(llama_io_read_i & io, int32_t type_saved, ggml_tensor * k, uint32_t il, uint32_t n,
        const std::vector<uint32_t> & idxs, const ggmlq_llama_rotation & rotation, bool announce) {
    const std::string found  = saved->describe(ggmlq_llama_can_convert(type_saved) ? (ggml_type) type_saved : k->type);
    const std::string wanted = own->describe(k->type);
    const auto refuse = [&](const std::string & reason) {
        LLAMA_LOG_ERROR("ggmlq_llama_center_restore: the saved K cache is %s, this context's is %s: %s\n", found.c_str(), wanted.c_str(), reason.c_str());
        return false;
    };
    if (on_device) {
        return refuse("a state whose rows lie on the device can't be converted, save it without LLAMA_STATE_SEQ_FLAGS_ON_DEVICE");
    }
    const auto * from = saved->find(il);
    const auto * to   = own->find(il);
    for (const auto * layer : { from, to }) {
        if (layer && (size_t) layer->head_size*layer->n_head_kv != n) {
            return refuse(format("found keys of %u values in layer %u, wanted %u", layer->head_size*layer->n_head_kv, il, n));
        }
    }
    const int64_t turn_from = ggmlq_llama_turn(saved->active, saved->rotates, (ggml_type) type_saved, k->type, rotation);
    const int64_t turn_to   = ggmlq_llama_turn(own->active,   own->rotates,   k->type,                k->type, rotation);
    if (turn_from < 0 || turn_to < 0) {
        return refuse("the file doesn't say whether its rows are rotated, and for this model it isn't known: restore it with the keys it was saved with");
    }

    ggmlq_llama_row_change change;
    change.turn_from = turn_from;
    change.turn_to   = turn_to;
    if (saved->bytes != own->bytes && (from || to)) {
        const size_t at_from = from ? from - saved->layers.data() : 0;
        const size_t at_to   = to   ? to   - own->layers.data()   : 0;
        const ggmlq_llama_center_layer * layer_to = nullptr;
        for (const auto & layer : center.layers) {
            if (to && layer.is_centered() && layer.il == (int32_t) il) {
                layer_to = &layer;
            }
        }
        const float gain = to && to->has_rope() ? ggmlq_llama_center_gain(k->type) : 1.0f;
        const auto rounds = layer_to ? layer_to->rounds : nullptr;
        change.change = [saved = saved, own = own, positions = positions, saved_parts = saved_parts, own_parts = own_parts, from, to, at_from, at_to, gain,
                rounds](size_t row, float * x) {
            if (from) {
                const bool part = (*saved_parts)[at_from][row] != 0;
                const auto mean = ggmlq_llama_turned_mean(*from, saved->ropes, positions[row]);
                for (size_t j = 0; j < mean.size(); ++j) {
                    x[j] = x[j]/from->scale[j] + (part ? mean[j] : 0.0f);
                }
            }
            if (to) { // as ggmlq_llama_center_graph does: the shorter of S k and S (k - R mu), longer by the gain, rounded for the queries
                double along = 0, square = 0;
                const auto mean = ggmlq_llama_turned_mean(*to, own->ropes, positions[row]);
                for (size_t j = 0; j < mean.size(); ++j) {
                    along  += (double) to->scale[j]*x[j]*to->scale[j]*mean[j];
                    square += (double) to->scale[j]*mean[j]*to->scale[j]*mean[j];
                }
                const bool part = !to->has_rope() || along > square/2;
                (*own_parts)[at_to][row] = part;
                for (size_t j = 0; j < mean.size(); ++j) {
                    x[j] = gain*to->scale[j]*(x[j] - (part ? mean[j] : 0.0f));
                }
                for (size_t h = 0; rounds && h < rounds->size(); ++h) {
                    (*rounds)[h](x + h*to->head_size, x + h*to->head_size);
                }
            }
        };
        if (layer_to && layer_to->part) {
            change.after = [own_parts = own_parts, at_to, tensor = layer_to->part_stream[stream], idxs]() {
                const auto & part = (*own_parts)[at_to];
                ggmlq_llama_set_cells(tensor, idxs, std::vector<float>(part.begin(), part.end()));
            };
        }
    }
    if (announce) {
        LLAMA_LOG_WARN("%s: the saved K cache is %s, this context's is %s: converting\n", __func__, found.c_str(), wanted.c_str());
    }
    return ggmlq_llama_change_rows(io, type_saved, k, n, idxs, change);
}
