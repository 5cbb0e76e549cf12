// SPDX-License-Identifier: MIT
//
// What tests/test_llama_states.py asks libllama: state_probe MODEL TYPE_K TYPE_V FLASH_ATTENTION(on|off) TEXT_FILE N_CTX
// [streams: each sequence has cells of its own] [window: a cache with a sliding window keeps no more than that]
// [plain: weights stay as they are in the file] [yarn: RoPE is stretched by four] [far: positions begin at 100000]
//
// Commands, one a line on stdin, each answered by one line on stdout. The text is tokenized once; sequences are 0 and 1.
//   clear
//   prefix N SEQ                       decodes its first N tokens
//   logits FROM N SEQ PATH             decodes the next N tokens of SEQ, writes the logits of each (float32)
//   greedy FROM N SEQ                  decodes the text's token FROM, then N times the likeliest next one; answers these tokens
//   save session|sequence PATH N SEQ   N: tokens to put into the file
//   load session|sequence PATH SEQ     "restored N", or "refused", with "same" or "changed": the whole state, before and after
//   reload memory SEQ                  the sequence through llama_state_seq_get_data and _set_data
//   drop FROM N                        removes these positions of sequence 0, moves later ones down (K-shift)
//   copy                               sequence 0 becomes sequence 1 too
//   keep | back                        remember the whole state in memory | restore it
//   another N_CTX                      makes a context of so many cells beside this one, and frees it
//   again                              frees context and model, loads the model anew, makes a context
#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

static ggml_type type_by_name(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * found = ggml_type_name((ggml_type) i);
        if (found && name == found) {
            return (ggml_type) i;
        }
    }
    std::fprintf(stderr, "found type %s, wanted one of ggml\n", name.c_str());
    std::exit(2);
}

static llama_pos first_position = 0;

static bool decode(llama_context * ctx, const std::vector<llama_token> & tokens, int from, int n, llama_seq_id seq, bool all_logits) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; ++i) {
        batch.token[i]     = tokens[from + i];
        batch.pos[i]       = first_position + from + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = seq;
        batch.logits[i]    = all_logits;
    }
    batch.n_tokens = n;
    const bool ok = llama_decode(ctx, batch) == 0;
    llama_batch_free(batch);
    return ok;
}

static std::vector<uint8_t> whole_state(llama_context * ctx) {
    std::vector<uint8_t> state(llama_state_get_size(ctx));
    state.resize(llama_state_get_data(ctx, state.data(), state.size()));
    return state;
}

int main(int argc, char ** argv) {
    if (argc < 7) {
        std::fprintf(stderr, "usage: %s MODEL TYPE_K TYPE_V on|off TEXT_FILE N_CTX [streams] [window] [plain] [yarn] [far]\n", argv[0]);
        return 2;
    }
    llama_backend_init();
    const std::vector<std::string> options(argv + 7, argv + argc);
    const auto has = [&](const char * option) { return std::find(options.begin(), options.end(), option) != options.end(); };
    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = !has("plain");
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    llama_context_params params = llama_context_default_params();
    params.type_k          = type_by_name(argv[2]);
    params.type_v          = type_by_name(argv[3]);
    params.flash_attn_type = std::string(argv[4]) == "on" ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.n_ctx           = std::atoi(argv[6]);
    params.n_batch         = params.n_ctx;
    params.n_seq_max       = 2;
    params.kv_unified      = !has("streams");
    params.swa_full        = !has("window");
    params.n_threads       = params.n_threads_batch = 1;
    if (has("yarn")) {
        params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
        params.rope_freq_scale   = 0.25f;
    }
    first_position = has("far") ? 100000 : 0;
    llama_context * ctx = model ? llama_init_from_model(model, params) : nullptr;
    if (!ctx) {
        return 1;
    }

    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::ifstream file(argv[5], std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    std::vector<llama_token> tokens(4*text.size() + 8); // a blank may be several
    tokens.resize(llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), true, false));

    std::vector<uint8_t> kept;
    std::string line;
    while (std::getline(std::cin, line)) {
        std::istringstream words(line);
        std::string command, kind, path;
        int from = 0, n = 0, seq = 0;
        words >> command;
        std::string answer = "failed";
        if (command == "clear") {
            llama_memory_clear(llama_get_memory(ctx), true);
            answer = "ok";
        } else if (command == "prefix") {
            words >> n >> seq;
            if (decode(ctx, tokens, 0, n, seq, false)) {
                answer = "ok";
            }
        } else if (command == "logits") {
            words >> from >> n >> seq >> path;
            if (decode(ctx, tokens, from, n, seq, true)) {
                std::ofstream out(path, std::ios::binary);
                for (int i = 0; i < n; ++i) {
                    out.write((const char *) llama_get_logits_ith(ctx, i), sizeof(float)*llama_vocab_n_tokens(vocab));
                }
                answer = "ok";
            }
        } else if (command == "greedy") {
            words >> from >> n >> seq;
            std::vector<llama_token> written = tokens;
            answer.clear();
            for (int i = 0; i < n && decode(ctx, written, from + i, 1, seq, true); ++i) {
                const float * logits = llama_get_logits_ith(ctx, 0);
                written.resize(from + i + 2);
                written.back() = (llama_token) (std::max_element(logits, logits + llama_vocab_n_tokens(vocab)) - logits);
                answer += (i ? " " : "") + std::to_string(written.back());
            }
        } else if (command == "save") {
            words >> kind >> path >> n >> seq;
            const bool ok = kind == "session" ? llama_state_save_file(ctx, path.c_str(), tokens.data(), n)
                                              : llama_state_seq_save_file(ctx, path.c_str(), seq, tokens.data(), n) > 0;
            if (ok) {
                answer = "ok";
            }
        } else if (command == "load") {
            words >> kind >> path >> seq;
            const std::vector<uint8_t> before = whole_state(ctx);
            std::vector<llama_token> loaded(params.n_ctx);
            size_t n_loaded = 0;
            const bool ok = kind == "session" ? llama_state_load_file(ctx, path.c_str(), loaded.data(), loaded.size(), &n_loaded)
                                              : llama_state_seq_load_file(ctx, path.c_str(), seq, loaded.data(), loaded.size(), &n_loaded) > 0;
            answer = ok ? "restored " + std::to_string(n_loaded) : whole_state(ctx) == before ? "refused same" : "refused changed";
        } else if (command == "reload") {
            words >> kind >> seq;
            std::vector<uint8_t> state(llama_state_seq_get_size(ctx, seq));
            if (llama_state_seq_get_data(ctx, state.data(), state.size(), seq) == state.size() &&
                llama_state_seq_set_data(ctx, state.data(), state.size(), seq) == state.size()) {
                answer = "ok";
            }
        } else if (command == "another") {
            llama_context_params other = params;
            words >> other.n_ctx;
            if (llama_context * second = llama_init_from_model(model, other)) {
                llama_free(second);
                answer = "ok";
            }
        } else if (command == "again") {
            llama_free(ctx);
            llama_model_free(model);
            model = llama_model_load_from_file(argv[1], model_params);
            ctx = model ? llama_init_from_model(model, params) : nullptr;
            if (!ctx) {
                return 1;
            }
            answer = "ok";
        } else if (command == "drop") {
            words >> from >> n;
            llama_memory_t memory = llama_get_memory(ctx);
            if (llama_memory_can_shift(memory) && llama_memory_seq_rm(memory, 0, from, from + n)) {
                llama_memory_seq_add(memory, 0, from + n, -1, -n);
                answer = "ok";
            }
        } else if (command == "copy") {
            llama_memory_seq_cp(llama_get_memory(ctx), 0, 1, -1, -1);
            answer = "ok";
        } else if (command == "keep") {
            kept   = whole_state(ctx);
            answer = "ok";
        } else if (command == "back") {
            if (llama_state_set_data(ctx, kept.data(), kept.size()) == kept.size()) {
                answer = "ok";
            }
        }
        std::cout << answer << std::endl;
    }
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
