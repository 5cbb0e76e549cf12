/* SPDX-License-Identifier: MIT */
#include "llama-ggmlq-center-file.h"

#include "llama-ggmlq-center-state.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "gguf.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>

static const char * const GGMLQ_LLAMA_CENTER_ARCH = "ggmlq-kv-center";
static constexpr uint32_t GGMLQ_LLAMA_CENTER_FILE_VERSION = 2;

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

static std::string ggmlq_llama_center_model(const std::string & name, const std::string & architecture, const std::string & fingerprint) {
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

static std::string ggmlq_llama_center_describe_rope(const std::vector<int32_t> & facts) {
    float values[6]; // from op_params[5] on
    memcpy(values, &facts[5], sizeof(values));
    return format("%d values, base %g, scale %g, YaRN %g with %d tokens, frequency factors %08x", facts[1], values[0], values[1], values[2],
        facts[4], (unsigned) facts.back());
}

static std::string ggmlq_llama_center_tensor(int32_t il, const char * what) { return format("blk.%d.%s", il, what); }

static std::string ggmlq_llama_center_sum(const gguf_context * file, ggml_context * ctx) { // of all tensors
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < gguf_get_n_tensors(file); ++i) {
        const char * name = gguf_get_tensor_name(file, i);
        const ggml_tensor * t = ggml_get_tensor(ctx, name);
        bytes.insert(bytes.end(), name, name + strlen(name));
        bytes.insert(bytes.end(), (const uint8_t *) t->data, (const uint8_t *) t->data + ggml_nbytes(t));
    }
    return format("%016llx", (unsigned long long) ggmlq_llama_center_checksum(bytes));
}

void ggmlq_llama_center_save(const std::string & path, const llama_model & model, const std::vector<ggmlq_llama_center *> & centers,
        const ggmlq_llama_center_text & text) {
    size_t size = 4096;
    for (const auto * center : centers) {
        for (const auto & layer : center->layers) {
            size += 3*(layer.sum_k.size()*sizeof(float) + ggml_tensor_overhead() + GGML_MEM_ALIGN);
        }
    }
    ggml_init_params params = { size, nullptr, false };
    ggml_context_ptr ctx { ggml_init(params) };
    ggmlq_llama_gguf file { gguf_init_empty() };
    gguf_set_val_str(file.get(), "general.architecture", GGMLQ_LLAMA_CENTER_ARCH);
    gguf_set_val_u32(file.get(), "ggmlq.version", GGMLQ_LLAMA_CENTER_FILE_VERSION);
    gguf_set_val_str(file.get(), "ggmlq.model.name", model.name.c_str());
    gguf_set_val_str(file.get(), "ggmlq.model.architecture", model.arch_name().c_str());
    gguf_set_val_str(file.get(), "ggmlq.model.fingerprint", ggmlq_llama_center_fingerprint(model).c_str());
    gguf_set_val_u32(file.get(), "ggmlq.text.tokens", text.n_tokens);
    gguf_set_val_u32(file.get(), "ggmlq.text.window", text.n_window);
    gguf_set_val_u64(file.get(), "ggmlq.text.bytes", text.n_bytes);
    gguf_set_val_str(file.get(), "ggmlq.text.checksum", format("%016llx", (unsigned long long) text.checksum).c_str());
    for (const auto * center : centers) {
        for (const auto & layer : center->layers) {
            if (layer.rope < 0) {
                continue;
            }
            const auto facts = ggmlq_llama_center_rope_facts(center->ropes[layer.rope]);
            gguf_set_arr_data(file.get(), ggmlq_llama_center_tensor(layer.il, "rope").c_str(), GGUF_TYPE_INT32, facts.data(), facts.size());
            const auto add = [&](const char * what, const std::function<double(size_t)> & value) {
                ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.head_size, layer.n_head_kv);
                ggml_set_name(t, ggmlq_llama_center_tensor(layer.il, what).c_str());
                for (size_t i = 0; i < layer.sum_k.size(); ++i) {
                    ((float *) t->data)[i] = (float) value(i);
                }
                gguf_add_tensor(file.get(), t);
            };
            add("k_mean",    [&](size_t i) { return layer.sum_k[i]/layer.n_k; });
            add("k_squares", [&](size_t i) { return layer.sum_kk[i]/layer.n_k; });
            add("q_squares", [&](size_t i) { return layer.sum_qq[i]/layer.n_q; });
        }
    }
    gguf_set_val_str(file.get(), "ggmlq.checksum", ggmlq_llama_center_sum(file.get(), ctx.get()).c_str());

    const std::string part = path + ".part";
    std::error_code problem;
    if (!gguf_write_to_file(file.get(), part.c_str(), false)) {
        std::filesystem::remove(part, problem);
        throw std::runtime_error("'" + path + "' can't be written");
    }
    std::filesystem::rename(part, path, problem);
    if (problem) {
        const std::string reason = problem.message();
        std::filesystem::remove(part, problem);
        throw std::runtime_error("'" + path + "' can't be written: " + reason);
    }
}

uint32_t ggmlq_llama_center_load(const std::string & path, const llama_model & model, const std::vector<ggmlq_llama_center *> & centers) {
    const auto refuse = [&](const std::string & reason) { throw std::runtime_error("'" + path + "' " + reason); };
    const std::string again = ": make one with `pyggmlq calibrate`";

    ggml_context * data = nullptr;
    gguf_init_params params = { true, &data }; // whatever it is: first without its tensors
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
        refuse("is no calibration of centered keys, or damaged" + again);
    }
    if (text("general.architecture") != GGMLQ_LLAMA_CENTER_ARCH) {
        refuse("is no calibration of centered keys, but a GGUF file of '" + text("general.architecture") + "'" + again);
    }
    if (number("ggmlq.version") != GGMLQ_LLAMA_CENTER_FILE_VERSION) {
        refuse(format("is of version %u, wanted %u", number("ggmlq.version"), GGMLQ_LLAMA_CENTER_FILE_VERSION) + again);
    }
    const std::string fingerprint = ggmlq_llama_center_fingerprint(model);
    if (text("ggmlq.model.fingerprint") != fingerprint) {
        refuse("was made for " + ggmlq_llama_center_model(text("ggmlq.model.name"), text("ggmlq.model.architecture"), text("ggmlq.model.fingerprint")) +
            ", this model is " + ggmlq_llama_center_model(model.name, model.arch_name(), fingerprint) + again);
    }
    params.no_alloc = false;
    file.reset();
    data = nullptr;
    file.reset(gguf_init_from_file(path.c_str(), params));
    ctx.reset(data);
    if (!file || text("ggmlq.checksum") != ggmlq_llama_center_sum(file.get(), ctx.get())) {
        refuse("is damaged: its checksum is wrong" + again);
    }
    for (auto * center : centers) {
        for (auto & layer : center->layers) {
            if (layer.rope < 0) {
                continue;
            }
            const auto facts = ggmlq_llama_center_rope_facts(center->ropes[layer.rope]);
            const int64_t id = gguf_find_key(file.get(), ggmlq_llama_center_tensor(layer.il, "rope").c_str());
            if (id < 0 || gguf_get_kv_type(file.get(), id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(file.get(), id) != GGUF_TYPE_INT32 ||
                gguf_get_arr_n(file.get(), id) != facts.size()) {
                refuse(format("knows nothing of layer %d", layer.il) + again);
            }
            const auto * first = (const int32_t *) gguf_get_arr_data(file.get(), id);
            const std::vector<int32_t> found(first, first + facts.size());
            if (found != facts) {
                refuse(format("was made with another RoPE in layer %d: ", layer.il) + ggmlq_llama_center_describe_rope(found) + "; this context has " +
                    ggmlq_llama_center_describe_rope(facts) + again);
            }
            const auto take = [&](const char * what, std::vector<double> & sums) {
                const ggml_tensor * t = ggml_get_tensor(ctx.get(), ggmlq_llama_center_tensor(layer.il, what).c_str());
                if (!t || t->type != GGML_TYPE_F32 || t->ne[0] != layer.head_size || t->ne[1] != layer.n_head_kv || ggml_nelements(t) != t->ne[0]*t->ne[1]) {
                    refuse(format("has no %s of layer %d, or another shape", what, layer.il) + again);
                }
                sums.assign((const float *) t->data, (const float *) t->data + ggml_nelements(t));
                for (const double value : sums) {
                    if (!std::isfinite(value) || (value < 0 && &sums != &layer.sum_k)) {
                        refuse(format("has a %s of %g in layer %d", what, value, layer.il) + again);
                    }
                }
            };
            take("k_mean",    layer.sum_k);
            take("k_squares", layer.sum_kk);
            take("q_squares", layer.sum_qq);
            layer.n_k = layer.n_q = 1; // means are sums over one
        }
    }
    return number("ggmlq.text.tokens");
}
