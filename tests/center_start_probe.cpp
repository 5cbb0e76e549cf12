// SPDX-License-Identifier: MIT
//
// What tests/test_llama_center.py asks libllama: contexts of centered keys right after they were made, while matrices for rounding may still be in the making.
//     center_start_probe MODEL
// Prints whether each of these gives the logits of a context that was only decoded with: a state that was saved and restored before anything was decoded, from and to contexts that were
// freed or used at once; contexts that two threads made of the same model at the same time, before any other.
#include "llama.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

struct free_context { void operator()(llama_context * ctx) const { llama_free(ctx); } };
using context = std::unique_ptr<llama_context, free_context>;

static llama_model * model;

static context make() {
    auto params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        if (ggml_type_name((ggml_type) type) && !std::strcmp(ggml_type_name((ggml_type) type), "tq3_0")) {
            params.type_k = params.type_v = (ggml_type) type;
        }
    }
    return context(llama_init_from_model(model, params));
}

static std::vector<float> logits(const context & ctx) {
    std::vector<llama_token> tokens;
    for (int i = 0; i < 40; ++i) {
        tokens.push_back(100 + 37*i % 1000);
    }
    if (!ctx || llama_decode(ctx.get(), llama_batch_get_one(tokens.data(), (int32_t) tokens.size())) != 0) {
        return {};
    }
    const float * values = llama_get_logits_ith(ctx.get(), -1);
    return { values, values + llama_vocab_n_tokens(llama_model_get_vocab(model)) };
}

int main(int, char ** argv) {
    llama_log_set([](ggml_log_level, const char * text, void *) { if (std::strstr(text, "keys are")) std::fputs(text, stderr); }, nullptr);
    model = llama_model_load_from_file(argv[1], llama_model_default_params());
    std::vector<std::vector<float>> found(2);
    std::vector<std::thread> threads;
    for (auto & values : found) {
        threads.emplace_back([&values] { values = logits(make()); });
    }
    for (auto & thread : threads) {
        thread.join();
    }

    const auto wanted = logits(make());
    make();
    std::vector<uint8_t> state;
    {
        const auto from = make();
        state.resize(llama_state_get_size(from.get()));
        state.resize(llama_state_get_data(from.get(), state.data(), state.size()));
    }
    const auto to = make();
    const bool restored = llama_state_set_data(to.get(), state.data(), state.size()) == state.size();
    std::printf("%d ", restored && !wanted.empty() && logits(to) == wanted);
    bool same = true;
    for (const auto & values : found) {
        same = same && values == wanted;
    }
    std::printf("%d\n", same);
    llama_model_free(model);
}
