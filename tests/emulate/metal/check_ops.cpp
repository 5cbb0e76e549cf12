/* SPDX-License-Identifier: MIT
 *
 * Operations of ggml through the patched host code of ggml-metal: its C++ as it is in the tree, our kernels emulated, what is Objective-C stood in
 * for here. Upstream's f16 attention is no kernel here but what it promises: attention, computed from the arguments and buffers that it is given.
 * Launches between two barriers run last first; scratch memory of upstream's is overwritten; nothing may be written beyond what was allocated.
 */
#include <memory>

#include "ggml-metal.cpp" /* of the tree: the size of a result's memory is a static function of it */

#include "ggml-ggmlq-attend.h"
#include "ggml-metal-ggmlq.h"
#include "ggml-metal-impl.h"
#include "ggmlq-block.h"
#include "ggmlq-metal-run.h"

#include <cmath>
#include <functional>
#include <map>
#include <vector>

/* --- what is Objective-C in the tree ------------------------------------------------------------------------------ */

struct ggml_metal_cv       { std::map<int, int32_t> values; };
struct ggml_metal_pipeline { std::string base; ggml_metal_cv constants; };
struct ggml_metal_library  { std::map<std::string, ggml_metal_pipeline> pipelines; };
struct ggml_metal_encoder {
    ggml_metal_pipeline *  pipeline;
    std::vector<uint8_t>   args;
    std::map<int, uint8_t *> buffers;
    size_t                 shared_bytes = 0;
    std::vector<std::function<void()>> pending;
};

static ggml_metal_device_props props;
static ggml_metal_library      libraries[2]; /* upstream's, ours */
static std::vector<std::string> launched;

static int failures = 0;
static std::string current;
static void require(bool condition, const char * what) {
    if (!condition) {
        printf("wrong: %s: %s\n", current.c_str(), what);
        ++failures;
    }
}

ggml_metal_cv_t ggml_metal_cv_init(void) { return new ggml_metal_cv; }
void ggml_metal_cv_free(ggml_metal_cv_t cv) { delete cv; }
void ggml_metal_cv_set_int16(ggml_metal_cv_t cv, int16_t value, int32_t idx) { cv->values[idx] = value; }
void ggml_metal_cv_set_int32(ggml_metal_cv_t cv, int32_t value, int32_t idx) { cv->values[idx] = value; }
void ggml_metal_cv_set_bool (ggml_metal_cv_t cv, bool value, int32_t idx)    { cv->values[idx] = value; }

const ggml_metal_device_props * ggml_metal_device_get_props(ggml_metal_device_t) { return &props; }
ggml_metal_library_t ggml_metal_device_get_library(ggml_metal_device_t) { return &libraries[0]; }
ggml_metal_device_t  ggml_metal_library_get_device(ggml_metal_library_t) { return nullptr; }
ggml_metal_library_t ggml_metal_library_init_from_source(ggml_metal_device_t, const char * source, bool) {
    require(ggmlq_ggml_metal_is_source(source), "a library that isn't ours is compiled from memory");
    return &libraries[1];
}
ggml_metal_pipeline_with_params ggml_metal_library_get_pipeline(ggml_metal_library_t library, const char * name) {
    const auto found = library->pipelines.find(name);
    ggml_metal_pipeline_with_params result = {};
    result.pipeline = found == library->pipelines.end() ? nullptr : &found->second;
    return result;
}
ggml_metal_pipeline_with_params ggml_metal_library_compile_pipeline(ggml_metal_library_t library, const char * base, const char * name, ggml_metal_cv_t cv) {
    library->pipelines[name] = { base, cv ? *cv : ggml_metal_cv{} };
    return ggml_metal_library_get_pipeline(library, name);
}
int ggml_metal_pipeline_max_theads_per_threadgroup(ggml_metal_pipeline_with_params) { return 1024; }

/* Our hook in ggml-metal-device.m, and of upstream's answer what is asked here. */
bool ggml_metal_device_supports_op(ggml_metal_device_t dev, const ggml_tensor * op) {
    if (ggmlq_ggml_metal_involved(op)) {
        return ggmlq_ggml_metal_supports_op(dev, op);
    }
    return op->op == GGML_OP_FLASH_ATTN_EXT && op->src[1]->type == op->src[2]->type && props.has_simdgroup_mm;
}

ggml_metal_encoder_t ggml_metal_encoder_init(ggml_metal_cmd_buf_t, bool) { return new ggml_metal_encoder; }
void ggml_metal_encoder_free(ggml_metal_encoder_t e) { delete e; }
void ggml_metal_encoder_debug_group_push(ggml_metal_encoder_t, const char *) {}
void ggml_metal_encoder_debug_group_pop (ggml_metal_encoder_t) {}
void ggml_metal_encoder_set_pipeline(ggml_metal_encoder_t e, ggml_metal_pipeline_with_params p) { e->pipeline = (ggml_metal_pipeline *) p.pipeline; }
void ggml_metal_encoder_set_bytes (ggml_metal_encoder_t e, void * data, size_t size, int) { e->args.assign((uint8_t *) data, (uint8_t *) data + size); }
void ggml_metal_encoder_set_buffer(ggml_metal_encoder_t e, ggml_metal_buffer_id id, int idx) { e->buffers[idx] = (uint8_t *) id.metal + id.offs; }
void ggml_metal_encoder_set_threadgroup_memory_size(ggml_metal_encoder_t e, size_t size, int) { e->shared_bytes = size; }
void ggml_metal_encoder_memory_barrier(ggml_metal_encoder_t e) {
    for (; !e->pending.empty(); e->pending.pop_back()) {
        e->pending.back()();
    }
}
void ggml_metal_encoder_end_encoding(ggml_metal_encoder_t e) { ggml_metal_encoder_memory_barrier(e); }

static void attend_f16(const ggml_metal_kargs_flash_attn_ext & a, const std::map<std::string, int> & has, std::map<int, uint8_t *> buffers, int64_t dk, int64_t dv);

void ggml_metal_encoder_dispatch_threadgroups(ggml_metal_encoder_t e, int x, int y, int z, int, int, int) {
    const std::string base = e->pipeline->base;
    launched.push_back(base);
    const std::map<int, uint8_t *> buffers = e->buffers;
    if (base.rfind("kernel_ggmlq_", 0) == 0) {
        ggmlq_metal_launch launch = {};
        for (int i = 0; i < GGMLQ_METAL_CONSTANTS; ++i) {
            launch.constants[i] = e->pipeline->constants.values.at(i);
        }
        memcpy(&launch.args, e->args.data(), e->args.size());
        launch.args_bytes   = e->args.size();
        launch.groups[0]    = (uint32_t) x;
        launch.groups[1]    = (uint32_t) y;
        launch.groups[2]    = (uint32_t) z;
        launch.shared_bytes = (uint32_t) e->shared_bytes;
        e->pending.push_back([=] {
            ggmlq_metal_launch run = launch;
            const void * operands[GGMLQ_METAL_MAX_OPERANDS] = {};
            for (int i = 0; i < GGMLQ_METAL_MAX_OPERANDS; ++i) {
                operands[i] = buffers.count(i + 1) ? buffers.at(i + 1) : nullptr;
            }
            run.kernel = base.c_str();
            require(ggmlq_metal_run(&run, operands, nullptr) == 0, ggmlq_metal_device_error());
        });
    } else if (base.rfind("kernel_flash_attn_ext_f16_", 0) == 0) {
        int dk = 0, dv = 0;
        sscanf(base.c_str(), "kernel_flash_attn_ext_f16_dk%d_dv%d", &dk, &dv);
        std::map<std::string, int> has;
        for (const auto & [name, pipeline] : libraries[0].pipelines) {
            if (&pipeline == e->pipeline) {
                for (const char * what : { "mask", "sinks", "bias", "scap" }) {
                    has[what] = name[name.find(std::string("_") + what + "=") + strlen(what) + 2] == '1';
                }
            }
        }
        ggml_metal_kargs_flash_attn_ext args;
        memcpy(&args, e->args.data(), sizeof(args));
        e->pending.push_back([=] { attend_f16(args, has, buffers, dk, dv); });
    } else {
        require(base.rfind("kernel_flash_attn_ext_pad", 0) == 0 || base.rfind("kernel_flash_attn_ext_blk", 0) == 0, ("unknown: " + base).c_str());
    }
    e->buffers.clear();
    e->shared_bytes = 0;
}

ggml_metal_buffer_id ggml_metal_buffer_get_id(ggml_metal_buffer_t, const ggml_tensor * t) { return { t->data, 0 }; }

/* ggml-backend.cpp */
ggml_backend_buffer_type_t ggml_backend_buffer_get_type(ggml_backend_buffer_t buffer) { return buffer->buft; }
ggml_backend_buffer_usage  ggml_backend_buffer_get_usage(ggml_backend_buffer_t buffer) { return buffer->usage; }
size_t ggml_backend_buft_get_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor * tensor) { return buft->iface.get_alloc_size(buft, tensor); }

/* --- values ------------------------------------------------------------------------------------------------------- */

static uint32_t state = 2463534242u;
static uint32_t random_bits() { state ^= state << 13; state ^= state >> 17; return state ^= state << 5; }
static float    random_value() { return ((float) (int32_t) random_bits() + (float) (int32_t) random_bits() + (float) (int32_t) random_bits())/2147483648.0f; }

typedef std::vector<double> row;

/* Value by value, of any type that attention reads. */
static row values_of(int type, const void * data, int64_t n) {
    row result(n);
    std::vector<float> f(n);
    const uint8_t * bytes = (const uint8_t *) data;
    if (type == GGMLQ_TYPE_TQ3_0 || type == GGMLQ_TYPE_PLANAR3) {
        require(ggmlq_decode_row(type, data, f.data(), n) == 0, "a row can't be decoded");
    }
    for (int64_t i = 0; i < n; ++i) {
        result[i] = type == GGML_TYPE_F32  ? ((const float *) data)[i]
                  : type == GGML_TYPE_F16  ? ggmlq_half_to_float(((const uint16_t *) data)[i])
                  : type == GGML_TYPE_Q8_0 ? ggmlq_half_to_float(ggmlq_load_u16(bytes + i/32*34))*(int8_t) bytes[i/32*34 + 2 + i % 32]
                  : type == GGML_TYPE_Q4_0 ? ggmlq_half_to_float(ggmlq_load_u16(bytes + i/32*18))*((bytes[i/32*18 + 2 + i % 16] >> i % 32/16*4 & 15) - 8) : f[i];
    }
    return result;
}

struct attention {
    int64_t n_queries, heads, seqs, n_kv, dv;
    std::function<row(int64_t, int64_t, int64_t)> q; /* token, query head, sequence */
    std::function<const row &(int64_t, int64_t, int64_t)> k, v;
    std::map<const void *, row> known_k, known_v; /* by address */
    std::function<double(int64_t, int64_t, int64_t, int64_t)> mask; /* row, token, head, sequence; minus infinity: hidden */
    std::function<double(int64_t, int64_t, int64_t, int64_t)> term; /* the same; of centered keys */
    std::function<double(int64_t)> slope, sink;
    double scale, softcap; /* softcap*tanh(scale*dot), or without it scale*dot */
};

static const row & once(std::map<const void *, row> & known, int type, const void * data, int64_t n) {
    const auto found = known.find(data);
    return found != known.end() ? found->second : known[data] = values_of(type, data, n);
}

static row attend(const attention & a, int64_t token, int64_t head, int64_t seq) {
    const row q = a.q(token, head, seq);
    row score(a.n_kv), result(a.dv, 0.0);
    double top = a.sink(head), total = 0;
    for (int64_t i = 0; i < a.n_kv; ++i) {
        const double m = a.mask(i, token, head, seq);
        score[i] = -INFINITY;
        if (m != -INFINITY) {
            const row & k = a.k(i, head, seq);
            double dot = a.term ? a.term(i, token, head, seq) : 0;
            for (size_t j = 0; j < q.size(); ++j) {
                dot += q[j]*k[j];
            }
            score[i] = (a.softcap != 0 ? a.softcap*std::tanh(dot*a.scale) : dot*a.scale) + a.slope(head)*m;
        }
        top = std::max(top, score[i]);
    }
    total = a.sink(head) == -INFINITY ? 0 : std::exp(a.sink(head) - top);
    for (int64_t i = 0; i < a.n_kv; ++i) {
        if (score[i] != -INFINITY) {
            const row & v = a.v(i, head, seq);
            const double weight = std::exp(score[i] - top);
            total += weight;
            for (int64_t j = 0; j < a.dv; ++j) {
                result[j] += weight*v[j];
            }
        }
    }
    for (double & x : result) {
        x = total == 0 ? 0 : x/total;
    }
    return result;
}

/* Of a result and upstream's scratch memory, by its own count. */
static size_t upstream_bytes(const ggml_metal_kargs_flash_attn_ext & args, bool has_mask, int64_t dk, int64_t dv);

/* kernel_flash_attn_ext: buffers 1 to 8 are q, k, v, mask, sinks, pad, blk, out. */
static void attend_f16(const ggml_metal_kargs_flash_attn_ext & args, const std::map<std::string, int> & has, std::map<int, uint8_t *> buffers, int64_t dk, int64_t dv) {
    const size_t out_bytes = (size_t) (4*dv*args.ne01*args.ne02*args.ne03);
    require(buffers[6] == buffers[8] + out_bytes, "upstream's scratch memory isn't behind the result");
    memset(buffers[8] + out_bytes, 0xff, upstream_bytes(args, has.at("mask"), dk, dv) - out_bytes);
    attention a;
    a.n_queries = args.ne01; a.heads = args.ne02; a.seqs = args.ne03; a.n_kv = args.ne11; a.dv = dv;
    const int64_t group = args.ne02/args.ne_12_2, repeat = args.ne03/args.ne_12_3;
    a.q = [&](int64_t i, int64_t h, int64_t s) { return values_of(GGML_TYPE_F32, buffers[1] + i*args.nb01 + h*args.nb02 + s*args.nb03, dk); };
    a.k = [&](int64_t i, int64_t h, int64_t s) -> const row & { return once(a.known_k, GGML_TYPE_F16, buffers[2] + i*args.nb11 + h/group*args.nb12 + s/repeat*args.nb13, dk); };
    a.v = [&](int64_t i, int64_t h, int64_t s) -> const row & { return once(a.known_v, GGML_TYPE_F16, buffers[3] + i*args.nb21 + h/group*args.nb22 + s/repeat*args.nb23, dv); };
    a.mask = [&](int64_t i, int64_t t, int64_t h, int64_t s) {
        return !has.at("mask") ? 0.0 : (double) ggmlq_half_to_float(((const uint16_t *) (buffers[4] + t*args.nb31 + h % args.ne32*args.nb32 + s % args.ne33*args.nb33))[i]);
    };
    a.slope = [&](int64_t h) { return !has.at("bias") ? 1.0 : h < args.n_head_log2 ? std::pow(args.m0, h + 1) : std::pow(args.m1, 2*(h - args.n_head_log2) + 1); };
    a.sink  = [&](int64_t h) { return has.at("sinks") ? (double) ((const float *) buffers[5])[h] : -INFINITY; };
    a.scale = args.scale; a.softcap = has.at("scap") ? args.logit_softcap : 0;
    for (int64_t s = 0; s < a.seqs; ++s) for (int64_t t = 0; t < a.n_queries; ++t) for (int64_t h = 0; h < a.heads; ++h) {
        const row out = attend(a, t, h, s);
        for (int64_t j = 0; j < dv; ++j) {
            ((float *) buffers[8])[((s*a.n_queries + t)*a.heads + h)*dv + j] = (float) out[j];
        }
    }
}

/* --- tensors ------------------------------------------------------------------------------------------------------ */

enum { GUARD = 64 };

static ggml_backend_device      device;
static ggml_backend_buffer_type buft;
static ggml_backend_buffer      buffer;
static std::vector<std::vector<uint8_t>> memory;
static ggml_context * ctx;

static size_t upstream_bytes(const ggml_metal_kargs_flash_attn_ext & args, bool has_mask, int64_t dk, int64_t dv) {
    const auto f16 = [](int64_t n0, int64_t n1, int64_t n2, int64_t n3) { return ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n0, n1, n2, n3); };
    ggml_tensor * k = f16(dk, args.ne11, args.ne_12_2, args.ne_12_3), * v = f16(dv, args.ne11, args.ne_12_2, args.ne_12_3);
    k->nb[1] = args.nb11; k->nb[2] = args.nb12; k->nb[3] = args.nb13;
    v->nb[1] = args.nb21; v->nb[2] = args.nb22; v->nb[3] = args.nb23;
    const ggml_tensor * op = ggml_flash_attn_ext(ctx, ggml_new_tensor_4d(ctx, GGML_TYPE_F32, dk, args.ne01, args.ne02, args.ne03), k, v,
        has_mask ? f16(args.ne11, args.ne31, args.ne32, args.ne33) : nullptr, 1.0f, 0.0f, 0.0f);
    return buft.iface.get_alloc_size(&buft, op);
}

static void allocate(ggml_tensor * t, size_t bytes) {
    memory.emplace_back(bytes + 2*GUARD + 32, 0xcd);
    uint8_t * data = (uint8_t *) (((uintptr_t) memory.back().data() + GUARD + 31)/32*32);
    memset(data, 0xff, bytes);
    t->data   = data;
    t->buffer = &buffer;
}

static bool guarded(const ggml_tensor * t, size_t bytes) {
    bool intact = true;
    for (int i = 1; i <= GUARD; ++i) {
        intact = intact && ((const uint8_t *) t->data)[-i] == 0xcd && ((const uint8_t *) t->data)[bytes + i - 1] == 0xcd;
    }
    return intact;
}

/* Random values, encoded; NaN behind them. */
static ggml_tensor * tensor(ggml_type type, int64_t n0, int64_t n1, int64_t n2 = 1, int64_t n3 = 1) {
    ggml_tensor * t = ggml_new_tensor_4d(ctx, type, n0, n1, n2, n3);
    allocate(t, ggml_nbytes(t));
    std::vector<float> x(n0);
    for (int64_t i = 0; i < n1*n2*n3; ++i) {
        for (float & f : x) {
            f = random_value();
        }
        uint8_t * to = (uint8_t *) t->data + i*(int64_t) t->nb[1];
        if (ggmlq_ggml_is_cache_type(type)) {
            require(ggmlq_encode_row((int) type, x.data(), to, n0) == 0, "a row can't be encoded");
        }
        for (int64_t j = 0; j < n0; ++j) {
            switch (type) {
                case GGML_TYPE_F32:  ((float *) to)[j] = x[j]; break;
                case GGML_TYPE_F16:  ((uint16_t *) to)[j] = ggmlq_half_from_float(x[j]); break;
                case GGML_TYPE_Q8_0: ggmlq_store_u16(to + j/32*34, 0x2400); to[j/32*34 + 2 + j % 32] = (uint8_t) random_bits(); break;
                case GGML_TYPE_Q4_0: ggmlq_store_u16(to + j/32*18, 0x3000); to[j/32*18 + 2 + j % 16] = (uint8_t) random_bits(); break;
                default: break;
            }
        }
    }
    return t;
}

static ggml_tensor * indices(ggml_type type, int64_t n, int64_t n_rows) {
    ggml_tensor * t = ggml_new_tensor_1d(ctx, type, n);
    allocate(t, ggml_nbytes(t));
    for (int64_t i = 0; i < n; ++i) {
        const int64_t row = (i*7 + 3) % n_rows;
        if (type == GGML_TYPE_I64) { ((int64_t *) t->data)[i] = row; } else { ((int32_t *) t->data)[i] = (int32_t) row; }
    }
    return t;
}

/* Encoded and run as a Metal context does it; `wanted`: the kernels in their order. */
static void compute(ggml_tensor * op, const std::vector<std::string> & wanted) {
    size_t bytes = ggml_nbytes(op);
    const bool own = !op->view_src;
    if (own) {
        void * places[GGML_MAX_SRC] = {}; /* nothing has an address when a graph is laid out */
        for (int i = 0; i < GGML_MAX_SRC; ++i) {
            if (op->src[i]) { std::swap(places[i], op->src[i]->data); }
        }
        bytes = buft.iface.get_alloc_size(&buft, op);
        for (int i = 0; i < GGML_MAX_SRC; ++i) {
            if (op->src[i]) { op->src[i]->data = places[i]; }
        }
        allocate(op, bytes);
    }
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, op);
    launched.clear();
#if __has_include("ggml-metal-fusion.h")
    ggml_metal_fusion_info * fusion = ggml_metal_fusion_info_init(true, 0);
    ggml_metal_op_t metal = ggml_metal_op_init(nullptr, nullptr, graph, fusion, 0, ggml_graph_n_nodes(graph), true, false, 0);
#else
    ggml_metal_op_t metal = ggml_metal_op_init(nullptr, nullptr, graph, 0, ggml_graph_n_nodes(graph), true, true, false, 0, 0);
#endif
    require(ggml_metal_device_supports_op(nullptr, op), "refused");
    for (int i = 0; i < ggml_metal_op_n_nodes(metal);) {
        i += ggml_metal_op_encode(metal, i);
    }
    ggml_metal_op_free(metal);
#if __has_include("ggml-metal-fusion.h")
    ggml_metal_fusion_info_free(fusion);
#endif
    require(!own || guarded(op, bytes), "written beyond what was allocated");
    std::string found, names;
    for (const std::string & name : launched) { found += name + " "; }
    for (const std::string & name : wanted)   { names += name + " "; }
    require(found == names, ("launched " + found + ", wanted " + names).c_str());
}

static const void * at(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    return (const uint8_t *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3];
}

/* The largest error relative to the norm of a row, of all rows; sequences, query tokens, heads as ggml has them. */
static void compare_attention(const ggml_tensor * op, double bound) {
    const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2], * mask = op->src[3], * sinks = op->src[4];
    float numbers[3];
    memcpy(numbers, op->op_params, sizeof(numbers));
    attention a;
    a.n_queries = q->ne[1]; a.heads = q->ne[2]; a.seqs = q->ne[3]; a.n_kv = k->ne[1]; a.dv = v->ne[0];
    a.q = [&](int64_t i, int64_t h, int64_t s) { return values_of(q->type, at(q, i, h, s), q->ne[0]); };
    a.k = [&](int64_t i, int64_t h, int64_t s) -> const row & { return once(a.known_k, k->type, at(k, i, h/(q->ne[2]/k->ne[2]), s/(q->ne[3]/k->ne[3])), k->ne[0]); };
    a.v = [&](int64_t i, int64_t h, int64_t s) -> const row & { return once(a.known_v, v->type, at(v, i, h/(q->ne[2]/k->ne[2]), s/(q->ne[3]/k->ne[3])), v->ne[0]); };
    a.mask = [&](int64_t i, int64_t t, int64_t h, int64_t s) {
        return mask ? (double) ggmlq_half_to_float(((const uint16_t *) at(mask, t, h % mask->ne[2], s % mask->ne[3]))[i]) : 0.0;
    };
    if (const ggml_tensor * turns = op->src[GGMLQ_GGML_ATTEND_TURNS]) {
        const ggml_tensor * w = op->src[GGMLQ_GGML_ATTEND_W], * positions = op->src[GGMLQ_GGML_ATTEND_POSITIONS], * part = op->src[GGMLQ_GGML_ATTEND_PART];
        const int64_t n = turns->ne[0], first = op->op_params[GGMLQ_GGML_ATTEND_HALVES_AT] ? 1 : 2, second = first == 1 ? n : 1; /* values of a pair */
        a.term = [=, &a](int64_t i, int64_t t, int64_t h, int64_t s) {
            const int64_t s_k = s/(q->ne[3]/k->ne[3]), position = ((const int32_t *) at(positions, 0, 0, s_k))[i];
            const double factor = ggml_fp16_to_fp32(((const ggml_fp16_t *) at(part, 0, 0, s_k))[i]);
            const row & x = once(a.known_k, w->type, at(w, t, h, s), w->ne[0]);
            double dot = 0;
            for (int64_t j = 0; j < n && factor != 0; ++j) {
                const double angle = std::ldexp((double) ((uint64_t) position*((const uint64_t *) turns->data)[j]), -64)*2*M_PI;
                dot += factor*(x[first*j]*std::cos(angle) + x[first*j + second]*std::sin(angle));
            }
            return dot;
        };
    }
    const int64_t log2 = (int64_t) 1 << (int64_t) std::floor(std::log2((double) a.heads));
    a.slope = [&](int64_t h) { return numbers[1] == 0 ? 1.0 : h < log2 ? std::pow(2.0, -numbers[1]/log2*(h + 1)) : std::pow(2.0, -numbers[1]/2/log2*(2*(h - log2) + 1)); };
    a.sink  = [&](int64_t h) { return sinks ? (double) ((const float *) sinks->data)[h] : -INFINITY; };
    a.softcap = numbers[2];
    a.scale   = numbers[2] != 0 ? numbers[0]/numbers[2] : numbers[0];
    double worst = 0;
    for (int64_t s = 0; s < a.seqs; ++s) for (int64_t t = 0; t < a.n_queries; ++t) for (int64_t h = 0; h < a.heads; ++h) {
        const row wanted = attend(a, t, h, s);
        double error = 0, norm = 1e-6;
        for (int64_t j = 0; j < a.dv; ++j) {
            const double found = ((const float *) at(op, h, t, s))[j];
            error += std::isfinite(found) ? (found - wanted[j])*(found - wanted[j]) : INFINITY;
            norm  += wanted[j]*wanted[j];
        }
        worst = std::max(worst, std::sqrt(error/norm));
    }
    require(worst <= bound, ("relative error " + std::to_string(worst)).c_str());
}

/* --- operations ---------------------------------------------------------------------------------------------------- */

static const std::string G = "kernel_ggmlq_";

struct case_of_attention {
    ggml_type type_k, type_v;
    int64_t   head_k, head_v, n_kv, n_queries, heads, heads_kv, seqs;
    bool      mask, sinks;
    float     softcap, max_bias;
    bool      part;     /* V is the first part of K */
    int32_t   most;     /* rows that a query sees at most, as the graph says; 0: it doesn't */
    std::vector<std::string> wanted;
    int64_t   pairs = 0; /* of w of centered keys */
    bool      halves = false;
};

/* One text; any number; two texts in turn; empty cells; before the beginning, and its end. */
static int32_t positions_of_all_kinds(int64_t i) {
    const int32_t n = (int32_t) i;
    switch (n/12 % 5) {
        case 0:  return n + 1000;
        case 1:  return (int32_t) random_bits();
        case 2:  return n % 2 ? n + 500000 : n;
        case 3:  return 0;
        default: return n % 3 == 0 ? -n : n % 3 == 1 ? INT32_MIN + n : INT32_MAX - n;
    }
}

static void check_attention(const case_of_attention & c) {
    const int64_t tokens = c.n_kv + 3; /* the cache is longer */
    const auto cache = [&](ggml_type type, int64_t n) { return tensor(type, n*c.heads_kv, tokens, c.seqs); };
    const auto view = [&](ggml_tensor * rows, int64_t n, int64_t head) {
        return ggml_view_4d(ctx, rows, n, c.n_kv, c.heads_kv, c.seqs, rows->nb[1], ggml_row_size(rows->type, head), rows->nb[2], 0);
    };
    ggml_tensor * rows = cache(c.type_k, c.head_k);
    ggml_tensor * k = view(rows, c.head_k, c.head_k);
    ggml_tensor * v = c.part ? view(rows, c.head_v, c.head_k) : view(cache(c.type_v, c.head_v), c.head_v, c.head_v);
    ggml_tensor * q = ggml_permute(ctx, tensor(GGML_TYPE_F32, c.head_k, c.heads, c.n_queries, c.seqs), 0, 2, 1, 3);
    ggml_tensor * mask = c.mask ? tensor(GGML_TYPE_F16, c.n_kv, c.n_queries, 1, c.seqs) : nullptr;
    for (int64_t i = 0; mask && i < ggml_nelements(mask); ++i) {
        uint16_t & m = ((uint16_t *) mask->data)[i];
        m = c.most > 0 ? (i % c.n_kv*5 % c.n_kv < c.most ? 0 : 0xfc00) : random_bits() % 3 == 0 ? 0xfc00 : m;
    }
    ggml_tensor * op = ggml_flash_attn_ext(ctx, q, k, v, mask, 1.0f/std::sqrt((float) c.head_k), c.max_bias, c.softcap);
    if (c.sinks) {
        ggml_flash_attn_ext_add_sinks(op, tensor(GGML_TYPE_F32, c.heads, 1));
    }
#ifdef GGMLQ_GGML_N_KV_MAX_AT
    if (c.most > 0) {
        ggml_flash_attn_ext_set_n_kv_max(op, c.most);
    }
#endif
    if (c.pairs > 0) { /* every third key isn't centered */
        ggml_tensor * turns = tensor(GGML_TYPE_I64, c.pairs, 1), * positions = tensor(GGML_TYPE_I32, tokens, 1, 1, c.seqs), * part = tensor(GGML_TYPE_F16, tokens, 1, 1, c.seqs);
        for (int64_t i = 0; i < c.pairs; ++i) { /* the last as no model has it */
            ((uint64_t *) turns->data)[i] = i + 1 == c.pairs && i > 0 ? (uint64_t) random_bits() << 32 | random_bits() : (uint64_t) std::ldexp(std::pow(1e-5, (double) i/c.pairs)/2/M_PI, 64);
        }
        for (int64_t i = 0; i < tokens*c.seqs; ++i) {
            ((uint16_t *) part->data)[i] = i % 3 == 1 ? 0 : i % 3 == 2 ? 0x3800 : 0x3c00;
            ((int32_t *) positions->data)[i] = positions_of_all_kinds(i);
        }
        op->src[GGMLQ_GGML_ATTEND_W]         = ggml_permute(ctx, tensor(GGML_TYPE_F32, 2*c.pairs, c.heads, c.n_queries, c.seqs), 0, 2, 1, 3);
        op->src[GGMLQ_GGML_ATTEND_TURNS]     = turns;
        op->src[GGMLQ_GGML_ATTEND_POSITIONS] = ggml_view_4d(ctx, positions, c.n_kv, 1, 1, c.seqs, positions->nb[1], positions->nb[2], positions->nb[3], 0);
        op->src[GGMLQ_GGML_ATTEND_PART]      = ggml_view_4d(ctx, part, c.n_kv, 1, 1, c.seqs, part->nb[1], part->nb[2], part->nb[3], 0);
        op->op_params[GGMLQ_GGML_ATTEND_HALVES_AT] = c.halves;
    }

    current = std::string("K ") + ggml_type_name(c.type_k) + " " + std::to_string(c.head_k) + ", V " + ggml_type_name(c.type_v) + " " + std::to_string(c.head_v) + ", " +
        std::to_string(c.n_queries) + " of " + std::to_string(c.n_kv) + ", pairs " + std::to_string(c.pairs);
    compute(op, c.wanted);
    const bool by_f16 = std::any_of(launched.begin(), launched.end(), [](const std::string & name) { return name.find("_f16_") != std::string::npos; });
    compare_attention(op, by_f16 ? 2e-3 : 1e-5); /* f16: 2^-11 for each value of K and V */
}

static void check_all_attention() {
    const ggml_type T = GGML_TYPE_TQ3_0, P = GGML_TYPE_PLANAR3, H = GGML_TYPE_F16;
    const std::string rotate = G + "rotate", decode = G + "decode", attend = G + "attend", combine = G + "combine", f16 = "kernel_flash_attn_ext_f16_";
    const std::string pad = "kernel_flash_attn_ext_pad", blk = "kernel_flash_attn_ext_blk";
    /* Tokens: alone and in parts. */
    check_attention({ T, T, 128, 128,  77, 1, 4, 2, 1, true,  false, 0, 0, false, 0, { attend } });
    check_attention({ T, P, 128, 128, 600, 1, 8, 2, 2, true,  true,  30, 0, false, 0, { attend, combine } });
    check_attention({ H, P, 128, 128, 600, 2, 3, 3, 1, true,  false, 0, 8, false, 0, { attend, combine } });
    /* Many queries. */
    check_attention({ T, T,  64,  64, 128, 40, 4, 2, 1, true, true,  0, 0, false, 0, { rotate, decode, decode, blk, f16 + "dk64_dv64", rotate } });
    check_attention({ P, P, 128, 128,  77, 33, 6, 2, 2, true, false, 30, 8, false, 0, { rotate, decode, decode, pad, blk, f16 + "dk128_dv128", rotate } });
    check_attention({ P, T, 128, 128,  64, 33, 2, 1, 1, false, true, 0, 0, false, 0, { rotate, decode, decode, f16 + "dk128_dv128", rotate } });
    check_attention({ T, H,  64,  64,  70, 32, 2, 2, 1, true, false, 0, 0, false, 0, { rotate, decode, pad, blk, f16 + "dk64_dv64" } });
    check_attention({ H, T,  64,  64,  70, 32, 2, 2, 1, true, false, 0, 0, false, 0, { decode, pad, blk, f16 + "dk64_dv64", rotate } });
    check_attention({ GGML_TYPE_Q8_0, P, 128, 128, 70, 32, 2, 2, 1, true, false, 0, 0, false, 0, { decode, decode, pad, blk, f16 + "dk128_dv128", rotate } });
    check_attention({ T, GGML_TYPE_Q4_0,  64,  64, 70, 32, 2, 2, 1, true, false, 0, 0, false, 0, { rotate, decode, decode, pad, blk, f16 + "dk64_dv64" } });
    check_attention({ T, T, 576, 512,  64, 33, 4, 1, 1, true, false, 0, 0, true,  0, { rotate, decode, blk, f16 + "dk576_dv512", rotate } });
    /* What upstream has no kernel for. */
    check_attention({ T, T, 160, 160,  70, 33, 2, 2, 1, true, false, 0, 0, false, 0, { attend } });
    check_attention({ T, T,  64,  64,  70, 31, 2, 2, 1, true, false, 0, 0, false, 0, { attend } });
    props.has_simdgroup_mm = false;
    check_attention({ T, T,  64,  64,  70, 33, 2, 2, 1, true, false, 0, 0, false, 0, { attend } });
    props.has_simdgroup_mm = true;
    /* Centered keys: tokens, and longer rows for some heads at a time, for all with ALiBi; V f16 as it lies; what upstream has no size for. */
    const std::string fill = G + "fill", positional = G + "positional";
    const auto turns = [](int n, const std::vector<std::string> & once) { std::vector<std::string> all; while (n-- > 0) { all.insert(all.end(), once.begin(), once.end()); } return all; };
    check_attention({ T, T, 128, 128,  77, 1, 4, 2, 2, true,  false, 0, 0, false, 0, { attend }, 64 });
    check_attention({ P, H, 128,  96, 600, 2, 8, 2, 1, true,  true,  30, 0, false, 0, { attend, combine }, 18, true });
    check_attention({ T, T, 128, 128,  77, 33, 8, 4, 1, true, true, 0, 0, false, 0, turns(2, { rotate, decode, decode, fill, positional, pad, blk, f16 + "dk256_dv256", rotate }), 64, true });
    check_attention({ P, GGML_TYPE_Q8_0, 128, 128, 64, 33, 6, 2, 2, true, false, 30, 8, false, 0, { rotate, decode, decode, fill, positional, blk, f16 + "dk256_dv256", fill }, 50 });
    check_attention({ T, H, 128, 128,  70, 32, 2, 2, 2, false, true, 0, 0, false, 0, turns(2, { rotate, decode, fill, positional, pad, f16 + "dk192_dv128", fill }), 32, true });
    check_attention({ H, T,  64,  64,  64, 32, 2, 2, 1, true, false, 0, 0, false, 0, turns(2, { fill, decode, decode, fill, positional, blk, f16 + "dk96_dv96", rotate }), 16 });
    check_attention({ T, T, 512, 512,  40, 32, 1, 1, 1, true, false, 0, 0, false, 0, { attend }, 256, true });
#ifdef GGMLQ_GGML_N_KV_MAX_AT
    check_attention({ P, P, 128, 128, 200, 1, 4, 1, 2, true, false, 0, 0, false, 90, { G + "select", attend }, 64 });
    /* Selected rows; too many of them to gain by it. */
    check_attention({ P, P, 512, 512, 900, 1, 8, 1, 1, true, true,  0, 0, true, 300, { G + "select", attend, combine } });
    check_attention({ T, T, 512, 512, 500, 3, 4, 1, 2, true, false, 0, 0, true,  90, { G + "select", attend } });
    check_attention({ P, P, 128, 128, 170, 1, 4, 1, 1, true, false, 0, 0, true,  90, { attend } });
    check_attention({ P, P, 128, 128, 170, 32, 4, 1, 1, true, false, 0, 0, true, 90, { rotate, decode, pad, blk, f16 + "dk128_dv128", rotate } });
#endif
}

static void check_rows() {
    for (ggml_type type : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        const size_t row_bytes = ggml_row_size(type, 256);
        const auto name = [&](const char * what) { current = std::string(ggml_type_name(type)) + " " + what; };
        const auto same_values = [](const ggml_tensor * floats, int64_t i, const void * encoded) {
            std::vector<float> wanted(floats->ne[0]);
            ggmlq_decode_row(floats->src[0]->type, encoded, wanted.data(), floats->ne[0]);
            return memcmp(at(floats, i, 0, 0), wanted.data(), wanted.size()*4) == 0;
        };
        /* Two tensors along each axis, the second a permuted view. */
        for (int axis = 0; axis < 4; ++axis) {
            name(("CONCAT " + std::to_string(axis)).c_str());
            int64_t ne[4] = { 256, 3, 2, 2 };
            ggml_tensor * a = tensor(type, ne[0], ne[1], ne[2], ne[3]);
            ne[axis] += axis == 0 ? 256 : 1;
            ggml_tensor * b = ggml_permute(ctx, tensor(type, ne[0], ne[2], ne[1], ne[3]), 0, 2, 1, 3), * op = ggml_concat(ctx, a, b, axis);
            compute(op, { G + "copy", G + "copy" });
            bool same = true;
            for (int64_t i3 = 0; i3 < op->ne[3]; ++i3) for (int64_t i2 = 0; i2 < op->ne[2]; ++i2) for (int64_t i1 = 0; i1 < op->ne[1]; ++i1) {
                const int64_t i[4] = { 0, i1, i2, i3 };
                const bool second = axis > 0 && i[axis] >= a->ne[axis];
                const int64_t less = second ? a->ne[axis] : 0;
                const ggml_tensor * from = second ? b : a;
                same = same && memcmp(at(op, i1, i2, i3), at(from, i1 - (axis == 1)*less, i2 - (axis == 2)*less, i3 - (axis == 3)*less), row_bytes) == 0;
                same = same && (axis > 0 || memcmp((const uint8_t *) at(op, i1, i2, i3) + row_bytes, at(b, i1, i2, i3), ggml_row_size(type, b->ne[0])) == 0);
            }
            require(same, "not the rows of the two");
        }
        name("GET_ROWS");
        ggml_tensor * rows = tensor(type, 256, 20), * op = ggml_get_rows(ctx, rows, indices(GGML_TYPE_I32, 9, 20));
        compute(op, { G + "decode" });
        bool same = true;
        for (int64_t i = 0; i < 9; ++i) {
            same = same && same_values(op, i, at(rows, (i*7 + 3) % 20, 0, 0));
        }
        require(same, "not the rows that were named");

        name("SET_ROWS");
        ggml_tensor * x = tensor(GGML_TYPE_F32, 256, 9);
        compute(ggml_set_rows(ctx, rows, x, indices(GGML_TYPE_I64, 9, 20)), { G + "encode" });
        same = true;
        for (int64_t i = 0; i < 9; ++i) {
            std::vector<uint8_t> wanted(row_bytes);
            ggmlq_encode_row((int) type, (const float *) at(x, i, 0, 0), wanted.data(), 256);
            same = same && memcmp(at(rows, (i*7 + 3) % 20, 0, 0), wanted.data(), row_bytes) == 0;
        }
        require(same, "not the encoded rows");

        name("SET_ROWS, rounded for queries");
        ggml_tensor * feedback = tensor(GGML_TYPE_F16, ggmlq_feedback_values(128), 2), * other = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ggmlq_feedback_values(128), 2);
        for (int64_t i = 0; i < ggml_nelements(feedback); ++i) {
            ggml_fp16_t & f = ((ggml_fp16_t *) feedback->data)[i];
            f = ggml_fp32_to_fp16(0.2f*ggml_fp16_to_fp32(f));
        }
        const auto rounded = [&](ggml_tensor * cache, ggml_tensor * by) {
            ggml_tensor * store = ggml_set_rows(ctx, cache, x, indices(GGML_TYPE_I64, 9, 20));
            store->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] = by;
            return store;
        };
        compute(rounded(rows, feedback), { G + "round" });
        same = true;
        for (int64_t i = 0; i < 9; ++i) for (int64_t h = 0; h < 2; ++h) {
            std::vector<uint8_t> wanted(row_bytes/2);
            ggmlq_encode_row_for_queries((int) type, (const float *) at(x, i, 0, 0) + 128*h, (const uint16_t *) at(feedback, h, 0, 0), wanted.data(), 128);
            same = same && memcmp((const uint8_t *) at(rows, (i*7 + 3) % 20, 0, 0) + h*(row_bytes/2), wanted.data(), row_bytes/2) == 0;
        }
        require(same, "not the rounded rows");
        for (ggml_type wrong : { GGML_TYPE_F32, GGML_TYPE_I32 }) {
            other->type = wrong;
            require(!ggml_metal_device_supports_op(nullptr, rounded(rows, other)), "feedback of another type is taken");
        }
        require(!ggml_metal_device_supports_op(nullptr, rounded(rows, tensor(GGML_TYPE_F16, ggmlq_feedback_values(128), 1))), "feedback of one head for two is taken");
        require(!ggml_metal_device_supports_op(nullptr, rounded(tensor(GGML_TYPE_F16, 256, 20), feedback)), "feedback for a cache of f16 is taken");

        name("CPY");
        ggml_tensor * floats = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 256, 20);
        allocate(floats, ggml_nbytes(floats));
        op = ggml_cpy(ctx, rows, floats);
        compute(op, { G + "decode" });
        same = true;
        for (int64_t i = 0; i < 20; ++i) {
            same = same && same_values(op, i, at(rows, i, 0, 0));
        }
        require(same, "not the decoded rows");

        name("CONT");
        ggml_tensor * turned = ggml_permute(ctx, tensor(type, 256, 4, 3), 0, 2, 1, 3);
        op = ggml_cont(ctx, turned);
        compute(op, { G + "copy" });
        for (int64_t i = 0; i < 12; ++i) {
            require(memcmp(at(op, i % 3, i/3, 0), at(turned, i % 3, i/3, 0), row_bytes) == 0, "not the same rows");
        }

        name("MUL_MAT");
        op = ggml_mul_mat(ctx, rows, x);
        compute(op, { G + "mul_mv" });
        for (int64_t i = 0; i < 180; ++i) {
            const auto a = values_of(type, at(rows, i % 20, 0, 0), 256), b = values_of(GGML_TYPE_F32, at(x, i/20, 0, 0), 256);
            double dot = 0, size = 0;
            for (int j = 0; j < 256; ++j) {
                dot  += a[j]*b[j];
                size += a[j]*a[j]*b[j]*b[j];
            }
            require(std::fabs(((const float *) op->data)[i] - dot) <= 0.05*std::sqrt(size), "a product is wrong");
        }
    }
}

#ifdef OP_LIGHTNING_INDEXER_DK
static void check_indexer() {
    for (ggml_type type : { GGML_TYPE_TQ3_0, GGML_TYPE_PLANAR3 }) {
        current = std::string(ggml_type_name(type)) + " LIGHTNING_INDEXER";
        ggml_tensor * q = tensor(GGML_TYPE_F32, 128, 64, 3), * k = tensor(type, 128, 1, 150), * w = tensor(GGML_TYPE_F32, 64, 3), * m = tensor(GGML_TYPE_F16, 150, 3);
        ggml_tensor * op = ggml_lightning_indexer(ctx, q, k, w, m);
        compute(op, { G + "indexer" });
        for (int64_t t = 0; t < 3; ++t) for (int64_t i = 0; i < 150; ++i) {
            const row key = values_of(type, at(k, 0, i, 0), 128);
            double wanted = values_of(GGML_TYPE_F16, at(m, t, 0, 0), 150)[i], size = 0;
            for (int64_t h = 0; h < 64; ++h) {
                const row query = values_of(GGML_TYPE_F32, at(q, h, t, 0), 128);
                double dot = 0;
                for (int j = 0; j < 128; ++j) {
                    dot += query[j]*key[j];
                }
                const double weight = ((const float *) at(w, t, 0, 0))[h];
                wanted += weight*std::max(dot, 0.0);
                size   += weight*weight*128;
            }
            require(std::fabs(((const float *) at(op, t, 0, 0))[i] - wanted) <= 0.05*std::sqrt(size), "a score is wrong");
        }
        ggml_tensor * wrong = ggml_lightning_indexer(ctx, tensor(GGML_TYPE_F32, 256, 64, 3), tensor(type, 256, 1, 150), w, m);
        require(!ggml_metal_device_supports_op(nullptr, wrong), "keys of 256 aren't refused");
    }
}
#endif

static void check_refused() {
    current = "refused";
    ggml_tensor * x = tensor(GGML_TYPE_TQ3_0, 128, 4);
    ggml_tensor * scaled = ggml_dup_tensor(ctx, x);
    scaled->op = GGML_OP_SCALE;
    scaled->src[0] = x;
    require(!ggml_metal_device_supports_op(nullptr, scaled), "SCALE is taken");
    require(!ggml_metal_device_supports_op(nullptr, ggml_cpy(ctx, x, tensor(GGML_TYPE_PLANAR3, 128, 4))), "a copy to another cache type is taken");
    require(!ggml_metal_device_supports_op(nullptr, ggml_mul_mat(ctx, tensor(GGML_TYPE_F32, 128, 4), ggml_dup_tensor(ctx, x))), "a product with encoded columns is taken");
    ggml_tensor * op = ggml_flash_attn_ext(ctx, tensor(GGML_TYPE_F32, 128, 1, 4), tensor(GGML_TYPE_TQ3_0, 128, 32, 4), tensor(GGML_TYPE_BF16, 128, 32, 4), nullptr, 1.0f, 0.0f, 0.0f);
    require(!ggml_metal_device_supports_op(nullptr, op), "V in bf16 is taken");
    op = ggml_flash_attn_ext(ctx, tensor(GGML_TYPE_F32, 128, 1, 4), tensor(GGML_TYPE_TQ3_0, 128, 32, 4), tensor(GGML_TYPE_F16, 128, 32, 4), nullptr, 1.0f, 0.0f, 0.0f);
    require(ggml_metal_device_supports_op(nullptr, op), "attention isn't taken");
    /* Centered keys of whatever type, unless turns are what they can't be: upstream's answer would overlook them. */
    for (const bool ours : { true, false }) {
        const ggml_type type = ours ? GGML_TYPE_TQ3_0 : GGML_TYPE_F16;
        ggml_tensor * centered = ggml_flash_attn_ext(ctx, op->src[0], tensor(type, 128, 32, 4), tensor(GGML_TYPE_F16, 128, 32, 4), nullptr, 1.0f, 0.0f, 0.0f);
        centered->src[GGMLQ_GGML_ATTEND_W]         = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 64, 1, 4); /* as libllama asks: without memory */
        centered->src[GGMLQ_GGML_ATTEND_TURNS]     = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 32);
        centered->src[GGMLQ_GGML_ATTEND_POSITIONS] = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 32);
        centered->src[GGMLQ_GGML_ATTEND_PART]      = ggml_new_tensor_1d(ctx, GGML_TYPE_F16, 32);
        require(ggml_metal_device_supports_op(nullptr, centered), "centered keys aren't taken");
        centered->src[GGMLQ_GGML_ATTEND_TURNS]->type = GGML_TYPE_F64;
        require(!ggml_metal_device_supports_op(nullptr, centered), "turns that aren't whole numbers are taken");
    }
    props.has_simdgroup_reduction = false;
    require(!ggml_metal_device_supports_op(nullptr, op), "a device without shuffles is taken");
    props.has_simdgroup_reduction = true;
}

int main() {
    setvbuf(stdout, nullptr, _IONBF, 0); /* what was found is told even if upstream stops the program */
    props.has_simdgroup_reduction = props.has_simdgroup_mm = true;
    buft.device = &device;
    buft.iface.get_alloc_size = ggml_backend_metal_buffer_type_get_alloc_size;
    buffer.buft = &buft;
    ctx = ggml_init({ (size_t) 256 << 20, nullptr, true });
    check_rows();
    check_all_attention();
#ifdef OP_LIGHTNING_INDEXER_DK
    check_indexer();
#endif
    check_refused();
    ggml_free(ctx);
    printf(failures ? "wrong\n" : "ok\n");
    return failures != 0;
}
