/* SPDX-License-Identifier: MIT */
#include "llama-ggmlq-center.h"

#include "ggml-ggmlq-center.h"
#include "ggml-ggmlq-center-graph.h"
#include "llama-batch.h"
#include "llama-ggmlq-center-file.h"
#include "llama-ggmlq-center-state.h"
#include "llama-context.h"
#include "llama-ggmlq-round.h"
#include "llama-ggmlq.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <thread>
#include <unordered_map>

static const char * const GGMLQ_LLAMA_CENTER_LOG = "ggmlq_llama_center";

// The first tokens of a text, whose keys are unlike all others in many models, have no part in the mean.
static constexpr int64_t GGMLQ_LLAMA_CENTER_FIRST = 4;

// Tokens of the calibration; below the minimum nothing is centered.
static constexpr int64_t GGMLQ_LLAMA_CENTER_MOST  = 512;
static constexpr int64_t GGMLQ_LLAMA_CENTER_LEAST = 16;

// Of a larger batch the ones are an input of its graph.
static constexpr int64_t GGMLQ_LLAMA_CENTER_ONES = 64;

// Written for this purpose: prose, code, numbers, other languages.
static const char * const GGMLQ_LLAMA_CENTER_TEXT =
    "The ferry to the northern islands leaves twice a day, except in winter, when the sea is often too rough. Most travellers "
    "take the morning boat, read the newspaper and watch the gulls; \"why hurry?\" asks the captain, who has done this for 27 years.\n\n"
    "## Before you install\n\nMake sure that the disk has enough free space and that no other program uses the device. The installer first asks for a "
    "language and a keyboard, then for the network; if there is none, this step can be repeated later from the menu. Partitions that already "
    "exist are listed with their size, and nothing is written to them until you have confirmed the summary. A mistake made here is hard to "
    "undo, which is why most administrators keep a copy of important files on another machine.\n\n"
    "When the first settlers came to the valley, they found good soil but little wood. They built their houses of stone, and since winters were "
    "long, every family had a room where wool was spun and stories were told. Some of these houses are still standing; the oldest was "
    "given to the town by its last owner, a teacher, who wished that it be used as a library.\n\n"
    "```python\ndef median(values):\n    ordered = sorted(values)\n    n = len(ordered)\n    if n % 2 == 1:\n        return ordered[n // 2]\n"
    "    return (ordered[n // 2 - 1] + ordered[n // 2]) / 2\n```\n\n"
    "| year | rain (mm) | share |\n| 2019 | 812.5 | 14.2% |\n| 2020 | 1,046 | 18.3% |\n\n"
    "El panadero abre su tienda a las seis y media. Im Fr\xc3\xbchling bl\xc3\xbchen die Kirschb\xc3\xa4ume am Fluss. "
    "User: What is the boiling point of water? Assistant: At sea level it is 100 \xc2\xb0""C, that is 212 \xc2\xb0""F.\n";

ggmlq_llama_center_mode ggmlq_llama_center_mode_get() {
    const char * value = getenv("GGMLQ_KV_CENTER");
    const std::string mode = value ? value : "";
    if (mode.empty() || mode == "auto") {
        return GGMLQ_LLAMA_CENTER_AUTO;
    }
    if (mode == "off") {
        return GGMLQ_LLAMA_CENTER_OFF;
    }
    if (mode == "all") {
        return GGMLQ_LLAMA_CENTER_ALL;
    }
    if (std::ifstream(mode).good()) {
        return GGMLQ_LLAMA_CENTER_FILE;
    }
    throw std::runtime_error("GGMLQ_KV_CENTER is '" + mode + "', wanted off, auto, all or a file that `pyggmlq calibrate` has made");
}

// For `pyggmlq calibrate`: where to write the calibration, which is then of as many tokens as GGMLQ_KV_CENTER_TOKENS says.
static std::string ggmlq_llama_center_save_path() {
    const char * path = getenv("GGMLQ_KV_CENTER_SAVE");
    return path ? path : "";
}

static int64_t ggmlq_llama_center_most() {
    const char * tokens = getenv("GGMLQ_KV_CENTER_TOKENS");
    return ggmlq_llama_center_save_path().empty() || !tokens ? GGMLQ_LLAMA_CENTER_MOST : std::max<int64_t>(GGMLQ_LLAMA_CENTER_LEAST, atoll(tokens));
}

// The built-in text, or the beginning of a file.
static std::string ggmlq_llama_center_text() {
    const char * path = getenv("GGMLQ_KV_CENTER_TEXT");
    if (!path || !*path) {
        return GGMLQ_LLAMA_CENTER_TEXT;
    }
    std::ifstream file(path, std::ios::binary);
    std::string text(16*ggmlq_llama_center_most(), 0);
    file.read(&text[0], (std::streamsize) text.size());
    if (file.gcount() <= 0) {
        throw std::runtime_error(std::string("GGMLQ_KV_CENTER_TEXT is '") + path + "', which can't be read or is empty");
    }
    text.resize((size_t) file.gcount());
    return text;
}

// --- work and memory

// Does work(0) to work(n - 1), several at a time. Throws what one of them has thrown, when all threads have ended.
static void ggmlq_llama_in_parallel(size_t n, const std::function<void(size_t)> & work) {
    std::atomic<size_t> next { 0 };
    std::mutex mutex;
    std::exception_ptr error;
    const auto run = [&] {
        try {
            for (size_t i = next++; i < n; i = next++) {
                work(i);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            error = std::current_exception();
        }
    };
    const size_t n_threads = std::min<size_t>({ 8, n, std::max(1u, std::thread::hardware_concurrency()) });
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    try {
        while (threads.size() + 1 < n_threads) {
            threads.emplace_back(run);
        }
    } catch (const std::exception &) { // fewer will do
    }
    run();
    for (auto & thread : threads) {
        thread.join();
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

// Values of whole tensors, made on the host. Those that lie side by side on a device are copied there at once, since every copy waits for its end.
class ggmlq_llama_center_values {
public:
    explicit ggmlq_llama_center_values(std::vector<ggml_tensor *> tensors) {
        std::sort(tensors.begin(), tensors.end(), [](const ggml_tensor * a, const ggml_tensor * b) {
            return std::make_pair((uintptr_t) a->buffer, (uintptr_t) a->data) < std::make_pair((uintptr_t) b->buffer, (uintptr_t) b->data);
        });
        for (ggml_tensor * tensor : tensors) {
            if (ggml_backend_buffer_is_host(tensor->buffer)) { // needs no copy
                places[tensor] = (char *) tensor->data;
                continue;
            }
            const bool follows = !runs.empty() && runs.back().buffer == tensor->buffer &&
                (char *) tensor->data - (runs.back().first + runs.back().size) < (ptrdiff_t) ggml_backend_buffer_get_alignment(tensor->buffer);
            if (!follows) {
                runs.push_back({ tensor->buffer, (char *) tensor->data, 0, nullptr });
            }
            runs.back().size = (char *) tensor->data - runs.back().first + ggml_nbytes(tensor);
        }
        for (auto & run : runs) {
            run.values.reset(new char[run.size]); // all is written, but for gaps that nobody reads
        }
        for (ggml_tensor * tensor : tensors) {
            for (auto & run : runs) {
                if (run.buffer == tensor->buffer && (char *) tensor->data >= run.first && (char *) tensor->data < run.first + run.size) {
                    places[tensor] = run.values.get() + ((char *) tensor->data - run.first);
                }
            }
        }
    }

    template <typename T> T * of(const ggml_tensor * tensor) const { return (T *) places.at(tensor); }

    void copy() const {
        for (const auto & run : runs) {
            ggml_init_params params = { ggml_tensor_overhead(), nullptr, true };
            ggml_context_ptr ctx { ggml_init(params) };
            ggml_tensor * all = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) run.size);
            if (ggml_backend_tensor_alloc(run.buffer, all, run.first) != GGML_STATUS_SUCCESS) {
                throw std::runtime_error(std::string("no access to ") + ggml_backend_buffer_name(run.buffer));
            }
            ggml_backend_tensor_set(all, run.values.get(), 0, run.size);
        }
    }

private:
    struct run { ggml_backend_buffer_t buffer; char * first; size_t size; std::unique_ptr<char[]> values; };
    std::vector<run> runs;
    std::unordered_map<const ggml_tensor *, char *> places;
};

// --- mean and scale

// Least-squares rounding makes a row shorter: what comes back is, on average, 1 - e of it, e being the squared error over the square (2.3 to
// 2.6 % of tq3_0, 3.2 % of planar3). Attention averages the random errors of V over many tokens, but not this one, which they have in common;
// and scores that are all too small are a softmax that is too flat. So rows are stored longer by 1/(1 - e).
float ggmlq_llama_center_gain(ggml_type type) {
    switch ((int) type) {
        case GGML_TYPE_TQ3_0:   return 1.024f;
        case GGML_TYPE_PLANAR3: return 1.032f;
        default:                return 1.0f;
    }
}

static int ggmlq_llama_rope_n_dims(const ggml_tensor * rope) { return rope->op_params[1]; }
static int ggmlq_llama_rope_mode  (const ggml_tensor * rope) { return rope->op_params[2]; }

int64_t ggmlq_llama_center_partner(const ggmlq_llama_center_rope & rope, int64_t i) {
    const int64_t half = rope.n_rot/2;
    return i >= rope.n_rot ? i : !rope.neox ? (i ^ 1) : i < half ? i + half : i - half;
}

static bool ggmlq_llama_is_first_of_pair(const ggmlq_llama_center_rope & rope, int64_t i) {
    return i < rope.n_rot && i < ggmlq_llama_center_partner(rope, i);
}

static ggml_backend_buffer_type_t ggmlq_llama_buft(const ggml_tensor * tensor) { return ggml_backend_buffer_get_type(tensor->buffer); }

static ggml_backend_dev_t ggmlq_llama_device(const ggml_tensor * tensor) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggmlq_llama_buft(tensor));
    return dev ? dev : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); // whose buffers don't name it
}

// Whether the device of this layer's cache rounds keys for queries as it stores them.
static bool ggmlq_llama_center_rounds(const ggmlq_llama_center_layer & layer) {
    ggml_backend_dev_t dev = ggmlq_llama_device(layer.k);
    if (!dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META || !ggmlq_llama_is_cache_type(layer.k->type)) {
        return false;
    }
    const int64_t n_feedback = ggmlq_feedback_values(layer.head_size);
    if (n_feedback <= 0) {
        return false;
    }
    const auto takes = [&](ggml_type type) {
        ggml_init_params params = { 8*ggml_tensor_overhead(), nullptr, true };
        ggml_context_ptr ctx { ggml_init(params) };
        const int64_t n_values = layer.head_size*layer.n_head_kv;
        ggml_tensor * store = ggml_set_rows(ctx.get(), ggml_new_tensor_2d(ctx.get(), layer.k->type, n_values, 256),
            ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_values, 1), ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, 1));
        store->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] = ggml_new_tensor_2d(ctx.get(), type, n_feedback, layer.n_head_kv);
        return ggml_backend_dev_supports_op(dev, store);
    };
    // Who takes a type that it can't be overlooks it, or doesn't look at all (RPC).
    return !takes(GGML_TYPE_I32) && takes(GGML_TYPE_F16);
}

// The error of a logit, if the rounding error of a key is spread evenly over its head, goes with
// (sum of q^2/s^2) * (sum of s^2 * variance), which is least for s^4 = q^2/variance. Rounding for queries moves the error to where q is small, and
// could it do so without limit, s^2 = 1/variance would be best; 3 bits can't, and halfway between both is. Few tokens: so there is a floor under both.
static void ggmlq_llama_center_fit(ggmlq_llama_center_layer & layer, const std::vector<ggmlq_llama_center_rope> & ropes) {
    const int64_t n_values = layer.head_size*layer.n_head_kv;
    layer.mean .assign(n_values, 0.0f);
    layer.scale.assign(n_values, 1.0f);
    layer.query.assign(n_values, 0.0f);
    for (int64_t i = 0; i < layer.n_latent; ++i) {
        layer.mean[i] = (float) (layer.sum_k[i]/layer.n_k);
    }
    if (layer.n_latent) { // which is V, too: no scale, no rounding for queries
        return;
    }
    const auto & rope = ropes[layer.rope];
    const double of_query = layer.is_rounded ? 0.125 : 0.25;
    std::vector<double> variance(layer.head_size), query(layer.head_size), log_scale(layer.head_size);
    for (int64_t h = 0; h < n_values; h += layer.head_size) {
        for (int64_t i = 0; i < rope.n_rot; ++i) { // a value without RoPE has no part in positional rows
            layer.mean[h + i] = (float) (layer.sum_k[h + i]/layer.n_k);
        }
        const auto spread = [&](int64_t i) { // around the mean that is taken off
            const double m = layer.mean[h + i];
            return layer.sum_kk[h + i]/layer.n_k - 2*m*layer.sum_k[h + i]/layer.n_k + m*m;
        };
        double mean_variance = 0, mean_query = 0, mean_log = 0;
        for (int64_t i = 0; i < layer.head_size; ++i) {
            const int64_t j = ggmlq_llama_center_partner(rope, i);
            variance[i] = std::max(0.0, 0.5*(spread(i) + spread(j)));
            query[i]    = 0.5*(layer.sum_qq[h + i] + layer.sum_qq[h + j])/layer.n_q;
            layer.query[h + i] = (float) query[i]; // of the pair: later positions turn one value into the other
            mean_variance += variance[i]/layer.head_size;
            mean_query    += query[i]/layer.head_size;
        }
        if (!(mean_variance > 0) || !(mean_query > 0)) {
            continue;
        }
        for (int64_t i = 0; i < layer.head_size; ++i) {
            const int64_t j = ggmlq_llama_center_partner(rope, i);
            log_scale[i] = j < i ? log_scale[j] : of_query*std::log(query[i] + 1e-3*mean_query) - (0.5 - of_query)*std::log(variance[i] + 1e-3*mean_variance);
            mean_log += log_scale[i]/layer.head_size;
        }
        for (int64_t i = 0; i < layer.head_size; ++i) {
            const int64_t j = ggmlq_llama_center_partner(rope, i);
            layer.scale[h + i] = j < i ? layer.scale[h + j] : (float) std::min(10.0, std::max(0.1, std::exp(log_scale[i] - mean_log)));
        }
    }
}

ggmlq_llama_center_layer * ggmlq_llama_center::find(const ggml_tensor * k) {
    for (auto & layer : layers) {
        if (layer.k == k) {
            return &layer;
        }
    }
    return nullptr;
}

// In what blocks llama.cpp rotates rows of K, as llama_kv_cache::build_input_k_rot chooses it; 0: not.
static int64_t ggmlq_llama_center_hadamard(const ggmlq_llama_center_layer & layer, bool rotates) {
    int64_t hadamard = rotates ? 64 : 0;
    while (hadamard && layer.head_size % (2*hadamard) == 0) {
        hadamard *= 2;
    }
    return hadamard;
}

static void ggmlq_llama_center_prepare_rounds(ggmlq_llama_center_layer & layer, bool rotates) {
    if (!layer.feedback) {
        return;
    }
    const int64_t hadamard = ggmlq_llama_center_hadamard(layer, rotates);
    std::vector<ggmlq_llama_round> rounds;
    for (int64_t h = 0; h < layer.n_head_kv; ++h) {
        std::vector<double> square(layer.head_size);
        for (int64_t i = 0; i < layer.head_size; ++i) {
            const double s = layer.scale[h*layer.head_size + i];
            square[i] = layer.query[h*layer.head_size + i]/(s*s);
        }
        rounds.emplace_back((int) layer.k->type, layer.head_size, hadamard, square);
    }
    if (!layer.rounds) {
        layer.rounds = std::make_shared<std::vector<ggmlq_llama_round>>();
    }
    *layer.rounds = std::move(rounds);
}

void ggmlq_llama_center::begin_feedback() {
    struct job { const ggmlq_llama_round * round; ggml_tensor * tensor; size_t offset; };
    std::vector<job> jobs;
    std::vector<ggml_tensor *> tensors;
    for (const auto & layer : layers) {
        for (size_t h = 0; layer.feedback && h < layer.rounds->size(); ++h) {
            jobs.push_back({ &(*layer.rounds)[h], layer.feedback, h*layer.feedback->nb[1] });
        }
        if (layer.feedback) {
            tensors.push_back(layer.feedback);
        }
    }
    if (jobs.empty()) {
        return;
    }
    feedback = std::async(std::launch::async | std::launch::deferred, [jobs = std::move(jobs), tensors = std::move(tensors)] { // deferred: where no thread can be started
        const auto values = std::make_shared<const ggmlq_llama_center_values>(tensors);
        ggmlq_llama_in_parallel(jobs.size(), [&](size_t i) {
            static thread_local ggmlq_llama_round::scratch scratch; // of a thread that soon ends
            jobs[i].round->feedback((uint16_t *) (values->of<char>(jobs[i].tensor) + jobs[i].offset), scratch);
        });
        return values;
    });
}

void ggmlq_llama_center::prepare() {
    const std::lock_guard<std::mutex> lock(mutex); // contexts may share a cache
    if (!feedback.valid()) {
        return;
    }
    try {
        feedback.get()->copy();
    } catch (const std::exception & error) {
        // llama_decode can't be refused with a sentence, and its graph has these tensors: zeros are rounding by the encoder alone
        for (const auto & layer : layers) {
            if (layer.feedback) {
                ggml_backend_buffer_clear(layer.feedback->buffer, 0);
            }
        }
        LLAMA_LOG_WARN("%s: keys are not rounded for the model's queries: %s\n", GGMLQ_LLAMA_CENTER_LOG, error.what());
    }
}

ggml_tensor * ggmlq_llama_center::stored(ggml_tensor * set_rows, const ggml_tensor * k) const {
    for (const auto & layer : layers) {
        if (active && layer.k == k && layer.feedback) {
            set_rows->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] = layer.feedback;
        }
    }
    return set_rows;
}

void ggmlq_llama_center::clear() {
    active = false;
    feedback = {};
    layers.clear();
    ropes.clear();
    rotation = ones = nullptr;
    rotation_is_set = false;
    ctxs_bufs.clear();
}

void ggmlq_llama_center::set_rotation(const std::vector<float> & values) {
    if (!rotation_is_set) {
        ggml_backend_tensor_set(rotation, values.data(), 0, ggml_nbytes(rotation));
        rotation_is_set = true;
    }
}

void ggmlq_llama_center::add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    for (const auto & [ctx, buffer] : ctxs_bufs) {
        const ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(buffer.get());
        sizes[buft] += measures ? ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft) : ggml_backend_buffer_get_size(buffer.get());
    }
}

void ggmlq_llama_center::upload(bool dry) {
    measures = dry;
    std::vector<ggml_backend_buffer_type_t> bufts;
    for (const auto & layer : layers) {
        if (layer.is_centered() && std::find(bufts.begin(), bufts.end(), ggmlq_llama_buft(layer.k)) == bufts.end()) {
            bufts.push_back(ggmlq_llama_buft(layer.k));
        }
    }
    for (const auto buft : bufts) {
        size_t n_tensors = 2; // ones and rotation
        for (const auto & layer : layers) {
            n_tensors += layer.rope >= 0 ? 7 + 2 + layer.k->ne[2] : layer.is_centered();
        }
        ggml_init_params params = { n_tensors*ggml_tensor_overhead(), nullptr, true };
        ggml_context_ptr ctx { ggml_init(params) };
        params.mem_size = layers.size()*ggml_tensor_overhead();
        ggml_context_ptr ctx_feedback { ggml_init(params) };
        const auto here = [&](const ggmlq_llama_center_layer & layer) { return layer.is_centered() && ggmlq_llama_buft(layer.k) == buft; };
        for (auto & layer : layers) {
            if (!here(layer)) {
                continue;
            }
            if (layer.n_latent) {
                layer.latent_mu = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, layer.head_size);
                continue;
            }
            layer.s_mu    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.head_size, layer.n_head_kv);
            layer.s_mu_2  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);
            layer.s       = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.head_size, layer.n_head_kv);
            layer.s_inv   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.head_size, layer.n_head);
            layer.mu_same = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.head_size, layer.n_head);
            layer.mu_turn = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.head_size, layer.n_head);
            if (layer.is_rounded) {
                layer.feedback = ggml_new_tensor_2d(ctx_feedback.get(), GGML_TYPE_F16, ggmlq_feedback_values(layer.head_size), layer.n_head_kv);
            }
            auto & rope = ropes[layer.rope];
            if (!rope.turns_there) {
                rope.turns_there = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, rope.n_rot/2);
                rope.one         = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, rope.n_rot);
            }
        }
        const auto centered = std::find_if(layers.begin(), layers.end(), [](const auto & layer) { return layer.rope >= 0; });
        if (bufts.size() == 1 && centered != layers.end()) {
            ones = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, GGMLQ_LLAMA_CENTER_ONES);
            if (const int64_t n = ggmlq_llama_center_hadamard(*centered, rotates)) {
                rotation = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, n);
            }
        }
        for (auto & layer : layers) { // behind all that fill() writes, which so lies side by side
            if (!here(layer) || layer.n_latent) {
                continue;
            }
            layer.part    = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, 1, layer.k->ne[1], layer.k->ne[2]);
            ggml_format_name(layer.part, "cache_part_l%d", layer.il);
            for (int64_t stream = 0; stream < layer.part->ne[2]; ++stream) {
                layer.part_stream.push_back(ggml_view_2d(ctx.get(), layer.part, 1, layer.part->ne[1], layer.part->nb[1], stream*layer.part->nb[2]));
            }
        }
        for (auto * made : { &ctx, &ctx_feedback }) {
            if (!ggml_get_first_tensor(made->get())) {
                continue;
            }
            ggml_backend_buffer_ptr buffer { dry ? ggml_backend_buft_alloc_buffer(buft, 0) : ggml_backend_alloc_ctx_tensors_from_buft(made->get(), buft) };
            if (!buffer) {
                throw std::runtime_error(std::string("no memory for centered keys on ") + ggml_backend_buft_name(buft));
            }
            for (ggml_tensor * t = ggml_get_first_tensor(made->get()); dry && t; t = ggml_get_next_tensor(made->get(), t)) {
                t->buffer = buffer.get(); // so that no scheduler allocates it
            }
            if (made == &ctx) { // prepare() writes all of the other one
                ggml_backend_buffer_clear(buffer.get(), 0);
            }
            ctxs_bufs.emplace_back(std::move(*made), std::move(buffer));
        }
    }
    if (!dry) {
        for (auto & rope : ropes) {
            const auto same = std::find_if(ropes.begin(), ropes.end(), [&](const auto & other) { // on another device
                return !other.turns.empty() && other.params == rope.params && other.factors == rope.factors;
            });
            if (same != ropes.end()) {
                rope.turns     = same->turns;
                rope.magnitude = same->magnitude;
            } else if (rope.turns_there) { // otherwise its layers turned out to be left as they are
                rope.measure();
            }
        }
        fill();
    }
}

void ggmlq_llama_center::fill() {
    feedback = {}; // ends before what it reads changes
    std::vector<ggml_tensor *> tensors;
    for (const auto & rope : ropes) {
        if (rope.turns_there) {
            tensors.insert(tensors.end(), { rope.turns_there, rope.one });
        }
    }
    if (ones) {
        tensors.push_back(ones);
    }
    for (const auto & layer : layers) {
        if (layer.n_latent) {
            tensors.push_back(layer.latent_mu);
        } else if (layer.rope >= 0) {
            tensors.insert(tensors.end(), { layer.s_mu, layer.s_mu_2, layer.s, layer.s_inv, layer.mu_same, layer.mu_turn });
        }
    }
    const ggmlq_llama_center_values values(std::move(tensors));
    for (const auto & rope : ropes) {
        if (!rope.turns_there) {
            continue;
        }
        std::copy(rope.turns.begin(), rope.turns.end(), values.of<uint64_t>(rope.turns_there));
        for (int64_t i = 0; i < rope.n_rot; ++i) {
            values.of<float>(rope.one)[i] = ggmlq_llama_is_first_of_pair(rope, i) ? 1.0f/rope.magnitude : 0.0f;
        }
    }
    if (ones) {
        std::fill_n(values.of<int32_t>(ones), ones->ne[0], 1);
    }
    for (auto & layer : layers) {
        fill(layer, values);
    }
    begin_feedback();
    values.copy();
}

void ggmlq_llama_center::fill(ggmlq_llama_center_layer & layer, const ggmlq_llama_center_values & values) const {
    if (layer.n_latent) {
        std::copy(layer.mean.begin(), layer.mean.end(), values.of<float>(layer.latent_mu));
    }
    if (layer.rope < 0) {
        return;
    }
    ggmlq_llama_center_prepare_rounds(layer, rotates);
    const auto & rope = ropes[layer.rope];
    const int64_t group = layer.n_head/layer.n_head_kv;
    float * s_inv = values.of<float>(layer.s_inv), * same = values.of<float>(layer.mu_same), * turn = values.of<float>(layer.mu_turn);
    for (int64_t head = 0; head < layer.n_head; ++head) {
        const int64_t h = head/group*layer.head_size, to = head*layer.head_size;
        if (head % group) { // as of the query head before, which has the same KV head
            for (float * values : { s_inv, same, turn }) {
                std::copy_n(values + to - layer.head_size, layer.head_size, values + to);
            }
            continue;
        }
        for (int64_t i = 0; i < layer.head_size; ++i) {
            const int64_t j = ggmlq_llama_center_partner(rope, i);
            s_inv[to + i] = 1.0f/layer.scale[h + i];
            same [to + i] = i < rope.n_rot ? rope.magnitude*layer.mean[h + std::min(i, j)] : 0.0f;
            turn [to + i] = i < rope.n_rot ? rope.magnitude*layer.mean[h + std::max(i, j)] : 0.0f;
        }
    }
    const float gain = ggmlq_llama_center_gain(layer.k->type);
    float * s = values.of<float>(layer.s), * s_mu = values.of<float>(layer.s_mu);
    double square = 0;
    for (size_t i = 0; i < layer.mean.size(); ++i) {
        s[i]    = gain*layer.scale[i];
        s_mu[i] = s[i]*layer.mean[i];
        square += (double) s_mu[i]*s_mu[i];
    }
    *values.of<float>(layer.s_mu_2) = (float) (square/2);
}

// --- calibration: what a graph shows of its layers

class ggmlq_llama_center_calibration {
public:
    ggmlq_llama_center_calibration() { current = this; }
    ~ggmlq_llama_center_calibration() { current = nullptr; }

    // Notes q and k of a layer, and whether it can be centered: the obstacle, if not; of a layer that was noted by an earlier graph and can be, adds their sums to
    // this one. n_latent: values that are V too, or 0.
    void watch(ggml_context * ctx, ggml_cgraph * gf, ggmlq_llama_center * center, ggml_tensor * k_cache, ggml_tensor * q, ggml_tensor * k, int64_t n_latent,
        const std::string & obstacle, int32_t il);

    // The next tokens are the first of a window.
    void start_window();

    // Attention with a cache that watch hasn't been told of right before.
    void watch_reader(const ggml_tensor * k_cache);

    // Of a graph that was computed. Throws if there were several of the same layer since the last time.
    void take();

    static thread_local ggmlq_llama_center_calibration * current;

    std::vector<ggmlq_llama_center *> centers;

private:
    struct watched { ggmlq_llama_center * center; const ggml_tensor * k_cache, * sums_k, * sums_kk, * sums_qq; int64_t n_tokens; };
    std::vector<watched> graph;
};

thread_local ggmlq_llama_center_calibration * ggmlq_llama_center_calibration::current = nullptr;

// Empty, or why keys that come as `k` stay as they are.
static std::string ggmlq_llama_center_obstacle(const ggml_tensor * k_cache, const ggml_tensor * q, const ggml_tensor * k) {
    if (!k) {
        return "its keys are stored by another layer";
    }
    if (k->op != GGML_OP_ROPE || k->view_src) {
        return "its keys don't come straight from RoPE";
    }
    const int mode = ggmlq_llama_rope_mode(k);
    if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) {
        return "its RoPE has several axes";
    }
    const int n_rot = ggmlq_llama_rope_n_dims(k);
    if (n_rot <= 0 || n_rot % 2 != 0 || n_rot > k->ne[0] || k->op_params[15] != 0) {
        return "its RoPE isn't that of the first values of a head";
    }
    if (k->type != GGML_TYPE_F32 || q->type != GGML_TYPE_F32 || k->src[0]->type != GGML_TYPE_F32 || k->src[0]->nb[0] != sizeof(float) ||
        q->nb[0] != sizeof(float) || k->ne[3] != 1 || q->ne[3] != 1 || q->ne[0] != k->ne[0] || q->ne[1] % k->ne[1] != 0 ||
        k->ne[0]*k->ne[1] != k_cache->ne[0]) {
        return "its queries or keys have an unusual shape";
    }
    return "";
}

// The same of rows whose first values are V, too.
static std::string ggmlq_llama_center_latent_obstacle(const ggml_tensor * k_cache, const ggml_tensor * q, const ggml_tensor * k, const ggml_tensor * v, bool shifts) {
    if (!shifts) {
        return "its attention has sinks or caps scores";
    }
    if (k->op != GGML_OP_CONCAT || k->view_src || k->op_params[0] != 0 || k->src[0]->ne[0] != v->ne[0]) {
        return "its rows aren't a latent and other values behind it";
    }
    if (k->type != GGML_TYPE_F32 || q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || k->ne[1] != 1 || k->ne[3] != 1 || q->ne[3] != 1 ||
        q->ne[0] != k->ne[0] || k->ne[0] != k_cache->ne[0]) {
        return "its queries or keys have an unusual shape";
    }
    return "";
}

// Sums over the tokens from `first` on: [1, values, heads].
static const ggml_tensor * ggmlq_llama_sums(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * rows, bool of_squares) {
    ggml_tensor * sums = ggml_sum_rows(ctx, of_squares ? ggml_sqr(ctx, rows) : rows);
    ggml_set_output(sums); // stays until the whole graph is computed
    ggml_build_forward_expand(gf, sums);
    return sums;
}

void ggmlq_llama_center_calibration::watch(ggml_context * ctx, ggml_cgraph * gf, ggmlq_llama_center * center, ggml_tensor * k_cache, ggml_tensor * q, ggml_tensor * k,
        int64_t n_latent, const std::string & obstacle, int32_t il) {
    if (std::find(centers.begin(), centers.end(), center) == centers.end()) {
        centers.push_back(center);
    }
    auto * layer = center->find(k_cache);
    if (layer && layer->il == il && k) { // of another graph
        const int64_t first = std::min(q->ne[2], std::max<int64_t>(0, GGMLQ_LLAMA_CENTER_FIRST - layer->n_seen));
        layer->n_seen += q->ne[2];
        if (layer->is_centered() && first < q->ne[2]) {
            const auto rows = [&](ggml_tensor * x) { // [tokens, values, heads]
                ggml_tensor * wanted = ggml_view_3d(ctx, x, x->ne[0], x->ne[1], x->ne[2] - first, x->nb[1], x->nb[2], first*x->nb[2]);
                return ggml_cont(ctx, ggml_permute(ctx, wanted, 1, 2, 0, 3));
            };
            ggml_tensor * rows_k = rows(layer->n_latent ? k : k->src[0]);
            const ggml_tensor * sums_k = ggmlq_llama_sums(ctx, gf, rows_k, false), * sums_kk = ggmlq_llama_sums(ctx, gf, rows_k, true);
            graph.push_back({ center, k_cache, sums_k, sums_kk, ggmlq_llama_sums(ctx, gf, rows(q), true), q->ne[2] - first });
        }
        return;
    }
    if (layer) { // another layer that reads, or stores to, the same cache
        if (layer->is_centered() && (k || n_latent != layer->n_latent || q->ne[1] != layer->n_head || q->ne[0] != layer->head_size)) {
            layer->leave("another layer uses its cache in another way");
        }
        return;
    }
    center->layers.emplace_back();
    layer = &center->layers.back();
    layer->il = il;
    layer->k  = k_cache;
    layer->reason = obstacle;
    if (!obstacle.empty()) {
        return;
    }
    layer->head_size = k->ne[0];
    layer->n_head_kv = k->ne[1];
    layer->n_head    = q->ne[1];
    layer->n_latent  = n_latent;
    const size_t n_values = layer->head_size*layer->n_head_kv;
    layer->sum_k.assign(n_values, 0.0);
    layer->sum_kk.assign(n_values, 0.0);
    layer->sum_qq.assign(n_values, 0.0);
    if (n_latent) {
        return;
    }

    ggmlq_llama_center_rope rope = {};
    memcpy(rope.params.data(), k->op_params, rope.params.size());
    rope.factors   = k->src[2];
    rope.positions = k->src[1];
    rope.buft      = ggmlq_llama_buft(k_cache);
    rope.n_rot     = ggmlq_llama_rope_n_dims(k);
    rope.neox      = ggmlq_llama_rope_mode(k) == GGML_ROPE_TYPE_NEOX;
    for (size_t i = 0; i < center->ropes.size() && layer->rope < 0; ++i) {
        const auto & other = center->ropes[i];
        if (other.params == rope.params && other.factors == rope.factors && other.positions == rope.positions && other.buft == rope.buft) {
            layer->rope = (int) i;
        }
    }
    if (layer->rope < 0) {
        layer->rope = (int) center->ropes.size();
        center->ropes.push_back(rope);
    }
}

void ggmlq_llama_center_calibration::watch_reader(const ggml_tensor * k_cache) {
    for (auto * center : centers) {
        if (auto * layer = center->find(k_cache)) {
            layer->leave("another kind of attention reads its cache");
        }
    }
}

void ggmlq_llama_center_calibration::start_window() {
    for (auto * center : centers) {
        for (auto & layer : center->layers) {
            layer.n_seen = 0;
        }
    }
}

void ggmlq_llama_center_calibration::take() {
    std::vector<float> values;
    std::set<const ggml_tensor *> taken;
    for (const auto & w : graph) {
        auto & layer = *w.center->find(w.k_cache);
        if (!taken.insert(w.k_cache).second) {
            throw std::runtime_error("its batches are computed in several parts");
        }
        const int64_t group = layer.n_head/layer.n_head_kv;
        const auto add = [&](const ggml_tensor * node, std::vector<double> & sums, int64_t heads) { // of all heads that share a KV head
            values.resize(ggml_nelements(node));
            ggml_backend_tensor_get(node, values.data(), 0, ggml_nbytes(node));
            for (size_t i = 0; i < values.size(); ++i) {
                sums[i/(heads*layer.head_size)*layer.head_size + i % layer.head_size] += values[i];
            }
        };
        add(w.sums_k,  layer.sum_k,  1);
        add(w.sums_kk, layer.sum_kk, 1);
        add(w.sums_qq, layer.sum_qq, group);
        layer.n_k += w.n_tokens;
        layer.n_q += w.n_tokens*group;
    }
    graph.clear();
}

// --- graphs

class llm_graph_input_ggmlq_center : public llm_graph_input_i {
public:
    llm_graph_input_ggmlq_center(ggml_tensor * ones, int64_t n_tokens) : ones(ones), n_tokens(n_tokens) {}

    void set_input(const llama_ubatch * ubatch) override {
        for (auto * center : centers) {
            center->prepare();
        }
        if (ones && ones->buffer) {
            const std::vector<int32_t> values(ubatch->n_tokens, 1);
            ggml_backend_tensor_set(ones, values.data(), 0, ggml_nbytes(ones));
        }
        for (const auto & at : positions) {
            if (!at.tensor->buffer) {
                continue;
            }
            values.resize(ggml_nelements(at.tensor));
            int32_t * to = values.data();
            for (int64_t stream = 0; stream < at.tensor->ne[3]; ++stream) {
                const llama_kv_cells & cells = (*at.cells)[at.first_stream + stream];
                for (uint32_t i = 0; i < at.tensor->ne[0]; ++i) {
                    *to++ = cells.is_empty(i) ? 0 : cells.pos_get(i);
                }
            }
            ggml_backend_tensor_set(at.tensor, values.data(), 0, ggml_nbytes(at.tensor));
        }
    }

    // Cells and streams of a graph are those of its mask, whose input says whether they are still the same.
    bool can_reuse(const llm_graph_params & params) override { return n_tokens == params.ubatch.n_tokens; }

    // I32 [cells, 1, 1, streams]: the positions of what the view `k` of a cache shows.
    ggml_tensor * positions_of(ggml_context * ctx, const ggmlq_llama_center & center, const ggml_tensor * k) {
        const size_t first_stream = k->view_offs/k->view_src->nb[2];
        for (const auto & at : positions) {
            if (at.cells == center.cells && at.first_stream == first_stream && at.tensor->ne[0] == k->ne[2] && at.tensor->ne[3] == k->ne[3]) {
                return at.tensor;
            }
        }
        ggml_tensor * tensor = ggml_new_tensor_4d(ctx, GGML_TYPE_I32, k->ne[2], 1, 1, k->ne[3]);
        ggml_set_input(tensor);
        ggml_set_name(tensor, "center_inp_positions");
        positions.push_back({ center.cells, first_stream, tensor });
        return tensor;
    }

    std::vector<ggmlq_llama_center *> centers; // of the graph

private:
    struct positions_input { std::shared_ptr<const llama_kv_cells_vec> cells; size_t first_stream; ggml_tensor * tensor; };

    ggml_tensor * ones; // I32 [n_tokens]: for the quarter turn; null: the device has them
    const int64_t n_tokens;
    std::vector<positions_input> positions;
    std::vector<int32_t> values;
};

// A RoPE node as a model has made one.
static ggml_tensor * ggmlq_llama_rope_node(ggml_context * ctx, ggml_tensor * x, ggml_tensor * positions, ggml_tensor * factors, const void * op_params) {
    ggml_tensor * result = ggml_dup_tensor(ctx, x);
    result->op = GGML_OP_ROPE;
    memcpy(result->op_params, op_params, sizeof(result->op_params));
    result->src[0] = x;
    result->src[1] = positions;
    result->src[2] = factors;
    return result;
}

void ggmlq_llama_center_graph::apply(ggml_context * ctx, ggml_cgraph * gf, const add_input_fn & add_input, ggmlq_llama_center * center,
        ggml_tensor * k_cache, ggml_tensor *& q, ggml_tensor *& k, ggml_tensor *& v, ggml_tensor * k_idxs, int32_t il) {
    if (!center) {
        return;
    }
    if (auto * calibration = ggmlq_llama_center_calibration::current) {
        calibration->watch(ctx, gf, center, k_cache, q, k, 0, ggmlq_llama_center_obstacle(k_cache, q, k), il);
        terms.push_back({ k_cache, center, nullptr, nullptr });
        return;
    }
    const auto * layer = center->active ? center->find(k_cache) : nullptr;
    if (!layer || layer->rope < 0) {
        return;
    }
    const auto & rope = center->ropes[layer->rope];
    const int64_t n_tokens = q->ne[2];

    if (!input) {
        const bool there = center->ones && n_tokens <= center->ones->ne[0];
        ones = there ? ggml_view_1d(ctx, center->ones, n_tokens, 0) : ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_tokens);
        if (!there) {
            ggml_set_input(ones);
        }
        ggml_set_name(ones, "center_inp_ones");
        ggml_build_forward_expand(gf, ones); // a view stands before all layers, none of which then has it among what a GPU fuses
        auto made = std::make_unique<llm_graph_input_ggmlq_center>(there ? nullptr : ones, n_tokens);
        input = made.get();
        add_input(std::move(made));
    }
    if (std::find(input->centers.begin(), input->centers.end(), center) == input->centers.end()) {
        input->centers.push_back(center);
    }

    const float gain = ggmlq_llama_center_gain(center->type_v);
    if (v && gain != 1.0f && !ggml_is_contiguous(v)) { // a part of a product of Q, K and V, which SCALE refuses
        v = ggml_cont(ctx, v);
    }
    // What a GPU fuses stands side by side, so what it needs comes before (ggml-ggmlq-center-graph.h).
    ggml_tensor * q_before = q->op == GGML_OP_ROPE ? q->src[0] : nullptr;
    if (q_before) {
        ggml_build_forward_expand(gf, q_before);
    }
    if (v) {
        ggml_build_forward_expand(gf, v);
    }
    const ggml_tensor * rope_of_k = k;
    ggml_tensor * k_before = k ? k->src[0] : nullptr, * v_before = v;
    if (k) {
        ggml_build_forward_expand(gf, k_before);
    }
    ggml_build_forward_expand(gf, q);
    if (k) {
        k = ggmlq_ggml_center_k(ctx, gf, k_before, layer->s, layer->s_mu, layer->s_mu_2, ggml_reshape_2d(ctx, layer->part, 1, ggml_nelements(layer->part)), k_idxs);
    }
    if (v && gain != 1.0f) {
        v = ggml_scale(ctx, v, gain);
        ggml_build_forward_expand(gf, v);
    }
    ggml_tensor * w;
    q = ggmlq_ggml_center_q(ctx, gf, q, ones, rope.n_rot, rope.neox, layer->mu_same, layer->mu_turn, layer->s_inv, k_before, v_before, &w);
    q->src[4] = q_before; // as k_before and v_before there: one launch reads them all, RoPE included
    w = ggml_view_3d(ctx, w, rope.n_rot, w->ne[1], w->ne[2], w->nb[1], w->nb[2], 0);
    if (k) {
        k = ggmlq_llama_rope_node(ctx, k, rope_of_k->src[1], rope_of_k->src[2], rope_of_k->op_params);
        k->src[3] = k_before;
        k->src[4] = v_before;
        k->src[5] = q_before;
    }
    terms.push_back({ k_cache, center, layer, w });
}

void ggmlq_llama_center_graph::apply_latent(ggml_context * ctx, ggml_cgraph * gf, ggmlq_llama_center * center, ggml_tensor * k_cache, ggml_tensor * q,
        ggml_tensor *& k, const ggml_tensor * v, bool shifts, int32_t il) {
    if (!center) {
        return;
    }
    if (auto * calibration = ggmlq_llama_center_calibration::current) {
        calibration->watch(ctx, gf, center, k_cache, q, k, v->ne[0], ggmlq_llama_center_latent_obstacle(k_cache, q, k, v, shifts), il);
        terms.push_back({ k_cache, center, nullptr, nullptr });
        return;
    }
    const auto * layer = center->active ? center->find(k_cache) : nullptr;
    if (!layer || !layer->n_latent) {
        return;
    }
    k = ggml_sub(ctx, k, layer->latent_mu);
    terms.push_back({ k_cache, center, layer, nullptr });
}

ggmlq_llama_center_graph::term ggmlq_llama_center_graph::take(ggml_context * ctx, const ggml_tensor * k, float kq_scale) {
    const ggml_tensor * k_cache = k->view_src;
    const auto it = std::find_if(terms.begin(), terms.end(), [&](const pending & p) { return p.k_cache == k_cache; });
    if (it == terms.end()) {
        if (auto * calibration = ggmlq_llama_center_calibration::current) {
            calibration->watch_reader(k_cache);
        }
        return {};
    }
    const pending p = *it;
    terms.erase(it);
    if (!p.layer) { // of the calibration
        p.center->find(k_cache)->kq_scale = kq_scale;
        return {};
    }
    if (p.layer->n_latent) {
        term t = {};
        t.latent_mu = ggml_view_1d(ctx, p.layer->latent_mu, p.layer->n_latent, 0);
        return t;
    }
    // the same cells and streams as the view of K
    ggml_tensor * part = p.layer->part;
    const size_t first_stream = k->view_offs/k_cache->nb[2], bytes = part->nb[2];
    const auto & rope = p.center->ropes[p.layer->rope];
    // a row is stored longer than what it stands for, and RoPE has a magnitude (YaRN)
    return { &rope, p.w, input->positions_of(ctx, *p.center, k), ggml_view_4d(ctx, part, k->ne[2], 1, 1, k->ne[3], bytes, bytes, bytes, first_stream*bytes),
        p.layer->s_mu, rope.magnitude/ggmlq_llama_center_gain(p.layer->k->type), (int32_t) ggmlq_llama_center_hadamard(*p.layer, p.center->rotates), nullptr };
}

// w as build_attn_mha makes q: [n_rot, queries, heads, streams].
static ggml_tensor * ggmlq_llama_center_by_stream(ggml_context * ctx, ggml_tensor * w, int64_t n_stream) {
    const int64_t n_queries = w->ne[2]/n_stream;
    w = ggml_view_4d(ctx, w, w->ne[0], w->ne[1], n_queries, n_stream, w->nb[1], w->nb[2], w->nb[2]*n_queries, 0);
    return ggml_permute(ctx, w, 0, 2, 1, 3);
}

void ggmlq_llama_center_graph::add_to_flash(ggml_context * ctx, ggml_tensor * attention, const term & t) {
    if (t.rope) {
        attention->src[GGMLQ_GGML_ATTEND_W]         = ggmlq_llama_center_by_stream(ctx, t.w, t.part->ne[3]);
        attention->src[GGMLQ_GGML_ATTEND_TURNS]     = t.rope->turns_there;
        attention->src[GGMLQ_GGML_ATTEND_POSITIONS] = t.positions;
        attention->src[GGMLQ_GGML_ATTEND_PART]      = t.part;
        attention->src[GGMLQ_GGML_ATTEND_MEAN]      = t.mean;
        attention->op_params[GGMLQ_GGML_ATTEND_HALVES_AT]      = t.rope->neox;
        attention->op_params[GGMLQ_GGML_ATTEND_MEAN_TURNED_AT] = t.rotated;
        memcpy(&attention->op_params[GGMLQ_GGML_ATTEND_MEAN_FACTOR_AT], &t.mean_factor, sizeof(t.mean_factor));
    }
}

ggml_tensor * ggmlq_llama_center_graph::add_to_scores(ggml_context * ctx, ggml_tensor * scores, const term & t) {
    if (!t.rope) {
        return scores;
    }
    const int64_t n_cells = t.positions->ne[0], n_stream = t.positions->ne[3];
    auto it = std::find_if(made.begin(), made.end(), [&](const rows & r) { return r.rope == t.rope && r.positions == t.positions; });
    if (it == made.end()) { // by the model's own RoPE, for all layers
        ggml_tensor * one = ggml_repeat_4d(ctx, t.rope->one, t.rope->n_rot, 1, n_cells*n_stream, 1);
        ggml_tensor * c   = ggmlq_llama_rope_node(ctx, one, ggml_reshape_1d(ctx, t.positions, n_cells*n_stream), t.rope->factors, t.rope->params.data());
        it = made.insert(it, { t.rope, t.positions, ggml_reshape_4d(ctx, c, t.rope->n_rot, n_cells, 1, n_stream) });
    }
    ggml_tensor * rest = ggml_mul_mat(ctx, it->c, ggmlq_llama_center_by_stream(ctx, t.w, n_stream));
    ggml_prec_set_acc(rest, GGML_PREC_F32);
    return ggml_add(ctx, scores, ggml_mul(ctx, rest, ggml_cast(ctx, t.part, GGML_TYPE_F32)));
}

ggml_tensor * ggmlq_llama_center_graph::add_to_output(ggml_context * ctx, ggml_tensor * output, const term & t) {
    return t.latent_mu ? ggml_add(ctx, output, t.latent_mu) : output; // since softmax weights have the sum 1
}

std::vector<float> ggmlq_llama_center_rope::at(const std::vector<int32_t> & positions_wanted) const {
    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_ptr backend { dev ? ggml_backend_dev_init(dev, nullptr) : nullptr };
    if (!backend) {
        throw std::runtime_error("found no CPU back end");
    }
    // one thread: to start others takes longer than the rows do
    if (const auto set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads")) {
        set_n_threads(backend.get(), 1);
    }
    const int64_t n = (int64_t) positions_wanted.size();
    ggml_init_params params_ctx = { 8*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
    ggml_context_ptr ctx { ggml_init(params_ctx) };
    ggml_tensor * x    = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_rot, 1, n);
    ggml_tensor * pos  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n);
    ggml_tensor * own  = factors ? ggml_dup_tensor(ctx.get(), factors) : nullptr;
    ggml_tensor * rows = ggmlq_llama_rope_node(ctx.get(), x, pos, own, params.data());
    ggml_backend_buffer_ptr buffer { ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()) };
    if (!buffer) {
        throw std::runtime_error("no memory");
    }
    std::vector<float> values((size_t) (n_rot*n));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = ggmlq_llama_is_first_of_pair(*this, (int64_t) i % n_rot) ? 1.0f : 0.0f;
    }
    ggml_backend_tensor_set(x,   values.data(), 0, ggml_nbytes(x));
    ggml_backend_tensor_set(pos, positions_wanted.data(), 0, ggml_nbytes(pos));
    if (own) {
        std::vector<uint8_t> bytes(ggml_nbytes(factors));
        ggml_backend_tensor_get(factors, bytes.data(), 0, bytes.size());
        ggml_backend_tensor_set(own, bytes.data(), 0, bytes.size());
    }
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, rows);
    if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("the CPU back end failed");
    }
    ggml_backend_tensor_get(rows, values.data(), 0, ggml_nbytes(rows));
    return values;
}

static constexpr double GGMLQ_LLAMA_TURN = 6.283185307179586; // radians

void ggmlq_llama_center_row(const std::vector<uint64_t> & turns, bool neox, int32_t position, float * row) {
    for (size_t pair = 0; pair < turns.size(); ++pair) {
        const int64_t turned = (int64_t) ((uint64_t) (int64_t) position*turns[pair]); // exact, and whole turns drop out
        const double  angle  = GGMLQ_LLAMA_TURN*std::ldexp((double) turned, -64);
        row[neox ? pair : 2*pair]                    = (float) std::cos(angle);
        row[neox ? pair + turns.size() : 2*pair + 1] = (float) std::sin(angle);
    }
}

void ggmlq_llama_center_rope::measure() {
    // The angle of position 1 is known to some 2^-24, that of 2 to as much, and so on: each doubling gives one more bit of it. Positions are whole
    // numbers, so it is wanted modulo a turn only. The last position isn't a power of 2, at which floats round the angle as at most positions.
    std::vector<int32_t> at_positions = { 0 };
    for (int32_t position = 1; position <= 1 << 20; position *= 2) {
        at_positions.push_back(position);
    }
    at_positions.push_back(1021);
    const auto rows = at(at_positions);
    magnitude = rows[0];
    turns.clear();
    const int32_t half = n_rot/2;
    for (int32_t pair = 0; pair < half; ++pair) {
        const int32_t i = neox ? pair : 2*pair, j = neox ? pair + half : 2*pair + 1;
        double found = 0; // of a turn
        for (size_t row = 1; row < at_positions.size(); ++row) {
            const double angle = std::atan2((double) rows[row*n_rot + j], (double) rows[row*n_rot + i])/GGMLQ_LLAMA_TURN;
            double off = angle - found*at_positions[row];
            off -= std::round(off);
            if (row > 1 && !(std::fabs(off) < 0.01)) {
                throw std::runtime_error(format("RoPE doesn't turn pair %d in proportion to the position", pair));
            }
            if (row + 1 < at_positions.size()) {
                found += off/at_positions[row];
            }
        }
        turns.push_back((uint64_t) std::llround(std::ldexp(found, 63)) << 1);
    }
    if (!(magnitude > 0) || !std::isfinite(magnitude)) {
        throw std::runtime_error(format("RoPE has a magnitude of %g", magnitude));
    }
}

// --- when a context is made

struct ggmlq_llama_center_access {
    static llama_cparams & cparams(llama_context & ctx) { return ctx.cparams; }
    static ggml_backend_t backend(llama_context & ctx, ggml_backend_dev_t dev) {
        for (const auto & backend : ctx.backends) {
            if (ggml_backend_get_device(backend.get()) == dev) {
                return backend.get();
            }
        }
        return nullptr;
    }
    static void build_a_graph(llama_context & ctx, const llama_memory_context_i * memory) {
        const uint32_t n = ctx.cparams.n_seq_max;
        ctx.graph_reserve(n, n, n, memory, true);
    }
    static bool & graph_reuse_disable(llama_context & ctx) { return ctx.graph_reuse_disable; }
};

// Whether the back end of `dev` does attention with this layer's types and a term whose turns are of `type`.
static bool ggmlq_llama_center_takes(ggml_backend_dev_t dev, const ggmlq_llama_center_layer & layer, const ggmlq_llama_center_rope & rope, ggml_type type_v,
        int64_t head_size_v, ggml_type type) {
    ggml_init_params params = { 8*ggml_tensor_overhead(), nullptr, true };
    ggml_context_ptr ctx { ggml_init(params) };
    const int64_t n = 256;
    ggml_tensor * attention = ggml_flash_attn_ext(ctx.get(),
        ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, layer.head_size, 1, layer.n_head),
        ggml_new_tensor_3d(ctx.get(), layer.k->type, layer.head_size, n, layer.n_head_kv),
        ggml_new_tensor_3d(ctx.get(), type_v, head_size_v, n, layer.n_head_kv), nullptr, 1.0f, 0.0f, 0.0f);
    attention->src[GGMLQ_GGML_ATTEND_W]         = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, rope.n_rot, 1, layer.n_head);
    attention->src[GGMLQ_GGML_ATTEND_TURNS]     = ggml_new_tensor_1d(ctx.get(), type, rope.n_rot/2);
    attention->src[GGMLQ_GGML_ATTEND_POSITIONS] = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n);
    attention->src[GGMLQ_GGML_ATTEND_PART]      = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F16, n);
    attention->op_params[GGMLQ_GGML_ATTEND_HALVES_AT] = rope.neox;
    return ggml_backend_dev_supports_op(dev, attention);
}

// Empty, or why attention on the device of this layer's cache can't add w . c.
static std::string ggmlq_llama_center_unsupported(const ggmlq_llama_center_layer & layer, const std::vector<ggmlq_llama_center_rope> & ropes,
        const llama_cparams & cparams, ggml_type type_v, int64_t head_size_v) {
    ggml_backend_dev_t dev = ggmlq_llama_device(layer.k);
    if (!dev) {
        return "found no CPU back end";
    }
    const std::string name = ggml_backend_dev_name(dev);
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META) {
        return "the cache is spread over devices by heads (-sm tensor), and what belongs to all heads of a token would be, too: use -sm layer";
    }
    if (!cparams.flash_attn || layer.n_latent) {
        return "";
    }
    const auto takes = [&](ggml_backend_dev_t device, ggml_type type) { return ggmlq_llama_center_takes(device, layer, ropes[layer.rope], type_v, head_size_v, type); };
    if (!takes(dev, GGML_TYPE_I64)) {
        return name + " has no attention for centered keys of type " + ggml_type_name(layer.k->type) + " with values of type " + ggml_type_name(type_v) +
            ": turn flash attention off" + (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU ? "" : " or keep the cache on the CPU (-nkvo)");
    }
    // Who takes turns of a type that they can't have overlooks them. Back ends that don't know our types refuse nodes that have them, so this is about others.
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t other = ggml_backend_dev_get(i);
        if (takes(other, GGML_TYPE_I32)) {
            return std::string(ggml_backend_dev_name(other)) + " would overlook that keys of type " + ggml_type_name(layer.k->type) + " are centered";
        }
    }
    return "";
}

// The calibration that GGMLQ_KV_CENTER names. Throws if it can't be read, or with what `use` throws.
static ggmlq_llama_center_record ggmlq_llama_center_asked_for(const std::function<void(const ggmlq_llama_center_record &)> & use) {
    const char * path = getenv("GGMLQ_KV_CENTER");
    try {
        auto record = ggmlq_llama_center_load(path);
        record.key.clear(); // one that was kept is no better known than others, by this name
        use(record);
        return record;
    } catch (const std::exception & error) {
        throw std::runtime_error(std::string("'") + path + "' " + error.what() + ": make one with `pyggmlq calibrate`");
    }
}

// "3, 7 to 9"
static std::string ggmlq_llama_center_list(const std::set<int32_t> & layers) {
    std::string list;
    for (const int32_t first : layers) {
        int32_t last = first;
        while (layers.count(last + 1)) {
            ++last;
        }
        if (!layers.count(first - 1)) {
            list += (list.empty() ? "" : ", ") + std::to_string(first) + (last > first ? " to " + std::to_string(last) : "");
        }
    }
    return list;
}

class ggmlq_llama_center_starting : public ggmlq_llama_center_start {
public:
    ggmlq_llama_center_starting(llama_context & ctx, ggmlq_llama_center_mode mode) : ctx(ctx), model(ctx.get_model()), mode(mode) {}

    void run(const llama_memory_context_i * memory) override {
        t_start_us = ggml_time_us();
        std::string reason; // why nothing is centered
        try {
            find(memory);
            if (!model.hparams.no_alloc && done.empty()) {
                calibrate();
            }
        } catch (const std::exception & error) {
            reason = error.what();
            for (auto * center : centers) {
                center->clear();
            }
        }
        if (model.hparams.no_alloc) {
            return;
        }
        if (!reason.empty() && mode == GGMLQ_LLAMA_CENTER_FILE) { // asked for by name: not to be left out in silence
            throw std::runtime_error("keys can't be centered: " + reason);
        }
        if (!reason.empty()) {
            LLAMA_LOG_WARN("%s: keys are not centered: %s\n", GGMLQ_LLAMA_CENTER_LOG, reason.c_str());
        } else if (!done.empty()) {
            LLAMA_LOG_INFO("%s: keys are centered: %s\n", GGMLQ_LLAMA_CENTER_LOG, done.c_str());
        }
    }

private:
    llama_context & ctx;
    const llama_model & model;
    const ggmlq_llama_center_mode mode;

    int64_t t_start_us = 0;
    std::string done; // what is centered
    std::string left; // layers that aren't
    int n_centered = 0;

    std::vector<ggmlq_llama_center *> centers;
    std::string save;         // `pyggmlq calibrate`: only write a file
    std::string text, key;
    int64_t n_window = 0;     // tokens that see each other, at most

    // What can be centered, as a graph of one token shows it; then by a known calibration. Throws, with the reason, if nothing can be.
    void find(const llama_memory_context_i * memory) {
        const auto & cparams = ggmlq_llama_center_access::cparams(ctx);
        const llama_vocab * vocab = llama_model_get_vocab(&model);
        if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
            throw std::runtime_error("the model has no tokenizer");
        }
        if (llama_model_has_encoder(&model)) {
            throw std::runtime_error("the model has an encoder");
        }
        if (cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
            throw std::runtime_error("the context is one for a part of the model (MTP)");
        }
        save = mode == GGMLQ_LLAMA_CENTER_FILE ? "" : ggmlq_llama_center_save_path();
        std::future<std::vector<uint8_t>> sample;
        if (mode != GGMLQ_LLAMA_CENTER_FILE && save.empty() && !model.hparams.no_alloc) { // while graphs are built here, which touches no back end's stream
            sample = std::async(std::launch::async | std::launch::deferred, [this] {
                return ggmlq_llama_center_sample(model, [this](ggml_backend_dev_t dev) { return ggmlq_llama_center_access::backend(ctx, dev); });
            });
        }
        {
            ggmlq_llama_center_calibration calibration;
            ggmlq_llama_center_access::build_a_graph(ctx, memory);
            centers = calibration.centers;
        }
        for (auto * center : centers) {
            const ggmlq_llama_center_layer * before = nullptr;
            for (const auto & layer : center->layers) {
                if (!layer.is_centered() || !save.empty() ||
                    (before && before->is_like(layer) && model.hparams.n_embd_head_v(before->il) == model.hparams.n_embd_head_v(layer.il))) {
                    continue;
                }
                const std::string unsupported = ggmlq_llama_center_unsupported(layer, center->ropes, cparams, center->type_v, model.hparams.n_embd_head_v(layer.il));
                if (!unsupported.empty()) {
                    throw std::runtime_error(unsupported);
                }
                before = &layer;
            }
        }
        count();
        if (model.hparams.no_alloc) {
            activate(true);
            return;
        }
        if (mode == GGMLQ_LLAMA_CENTER_FILE) {
            const auto record = ggmlq_llama_center_asked_for([&](const auto & record) { ggmlq_llama_center_apply(record, model, centers); });
            activate(false);
            say(format("as a file says that was calibrated on %u tokens", record.text.n_tokens));
            return;
        }

        text = ggmlq_llama_center_text();
        n_window = std::min<int64_t>(GGMLQ_LLAMA_CENTER_MOST, cparams.n_ctx_seq);
        if (!cparams.causal_attn) { // such a window is one batch
            n_window = std::min<int64_t>(n_window, cparams.n_ubatch);
        }
        if (!save.empty()) {
            return;
        }
        key = ggmlq_llama_center_key(sample.get(), text, centers);
        std::string where;
        const auto record = ggmlq_llama_center_find(key, (uint32_t) n_window, where);
        if (record) {
            for (auto * center : centers) {
                for (auto & layer : center->layers) {
                    leave_out_if(layer, std::none_of(record->layers.begin(), record->layers.end(), [&](const auto & known) { return known.il == layer.il; }));
                }
            }
            count();
            ggmlq_llama_center_apply(*record, model, centers);
            activate(false);
            say(format("as calibrated on %u tokens before (kept in ", record->text.n_tokens) + where + format(", %.1f ms)", (ggml_time_us() - t_start_us)/1000.0));
        }
    }

    // Runs the text through the context. Throws, with the reason, if nothing can be centered after that.
    void calibrate() {
        auto & cparams = ggmlq_llama_center_access::cparams(ctx);
        const llama_vocab * vocab = llama_model_get_vocab(&model);
        const auto tokenize = [&](llama_token * to, size_t n) { return llama_tokenize(vocab, text.c_str(), (int32_t) text.size(), to, (int32_t) n, true, false); };
        std::vector<llama_token> tokens(std::max(0, -tokenize(nullptr, 0))); // without a place it says how many there are
        tokens.resize(std::max(0, tokenize(tokens.data(), tokens.size())));
        tokens.resize(std::min<size_t>(tokens.size(), ggmlq_llama_center_most()));
        n_window = std::min<int64_t>(n_window, tokens.size());
        if (n_window < GGMLQ_LLAMA_CENTER_LEAST) {
            throw std::runtime_error("found " + std::to_string(tokens.size()) + " tokens to calibrate on (the context holds " + std::to_string(cparams.n_ctx_seq) +
                "), wanted " + std::to_string(GGMLQ_LLAMA_CENTER_LEAST));
        }
        // a warning, since it may take a large model some time and programs hide what is only said
        LLAMA_LOG_WARN("%s: calibrating centered keys on %zu tokens\n", GGMLQ_LLAMA_CENTER_LOG, tokens.size());
        const int64_t t_calibration_us = ggml_time_us();
        ggmlq_llama_center_calibration calibration;
        int32_t error = 0;
        bool & reuse_disable = ggmlq_llama_center_access::graph_reuse_disable(ctx); // each graph has sums of its own
        const std::unique_ptr<bool, std::function<void(bool *)>> restore(&reuse_disable, [before = reuse_disable](bool * p) { *p = before; });
        reuse_disable = true;
        const std::vector<int8_t> no_outputs(n_window, 0);
        for (size_t first = 0, n; first < tokens.size() && error == 0; first += n) { // windows of a long text, or of a short context; mostly one
            n = std::min(tokens.size() - first, (size_t) n_window);
            if (first > 0 && n < (size_t) GGMLQ_LLAMA_CENTER_LEAST) {
                tokens.resize(first);
                break;
            }
            if (first > 0 && llama_vocab_get_add_bos(vocab)) {
                tokens[first] = llama_vocab_bos(vocab);
            }
            calibration.start_window();
            for (size_t i = 0, n_batch; i < n && error == 0; i += n_batch) {
                n_batch = std::min<size_t>({ n - i, cparams.n_batch, cparams.n_ubatch }); // one graph
                auto batch = llama_batch_get_one(tokens.data() + first + i, (int32_t) n_batch);
                batch.logits = const_cast<int8_t *>(no_outputs.data());
                error = llama_decode(&ctx, batch);
                llama_synchronize(&ctx);
                if (error == 0) {
                    calibration.take();
                }
            }
            llama_memory_clear(llama_get_memory(&ctx), true);
            if (!save.empty()) {
                LLAMA_LOG_INFO("%s: %zu of %zu tokens\n", GGMLQ_LLAMA_CENTER_LOG, first + n, tokens.size());
            }
        }
        llama_perf_context_reset(&ctx);
        if (error != 0) {
            throw std::runtime_error("llama_decode of " + std::to_string(tokens.size()) + " tokens gave " + std::to_string(error));
        }
        for (auto * center : centers) {
            for (auto & layer : center->layers) {
                leave_out_if(layer, layer.n_k == 0 || layer.n_q == 0);
            }
        }
        count();
        const std::vector<uint8_t> bytes(text.begin(), text.end());
        const uint32_t n_tokens = (uint32_t) tokens.size();
        auto record = std::make_shared<ggmlq_llama_center_record>(
            ggmlq_llama_center_record_of(model, centers, { n_tokens, (uint32_t) n_window, bytes.size(), ggmlq_llama_center_checksum(bytes) }));
        if (!save.empty()) {
            ggmlq_llama_center_save(save, *record);
            LLAMA_LOG_INFO("%s: wrote the calibration of %d layers on %u tokens%s\n", GGMLQ_LLAMA_CENTER_LOG, n_centered, n_tokens, left.c_str());
            for (auto * center : centers) {
                center->clear();
            }
            return; // which is all that was asked for
        }
        record->key = key;
        ggmlq_llama_center_apply(*record, model, centers);
        activate(false);
        const std::string time = format("%.0f ms", (ggml_time_us() - t_calibration_us)/1000.0);
        say(format("calibrated on %u tokens in ", n_tokens) + time + " (" + ggmlq_llama_center_keep(record) + ")");
    }

    static void leave_out_if(ggmlq_llama_center_layer & layer, bool is_unknown) {
        if (layer.is_centered() && is_unknown) {
            layer.leave("its queries or keys weren't computed");
        }
    }

    void count() {
        n_centered = 0;
        left.clear();
        std::map<std::string, std::set<int32_t>> layers_by_reason; // a model with sliding windows has its layers in two caches
        for (const auto * center : centers) {
            for (const auto & layer : center->layers) {
                n_centered += layer.is_centered();
                if (!layer.is_centered()) {
                    layers_by_reason[layer.reason].insert(layer.il);
                }
            }
        }
        for (const auto & [why, layers] : layers_by_reason) {
            left += (left.empty() ? "; not " : ", ") + ggmlq_llama_center_list(layers) + " (" + why + ")";
        }
        if (n_centered == 0) {
            throw std::runtime_error("found no layer that can be" + (left.empty() ? ": none has keys of a kind that is known here, as in recurrent models and DeepSeek-V4" : left));
        }
    }

    void activate(bool dry) {
        for (auto * center : centers) {
            for (auto & layer : center->layers) {
                if (layer.rope >= 0) {
                    const auto * before = &layer == center->layers.data() ? nullptr : &layer - 1; // to ask a GPU takes longer than to compare
                    layer.is_rounded = before && before->is_like(layer) ? before->is_rounded : ggmlq_llama_center_rounds(layer);
                }
                if (layer.is_centered() && !dry) {
                    ggmlq_llama_center_fit(layer, center->ropes);
                }
                center->rotates = center->rotates && !layer.n_latent; // no graph rotates rows of MLA
            }
            center->upload(dry);
        }
        for (auto * center : centers) {
            center->active = true;
            if (!dry) {
                LLAMA_LOG_INFO("%s: attn_rot_k = %d\n", GGMLQ_LLAMA_CENTER_LOG, center->rotates);
            }
        }
    }

    void say(const std::string & how) {
        int64_t n_rounded = 0;
        for (const auto * center : centers) {
            n_rounded += std::count_if(center->layers.begin(), center->layers.end(), [](const ggmlq_llama_center_layer & l) { return l.feedback != nullptr; });
        }
        done = format("%d layers, ", n_centered) + how + (n_rounded > 0 ? format(", %d rounded for the model's queries", (int) n_rounded) : "") + left;
    }
};

std::shared_ptr<ggmlq_llama_center_start> ggmlq_llama_center_begin(llama_context & ctx, const llama_context_params & params) {
    const auto mode = ggmlq_llama_center_mode_get();
    if (mode == GGMLQ_LLAMA_CENTER_OFF || !llama_get_memory(&ctx) || ctx.get_cparams().ctx_other) { // whose cache it shares, and whose calibration
        return nullptr;
    }
    if (mode != GGMLQ_LLAMA_CENTER_ALL && !ggmlq_llama_is_cache_type(params.type_k)) {
        if (mode == GGMLQ_LLAMA_CENTER_FILE && !ctx.get_model().hparams.no_alloc) {
            // of which model it is doesn't matter here: this one may be a draft of another, whose keys are centered by it
            try {
                ggmlq_llama_center_asked_for([](const auto &) {});
            } catch (const std::exception & error) {
                throw std::runtime_error(std::string("keys can't be centered: ") + error.what());
            }
            LLAMA_LOG_WARN("%s: keys of type %s are not centered, so '%s' isn't used\n", GGMLQ_LLAMA_CENTER_LOG, ggml_type_name(params.type_k), getenv("GGMLQ_KV_CENTER"));
        }
        return nullptr;
    }
    return std::make_shared<ggmlq_llama_center_starting>(ctx, mode);
}
