/* SPDX-License-Identifier: MIT */
#include "ggml-metal-ggmlq.h"

#include "ggml-ggmlq-attend.h"
#include "ggml-impl.h"
#include "ggml-metal-impl.h"
#include "ggmlq-metal-plan.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <vector>

static_assert((int) GGML_TYPE_F32 == (int) GGMLQ_CUDA_F32 && (int) GGML_TYPE_F16 == (int) GGMLQ_CUDA_F16 &&
    (int) GGML_TYPE_BF16 == (int) GGMLQ_CUDA_BF16, "ggmlq-cuda.h uses ggml's ids");

/* --- kernels ---------------------------------------------------------------------------------------------------- */

static const char kernels_source[] =
#include "ggmlq-metal-source.inc" /* ggmlq-metal.metal, pasted when the tree was patched */
;

bool ggmlq_ggml_metal_is_source(const char * source) { return source == kernels_source; }

/* A library of our own beside upstream's, so that nothing has to be added to those. One for each device, kept as long as the process;
 * NULL: it doesn't compile here, and no operation is supported. */
static ggml_metal_library_t library_of(ggml_metal_device_t dev) {
    static std::mutex mutex;
    static std::map<ggml_metal_device_t, ggml_metal_library_t> libraries;
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = libraries.find(dev);
    if (found != libraries.end()) {
        return found->second;
    }
    const ggml_metal_library_t library = ggml_metal_library_init_from_source(dev, kernels_source, true);
    if (!library) {
        GGML_LOG_ERROR("%s: the Metal kernels for the cache types don't compile on this system (the reason is above): such a cache can be kept on the CPU (-nkvo)\n", __func__);
    }
    return libraries[dev] = library;
}

/* The kernel of a launch, made for its constants; its pipeline is NULL if Metal refuses it. */
static ggml_metal_pipeline_with_params pipeline_of(ggml_metal_library_t library, const ggmlq_metal_launch & launch) {
    std::string name = launch.kernel;
    for (int32_t value : launch.constants) {
        name += "_" + std::to_string(value);
    }
    ggml_metal_pipeline_with_params result = ggml_metal_library_get_pipeline(library, name.c_str());
    if (!result.pipeline) {
        const ggml_metal_cv_t constants = ggml_metal_cv_init();
        for (int i = 0; i < GGMLQ_METAL_CONSTANTS; ++i) {
            ggml_metal_cv_set_int32(constants, launch.constants[i], i);
        }
        result = ggml_metal_library_compile_pipeline(library, launch.kernel, name.c_str(), constants);
        ggml_metal_cv_free(constants);
    }
    return result;
}

/* --- plans ------------------------------------------------------------------------------------------------------ */

namespace {

/* Memory of a tensor, from a byte of it on. */
struct place {
    const ggml_tensor * tensor;
    size_t              offset;
};

/* A launch and its operands; or, without a kernel, attention by upstream's f16 kernels. */
struct step {
    ggmlq_metal_launch launch;
    place              operands[GGMLQ_METAL_MAX_OPERANDS];
    bool               after;      /* needs what the steps before it wrote              */
    int64_t            first_head; /* of K, where upstream does some of them at a time */
};

struct steps {
    std::vector<step> list;
    size_t            scratch_end; /* bytes behind the first of the result, 0: no more than the result itself */

    void add(const ggmlq_metal_launch & launch, std::initializer_list<place> operands, bool after = false) {
        if (launch.kernel) {
            step s = {};
            s.launch = launch;
            s.after  = after;
            std::copy(operands.begin(), operands.end(), s.operands);
            list.push_back(s);
        }
    }

    void add_upstream(int64_t first_head) {
        step s = {};
        s.after      = true;
        s.first_head = first_head;
        list.push_back(s);
    }
};

}

static size_t aligned(size_t bytes) { return GGML_PAD(bytes, 32); }

static ggmlq_cuda_view view_of(const ggml_tensor * tensor) {
    ggmlq_cuda_view view = {};
    view.type = (int) tensor->type;
    for (int i = 0; i < 4; ++i) {
        view.ne[i] = tensor->ne[i];
        view.nb[i] = (int64_t) tensor->nb[i];
    }
    return view;
}

static int index_bytes(const ggml_tensor * indices) { return indices->type == GGML_TYPE_I64 ? 8 : indices->type == GGML_TYPE_I32 ? 4 : 0; }

static int plan_copy(const ggml_tensor * src, const ggml_tensor * dst, steps & result) {
    const ggmlq_cuda_view to = view_of(dst), from = view_of(src);
    ggmlq_metal_launch launch;
    const int error = src->type == dst->type ? ggmlq_metal_copy_rows(&to, &from, &launch) : ggmlq_metal_convert(&to, &from, false, &launch);
    if (!error) {
        result.add(launch, { { dst, 0 }, { src, 0 }, { src, 0 } });
    }
    return error;
}

static int plan_concat(const ggml_tensor * op, steps & result) {
    const int32_t axis = ggml_get_op_params_i32(op, 0);
    size_t offset = 0;
    for (int i = 0; i < 2; ++i) {
        const ggml_tensor * src = op->src[i];
        ggmlq_cuda_view to = view_of(op);
        const ggmlq_cuda_view from = view_of(src);
        to.ne[axis] = src->ne[axis];
        ggmlq_metal_launch launch;
        const int error = ggmlq_metal_copy_rows(&to, &from, &launch);
        if (error) {
            return error;
        }
        result.add(launch, { { op, offset }, { src, 0 } });
        offset = axis == 0 ? ggml_row_size(op->type, src->ne[0]) : src->ne[axis]*op->nb[axis];
    }
    return GGMLQ_OK;
}

/* --- attention -------------------------------------------------------------------------------------------------- */

/* V is (the first part of) K: they are the same rows of the same cache. */
static bool is_part_of(const ggml_tensor * v, const ggml_tensor * k) {
    const bool same_place = v == k || (v->view_src && (v->view_src == k || (v->view_src == k->view_src && v->view_offs == k->view_offs)));
    return same_place && v->type == k->type && v->ne[0] <= k->ne[0] && v->nb[1] == k->nb[1] && v->nb[2] == k->nb[2] && v->nb[3] == k->nb[3];
}

/* `like`, contiguous and of another type, behind the result of `op`. */
static ggml_tensor scratch_like(const ggml_tensor * like, ggml_type type, const ggml_tensor * op, size_t offset) {
    ggml_tensor t = *like;
    t.type     = type;
    t.buffer   = op->buffer;
    t.data     = (char *) op->data + offset;
    t.view_src = nullptr;
    t.nb[0]    = ggml_type_size(type);
    for (int i = 1; i < 4; ++i) {
        t.nb[i] = t.nb[i - 1]*t.ne[i - 1];
    }
    return t;
}

namespace {

/* The same attention in the rotated space with K and V in f16, which upstream's kernels are given. What isn't one of the sources of `op` lies
 * behind the result and upstream's own scratch memory. */
struct attention_f16 {
    ggmlq_ggml_metal_stand_in & to;
    size_t q_at, k_at, v_at, end;
    bool   v_is_k;

    /* buft: of the result; null: places don't matter yet. */
    attention_f16(const ggml_tensor * op, ggml_backend_buffer_type_t buft, ggmlq_ggml_metal_stand_in & to) : to(to) {
        v_is_k = is_part_of(op->src[2], op->src[1]);
        to.op = *op;
        to.op.src[0] = &to.q;
        to.op.src[1] = &to.k;
        to.op.src[2] = &to.v;
#ifdef GGMLQ_GGML_N_KV_MAX_AT
        to.op.op_params[GGMLQ_GGML_N_KV_MAX_AT] = 0; /* all rows are decoded anyhow */
#endif
        place_from(op, 0);
        if (buft) { /* upstream knows how much its scratch memory is once it sees types and shapes */
            place_from(op, aligned(ggml_backend_buft_get_alloc_size(buft, &to.op)));
        }
    }

    void place_from(const ggml_tensor * op, size_t at) {
        const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2];
        q_at = at;
        to.q = ggmlq_ggml_is_cache_type(k->type) ? scratch_like(q, GGML_TYPE_F32, op, q_at) : *q;
        k_at = ggmlq_ggml_is_cache_type(k->type) ? aligned(q_at + ggml_nbytes(&to.q)) : q_at;
        to.k = k->type == GGML_TYPE_F16 ? *k : scratch_like(k, GGML_TYPE_F16, op, k_at);
        v_at = k->type == GGML_TYPE_F16 ? k_at : aligned(k_at + ggml_nbytes(&to.k));
        to.v = v->type == GGML_TYPE_F16 ? *v : scratch_like(v, GGML_TYPE_F16, op, v_is_k ? k_at : v_at);
        end  = v->type == GGML_TYPE_F16 || v_is_k ? v_at : aligned(v_at + ggml_nbytes(&to.v));
        for (int i = 1; i < 4 && v_is_k; ++i) {
            to.v.nb[i] = to.k.nb[i];
        }
    }
};

}

/* The kernels before and after upstream's. */
static int plan_f16(const ggml_tensor * op, const attention_f16 & f16, steps & result) {
    const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2];
    const ggmlq_cuda_view out = view_of(op);
    ggmlq_metal_launch launch = {};
    int error = GGMLQ_OK;
    if (ggmlq_ggml_is_cache_type(k->type)) {
        const ggmlq_cuda_view to = view_of(&f16.to.q), from = view_of(q);
        error = ggmlq_metal_rotate((int) k->type, &to, &from, false, &launch);
        result.add(launch, { { op, f16.q_at }, { q, 0 } });
    }
    if (!error && k->type != GGML_TYPE_F16) {
        const ggmlq_cuda_view to = view_of(&f16.to.k), from = view_of(k);
        error = ggmlq_metal_to_f16(&to, &from, &launch);
        result.add(launch, { { op, f16.k_at }, { k, 0 }, { k, 0 } });
    }
    if (!error && v->type != GGML_TYPE_F16 && !f16.v_is_k) {
        const ggmlq_cuda_view to = view_of(&f16.to.v), from = view_of(v);
        error = ggmlq_metal_to_f16(&to, &from, &launch);
        result.add(launch, { { op, f16.v_at }, { v, 0 }, { v, 0 } });
    }
    result.add_upstream(0);
    if (!error && ggmlq_ggml_is_cache_type(v->type)) {
        error = ggmlq_metal_rotate((int) v->type, &out, &out, true, &launch);
        result.add(launch, { { op, 0 }, { op, 0 } }, true);
    }
    result.scratch_end = f16.end;
    return error;
}

namespace {

/* The same of centered keys (docs/CENTERING.md): rows [k | 256 part*c | 0] and [q | w/256 | 0] of a size that upstream has kernels for, for some
 * heads of K at a time. What upstream is given lies behind the result, and so does what it gives, before its own scratch memory. */
struct attention_wide {
    ggmlq_ggml_metal_stand_in & to;
    const int64_t head_k, head_v, first, heads, group;
    const bool    v_as_it_is;
    size_t out_at, q_at, k_at, v_at, end;

    /* `heads` of K from `first` on. */
    attention_wide(const ggml_tensor * op, const int64_t sizes[2], int64_t first, int64_t heads, ggml_backend_buffer_type_t buft, ggmlq_ggml_metal_stand_in & to)
        : to(to), head_k(op->src[1]->ne[0]), head_v(op->src[2]->ne[0]), first(first), heads(heads),
          group(op->src[0]->ne[2]/op->src[1]->ne[2]), v_as_it_is(op->src[2]->type == GGML_TYPE_F16 && head_v == sizes[1]) {
        const ggml_tensor * v = op->src[2];
        out_at = aligned(ggml_nbytes(op));
        to.op = *op;
        to.op.ne[0] = sizes[1];
        to.op.ne[1] = heads*group; /* heads are before tokens */
        to.op = scratch_like(&to.op, GGML_TYPE_F32, op, out_at);
        to.op.src[0] = &to.q;
        to.op.src[1] = &to.k;
        to.op.src[2] = &to.v;
        if (op->src[4]) {
            to.sinks = *op->src[4];
            to.sinks.ne[0] = heads*group;
            to.sinks.data  = (char *) to.sinks.data + first*group*(int64_t) sizeof(float);
            to.op.src[4]   = &to.sinks;
        }
        for (int i : { GGMLQ_GGML_ATTEND_W, GGMLQ_GGML_ATTEND_TURNS, GGMLQ_GGML_ATTEND_POSITIONS, GGMLQ_GGML_ATTEND_PART, GGMLQ_GGML_ATTEND_MEAN }) {
            to.op.src[i] = nullptr;
        }
#ifdef GGMLQ_GGML_N_KV_MAX_AT
        to.op.op_params[GGMLQ_GGML_N_KV_MAX_AT] = 0; /* all rows are decoded anyhow */
#endif
        if (v_as_it_is) {
            to.v = *v;
            to.v.ne[2] = heads;
            to.v.data  = (char *) v->data + first*(int64_t) v->nb[2];
        }
        q_at = place_from(op, sizes, out_at);
        if (buft) { /* upstream knows how much its scratch memory is once it sees types and shapes */
            q_at = place_from(op, sizes, out_at + aligned(ggml_backend_buft_get_alloc_size(buft, &to.op)));
        }
    }

private:
    size_t place_from(const ggml_tensor * op, const int64_t sizes[2], size_t at) {
        to.q = rows(op, op->src[0], GGML_TYPE_F32, sizes[0], heads*group, at);
        k_at = aligned(at + ggml_nbytes(&to.q));
        to.k = rows(op, op->src[1], GGML_TYPE_F16, sizes[0], heads, k_at);
        v_at = end = aligned(k_at + ggml_nbytes(&to.k));
        if (!v_as_it_is) {
            to.v = rows(op, op->src[2], GGML_TYPE_F16, sizes[1], heads, v_at);
            end  = aligned(v_at + ggml_nbytes(&to.v));
        }
        return at;
    }

    static ggml_tensor rows(const ggml_tensor * op, const ggml_tensor * like, ggml_type type, int64_t size, int64_t heads, size_t at) {
        ggml_tensor t = *like;
        t.ne[0] = size;
        t.ne[2] = heads;
        return scratch_like(&t, type, op, at);
    }
};

}

/* All heads of K, or a part of them that takes no more memory than all heads of keys that aren't centered. Every turn is like the others, so that
 * what it writes lies where nothing of the one before is still to be read. */
static int64_t heads_at_once(const ggmlq_attend_params & p, const int64_t sizes[2]) {
    if (p.max_bias != 0.0f || (p.mask && p.mask_heads > 1)) {
        return p.n_heads_kv; /* upstream numbers the heads that it is given */
    }
    int64_t heads = std::max<int64_t>(p.n_heads_kv*(p.head_size_k + p.head_size_v)/(sizes[0] + sizes[1]), 1);
    while (p.n_heads_kv % heads != 0) {
        --heads;
    }
    return heads;
}

/* `count` of an axis. */
static ggmlq_cuda_view some_of(const ggml_tensor * tensor, int axis, int64_t count) {
    ggmlq_cuda_view view = view_of(tensor);
    view.ne[axis] = count;
    return view;
}

static int plan_wide(const ggml_tensor * op, const ggmlq_attend_params & p, const attention_wide & wide, steps & result) {
    const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2];
    const ggml_tensor * w = op->src[GGMLQ_GGML_ATTEND_W];
    const int64_t heads = wide.heads*wide.group;
    const size_t  first = (size_t) (wide.first*wide.group), first_k = (size_t) wide.first, behind = (size_t) wide.head_k; /* values */
    ggmlq_metal_launch launch = {};
    int error = GGMLQ_OK;
    const auto add = [&](int failed, std::initializer_list<place> operands, bool after = false) {
        error = error ? error : failed;
        if (!error) {
            result.add(launch, operands, after);
        }
    };
    const auto rotate = [&](ggml_type type, const ggmlq_cuda_view & to, const ggmlq_cuda_view & from, bool back) {
        return ggmlq_ggml_is_cache_type(type) ? ggmlq_metal_rotate((int) type, &to, &from, back, &launch) : ggmlq_metal_fill(&to, &from, 1.0f, &launch);
    };
    const ggmlq_cuda_view q_from = some_of(q, 2, heads),      q_to = some_of(&wide.to.q, 0, wide.head_k);
    const ggmlq_cuda_view k_from = some_of(k, 2, wide.heads), k_to = some_of(&wide.to.k, 0, wide.head_k);
    const ggmlq_cuda_view v_from = some_of(v, 2, wide.heads), v_to = some_of(&wide.to.v, 0, wide.head_v);
    const ggmlq_cuda_view w_from = some_of(w, 2, heads),      w_to = some_of(&wide.to.q, 0, wide.to.q.ne[0] - wide.head_k);
    const ggmlq_cuda_view c_to = some_of(&wide.to.k, 0, wide.to.k.ne[0] - wide.head_k);
    const ggmlq_cuda_view out_to = some_of(op, 1, heads),     out_from = some_of(&wide.to.op, 0, wide.head_v);

    add(rotate(k->type, q_to, q_from, false),        { { op, wide.q_at }, { q, first*q->nb[2] }, { q, 0 } });
    add(ggmlq_metal_to_f16(&k_to, &k_from, &launch), { { op, wide.k_at }, { k, first_k*k->nb[2] }, { k, 0 } });
    if (!wide.v_as_it_is) {
        add(ggmlq_metal_to_f16(&v_to, &v_from, &launch), { { op, wide.v_at }, { v, first_k*v->nb[2] }, { v, 0 } });
    }
    add(ggmlq_metal_fill(&w_to, &w_from, 1.0f/GGMLQ_METAL_TERM_UNIT, &launch), { { op, wide.q_at + behind*wide.to.q.nb[0] }, { w, first*w->nb[2] } });
    add(ggmlq_metal_positional(&c_to, &p, GGMLQ_METAL_TERM_UNIT, &launch), { { op, wide.k_at + behind*wide.to.k.nb[0] },
        { op->src[GGMLQ_GGML_ATTEND_TURNS], 0 }, { op->src[GGMLQ_GGML_ATTEND_POSITIONS], 0 }, { op->src[GGMLQ_GGML_ATTEND_PART], 0 } });
    result.add_upstream(wide.first);
    add(rotate(v->type, out_to, out_from, true), { { op, first*op->nb[1] }, { op, wide.out_at }, { op, 0 } }, true);
    result.scratch_end = std::max(result.scratch_end, wide.end);
    return error;
}

static int plan_ours(const ggml_tensor * op, const ggmlq_metal_attention & a, steps & result) {
    const ggml_tensor * q = op->src[0];
    const size_t workspace = aligned(ggml_nbytes(op));
    const place out = { op, 0 }, list = { op, workspace }, parts = { op, workspace + (size_t) a.parts_at };
    const auto source = [&](int i) { return place{ op->src[i] ? op->src[i] : q, 0 }; };
    const place mask = source(3), sinks = source(4);
    result.add(a.select,  { mask, list });
    result.add(a.attend,  { { q, 0 }, { op->src[1], 0 }, { op->src[2], 0 }, mask, sinks, list, a.combine.kernel ? parts : out,
        source(GGMLQ_GGML_ATTEND_W), source(GGMLQ_GGML_ATTEND_TURNS), source(GGMLQ_GGML_ATTEND_POSITIONS), source(GGMLQ_GGML_ATTEND_PART) }, true);
    result.add(a.combine, { parts, sinks, out }, true);
    result.scratch_end = a.workspace_bytes > 0 ? workspace + (size_t) a.workspace_bytes : 0;
    return GGMLQ_OK;
}

/* Whether a mask, sinks, part are there counts, and they may have no address yet. */
static bool params_of(const ggml_tensor * op, ggmlq_attend_params & p) {
    static const uint16_t halves = 0;
    static const float    floats = 0;
    if (!ggmlq_ggml_attend_params_centered(op, &p)) {
        return false;
    }
    p.mask  = op->src[3] ? &halves : nullptr;
    p.sinks = op->src[4] ? &floats : nullptr;
    p.part  = op->src[GGMLQ_GGML_ATTEND_PART] ? &halves : nullptr;
    return true;
}

/* Over the rows that the mask leaves, if the graph says that they are few; many queries by upstream's f16 kernels, where it has them;
 * else our kernel, which takes every shape. */
static int plan_attention(ggml_metal_device_t dev, ggml_backend_buffer_type_t buft, const ggml_tensor * op, steps & result) {
    ggmlq_attend_params p;
    if (!params_of(op, p)) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t most = ggmlq_ggml_attend_most_visible(op);
    ggmlq_metal_attention a;
    if (most > 0 && p.n_kv >= 2*most && ggmlq_metal_attend(&p, most, &a) == GGMLQ_OK) {
        return plan_ours(op, a, result);
    }
    int64_t sizes[2];
    if (ggmlq_metal_attend_wants_f16(&p, sizes)) {
        steps by_f16 = {};
        bool done = true;
        for (int64_t first = 0, heads = p.n_pairs > 0 ? heads_at_once(p, sizes) : p.n_heads_kv; first < p.n_heads_kv && done; first += heads) {
            ggmlq_ggml_metal_stand_in stand_in;
            if (p.n_pairs > 0) {
                const attention_wide wide(op, sizes, first, heads, buft, stand_in);
                done = plan_wide(op, p, wide, by_f16) == GGMLQ_OK;
            } else {
                const attention_f16 f16(op, buft, stand_in);
                done = plan_f16(op, f16, by_f16) == GGMLQ_OK;
            }
            done = done && ggml_metal_device_supports_op(dev, &stand_in.op);
        }
        if (done) {
            result = by_f16;
            return GGMLQ_OK;
        }
    }
    const int error = ggmlq_metal_attend(&p, 0, &a);
    return error ? error : plan_ours(op, a, result);
}

/* --- all operations --------------------------------------------------------------------------------------------- */

/* The steps that do an operation, or a ggmlq_error: it isn't supported. Addresses aren't looked at. buft: of the result; null: places of scratch
 * memory don't matter yet. */
static int plan(ggml_metal_device_t dev, ggml_backend_buffer_type_t buft, const ggml_tensor * op, steps & result) {
    result = {};
    ggmlq_metal_launch launch = {};
    int error = GGMLQ_ERROR_TYPE;
    switch (op->op) {
        case GGML_OP_SET_ROWS: {
            const ggmlq_cuda_view rows = view_of(op), values = view_of(op->src[0]), indices = view_of(op->src[1]);
            const ggml_tensor * by = op->src[GGMLQ_GGML_SET_ROWS_FEEDBACK];
            if (by) {
                const ggmlq_cuda_view feedback = view_of(by);
                error = ggmlq_metal_set_rows_for_queries(&rows, &values, &indices, index_bytes(op->src[1]), &feedback, &launch);
            } else {
                error = ggmlq_metal_set_rows(&rows, &values, &indices, index_bytes(op->src[1]), &launch);
            }
            result.add(launch, { { op, 0 }, { op->src[0], 0 }, { op->src[1], 0 }, { by, 0 } });
        } break;
        case GGML_OP_GET_ROWS: {
            const ggmlq_cuda_view values = view_of(op), rows = view_of(op->src[0]), indices = view_of(op->src[1]);
            error = ggmlq_metal_get_rows(&values, &rows, &indices, index_bytes(op->src[1]), false, &launch);
            result.add(launch, { { op, 0 }, { op->src[0], 0 }, { op->src[1], 0 } });
        } break;
        case GGML_OP_CPY:
            error = plan_copy(op->src[0], op->src[1], result);
            break;
        case GGML_OP_DUP:
        case GGML_OP_CONT:
            error = plan_copy(op->src[0], op, result);
            break;
        case GGML_OP_CONCAT:
            error = plan_concat(op, result);
            break;
        case GGML_OP_MUL_MAT: {
            const ggmlq_cuda_view out = view_of(op), rows = view_of(op->src[0]), x = view_of(op->src[1]);
            error = ggmlq_metal_mul_mat(&out, &rows, &x, &launch);
            result.add(launch, { { op, 0 }, { op->src[0], 0 }, { op->src[1], 0 } });
        } break;
        case GGML_OP_FLASH_ATTN_EXT:
            error = plan_attention(dev, buft, op, result);
            break;
#ifdef OP_LIGHTNING_INDEXER_DK /* older trees don't know the operation */
        case GGML_OP_LIGHTNING_INDEXER: {
            const ggml_tensor * const * src = op->src;
            const ggmlq_cuda_view scores = view_of(op), q = view_of(src[0]), rows = view_of(src[1]), weights = view_of(src[2]), mask = view_of(src[3]);
            error = ggmlq_metal_indexer(&scores, &q, &rows, &weights, &mask, &launch);
            result.add(launch, { { op, 0 }, { src[0], 0 }, { src[1], 0 }, { src[2], 0 }, { src[3], 0 } });
        } break;
#endif
        default:
            break;
    }
    return error;
}

static ggml_backend_buffer_type_t buft_of(const ggml_tensor * tensor) {
    return ggml_backend_buffer_get_type(tensor->view_src ? tensor->view_src->buffer : tensor->buffer);
}

/* --- what the hooks call ---------------------------------------------------------------------------------------- */

bool ggmlq_ggml_metal_involved(const ggml_tensor * op) {
    bool involved = ggmlq_ggml_is_cache_type(op->type) || (op->op == GGML_OP_FLASH_ATTN_EXT && op->src[GGMLQ_GGML_ATTEND_TURNS]) ||
        (op->op == GGML_OP_SET_ROWS && op->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]);
    for (int i = 0; i < GGML_MAX_SRC && !involved; ++i) {
        involved = op->src[i] && ggmlq_ggml_is_cache_type(op->src[i]->type);
    }
    return involved;
}

bool ggmlq_ggml_metal_supports_op(ggml_metal_device_t dev, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        default:
            break;
    }
    if (!ggml_metal_device_get_props(dev)->has_simdgroup_reduction) { /* shuffles, 32 threads to a simdgroup */
        return false;
    }
    steps todo;
    const ggml_metal_library_t library = plan(dev, nullptr, op, todo) == GGMLQ_OK ? library_of(dev) : nullptr;
    for (const step & s : todo.list) {
        if (library && s.launch.kernel && !pipeline_of(library, s.launch).pipeline) {
            return false;
        }
    }
    return library != nullptr;
}

size_t ggmlq_ggml_metal_alloc_size(ggml_metal_device_t dev, ggml_backend_buffer_type_t buft, const ggml_tensor * tensor) {
    steps todo;
    const bool attention = tensor->op == GGML_OP_FLASH_ATTN_EXT && plan(dev, buft, tensor, todo) == GGMLQ_OK;
    return attention && todo.scratch_end > 0 ? todo.scratch_end : ggml_nbytes(tensor);
}

/* Which heads upstream's attention is being encoded for: it is asked for a node, on the thread that asks. */
static thread_local int64_t first_head_of_upstream = 0;

ggml_tensor * ggmlq_ggml_metal_in_place_of(ggml_tensor * op, ggmlq_ggml_metal_stand_in * stand_in) {
    if (!ggmlq_ggml_metal_involved(op)) {
        return op;
    }
    ggmlq_attend_params p;
    int64_t sizes[2];
    GGML_ASSERT(params_of(op, p) && ggmlq_metal_attend_wants_f16(&p, sizes)); /* by the plan that asked for it */
    if (p.n_pairs > 0) {
        const attention_wide wide(op, sizes, first_head_of_upstream, heads_at_once(p, sizes), buft_of(op), *stand_in);
    } else {
        const attention_f16 f16(op, buft_of(op), *stand_in);
    }
    return &stand_in->op;
}

bool ggmlq_ggml_metal_encode(ggml_metal_device_t dev, ggml_metal_encoder_t encoder, const ggml_tensor * op, ggmlq_ggml_metal_buffer_id_t buffer_id,
                             const std::function<void()> & wait, const std::function<void()> & attend_f16) {
    if (!ggmlq_ggml_metal_involved(op)) {
        return false;
    }
    steps todo;
    plan(dev, buft_of(op), op, todo); /* supports_op was asked before: it can be done */
    for (const step & s : todo.list) {
        if (s.after && &s != &todo.list.front()) {
            wait();
        }
        if (s.launch.kernel == nullptr) {
            first_head_of_upstream = s.first_head;
            attend_f16();
            continue;
        }
        ggml_metal_encoder_set_pipeline(encoder, pipeline_of(library_of(dev), s.launch));
        ggml_metal_encoder_set_bytes(encoder, const_cast<void *>(static_cast<const void *>(&s.launch.args)), s.launch.args_bytes, 0);
        for (int j = 0; j < s.launch.n_operands; ++j) {
            ggml_metal_buffer_id id = buffer_id(s.operands[j].tensor);
            id.offs += s.operands[j].offset;
            ggml_metal_encoder_set_buffer(encoder, id, j + 1);
        }
        if (s.launch.shared_bytes > 0) {
            ggml_metal_encoder_set_threadgroup_memory_size(encoder, s.launch.shared_bytes, 0);
        }
        ggml_metal_encoder_dispatch_threadgroups(encoder, (int) s.launch.groups[0], (int) s.launch.groups[1], (int) s.launch.groups[2],
            GGMLQ_METAL_THREADS, 1, 1);
    }
    return true;
}
