// SPDX-License-Identifier: MIT
//
// Times operations of ggml's CPU back end, through its public API, on command. It is linked against the ggml of a
// llama.cpp tree that may be unmodified or patched: types are looked up by name. Commands are lines on standard input,
// each answered by one line of JSON:
//
//   types                                                     {"ok":true,"types":["f32","f16",..]}
//   open ID op=attention k=T v=T head=D heads_kv=H gqa=G kv=N queries=Q threads=T
//   open ID op=encode|decode|dot k=T width=W rows=R           {"ok":true}
//   run ID warm=0|1 inner=N samples=S clock=wall|cpu          {"ok":true,"ns":[..]}  S samples, ns per call, each the mean of N calls;
//                                                             cpu: processor time of the calling thread
//   output ID count=N                                         {"ok":true,"values":[..]}  the first N values of the last result
//   close ID                                                  {"ok":true}
//
// or {"ok":false,"error":".."}. Inside the clock: ggml_graph_compute of a graph of one node (attention), or a loop over
// rows of the type's from_float, to_float or vec_dot. Outside: allocation, data, planning.
// The data are those of pyggmlq/bench/data.py.

#include "ggml.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Options = std::map<std::string, std::string>;

constexpr int64_t PERIOD = 786432; // values after which the data repeat: PERIOD of data.py

// About standard normal: the sum of four uniform numbers.
float value_at(uint32_t index, uint32_t seed) {
    double sum = 0;
    for (uint32_t j = 0; j < 4; ++j) {
        uint32_t h = index * 4 + j + seed * 0x9E3779B9u;
        h ^= h >> 16; h *= 0x85EBCA6Bu;
        h ^= h >> 13; h *= 0xC2B2AE35u;
        h ^= h >> 16;
        sum += (h >> 8) / 16777216.0;
    }
    return float((sum - 2.0) * 1.7320508075688772);
}

std::vector<float> values(int64_t n, uint32_t seed) {
    std::vector<float> result(n);
    for (int64_t i = 0; i < n; ++i) {
        result[i] = value_at(uint32_t(i % PERIOD), seed);
    }
    return result;
}

ggml_type type_of(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * found = ggml_type_name(ggml_type(i));
        if (found && name == found) {
            return ggml_type(i);
        }
    }
    throw std::runtime_error("type " + name + " is not in this ggml");
}

int64_t number(const Options & options, const std::string & key) {
    const auto found = options.find(key);
    if (found == options.end()) {
        throw std::runtime_error("option " + key + " is missing");
    }
    return std::stoll(found->second);
}

std::string word(const Options & options, const std::string & key) {
    const auto found = options.find(key);
    if (found == options.end()) {
        throw std::runtime_error("option " + key + " is missing");
    }
    return found->second;
}

void encode(ggml_type type, const float * x, void * rows, int64_t n) {
    if (type == GGML_TYPE_F32) {
        memcpy(rows, x, n * sizeof(float));
        return;
    }
    const auto from_float = ggml_get_type_traits_cpu(type)->from_float;
    if (!from_float) {
        throw std::runtime_error(std::string("type ") + ggml_type_name(type) + " can't be encoded");
    }
    from_float(x, rows, n);
}

// Fills `bytes` of encoded rows: one period is encoded, then repeated.
void fill(ggml_type type, void * rows, int64_t n, uint32_t seed) {
    const int64_t first = std::min(n, PERIOD);
    encode(type, values(first, seed).data(), rows, first);
    const size_t period = ggml_row_size(type, first), total = ggml_row_size(type, n);
    for (size_t at = period; at < total; at += period) {
        memcpy(static_cast<char *>(rows) + at, rows, std::min(period, total - at));
    }
}

struct Case {
    std::function<void()> call;
    const float * result = nullptr;
    int64_t n_result = 0;
    std::shared_ptr<void> owner;
};

Case open_attention(const Options & o) {
    const ggml_type type_k = type_of(word(o, "k")), type_v = type_of(word(o, "v"));
    const int64_t head = number(o, "head"), heads_kv = number(o, "heads_kv"), gqa = number(o, "gqa");
    const int64_t n_kv = number(o, "kv"), n_queries = number(o, "queries"), heads = heads_kv * gqa;
    const int threads = int(number(o, "threads"));
    for (const ggml_type type : {type_k, type_v}) {
        if (head % ggml_blck_size(type) != 0) {
            throw std::runtime_error("head is not a multiple of the block of " + std::string(ggml_type_name(type)));
        }
    }
#ifdef GGML_KQ_MASK_PAD // older trees want the mask's rows padded
    const int64_t mask_rows = GGML_PAD(n_queries, GGML_KQ_MASK_PAD);
#else
    const int64_t mask_rows = n_queries;
#endif
    const int64_t row = head * heads_kv;
    const size_t size = (ggml_row_size(type_k, row) + ggml_row_size(type_v, row)) * n_kv + sizeof(float) * 2 * head * heads * n_queries
                      + sizeof(ggml_fp16_t) * n_kv * mask_rows + ggml_tensor_overhead() * 32 + ggml_graph_overhead() + (1 << 16);

    struct Owner {
        ggml_context * context = nullptr;
        std::vector<uint8_t> work;
        ggml_cplan plan;
        ~Owner() { ggml_free(context); }
    };
    auto owner = std::make_shared<Owner>();
    owner->context = ggml_init({ size, nullptr, false });
    if (!owner->context) {
        throw std::runtime_error("out of memory");
    }
    ggml_context * c = owner->context;

    // The layout of llama.cpp's cache: a row holds one token, all KV heads side by side.
    ggml_tensor * cache_k = ggml_new_tensor_2d(c, type_k, row, n_kv);
    ggml_tensor * cache_v = ggml_new_tensor_2d(c, type_v, row, n_kv);
    fill(type_k, cache_k->data, row * n_kv, 1);
    fill(type_v, cache_v->data, row * n_kv, 2);
    ggml_tensor * k = ggml_view_3d(c, cache_k, head, n_kv, heads_kv, cache_k->nb[1], ggml_row_size(type_k, head), 0);
    ggml_tensor * v = ggml_view_3d(c, cache_v, head, n_kv, heads_kv, cache_v->nb[1], ggml_row_size(type_v, head), 0);

    ggml_tensor * queries = ggml_new_tensor_3d(c, GGML_TYPE_F32, head, heads, n_queries);
    const auto q_values = values(head * heads * n_queries, 3);
    memcpy(queries->data, q_values.data(), q_values.size() * sizeof(float));
    ggml_tensor * q = ggml_permute(c, queries, 0, 2, 1, 3);

    // The queries are the last tokens of the cache, each sees itself and what came before.
    ggml_tensor * mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, n_kv, mask_rows);
    const ggml_fp16_t visible = ggml_fp32_to_fp16(0.0f), hidden = ggml_fp32_to_fp16(-INFINITY);
    for (int64_t i = 0; i < mask_rows; ++i) {
        for (int64_t j = 0; j < n_kv; ++j) {
            static_cast<ggml_fp16_t *>(mask->data)[i * n_kv + j] = j <= n_kv - n_queries + i ? visible : hidden;
        }
    }
    ggml_tensor * out = ggml_flash_attn_ext(c, q, k, v, mask, 1.0f / std::sqrt(float(head)), 0.0f, 0.0f);
    ggml_cgraph * graph = ggml_new_graph(c);
    ggml_build_forward_expand(graph, out);
    owner->plan = ggml_graph_plan(graph, threads, nullptr);
    owner->work.resize(owner->plan.work_size);
    owner->plan.work_data = owner->work.data();

    Case result;
    Owner * raw = owner.get();
    result.call = [raw, graph] {
        if (ggml_graph_compute(graph, &raw->plan) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("ggml_graph_compute failed");
        }
    };
    result.result = static_cast<const float *>(out->data);
    result.n_result = ggml_nelements(out);
    result.owner = owner;
    return result;
}

Case open_codec(const Options & o) {
    const std::string op = word(o, "op");
    const ggml_type type = type_of(word(o, "k"));
    const int64_t width = number(o, "width"), rows = number(o, "rows");
    if (width % ggml_blck_size(type) != 0) {
        throw std::runtime_error("width is not a multiple of the block of " + std::string(ggml_type_name(type)));
    }
    struct Owner {
        std::vector<float> x, out;
        std::vector<uint8_t> encoded, query;
    };
    auto owner = std::make_shared<Owner>();
    Owner * w = owner.get();
    const size_t stride = ggml_row_size(type, width);
    w->encoded.resize(stride * rows);
    w->out.resize(op == "dot" ? rows : width * rows);

    Case result;
    if (op == "encode") {
        w->x = values(width * rows, 1);
        const auto from_float = ggml_get_type_traits_cpu(type)->from_float;
        const auto to_float = type == GGML_TYPE_F16 ? nullptr : ggml_get_type_traits(type)->to_float;
        encode(type, w->x.data(), w->encoded.data(), width * rows);
        for (int64_t i = 0; i < rows; ++i) { // what `output` shows: the values as stored
            if (to_float) {
                to_float(w->encoded.data() + i * stride, w->out.data() + i * width, width);
            } else {
                ggml_cpu_fp16_to_fp32(reinterpret_cast<ggml_fp16_t *>(w->encoded.data() + i * stride), w->out.data() + i * width, width);
            }
        }
        result.call = [=] {
            for (int64_t i = 0; i < rows; ++i) {
                from_float(w->x.data() + i * width, w->encoded.data() + i * stride, width);
            }
        };
    } else if (op == "decode") {
        fill(type, w->encoded.data(), width * rows, 1);
        const auto to_float = ggml_get_type_traits(type)->to_float;
        result.call = [=] {
            for (int64_t i = 0; i < rows; ++i) {
                if (type == GGML_TYPE_F16) { // what the CPU back end itself calls
                    ggml_cpu_fp16_to_fp32(reinterpret_cast<ggml_fp16_t *>(w->encoded.data() + i * stride), w->out.data() + i * width, width);
                } else {
                    to_float(w->encoded.data() + i * stride, w->out.data() + i * width, width);
                }
            }
        };
    } else if (op == "dot") {
        fill(type, w->encoded.data(), width * rows, 1);
        w->x = values(width, 3);
        const auto traits = ggml_get_type_traits_cpu(type);
        const ggml_type query_type = traits->vec_dot_type;
        w->query.resize(ggml_row_size(query_type, width));
        result.call = [=] {
            encode(query_type, w->x.data(), w->query.data(), width);
            for (int64_t i = 0; i < rows; ++i) {
                traits->vec_dot(int(width), &w->out[i], 0, w->encoded.data() + i * stride, 0, w->query.data(), 0, 1);
            }
        };
    } else {
        throw std::runtime_error("op " + op + " is unknown");
    }
    result.result = w->out.data();
    result.n_result = int64_t(w->out.size());
    result.owner = owner;
    return result;
}

double now_ns(bool cpu) {
    if (cpu) {
#ifdef CLOCK_THREAD_CPUTIME_ID
        timespec t;
        if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0) {
            return 1e9 * double(t.tv_sec) + double(t.tv_nsec);
        }
#endif
        throw std::runtime_error("this system has no clock of a thread's processor time");
    }
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<double> run(const Case & c, bool cpu, bool warm, int64_t inner, int64_t samples) {
    std::vector<double> result;
    for (int64_t s = 0; s < samples; ++s) {
        if (warm) {
            c.call();
        }
        const double start = now_ns(cpu);
        for (int64_t i = 0; i < inner; ++i) {
            c.call();
        }
        result.push_back((now_ns(cpu) - start) / double(inner));
    }
    return result;
}

template <typename T> void print(const char * key, const std::vector<T> & numbers) {
    printf("{\"ok\":true,\"%s\":[", key);
    for (size_t i = 0; i < numbers.size(); ++i) {
        const double x = numbers[i];
        if (std::isfinite(x)) {
            printf("%s%.9g", i ? "," : "", x);
        } else {
            printf("%snull", i ? "," : "");
        }
    }
    printf("]}\n");
}

void answer(const std::string & line, std::map<std::string, Case> & open) {
    std::istringstream words(line);
    std::string command, id, pair;
    words >> command;
    if (command == "types") {
        printf("{\"ok\":true,\"types\":[");
        const char * separator = "";
        for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
            const char * name = ggml_type_name(ggml_type(i));
            if (name && *name && ggml_blck_size(ggml_type(i)) > 0) {
                printf("%s\"%s\"", separator, name);
                separator = ",";
            }
        }
        printf("]}\n");
        return;
    }
    words >> id;
    Options options;
    while (words >> pair) {
        const size_t at = pair.find('=');
        if (at == std::string::npos) {
            throw std::runtime_error("found '" + pair + "', wanted name=value");
        }
        options[pair.substr(0, at)] = pair.substr(at + 1);
    }
    if (command == "open") {
        open.erase(id);
        open[id] = word(options, "op") == "attention" ? open_attention(options) : open_codec(options);
        printf("{\"ok\":true}\n");
        return;
    }
    const auto found = open.find(id);
    if (found == open.end()) {
        throw std::runtime_error("found '" + line + "', wanted types, or open, run, output or close with the id of a case");
    }
    const Case & c = found->second;
    if (command == "run") {
        print("ns", run(c, word(options, "clock") == "cpu", number(options, "warm") != 0, number(options, "inner"), number(options, "samples")));
    } else if (command == "output") {
        print("values", std::vector<float>(c.result, c.result + std::min(c.n_result, number(options, "count"))));
    } else if (command == "close") {
        open.erase(found);
        printf("{\"ok\":true}\n");
    } else {
        throw std::runtime_error("command '" + command + "' is unknown");
    }
}

} // namespace

int main() {
    ggml_cpu_init();
    std::map<std::string, Case> open;
    std::string line;
    while (std::getline(std::cin, line)) {
        if (line.empty() || line[0] == '#') {
            continue;
        }
        try {
            answer(line, open);
        } catch (const std::exception & error) {
            std::string text = error.what();
            for (char & ch : text) {
                if (ch == '"' || ch == '\\' || static_cast<unsigned char>(ch) < ' ') {
                    ch = '\'';
                }
            }
            printf("{\"ok\":false,\"error\":\"%s\"}\n", text.c_str());
        }
        fflush(stdout);
    }
    return 0;
}
