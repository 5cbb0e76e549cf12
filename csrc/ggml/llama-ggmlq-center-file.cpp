/* SPDX-License-Identifier: MIT */
#include "llama-ggmlq-center-file.h"

#include "llama-ggmlq-center-state.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <regex>
#include <stdexcept>

static const char * const GGMLQ_LLAMA_CENTER_ARCH = "ggmlq-kv-center";
static const char * const GGMLQ_LLAMA_CENTER_CHECKSUM = "ggmlq.checksum";
static constexpr uint32_t GGMLQ_LLAMA_CENTER_FILE_VERSION = 3;

struct ggmlq_llama_gguf_deleter { void operator()(gguf_context * file) const { gguf_free(file); } };
using ggmlq_llama_gguf = std::unique_ptr<gguf_context, ggmlq_llama_gguf_deleter>;

// A model is known by its shape and its norms, which are stored as they were trained in files of every quantization.
static std::string ggmlq_llama_center_fingerprint(const llama_model & model) {
    std::vector<uint8_t> bytes;
    const auto add = [&](const void * data, size_t size) { bytes.insert(bytes.end(), (const uint8_t *) data, (const uint8_t *) data + size); };
    const int32_t shape[] = { llama_model_n_layer(&model), llama_model_n_embd(&model), llama_vocab_n_tokens(llama_model_get_vocab(&model)) };
    add(shape, sizeof(shape));
    for (int32_t il = -1; il < shape[0]; ++il) {
        const std::string name = il < 0 ? "output_norm.weight" : format("blk.%d.attn_norm.weight", il);
        const ggml_tensor * norm = model.get_tensor(name.c_str());
        if (norm && norm->buffer && norm->type == GGML_TYPE_F32) {
            std::vector<uint8_t> values(ggml_nbytes(norm));
            ggml_backend_tensor_get(norm, values.data(), 0, values.size());
            add(values.data(), values.size());
        }
    }
    return format("%016llx", (unsigned long long) ggmlq_llama_center_checksum(bytes));
}

static std::string ggmlq_llama_center_model_name(const std::string & name, const std::string & architecture, const std::string & fingerprint) {
    return "'" + name + "' (" + architecture + ", " + fingerprint + ")";
}

// The node's parameters, and a checksum of the frequency factors.
static std::vector<int32_t> ggmlq_llama_center_rope_facts(const ggmlq_llama_center_rope & rope) {
    std::vector<int32_t> facts(rope.params.size()/sizeof(int32_t) + 2);
    memcpy(facts.data(), rope.params.data(), rope.params.size());
    if (rope.factors) {
        std::vector<uint8_t> values(ggml_nbytes(rope.factors));
        ggml_backend_tensor_get(rope.factors, values.data(), 0, values.size());
        const uint64_t sum = ggmlq_llama_center_checksum(values);
        memcpy(&facts[facts.size() - 2], &sum, sizeof(sum));
    }
    return facts;
}

// What of a layer's shape and RoPE its calibration depends on.
static std::vector<int32_t> ggmlq_llama_center_facts(const ggmlq_llama_center & center, const ggmlq_llama_center_layer & layer) {
    return layer.n_latent ? std::vector<int32_t> { (int32_t) layer.n_latent } : ggmlq_llama_center_rope_facts(center.ropes[layer.rope]);
}

static std::string ggmlq_llama_center_describe_rope(const std::vector<int32_t> & facts) {
    float values[6]; // from op_params[5] on
    memcpy(values, &facts[5], sizeof(values));
    return format("%d values, base %g, scale %g, YaRN %g with %d tokens, frequency factors %08x", facts[1], values[0], values[1], values[2],
        facts[4], (unsigned) facts.back());
}

static std::string ggmlq_llama_center_tensor(int32_t il, const char * what) { return format("blk.%d.%s", il, what); }

// What K may be stored as, for the expected error of scores. e: squared error over square of rows of normal values, which rotated ones nearly are.
static const struct { const char * name; int64_t length; double e; bool is_centered; } GGMLQ_LLAMA_CENTER_TYPES[] = {
    { "q8_0", 32, 2.87e-5, false }, { "q4_0", 32, 7.38e-3, false }, { "tq3_0", 32, 2.56e-2, true }, { "planar3", 128, 3.18e-2, true },
};

// By the moments: the root mean square error of a layer's scores, as softmax gets them, with K of each type; 0 for a type that has no heads of this size.
// The error of a stored row, e of its square, is spread evenly over the n values of its head, so that of a product with a query has the square
// e/n (sum of q^2/s^2) (sum of s^2 k^2), k being what is stored, before its scale: with s^4 = q^2/variance, e/n (sum of the roots of q^2 variance)^2. What
// rounding for queries takes off is left out. Latents of MLA aren't scaled.
static std::vector<float> ggmlq_llama_center_score_error(const ggmlq_llama_center_layer & layer, const std::vector<ggmlq_llama_center_rope> & ropes) {
    const int64_t n_mean = layer.n_latent ? layer.n_latent : ropes[layer.rope].n_rot;
    double plain = 0, centered = 0; // the sums in brackets
    for (int64_t h = 0; h < layer.n_head_kv*layer.head_size; h += layer.head_size) {
        double both = 0, of_query = 0, of_key = 0, of_rest = 0;
        for (int64_t i = 0; i < layer.head_size; ++i) {
            const int64_t j = layer.n_latent ? i : ggmlq_llama_center_partner(ropes[layer.rope], i);
            const auto mean_of = [&](int64_t v) { return v < n_mean ? layer.sum_k[h + v]*layer.sum_k[h + v]/layer.n_k/layer.n_k : 0; };
            const double query  = 0.5*(layer.sum_qq[h + i] + layer.sum_qq[h + j])/layer.n_q;
            const double square = 0.5*(layer.sum_kk[h + i] + layer.sum_kk[h + j])/layer.n_k;
            const double rest   = std::max(0.0, square - 0.5*(mean_of(i) + mean_of(j)));
            both     += std::sqrt(query*rest);
            of_query += query;
            of_key   += square;
            of_rest  += rest;
        }
        plain    += of_query*of_key;
        centered += layer.n_latent ? of_query*of_rest : both*both;
    }
    std::vector<float> errors;
    for (const auto & type : GGMLQ_LLAMA_CENTER_TYPES) {
        const double square = type.e*(type.is_centered ? centered : plain)/layer.head_size/layer.n_head_kv;
        errors.push_back(layer.head_size % type.length ? 0.0f : (float) (layer.kq_scale*std::sqrt(square)));
    }
    return errors;
}

// Of all that a file says, but for this checksum itself, which is zeros meanwhile, and of all tensors.
static std::string ggmlq_llama_center_sum(gguf_context * file, ggml_context * ctx) {
    gguf_set_val_str(file, GGMLQ_LLAMA_CENTER_CHECKSUM, "0000000000000000");
    std::vector<uint8_t> bytes(gguf_get_meta_size(file));
    gguf_get_meta_data(file, bytes.data());
    uint64_t sum = ggmlq_llama_center_checksum(bytes);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) { // in the file's order
        sum = ggmlq_llama_center_checksum(t->name, strlen(t->name), sum);
        sum = ggmlq_llama_center_checksum(t->data, ggml_nbytes(t), sum);
    }
    return format("%016llx", (unsigned long long) sum);
}

ggmlq_llama_center_record ggmlq_llama_center_record_of(const llama_model & model, const std::vector<ggmlq_llama_center *> & centers,
        const ggmlq_llama_center_text & text) {
    ggmlq_llama_center_record record = { "", model.name, model.arch_name(), ggmlq_llama_center_fingerprint(model), text, {} };
    for (const auto * center : centers) {
        for (const auto & layer : center->layers) {
            if (!layer.is_centered()) {
                continue;
            }
            const auto mean = [](const std::vector<double> & sums, int64_t n) {
                std::vector<float> values;
                for (const double sum : sums) {
                    values.push_back((float) (sum/n));
                }
                return values;
            };
            record.layers.push_back({ layer.il, layer.head_size, layer.n_head_kv, ggmlq_llama_center_facts(*center, layer),
                mean(layer.sum_k, layer.n_k), mean(layer.sum_kk, layer.n_k), mean(layer.sum_qq, layer.n_q),
                ggmlq_llama_center_score_error(layer, center->ropes) });
        }
    }
    return record;
}

void ggmlq_llama_center_apply(const ggmlq_llama_center_record & record, const llama_model & model, const std::vector<ggmlq_llama_center *> & centers) {
    const std::string fingerprint = record.key.empty() ? ggmlq_llama_center_fingerprint(model) : record.fingerprint; // a key knows the model better
    if (record.fingerprint != fingerprint) {
        throw std::runtime_error("was made for " + ggmlq_llama_center_model_name(record.name, record.architecture, record.fingerprint) +
            ", this model is " + ggmlq_llama_center_model_name(model.name, model.arch_name(), fingerprint));
    }
    for (auto * center : centers) {
        for (auto & layer : center->layers) {
            if (!layer.is_centered()) {
                continue;
            }
            const auto it = std::find_if(record.layers.begin(), record.layers.end(), [&](const auto & l) { return l.il == layer.il; });
            if (it == record.layers.end()) {
                throw std::runtime_error(format("knows nothing of layer %d", layer.il));
            }
            const auto facts = ggmlq_llama_center_facts(*center, layer);
            if (it->rope.size() != facts.size() || (layer.n_latent && it->rope != facts) || it->head_size != layer.head_size || it->n_head_kv != layer.n_head_kv) {
                throw std::runtime_error(format("has another shape in layer %d", layer.il));
            }
            if (it->rope != facts) {
                throw std::runtime_error(format("was made with another RoPE in layer %d: ", layer.il) + ggmlq_llama_center_describe_rope(it->rope) +
                    "; this context has " + ggmlq_llama_center_describe_rope(facts));
            }
            layer.sum_k .assign(it->mean.begin(), it->mean.end());
            layer.sum_kk.assign(it->k_square.begin(), it->k_square.end());
            layer.sum_qq.assign(it->query.begin(), it->query.end());
            layer.n_k = layer.n_q = 1; // means are sums over one
        }
    }
}

void ggmlq_llama_center_save(const std::string & path, const ggmlq_llama_center_record & record) {
    size_t size = 4096;
    for (const auto & layer : record.layers) {
        size += 3*(layer.mean.size()*sizeof(float) + ggml_tensor_overhead() + GGML_MEM_ALIGN);
    }
    ggml_init_params params = { size, nullptr, false };
    ggml_context_ptr ctx { ggml_init(params) };
    ggmlq_llama_gguf file { gguf_init_empty() };
    gguf_set_val_str(file.get(), "general.architecture", GGMLQ_LLAMA_CENTER_ARCH);
    gguf_set_val_u32(file.get(), "ggmlq.version", GGMLQ_LLAMA_CENTER_FILE_VERSION);
    if (!record.key.empty()) {
        gguf_set_val_str(file.get(), "ggmlq.key", record.key.c_str());
    }
    gguf_set_val_str(file.get(), "ggmlq.model.name", record.name.c_str());
    gguf_set_val_str(file.get(), "ggmlq.model.architecture", record.architecture.c_str());
    gguf_set_val_str(file.get(), "ggmlq.model.fingerprint", record.fingerprint.c_str());
    gguf_set_val_u32(file.get(), "ggmlq.text.tokens", record.text.n_tokens);
    gguf_set_val_u32(file.get(), "ggmlq.text.window", record.text.n_window);
    gguf_set_val_u64(file.get(), "ggmlq.text.bytes", record.text.n_bytes);
    gguf_set_val_str(file.get(), "ggmlq.text.checksum", format("%016llx", (unsigned long long) record.text.checksum).c_str());
    for (size_t type = 0; type < std::size(GGMLQ_LLAMA_CENTER_TYPES); ++type) {
        std::vector<float> errors;
        for (const auto & layer : record.layers) {
            errors.push_back(layer.score_error.at(type));
        }
        gguf_set_arr_data(file.get(), format("ggmlq.score_error.%s", GGMLQ_LLAMA_CENTER_TYPES[type].name).c_str(), GGUF_TYPE_FLOAT32, errors.data(), errors.size());
    }
    for (const auto & layer : record.layers) {
        gguf_set_arr_data(file.get(), ggmlq_llama_center_tensor(layer.il, "rope").c_str(), GGUF_TYPE_INT32, layer.rope.data(), layer.rope.size());
        const auto add = [&](const char * what, const std::vector<float> & values) {
            ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.head_size, layer.n_head_kv);
            ggml_set_name(t, ggmlq_llama_center_tensor(layer.il, what).c_str());
            memcpy(t->data, values.data(), values.size()*sizeof(float));
            gguf_add_tensor(file.get(), t);
        };
        add("k_mean",    layer.mean);
        add("k_squares", layer.k_square);
        add("q_squares", layer.query);
    }
    gguf_set_val_str(file.get(), GGMLQ_LLAMA_CENTER_CHECKSUM, ggmlq_llama_center_sum(file.get(), ctx.get()).c_str());

    // several processes may write the same file: each its own, and the last one stays
    const std::string part = path + format(".%llx.part", (unsigned long long) (ggml_time_us() ^ (int64_t) (uintptr_t) file.get()));
    const auto target = std::filesystem::u8path(path), source = std::filesystem::u8path(part);
    const auto refuse = [&](const std::string & reason) {
        std::error_code ignored;
        std::filesystem::remove(source, ignored);
        throw std::runtime_error("'" + path + "' can't be written: " + reason);
    };
    errno = 0;
    if (!gguf_write_to_file(file.get(), part.c_str(), false)) {
        refuse(errno ? strerror(errno) : "is the disk full?");
    }
    try {
        ggmlq_llama_center_load(part); // since ggml overlooks it if the last bytes don't reach a full disk
    } catch (const std::exception & error) {
        refuse(std::string("what was written ") + error.what() + "; is the disk full?");
    }
    std::error_code problem;
    std::filesystem::rename(source, target, problem);
    if (problem) {
        refuse(problem.message());
    }
}

ggmlq_llama_center_record ggmlq_llama_center_load(const std::string & path) {
    const auto refuse = [&](const std::string & reason) { throw std::runtime_error(reason); };

    ggml_context * data = nullptr;
    gguf_init_params params = { true, &data }; // without its tensors, since it may be a whole model
    ggmlq_llama_gguf file { gguf_init_from_file(path.c_str(), params) };
    ggml_context_ptr ctx { data };
    const auto text = [&](const char * key) -> std::string {
        const int64_t id = gguf_find_key(file.get(), key);
        return id >= 0 && gguf_get_kv_type(file.get(), id) == GGUF_TYPE_STRING ? gguf_get_val_str(file.get(), id) : "";
    };
    const auto number = [&](const char * key) -> uint32_t {
        const int64_t id = gguf_find_key(file.get(), key);
        return id >= 0 && gguf_get_kv_type(file.get(), id) == GGUF_TYPE_UINT32 ? gguf_get_val_u32(file.get(), id) : 0;
    };
    if (!file) {
        refuse("is no calibration of centered keys, or damaged");
    }
    if (text("general.architecture") != GGMLQ_LLAMA_CENTER_ARCH) {
        refuse("is no calibration of centered keys, but a GGUF file of '" + text("general.architecture") + "'");
    }
    if (number("ggmlq.version") != GGMLQ_LLAMA_CENTER_FILE_VERSION) {
        refuse(format("is of version %u, wanted %u", number("ggmlq.version"), GGMLQ_LLAMA_CENTER_FILE_VERSION));
    }
    size_t size = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); ++i) {
        size = std::max(size, gguf_get_tensor_offset(file.get(), i) + gguf_get_tensor_size(file.get(), i));
    }
    const auto source = std::filesystem::u8path(path);
    std::error_code problem;
    const auto size_of_file = std::filesystem::file_size(source, problem);
    const size_t first = gguf_get_data_offset(file.get());
    if (problem || first > size_of_file || size > size_of_file - first) { // before as much memory is asked for as a damaged one wants
        refuse("is damaged: it ends too early");
    }
    std::vector<char> values(size);
    std::ifstream stream(source, std::ios::binary);
    if (!stream.seekg((std::streamoff) first).read(values.data(), (std::streamsize) size)) {
        refuse("is damaged: it ends too early");
    }
    int64_t index = 0;
    for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) { // in the file's order
        t->data = values.data() + gguf_get_tensor_offset(file.get(), index++);
    }
    const std::string checksum = text(GGMLQ_LLAMA_CENTER_CHECKSUM);
    if (checksum != ggmlq_llama_center_sum(file.get(), ctx.get())) {
        refuse("is damaged: its checksum is wrong");
    }
    ggmlq_llama_center_record record = { text("ggmlq.key"), text("ggmlq.model.name"), text("ggmlq.model.architecture"), text("ggmlq.model.fingerprint"),
        { number("ggmlq.text.tokens"), number("ggmlq.text.window"), 0, 0 }, {} };
    for (int64_t key = 0; key < gguf_get_n_kv(file.get()); ++key) {
        ggmlq_llama_center_record::layer layer;
        int end = 0;
        const char * name = gguf_get_key(file.get(), key);
        if (sscanf(name, "blk.%d.rope%n", &layer.il, &end) != 1 || !end || name[end] || gguf_get_kv_type(file.get(), key) != GGUF_TYPE_ARRAY ||
            gguf_get_arr_type(file.get(), key) != GGUF_TYPE_INT32) {
            continue;
        }
        const auto * first = (const int32_t *) gguf_get_arr_data(file.get(), key);
        layer.rope.assign(first, first + gguf_get_arr_n(file.get(), key));
        const auto take = [&](const char * what, std::vector<float> & values) {
            const ggml_tensor * t = ggml_get_tensor(ctx.get(), ggmlq_llama_center_tensor(layer.il, what).c_str());
            const ggml_tensor * mean = ggml_get_tensor(ctx.get(), ggmlq_llama_center_tensor(layer.il, "k_mean").c_str());
            if (!t || !mean || t->type != GGML_TYPE_F32 || !ggml_are_same_shape(t, mean) || ggml_nelements(t) != t->ne[0]*t->ne[1]) {
                refuse(format("has no %s of layer %d, or another shape", what, layer.il));
            }
            layer.head_size = t->ne[0];
            layer.n_head_kv = t->ne[1];
            values.assign((const float *) t->data, (const float *) t->data + ggml_nelements(t));
            for (const float value : values) {
                if (!std::isfinite(value) || (value < 0 && &values != &layer.mean)) {
                    refuse(format("has a %s of %g in layer %d", what, value, layer.il));
                }
            }
        };
        take("k_mean",    layer.mean);
        take("k_squares", layer.k_square);
        take("q_squares", layer.query);
        record.layers.push_back(std::move(layer));
    }
    return record;
}

// --- kept for later contexts

// Bytes of a tensor on a GPU that belong to a position of a list: read together, since to wait for each takes longer.
struct ggmlq_llama_part { const ggml_tensor * tensor; size_t offset, size, at; };

// Norms whole, of others some bytes from the middle; none where its memory can be read as a whole only (matrices that are split over GPUs by rows).
static void ggmlq_llama_center_sample_tensor(const ggml_tensor * tensor, std::vector<uint8_t> & bytes, std::map<ggml_backend_dev_t, std::vector<ggmlq_llama_part>> & parts) {
    if (!tensor->buffer || !tensor->data) {
        return;
    }
    const bool is_norm = tensor->type == GGML_TYPE_F32 && ggml_nelements(tensor) == tensor->ne[0];
    const size_t size = std::min<size_t>(ggml_nbytes(tensor), is_norm ? SIZE_MAX : 128), offset = (ggml_nbytes(tensor) - size)/2, at = bytes.size();
    const ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(tensor->buffer);
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    if (ggml_backend_buffer_is_host(tensor->buffer) || (dev && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU)) {
        bytes.resize(at + size);
        memcpy(&bytes[at], (const uint8_t *) tensor->data + offset, size); // where it was repacked, of that
    } else if (dev && ggml_backend_dev_type(dev) != GGML_BACKEND_DEVICE_TYPE_META && buft == ggml_backend_dev_buffer_type(dev)) {
        bytes.resize(at + size);
        parts[dev].push_back({ tensor, offset, size, at });
    }
}

static void ggmlq_llama_center_read_parts(const std::vector<ggmlq_llama_part> & parts, std::vector<uint8_t> & bytes, ggml_backend_dev_t dev, ggml_backend_t backend) {
    size_t size = 0;
    for (const auto & part : parts) {
        size += part.size;
    }
    const ggml_backend_buffer_type_t buft = backend ? ggml_backend_dev_host_buffer_type(dev) : nullptr; // to which a GPU copies while others go on
    const ggml_backend_buffer_ptr buffer { buft ? ggml_backend_buft_alloc_buffer(buft, size) : nullptr };
    if (!buffer) {
        for (const auto & part : parts) {
            ggml_backend_tensor_get(part.tensor, &bytes[part.at], part.offset, part.size);
        }
        return;
    }
    auto * to = (uint8_t *) ggml_backend_buffer_get_base(buffer.get());
    for (const auto & part : parts) {
        ggml_backend_tensor_get_async(backend, part.tensor, to, part.offset, part.size);
        to += part.size;
    }
    ggml_backend_synchronize(backend);
    to = (uint8_t *) ggml_backend_buffer_get_base(buffer.get());
    for (const auto & part : parts) {
        memcpy(&bytes[part.at], to, part.size);
        to += part.size;
    }
}

static void ggmlq_llama_center_add(std::vector<uint8_t> & bytes, const void * data, size_t size) {
    const uint64_t length = size;
    bytes.insert(bytes.end(), (const uint8_t *) &length, (const uint8_t *) (&length + 1));
    bytes.insert(bytes.end(), (const uint8_t *) data, (const uint8_t *) data + size);
}

static void ggmlq_llama_center_add(std::vector<uint8_t> & bytes, const std::string & text) { ggmlq_llama_center_add(bytes, text.data(), text.size()); }

std::vector<uint8_t> ggmlq_llama_center_sample(const llama_model & model, const std::function<ggml_backend_t(ggml_backend_dev_t)> & backend_of) {
    std::vector<uint8_t> bytes;
    const auto & tensors = llama_internal_get_tensor_map(&model);
    bytes.reserve(tensors.size()*(2*128 + (size_t) llama_model_n_embd(&model)*sizeof(float))); // more than it takes, which costs less than to grow
    ggmlq_llama_center_add(bytes, &GGMLQ_LLAMA_CENTER_FILE_VERSION, sizeof(GGMLQ_LLAMA_CENTER_FILE_VERSION));
    for (const auto & [name, value] : std::map<std::string, std::string>(model.gguf_kv.begin(), model.gguf_kv.end())) {
        ggmlq_llama_center_add(bytes, name);
        ggmlq_llama_center_add(bytes, value);
    }
    std::map<ggml_backend_dev_t, std::vector<ggmlq_llama_part>> parts;
    for (const auto & [name, tensor] : tensors) {
        ggmlq_llama_center_add(bytes, name);
        ggmlq_llama_center_add(bytes, &tensor->type, sizeof(tensor->type));
        ggmlq_llama_center_add(bytes, tensor->ne, sizeof(tensor->ne));
        ggmlq_llama_center_sample_tensor(tensor, bytes, parts);
    }
    for (const auto & [dev, parts_there] : parts) {
        ggmlq_llama_center_read_parts(parts_there, bytes, dev, backend_of(dev));
    }
    return bytes;
}

std::string ggmlq_llama_center_key(std::vector<uint8_t> bytes, const std::string & text, const std::vector<ggmlq_llama_center *> & centers) {
    ggmlq_llama_center_add(bytes, text);
    for (const auto * center : centers) {
        ggmlq_llama_center_add(bytes, &center->type_v, sizeof(center->type_v));
        for (const auto & layer : center->layers) {
            const int64_t facts[] = { layer.il, layer.is_centered(), layer.head_size, layer.n_head_kv, layer.n_head, layer.k->type };
            ggmlq_llama_center_add(bytes, facts, sizeof(facts));
            if (layer.is_centered()) {
                const auto more = ggmlq_llama_center_facts(*center, layer);
                ggmlq_llama_center_add(bytes, more.data(), more.size()*sizeof(int32_t));
            }
        }
    }
    bytes.resize((bytes.size() + 7)/8*8);
    uint64_t sum = 0xcbf29ce484222325; // FNV-1a of words and a shift, since the lowest bits would only know of the lowest
    for (size_t i = 0; i < bytes.size(); i += 8) {
        uint64_t word;
        memcpy(&word, &bytes[i], sizeof(word));
        sum = (sum ^ word)*0x100000001b3;
        sum ^= sum >> 29;
    }
    return format("%016llx", (unsigned long long) sum);
}

static std::string ggmlq_llama_center_variable(const char * name) {
    const char * value = getenv(name);
    return value ? value : "";
}

// Where llama.cpp's programs keep what they have downloaded (fs_get_cache_directory of common), or where the user wants it. Empty: nowhere.
static std::string ggmlq_llama_center_kept_folder() {
    const std::string own = ggmlq_llama_center_variable("GGMLQ_KV_CENTER_CACHE");
    if (!own.empty()) {
        return own == "off" ? "" : own;
    }
    std::string folder = ggmlq_llama_center_variable("LLAMA_CACHE");
    if (folder.empty()) {
#if defined(_WIN32)
        folder = ggmlq_llama_center_variable("LOCALAPPDATA");
#elif defined(__APPLE__)
        folder = ggmlq_llama_center_variable("HOME");
        folder += folder.empty() ? "" : "/Library/Caches";
#else
        folder = ggmlq_llama_center_variable("XDG_CACHE_HOME");
        if (folder.empty()) {
            folder = ggmlq_llama_center_variable("HOME");
            folder += folder.empty() ? "" : "/.cache";
        }
#endif
        folder += folder.empty() ? "" : "/llama.cpp";
    }
    return folder.empty() ? "" : folder + "/kv-center";
}

// The file of this key; empty where none is to be kept.
static std::string ggmlq_llama_center_kept_path(const std::string & key) {
    const std::string folder = ggmlq_llama_center_kept_folder();
    return folder.empty() ? "" : folder + "/" + key + ".gguf";
}

struct ggmlq_llama_center_kept {
    std::mutex mutex;
    std::map<std::string, std::shared_ptr<const ggmlq_llama_center_record>> records; // by key, not by the model's address, which another may get
};

static ggmlq_llama_center_kept & ggmlq_llama_center_kept_here() {
    static ggmlq_llama_center_kept kept;
    return kept;
}

// A context that was too short for the text has calibrated in several windows; a longer one does better.
static bool ggmlq_llama_center_is_enough(const ggmlq_llama_center_record & record, uint32_t n_window) {
    return record.text.n_window >= std::min(n_window, record.text.n_tokens);
}

std::shared_ptr<const ggmlq_llama_center_record> ggmlq_llama_center_find(const std::string & key, uint32_t n_window, std::string & where) {
    auto & kept = ggmlq_llama_center_kept_here();
    {
        std::lock_guard<std::mutex> lock(kept.mutex);
        const auto it = kept.records.find(key);
        if (it != kept.records.end() && ggmlq_llama_center_is_enough(*it->second, n_window)) {
            where = "this process";
            return it->second;
        }
    }
    const std::string path = ggmlq_llama_center_kept_path(key);
    std::error_code problem;
    if (path.empty() || !std::filesystem::is_regular_file(std::filesystem::u8path(path), problem)) {
        return nullptr;
    }
    try {
        auto record = std::make_shared<const ggmlq_llama_center_record>(ggmlq_llama_center_load(path));
        if (record->key != key) {
            throw std::runtime_error("is the calibration '" + record->key + "' by another name");
        }
        if (!ggmlq_llama_center_is_enough(*record, n_window)) {
            return nullptr;
        }
        std::lock_guard<std::mutex> lock(kept.mutex);
        kept.records[key] = record;
        where = "'" + path + "'";
        return record;
    } catch (const std::exception & error) {
        LLAMA_LOG_WARN("%s: '%s' %s: it is made anew\n", __func__, path.c_str(), error.what());
        return nullptr;
    }
}

// Temporary files of processes that were killed. Others are still being written.
static void ggmlq_llama_center_remove_parts(const std::filesystem::path & folder) {
    static const std::regex name("[0-9a-f]{16}\\.gguf\\.[0-9a-f]+\\.part");
    const auto old = std::filesystem::file_time_type::clock::now() - std::chrono::hours(1);
    std::error_code problem;
    for (std::filesystem::directory_iterator it(folder, problem), end; !problem && it != end; it.increment(problem)) {
        std::error_code ignored; // another process may be faster
        if (std::regex_match(it->path().filename().u8string(), name) && it->last_write_time(ignored) < old && !ignored) {
            std::filesystem::remove(it->path(), ignored);
        }
    }
}

std::string ggmlq_llama_center_keep(const std::shared_ptr<const ggmlq_llama_center_record> & record) {
    auto & kept = ggmlq_llama_center_kept_here();
    {
        std::lock_guard<std::mutex> lock(kept.mutex);
        kept.records[record->key] = record;
    }
    const std::string path = ggmlq_llama_center_kept_path(record->key);
    if (path.empty()) {
        return "not kept in a file";
    }
    try {
        std::error_code problem;
        const auto folder = std::filesystem::u8path(path).parent_path();
        std::filesystem::create_directories(folder, problem); // what is wrong with it, writing will say
        ggmlq_llama_center_remove_parts(folder);
        ggmlq_llama_center_save(path, *record);
        return "kept in '" + path + "'";
    } catch (const std::exception & error) {
        return std::string("not kept in a file: ") + error.what();
    }
}
