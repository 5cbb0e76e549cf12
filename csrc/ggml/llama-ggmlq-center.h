/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: positional centering of keys (docs/CENTERING.md). A layer whose K is made by a RoPE node stores
 * S R (kappa - mu) instead of R kappa; the query is divided by S, and the score gets its missing part back as w . c, where c is known by the
 * position alone. Of MLA, the latent without RoPE is stored less its mean, which attention's output gets back.
 */
#pragma once

#include "llama.h"
#include "llama-kv-cells.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <array>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct llama_memory_context_i;
struct llama_ubatch;
class ggmlq_llama_center_values;
class ggmlq_llama_round;
class ggmlq_llama_center_restore;
class llm_graph_input_i;

enum ggmlq_llama_center_mode {
    GGMLQ_LLAMA_CENTER_OFF,
    GGMLQ_LLAMA_CENTER_AUTO, // keys of our types; also where nothing is said
    GGMLQ_LLAMA_CENTER_ALL,  // keys of any type
    GGMLQ_LLAMA_CENTER_FILE, // keys of our types, as a file says
};

// From GGMLQ_KV_CENTER. Throws if that is none of off, auto, all, and no file.
ggmlq_llama_center_mode ggmlq_llama_center_mode_get();

// The positional row c of a position, pairs (cos, sin): pair i is turned by position*turns[i], a fraction of a full turn in units of 2^-64.
void ggmlq_llama_center_row(const std::vector<uint64_t> & turns, bool neox, int32_t position, float * row);

// What is known of one RoPE: the node's parameters, the frequency factors, where the layer's cache is. Layers with the same share positional rows.
struct ggmlq_llama_center_rope {
    std::array<uint8_t, GGML_MAX_OP_PARAMS> params;
    ggml_tensor * factors;
    const ggml_tensor * positions; // of the calibration's graph
    ggml_backend_buffer_type_t buft;
    int     n_rot;
    bool    neox; // a pair is half of n_rot apart, not side by side

    std::vector<uint64_t> turns; // how it turns each pair from one position to the next, as above
    float magnitude = 1.0f;      // and what it multiplies all of them by (YaRN)

    ggml_tensor * turns_there = nullptr; // I64 [n_rot/2]: the same, on the cache's device; null: no layer has this RoPE
    ggml_tensor * one         = nullptr; // F32 [n_rot]: pairs (1/magnitude, 0)

    // What the RoPE node makes of pairs (1, 0) at these positions, computed on the CPU. Throws if there is none.
    std::vector<float> at(const std::vector<int32_t> & positions_wanted) const;

    // Finds turns and magnitude by it, so that YaRN and its kind need no formulas here. Throws if pairs aren't turned in proportion to the position.
    void measure();
};

// The value that value i of a head is turned with; i itself where there is no RoPE.
int64_t ggmlq_llama_center_partner(const ggmlq_llama_center_rope & rope, int64_t i);

struct ggmlq_llama_center_layer {
    int32_t       il;
    ggml_tensor * k;         // the cache
    int           rope = -1;    // index; -1: its keys aren't centered before RoPE
    int64_t       n_latent = 0; // of MLA: the first values of a row, which have no RoPE and are V too
    std::string   reason;       // if neither: why it isn't centered
    int64_t       head_size = 0, n_head_kv = 0, n_head = 0;
    float         kq_scale = 0; // of the calibration's graph: what attention multiplies scores by

    // Of the calibration: sums over the tokens from GGMLQ_LLAMA_CENTER_FIRST on.
    int64_t n_seen = 0;                        // tokens of this window
    int64_t n_k = 0, n_q = 0;
    std::vector<double> sum_k, sum_kk, sum_qq; // [KV head][value]

    std::vector<float> mean, scale;            // [KV head][value]
    std::vector<float> query;                  // [KV head][value]: mean square of its queries, the same for both of a pair

    // By KV head: keys are rounded for the model's queries. None where the cache's device can't.
    bool is_rounded = false;
    std::shared_ptr<std::vector<ggmlq_llama_round>> rounds;
    ggml_tensor * feedback = nullptr; // F16 [ggmlq_feedback_values(head size), KV heads]: of `rounds`

    ggml_tensor * part    = nullptr; // F16 [1, cells, streams]: 1 for a centered key, 0 for one that is smaller as it is
    std::vector<ggml_tensor *> part_stream;

    ggml_tensor * s       = nullptr; // F32 [head size, KV heads]: the scale
    ggml_tensor * s_mu    = nullptr; // F32 [head size, KV heads]: scale times mean
    ggml_tensor * s_mu_2  = nullptr; // F32 [1]: half its square
    ggml_tensor * s_inv   = nullptr; // F32 [head size, heads]: 1/scale
    ggml_tensor * mu_same = nullptr; // F32 [head size, heads]: for both values of a pair, the first of its mean
    ggml_tensor * mu_turn = nullptr; // F32 [head size, heads]: ... the second

    ggml_tensor * latent_mu = nullptr; // F32 [head size], instead of these: the mean of a latent, 0 behind it

    bool is_centered() const { return rope >= 0 || n_latent > 0; }
    // Whether what its device can do for that layer it can do for this one, if it is centered too.
    bool is_like(const ggmlq_llama_center_layer & other) const {
        return rope == other.rope && n_latent == other.n_latent && head_size == other.head_size && n_head_kv == other.n_head_kv && n_head == other.n_head &&
            k->type == other.k->type && ggml_backend_buffer_get_type(k->buffer) == ggml_backend_buffer_get_type(other.k->buffer);
    }
    void leave(const std::string & why) { rope = -1; n_latent = 0; reason = why; }
};

// Of one KV cache.
class ggmlq_llama_center {
public:
    bool active  = false; // until a calibration has succeeded nothing is centered, and graphs are as upstream makes them
    bool rotates = false; // once active, llama.cpp rotates the centered keys (attn_rot), whatever it does to keys of this type otherwise
    ggml_type type_v = GGML_TYPE_F16;
    std::shared_ptr<const llama_kv_cells_vec> cells; // whose positions the terms are of

    std::vector<ggmlq_llama_center_layer> layers;
    std::vector<ggmlq_llama_center_rope>  ropes;

    // On the device of all that is centered; null where that is on several, or not to be had. As inputs of a graph they would be copied there for every token, each with a wait.
    ggml_tensor * rotation = nullptr; // F32 [n, n]: the matrix of llama.cpp's own rotation (attn_rot) of K, whatever graph is computed
    ggml_tensor * ones     = nullptr; // I32 [GGMLQ_LLAMA_CENTER_ONES]: for the quarter turn of so many tokens

    // Once for all, what the cache would copy for each graph.
    void set_rotation(const std::vector<float> & values);

    ggmlq_llama_center_layer * find(const ggml_tensor * k);

    // Makes and fills the tensors from mean and scale; `dry`: without memory, for a context that only says how much it would take.
    // Throws if there is none.
    void upload(bool dry);

    // Nothing is centered.
    void clear();

    // Adds what upload() takes.
    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

    // Fills them again.
    void fill();

    // Before keys are stored: the feedback matrices, which fill() begins to make in the background. Where they can't be made a warning says so, and keys are
    // rounded by the encoder alone.
    void prepare();

    // A SET_ROWS of keys to this cache, as cpy_k made it: rounds them, if their layer is centered.
    ggml_tensor * stored(ggml_tensor * set_rows, const ggml_tensor * k) const;

    ggmlq_llama_center_restore * restore = nullptr; // while one is going on

private:
    void fill(ggmlq_llama_center_layer & layer, const ggmlq_llama_center_values & values) const;

    void begin_feedback();

    bool measures = false;
    bool rotation_is_set = false;
    std::mutex mutex;
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;

    // What reads `rounds` and writes to the tensors' memory meanwhile; the last member, since it ends before any of that may change or go.
    std::future<std::shared_ptr<const ggmlq_llama_center_values>> feedback;
};

// What one graph needs while it is built. Nothing happens where `center` isn't active and no calibration runs.
class ggmlq_llama_center_graph {
public:
    using add_input_fn = std::function<void(std::unique_ptr<llm_graph_input_i>)>;

    // Before K and V are stored: replaces q, k and v (null: this layer stores none).
    void apply(ggml_context * ctx, ggml_cgraph * gf, const add_input_fn & add_input, ggmlq_llama_center * center,
        ggml_tensor * k_cache, ggml_tensor *& q, ggml_tensor *& k, ggml_tensor *& v, ggml_tensor * k_idxs, int32_t il);

    // The same where V is a part of K (MLA), before K is stored. `shifts`: scores that all change by the same give the same attention, that is, it has no
    // sinks and doesn't cap scores.
    void apply_latent(ggml_context * ctx, ggml_cgraph * gf, ggmlq_llama_center * center, ggml_tensor * k_cache, ggml_tensor * q, ggml_tensor *& k,
        const ggml_tensor * v, bool shifts, int32_t il);

    // For attention with the view `k` of a cache, as get_k made it: w [n_rot, heads, tokens], positions and part [cells, 1, 1, streams], the mean [head size, KV heads] and what it is multiplied and
    // turned by (ggml-ggmlq-center.h), or nulls; of MLA, only latent_mu [values of V].
    struct term {
        const ggmlq_llama_center_rope * rope;
        ggml_tensor * w, * positions, * part, * mean;
        float         mean_factor;
        int32_t       rotated;
        ggml_tensor * latent_mu;
    };
    // kq_scale: what attention multiplies scores by.
    term take(ggml_context * ctx, const ggml_tensor * k, float kq_scale);

    // Give the term to a FLASH_ATTN_EXT node, or add it to scores [cells, queries, heads, streams].
    static void   add_to_flash (ggml_context * ctx, ggml_tensor * attention, const term & t);
    ggml_tensor * add_to_scores(ggml_context * ctx, ggml_tensor * scores, const term & t);

    // To attention's output, values of V in its first dimension.
    static ggml_tensor * add_to_output(ggml_context * ctx, ggml_tensor * output, const term & t);

private:
    struct pending { const ggml_tensor * k_cache; ggmlq_llama_center * center; const ggmlq_llama_center_layer * layer; ggml_tensor * w; };
    struct rows    { const ggmlq_llama_center_rope * rope; const ggml_tensor * positions; ggml_tensor * c; };

    std::vector<pending> terms;
    std::vector<rows>    made; // positional rows, where scores need them
    ggml_tensor * ones = nullptr;
    class llm_graph_input_ggmlq_center * input = nullptr;
};

// By how much rows of this type are stored longer while keys are centered.
float ggmlq_llama_center_gain(ggml_type type);

// What a new context does about it: null where nothing is to be done.
class ggmlq_llama_center_start {
public:
    virtual ~ggmlq_llama_center_start() = default;

    // Once, before its first graph is reserved: finds what can be centered, and centers it by a calibration that is known already, or that running a text through
    // the context gives; says in one line what was done or why not. Throws if GGMLQ_KV_CENTER names a file that can't be used.
    virtual void run(const llama_memory_context_i * memory) = 0;
};

// Throws if GGMLQ_KV_CENTER is wrong.
std::shared_ptr<ggmlq_llama_center_start> ggmlq_llama_center_begin(llama_context & ctx, const llama_context_params & params);
