/* SPDX-License-Identifier: MIT
 *
 * llama-ggmlq-lab: what pyggmlq's lab wants to know of a model and llama.cpp's own programs don't tell.
 *
 *     llama-ggmlq-lab dump FOLDER TEXT WINDOWS TOKENS ..    Q, K and V rows of TOKENS tokens of each window of the text
 *     llama-ggmlq-lab score CASES ..                        -log p of answers after contexts
 *     llama-ggmlq-lab calibrate FILE TEXT TOKENS ..         a calibration of centered keys (docs/CENTERING.md)
 *     llama-ggmlq-lab --version                             as llama.cpp's own programs say it
 *
 * What follows (..) are llama.cpp's common arguments: -m, -c, -ctk, -ctv, -t, --device, ... Rows are found by what the graph
 * does, not by what it is called: what is written into a cache tensor, and what flash attention reads. So every
 * architecture with a KV cache works, with every cache type.
 */
#include "arg.h"
#include "common.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"
#include "log.h"

#include <algorithm>
#include <cinttypes>
#include <clocale>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

const int MAX_UBATCH = 512;

[[noreturn]] void fail(const std::string & sentence) {
    throw std::runtime_error(sentence);
}

std::string read_file(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!file.good() && !file.eof()) {
        fail(path + " can't be read");
    }
    return text;
}

// Rows of one layer in the current window, one after the other in the order of tokens.
struct layer_rows {
    int64_t n_head = 0, n_head_kv = 0, head_k = 0, head_v = 0;
    std::vector<float> q, k, v, k_cache, v_cache;
    std::vector<float> rope_factors;
    std::string rope;                        // parameters of the op that made K; empty without RoPE
    int64_t rotation_k = 0, rotation_v = 0;  // size of llama.cpp's own Hadamard rotation; 0: none
    float scale = 0, max_bias = 0, softcap = 0;
    int64_t visible = 0;                     // keys that the last token sees
    const char * type_k = "", * type_v = "";
};

struct dump_state {
    std::map<int, layer_rows> layers;
    std::vector<int> keep;  // tokens of the current batch that are kept
    int n_batch = 0;
    std::string problem;    // the first thing that went wrong: the callback can't throw through ggml
};

const ggml_tensor * root(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

// True if `t` is in the K ('k') or V ('v') cache of a layer, whose number goes to `il`. Caches have names such as cache_k_l7; the
// caches of an indexer have a tag before the letter and are none of ours.
bool in_cache(const ggml_tensor * t, char which, int & il) {
    char letter;
    int end = 0;
    return std::sscanf(root(t)->name, "cache_%c_l%d%n", &letter, &il, &end) == 2 && letter == which && root(t)->name[end] == '\0';
}

// `n` bytes at `offset` of `t`, wherever it lies.
void get(const ggml_tensor * t, void * to, size_t offset, size_t n) {
    ggml_backend_tensor_get(t, to, offset, n);
}

void append_floats(std::vector<float> & to, const std::vector<uint8_t> & row, ggml_type type, int64_t n) {
    const size_t at = to.size();
    to.resize(at + n);
    if (type == GGML_TYPE_F32) {
        std::memcpy(to.data() + at, row.data(), n*sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(row.data(), to.data() + at, n);
    }
}

// What lies between the projection and the cache: llama.cpp's rotation and RoPE.
struct origin {
    const ggml_tensor * rope = nullptr;
    int64_t rope_at = 0;  // value of a head with which the roped part begins
    int64_t rotation = 0;
};

void find_origin(const ggml_tensor * t, origin & found, int depth = 0) {
    for (; t && depth < 24; ++depth) {
        switch (t->op) {
            case GGML_OP_ROPE:
                found.rope = t;
                return;
            case GGML_OP_MUL_MAT:
                if (std::strncmp(t->src[0]->name, "attn_inp_", 9) != 0) {
                    return;  // the projection
                }
                found.rotation = t->src[0]->ne[0];
                t = t->src[1];
                break;
            case GGML_OP_CONCAT: {
                find_origin(t->src[0], found, depth + 1);
                if (!found.rope) {
                    find_origin(t->src[1], found, depth + 1);
                    found.rope_at += found.rope ? t->src[0]->ne[0] : 0;
                }
                return;
            }
            case GGML_OP_VIEW:
            case GGML_OP_RESHAPE:
            case GGML_OP_PERMUTE:
            case GGML_OP_TRANSPOSE:
            case GGML_OP_CONT:
            case GGML_OP_CPY:
            case GGML_OP_SCALE:
                t = t->src[0];
                break;
            default:
                return;
        }
    }
}

std::string rope_parameters(const origin & from) {
    int32_t p[16];
    float f[16];
    std::memcpy(p, from.rope->op_params, sizeof(p));
    std::memcpy(f, from.rope->op_params, sizeof(f));
    char text[400];
    std::snprintf(text, sizeof(text),
        "n_dims=%d mode=%d n_ctx_orig=%d freq_base=%.9g freq_scale=%.9g ext_factor=%.9g attn_factor=%.9g beta_fast=%.9g beta_slow=%.9g at=%" PRId64,
        p[1], p[2], p[4], f[5], f[6], f[7], f[8], f[9], f[10], from.rope_at + p[15]);
    return text;
}

// Rows that are being stored: as they come, and as they are read back. `t` is SET_ROWS, or in older versions CPY into a view.
void take_stored(dump_state & state, const ggml_tensor * t, int il, bool is_k) {
    layer_rows & layer = state.layers[il];
    const ggml_tensor * from = t->src[0];
    const int64_t n = ggml_nelements(from)/state.n_batch;  // values of a row
    if (from->type != GGML_TYPE_F32 && from->type != GGML_TYPE_F16) {
        state.problem = std::string("layer ") + std::to_string(il) + " stores rows of " + ggml_type_name(from->type) + ", wanted f32 or f16";
        return;
    }
    if (from->ne[0] != n && !ggml_is_contiguous(from)) {
        state.problem = "layer " + std::to_string(il) + " stores rows that are not one after the other: this version of llama.cpp is not known";
        return;
    }
    const size_t from_stride = from->ne[0] == n ? from->nb[1] : ggml_row_size(from->type, n);
    const size_t row_size = ggml_row_size(t->type, n);
    std::vector<uint8_t> row(std::max(ggml_row_size(from->type, n), row_size));
    const ggml_tensor * index = t->op == GGML_OP_SET_ROWS ? t->src[1] : nullptr;
    if (index && (t->ne[0] != n || (index->type != GGML_TYPE_I64 && index->type != GGML_TYPE_I32))) {
        state.problem = "layer " + std::to_string(il) + " has a transposed cache: flash attention is needed";
        return;
    }
    origin found;
    find_origin(from, found);
    (is_k ? layer.rotation_k : layer.rotation_v) = found.rotation;
    (is_k ? layer.type_k : layer.type_v) = ggml_type_name(t->type);
    if (is_k && found.rope) {
        layer.rope = rope_parameters(found);
        if (const ggml_tensor * factors = found.rope->src[2]) {
            layer.rope_factors.resize(ggml_nelements(factors));
            get(factors, layer.rope_factors.data(), 0, ggml_nbytes(factors));
        }
    }
    for (int token : state.keep) {
        get(from, row.data(), token*from_stride, ggml_row_size(from->type, n));
        append_floats(is_k ? layer.k : layer.v, row, from->type, n);
        int64_t cell = token;
        if (index && index->type == GGML_TYPE_I64) {
            get(index, &cell, token*sizeof(int64_t), sizeof(int64_t));
        } else if (index) {
            int32_t cell32;
            get(index, &cell32, token*sizeof(int32_t), sizeof(int32_t));
            cell = cell32;
        }
        get(t, row.data(), cell*row_size, row_size);
        append_floats(is_k ? layer.k_cache : layer.v_cache, row, t->type, n);
    }
}

// Queries as attention gets them, and how it uses them.
void take_queries(dump_state & state, const ggml_tensor * t, int il) {
    layer_rows & layer = state.layers[il];
    const ggml_tensor * q = t->src[0], * k = t->src[1], * v = t->src[2], * mask = t->src[3];
    if (q->type != GGML_TYPE_F32 || q->ne[1] != state.n_batch || q->ne[3] != 1) {
        state.problem = "layer " + std::to_string(il) + " has queries of an unknown shape or type";
        return;
    }
    layer.n_head = q->ne[2];
    layer.n_head_kv = k->ne[2];
    layer.head_k = k->ne[0];
    layer.head_v = v->ne[0];
    std::memcpy(&layer.scale,    (const float *) t->op_params + 0, sizeof(float));
    std::memcpy(&layer.max_bias, (const float *) t->op_params + 1, sizeof(float));
    std::memcpy(&layer.softcap,  (const float *) t->op_params + 2, sizeof(float));
    for (int token : state.keep) {
        const size_t at = layer.q.size();
        layer.q.resize(at + q->ne[0]*q->ne[2]);
        for (int64_t head = 0; head < q->ne[2]; ++head) {
            get(q, layer.q.data() + at + head*q->ne[0], token*q->nb[1] + head*q->nb[2], q->ne[0]*sizeof(float));
        }
    }
    layer.visible = 0;
    if (mask && (mask->type == GGML_TYPE_F16 || mask->type == GGML_TYPE_F32)) {
        std::vector<uint8_t> row(ggml_row_size(mask->type, mask->ne[0]));
        std::vector<float> values;
        get(mask, row.data(), (state.n_batch - 1)*mask->nb[1], row.size());
        append_floats(values, row, mask->type, mask->ne[0]);
        layer.visible = std::count_if(values.begin(), values.end(), [](float x) { return x > -1e30f; });
    }
}

// Every node that is asked for is computed by the end of its own piece of the graph, so ROPE is asked for, too: fused with what
// follows, its result, which is what is stored, would exist nowhere.
bool on_node(ggml_tensor * t, bool ask, void * data) {
    dump_state & state = *(dump_state *) data;
    int il = 0;
    const bool stores = t->op == GGML_OP_SET_ROWS || t->op == GGML_OP_CPY;
    const bool is_k = stores && in_cache(t, 'k', il);
    const bool is_v = stores && !is_k && in_cache(t, 'v', il);
    const bool attends = t->op == GGML_OP_FLASH_ATTN_EXT && in_cache(t->src[1], 'k', il);
    if (ask) {
        return t->op == GGML_OP_ROPE || is_k || is_v || attends;
    }
    if (state.problem.empty() && state.n_batch > 0) {
        if (is_k || is_v) {
            take_stored(state, t, il, is_k);
        } else if (attends) {
            take_queries(state, t, il);
        }
    }
    return true;
}

// Written to the end before it gets its name.
struct tensor_file {
    std::ostringstream header;
    std::vector<std::pair<const void *, size_t>> parts;
    size_t size = 0;

    void add(const std::string & name, const char * dtype, const std::vector<int64_t> & shape, const void * data, size_t n_bytes) {
        header << ",\"" << name << "\":{\"dtype\":\"" << dtype << "\",\"shape\":[";
        for (size_t i = 0; i < shape.size(); ++i) {
            header << (i ? "," : "") << shape[i];
        }
        header << "],\"data_offsets\":[" << size << "," << size + n_bytes << "]}";
        parts.emplace_back(data, n_bytes);
        size += n_bytes;
    }

    void write(const std::string & path, const std::string & metadata) {
        std::string text = "{\"__metadata__\":{" + metadata + "}" + header.str() + "}";
        text.resize((text.size() + 7)/8*8, ' ');
        const uint64_t length = text.size();
        std::ofstream file(path + ".unfinished", std::ios::binary);
        for (int i = 0; i < 8; ++i) {
            file.put((char) (length >> 8*i & 0xff));
        }
        file.write(text.data(), text.size());
        for (const auto & part : parts) {
            file.write((const char *) part.first, part.second);
        }
        file.close();
        if (!file || std::rename((path + ".unfinished").c_str(), path.c_str()) != 0) {
            std::remove((path + ".unfinished").c_str());
            fail(path + " can't be written: is the disk full?");
        }
    }
};

void write_window(const dump_state & state, const std::string & path, int window, const std::vector<int32_t> & positions, const std::vector<int32_t> & tokens) {
    tensor_file file;
    std::ostringstream metadata;
    const int64_t n = positions.size();
    const std::vector<int32_t> windows(n, window);
    file.add("positions", "I32", {n}, positions.data(), n*sizeof(int32_t));
    file.add("tokens", "I32", {n}, tokens.data(), n*sizeof(int32_t));
    file.add("windows", "I32", {n}, windows.data(), n*sizeof(int32_t));
    metadata << "\"format\":\"pyggmlq-kv-window-1\"";
    for (const auto & [il, layer] : state.layers) {
        const struct { const char * name; const std::vector<float> & rows; int64_t heads, head; } sides[] = {
            { "q", layer.q, layer.n_head, layer.head_k },
            { "k", layer.k, layer.n_head_kv, layer.head_k }, { "k_cache", layer.k_cache, layer.n_head_kv, layer.head_k },
            { "v", layer.v, layer.n_head_kv, layer.head_v }, { "v_cache", layer.v_cache, layer.n_head_kv, layer.head_v },
        };
        for (const auto & side : sides) {
            if (side.rows.empty() && side.name[0] == 'v') {
                continue;  // V is a part of K (MLA)
            }
            if ((int64_t) side.rows.size() != n*side.heads*side.head || side.rows.empty()) {
                fail("layer " + std::to_string(il) + " has " + std::to_string(side.rows.size()) + " values of " + side.name + ", wanted " +
                    std::to_string(n*side.heads*side.head) + ": is flash attention off, or is its cache shared with another layer?");
            }
            file.add("layer." + std::to_string(il) + "." + side.name, "F32", {n, side.heads, side.head}, side.rows.data(), side.rows.size()*sizeof(float));
        }
        if (!layer.rope_factors.empty()) {
            file.add("layer." + std::to_string(il) + ".rope_factors", "F32", {(int64_t) layer.rope_factors.size()}, layer.rope_factors.data(),
                layer.rope_factors.size()*sizeof(float));
        }
        char numbers[200];
        std::snprintf(numbers, sizeof(numbers), "scale=%.9g max_bias=%.9g softcap=%.9g visible=%" PRId64 " rotation_k=%" PRId64 " rotation_v=%" PRId64,
            layer.scale, layer.max_bias, layer.softcap, layer.visible, layer.rotation_k, layer.rotation_v);
        metadata << ",\"layer." << il << "\":\"" << numbers << " type_k=" << layer.type_k << " type_v=" << layer.type_v << "\"";
        if (!layer.rope.empty()) {
            metadata << ",\"layer." << il << ".rope\":\"" << layer.rope << "\"";
        }
    }
    file.write(path, metadata.str());
}

struct session {
    llama_model * model = nullptr;
    llama_context * context = nullptr;

    ~session() {
        llama_free(context);
        llama_model_free(model);
    }
};

// Flash attention on; the field was a bool before it was an enum whose 1 is "enabled".
template <typename P> auto enable_flash_attention(P & params, int) -> decltype((void) params.flash_attn_type) {
    params.flash_attn_type = (decltype(params.flash_attn_type)) 1;
}
template <typename P> auto enable_flash_attention(P & params, long) -> decltype((void) params.flash_attn) {
    params.flash_attn = true;
}

void open(session & s, common_params & params, ggml_backend_sched_eval_callback callback, void * data) {
    const llama_model_params model_params = common_model_params_to_llama(params);
    s.model = llama_model_load_from_file(params.model.path.c_str(), model_params);
    if (!s.model) {
        fail("the model " + params.model.path + " can't be loaded");
    }
    llama_context_params context_params = common_context_params_to_llama(params);
    context_params.n_seq_max = 1;
    context_params.n_ubatch = std::min<uint32_t>(MAX_UBATCH, context_params.n_ctx);
    context_params.n_batch = context_params.n_ubatch;
    context_params.cb_eval = callback;
    context_params.cb_eval_user_data = data;
    enable_flash_attention(context_params, 0);
    s.context = llama_init_from_model(s.model, context_params);
    if (!s.context) {
        fail("no context can be made with this model and these cache types");
    }
}

// Tokens of one sequence from position `first` on; logits of the last `n_logits`.
void decode(llama_context * context, const llama_token * tokens, int n, int first, int n_logits) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = first + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i >= n - n_logits;
    }
    const int status = llama_decode(context, batch);
    llama_batch_free(batch);
    if (status != 0) {
        fail("llama_decode failed with status " + std::to_string(status));
    }
}

int dump(const std::vector<std::string> & words, common_params & params) {
    const std::string folder = words[0];
    const int n_windows = std::atoi(words[2].c_str()), n_keep = std::atoi(words[3].c_str());
    if (n_windows < 1 || n_keep < 1 || params.n_ctx < 1) {
        fail("found WINDOWS " + words[2] + ", TOKENS " + words[3] + " and -c " + std::to_string(params.n_ctx) + ", wanted numbers from 1 up");
    }
    dump_state state;
    session s;
    open(s, params, on_node, &state);
    const int n_ctx = params.n_ctx;
    const llama_vocab * vocab = llama_model_get_vocab(s.model);
    const bool add_bos = llama_vocab_get_add_bos(vocab);
    std::vector<llama_token> tokens = common_tokenize(s.context, read_file(words[1]), add_bos);
    if ((int64_t) tokens.size() < n_ctx) {
        fail("the text has " + std::to_string(tokens.size()) + " tokens, wanted at least " + std::to_string(n_ctx));
    }
    const int found = std::min<int>(n_windows, tokens.size()/n_ctx);
    std::printf("windows %d of %d\n", found, n_windows);
    for (int window = 0; window < found; ++window) {
        char name[40];
        std::snprintf(name, sizeof(name), "/window-%05d.safetensors", window);
        if (std::ifstream(folder + name).good()) {
            continue;  // of an interrupted run
        }
        std::vector<llama_token> part(tokens.begin() + (int64_t) window*n_ctx, tokens.begin() + (int64_t) (window + 1)*n_ctx);
        if (add_bos) {
            part[0] = llama_vocab_bos(vocab);  // as llama-perplexity begins a window
        }
        llama_memory_clear(llama_get_memory(s.context), true);
        state.layers.clear();
        std::vector<int32_t> positions, kept;
        for (int first = 0; first < n_ctx; first += MAX_UBATCH) {
            state.n_batch = std::min(MAX_UBATCH, n_ctx - first);
            state.keep.clear();
            for (int i = 0; i < state.n_batch; ++i) {
                if ((int64_t) (first + i)*n_keep % n_ctx < n_keep) {  // evenly, the first token among them
                    state.keep.push_back(i);
                    positions.push_back(first + i);
                    kept.push_back(part[first + i]);
                }
            }
            decode(s.context, part.data() + first, state.n_batch, first, 1);
            if (!state.problem.empty()) {
                fail(state.problem);
            }
        }
        if (state.layers.empty()) {
            fail("this model has no attention with a KV cache");
        }
        write_window(state, folder + name, window, positions, kept);
        std::printf("window %d\n", window + 1);
        std::fflush(stdout);
    }
    return 0;
}

// A case is context 0x1f answer 0x1e. For each: its number, the answer's tokens, the sum of their -log p, how many were the most
// likely ones (all: greedy decoding gives the answer), and the tokens of the context.
int score(const std::vector<std::string> & words, common_params & params) {
    if (params.n_ctx < 1) {
        fail("found no -c, wanted room for the longest case");
    }
    session s;
    open(s, params, nullptr, nullptr);
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(s.model));
    std::istringstream cases(read_file(words[0]));
    std::string line;
    for (int number = 0; std::getline(cases, line, '\x1e'); ++number) {
        const size_t split = line.find('\x1f');
        if (split == std::string::npos) {
            fail("case " + std::to_string(number) + " has no answer");
        }
        std::vector<llama_token> tokens = common_tokenize(s.context, line.substr(0, split), true);
        const std::vector<llama_token> answer = common_tokenize(s.context, line.substr(split + 1), false);
        const int n_context = tokens.size(), n_answer = answer.size();
        tokens.insert(tokens.end(), answer.begin(), answer.end());
        const int n = tokens.size() - 1;  // the last token is only predicted
        if (n_answer < 1 || n_answer > n || n_answer > MAX_UBATCH) {
            fail("the answer of case " + std::to_string(number) + " has " + std::to_string(n_answer) + " tokens, wanted 1 to " +
                std::to_string(std::min(n, MAX_UBATCH)));
        }
        if (n > params.n_ctx) {
            fail("case " + std::to_string(number) + " has " + std::to_string(n) + " tokens, wanted at most " + std::to_string(params.n_ctx));
        }
        llama_memory_clear(llama_get_memory(s.context), true);
        const int n_before = n - n_answer;  // tokens whose predictions nobody asks for
        for (int first = 0; first < n_before; first += MAX_UBATCH) {
            decode(s.context, tokens.data() + first, std::min(MAX_UBATCH, n_before - first), first, 0);
        }
        decode(s.context, tokens.data() + n_before, n_answer, n_before, n_answer);
        double nll = 0;
        int top = 0;
        for (int i = 0; i < n_answer; ++i) {
            const float * logits = llama_get_logits_ith(s.context, i);
            const float highest = *std::max_element(logits, logits + n_vocab);
            double sum = 0;
            for (int j = 0; j < n_vocab; ++j) {
                sum += std::exp((double) logits[j] - highest);
            }
            nll += std::log(sum) + highest - logits[answer[i]];
            top += logits[answer[i]] == highest;
        }
        std::printf("case %d %d %.6f %d %d\n", number, n_answer, nll, top, n_context);
        std::fflush(stdout);
    }
    return 0;
}

// What is said of it comes from libllama, which does it while a context is made: before the arguments are read, since they may set the same.
void prepare_to_calibrate(const std::vector<std::string> & words) {
    const char * const names[] = { "GGMLQ_KV_CENTER_SAVE", "GGMLQ_KV_CENTER_TEXT", "GGMLQ_KV_CENTER_TOKENS", "GGMLQ_KV_CENTER" };
    const char * const values[] = { words[0].c_str(), words[1].c_str(), words[2].c_str(), "all" };
    for (int i = 0; i < 4; ++i) {
#ifdef _WIN32
        _putenv_s(names[i], values[i]);
#else
        setenv(names[i], values[i], 1);
#endif
    }
}

int calibrate(const std::vector<std::string> & words, common_params & params) {
    session s;
    open(s, params, nullptr, nullptr);
    if (!std::ifstream(words[0]).good()) {
        fail("no calibration was written");
    }
    return 0;
}

}  // namespace

int main(int argc, char ** argv) {
    std::setlocale(LC_NUMERIC, "C");
    const std::string mode = argc > 1 ? argv[1] : "";
    const int n_words = mode == "dump" ? 4 : mode == "calibrate" ? 3 : mode == "score" ? 1 : mode == "--version" ? 0 : -1;
    if (n_words < 0 || argc < 2 + n_words) {
        std::fprintf(stderr, "usage: %s dump FOLDER TEXT WINDOWS TOKENS .. | score CASES .. | calibrate FILE TEXT TOKENS .. | --version\n", argv[0]);
        return 1;
    }
    const std::vector<std::string> words(argv + 2, argv + 2 + n_words);
    std::vector<char *> rest { argv[0] };
    rest.insert(rest.end(), argv + (n_words == 0 ? 1 : 2 + n_words), argv + argc);
    if (mode == "calibrate") {
        prepare_to_calibrate(words);
    }
    common_params params;
    common_init();
    if (!common_params_parse(rest.size(), rest.data(), params, LLAMA_EXAMPLE_COMMON)) {
        return 1;
    }
    llama_backend_init();
    llama_numa_init(params.numa);
    int status = 1;
    try {
        status = mode == "dump" ? dump(words, params) : mode == "calibrate" ? calibrate(words, params) : score(words, params);
    } catch (const std::exception & problem) {
        std::fprintf(stderr, "error: %s\n", problem.what());
    }
    llama_backend_free();
    common_log_pause(common_log_main());  // a thread of its own writes it, and what it hasn't written yet would be lost
    return status;
}
