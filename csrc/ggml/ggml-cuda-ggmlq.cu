/* SPDX-License-Identifier: MIT */
#include "common.cuh"

#include "convert.cuh"
#include "cpy.cuh"
#include "fattn.cuh"

#include "ggml-cuda-ggmlq.cuh"
#include "ggml-ggmlq-attend.h"
#include "ggml-impl.h"
#include "ggmlq-cuda-center.h"
#include "ggmlq-cuda-f16.h"
#include "ggmlq-cuda-sparse.h"

static_assert((int) GGML_TYPE_F32 == (int) GGMLQ_CUDA_F32 && (int) GGML_TYPE_F16 == (int) GGMLQ_CUDA_F16 &&
    (int) GGML_TYPE_BF16 == (int) GGMLQ_CUDA_BF16, "ggmlq-cuda.h uses ggml's ids");

/* Columns of a product up to which our dot product is used: it reads rows once for this many. Above, rows are converted. */
static const int64_t MAX_DOT_COLUMNS = 8;

/* What arguments alone can get wrong has been refused by supports_op. */
static void require_ok(int error, const char * function) {
    if (error != GGMLQ_OK) {
        GGML_ABORT("%s: %s", function, ggmlq_cuda_error_text(error));
    }
}

/* bytes: as a ..._workspace_bytes gave them. */
static void allocate(ggml_cuda_pool_alloc<char> & workspace, int64_t bytes, const char * function) {
    require_ok(bytes < 0 ? (int) bytes : GGMLQ_OK, function);
    if (bytes > 0) {
        workspace.alloc((size_t) bytes);
    }
}

static ggmlq_cuda_view view_of(const ggml_tensor * tensor) {
    ggmlq_cuda_view view = {};
    view.data = tensor->data;
    view.type = (int) tensor->type;
    for (int i = 0; i < 4; ++i) {
        view.ne[i] = tensor->ne[i];
        view.nb[i] = (int64_t) tensor->nb[i];
    }
    return view;
}

/* Contiguous floats as rows of 128. */
static ggmlq_cuda_view flat_blocks(const ggml_tensor * tensor) {
    ggmlq_cuda_view view = view_of(tensor);
    view.ne[0] = 128;
    view.ne[1] = ggml_nelements(tensor)/128;
    view.ne[2] = view.ne[3] = 1;
    view.nb[1] = 128*(int64_t) sizeof(float);
    view.nb[2] = view.nb[3] = view.nb[1]*view.ne[1];
    return view;
}

/* A tensor of the same shape, of another type, contiguous. */
static ggml_tensor contiguous_like(const ggml_tensor * tensor, ggml_type type, void * data) {
    ggml_tensor t = *tensor;
    t.type     = type;
    t.data     = data;
    t.view_src = nullptr;
    t.nb[0]    = ggml_type_size(type);
    t.nb[1]    = ggml_row_size(type, t.ne[0]);
    t.nb[2]    = t.nb[1]*t.ne[1];
    t.nb[3]    = t.nb[2]*t.ne[2];
    return t;
}

static bool whole_blocks(const ggml_tensor * tensor) {
    return tensor->nb[0] == ggml_type_size(tensor->type) && tensor->ne[0] % ggml_blck_size(tensor->type) == 0;
}

/* --- rows and copies -------------------------------------------------------------------------------------------- */

static int index_bytes(const ggml_tensor * indices) {
    return indices->type == GGML_TYPE_I64 ? 8 : indices->type == GGML_TYPE_I32 ? 4 : 0;
}

bool ggmlq_ggml_cuda_set_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!ggmlq_ggml_is_cache_type(dst->type)) {
        return false;
    }
    const ggmlq_cuda_view rows = view_of(dst), values = view_of(dst->src[0]), indices = view_of(dst->src[1]);
    if (dst->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]) {
        const ggmlq_cuda_view feedback = view_of(dst->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]);
        require_ok(ggmlq_cuda_set_rows_for_queries(&rows, &values, &indices, index_bytes(dst->src[1]), &feedback, ctx.stream()), __func__);
    } else {
        require_ok(ggmlq_cuda_set_rows(&rows, &values, &indices, index_bytes(dst->src[1]), ctx.stream()), __func__);
    }
    return true;
}

static bool share_memory(const ggml_tensor * a, const ggml_tensor * b) {
    const char * from = (const char *) a->data, * other = (const char *) b->data;
    return from < other + ggml_nbytes(b) && other < from + ggml_nbytes(a);
}

/* Two stores of which neither writes what the other reads or writes. */
static bool independent(const ggml_tensor * a, const ggml_tensor * b) {
    bool apart = !share_memory(a, b);
    for (int i = 0; i < 2; ++i) {
        apart = apart && !share_memory(a, b->src[i]) && !share_memory(a->src[i], b);
    }
    return apart;
}

static int next_computed(const ggml_cgraph * graph, int i) {
    do {
        ++i;
    } while (i < graph->n_nodes && ggmlq_ggml_cuda_is_view(graph->nodes[i]));
    return i;
}

#if __has_include("fwht.cuh")

/* How many values llama.cpp's own rotation (attn_rot) turns at a time, if that is what the node does and our kernels can do too; else 0. */
static int turns(const ggml_tensor * node) {
    const ggml_tensor * from = node->src[1];
    if (node->op == GGML_OP_MUL_MAT && ggml_get_op_params_i32(node, 1) == GGML_HINT_SRC0_IS_HADAMARD && node->src[0]->type == GGML_TYPE_F32 &&
        node->type == GGML_TYPE_F32 && from->type == GGML_TYPE_F32 && ggml_is_contiguous(from) && ggml_is_contiguous(node) &&
        ggml_are_same_shape(from, node) && node->src[0]->ne[0] == node->ne[0] && (node->ne[0] == 64 || node->ne[0] == 128 || node->ne[0] == 256)) {
        return (int) node->ne[0];
    }
    return 0;
}

/* Whether `values` are all that `node` gives, in its order. */
static bool holds_all(const ggml_tensor * values, const ggml_tensor * node) {
    return values == node || (values->view_src == node && values->data == node->data && ggml_is_contiguous(values) && ggml_nelements(values) == ggml_nelements(node));
}

/* Whether `store` encodes all that `turned` wrote. */
static bool stores_all(const ggml_tensor * store, const ggml_tensor * turned) { return store->src[0] != turned && holds_all(store->src[0], turned); }

/* Whether nobody but the views from the node's to `values`, which one node reads, needs its result. */
static bool only_for(const ggml_cgraph * graph, int i, int end, const ggml_tensor * values) {
    const ggml_tensor * last = graph->nodes[i];
    if (!ggml_node_has_n_uses(graph, i, 1)) {
        return false;
    }
    for (int view = i + 1; view < end && last != values; ++view) {
        const ggml_tensor * node = graph->nodes[view];
        if (node->src[0] == last && ggmlq_ggml_cuda_is_view(node)) {
            if (ggml_node_get_use_count(graph, view) != 1 || (node->flags & GGML_TENSOR_FLAG_OUTPUT)) {
                return false;
            }
            last = node;
        }
    }
    return last == values;
}

#else /* older trees have no hint, and multiply */

static int  turns(const ggml_tensor *)                                             { return 0; }
static bool holds_all(const ggml_tensor *, const ggml_tensor *)                    { return false; }
static bool stores_all(const ggml_tensor *, const ggml_tensor *)                   { return false; }
static bool only_for(const ggml_cgraph *, int, int, const ggml_tensor *)           { return false; }

#endif

/* Up to three rotations (of the queries, of K and V, in any order), then the two stores, nothing but views between them; or one store, of rounded rows,
 * after a rotation. */
struct layer_stores {
    int first[3];         /* the rotations' nodes */
    int n_first, last;    /* how many; the last store's node */
    int n_stores;
    ggml_tensor * store[2];
    int of_store[2], other; /* which rotation is the store's; which one is the queries'; -1: none */
    int rounded;            /* which store rounds its rows for queries; -1: none */
};

static bool is_store(const ggml_tensor * node) { return node->op == GGML_OP_SET_ROWS && ggmlq_ggml_is_cache_type(node->type); }

static bool match_stores(const ggml_cgraph * graph, int i, layer_stores * m) {
    m->n_first = 0;
    while (i < graph->n_nodes && m->n_first < 3 && turns(graph->nodes[i]) != 0) {
        m->first[m->n_first++] = i;
        i = next_computed(graph, i);
    }
    if (i >= graph->n_nodes || !is_store(graph->nodes[i])) {
        return false;
    }
    m->store[0] = graph->nodes[i];
    m->n_stores = 1;
    m->last     = i;
    const int next = next_computed(graph, i);
    if (next < graph->n_nodes) {
        ggml_tensor * a = m->store[0], * b = graph->nodes[next];
        if (is_store(b) && b->flags == a->flags && b->type == a->type && b->src[1]->type == a->src[1]->type && independent(a, b) &&
            !(a->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] && b->src[GGMLQ_GGML_SET_ROWS_FEEDBACK])) {
            m->store[1] = b;
            m->n_stores = 2;
            m->last     = next;
        }
    }
    m->other = m->rounded = -1;
    for (int s = 0; s < m->n_stores; ++s) {
        if (m->store[s]->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]) {
            m->rounded = s;
        }
        m->of_store[s] = -1;
        for (int k = 0; k < m->n_first; ++k) {
            if (stores_all(m->store[s], graph->nodes[m->first[k]])) {
                m->of_store[s] = k;
            }
        }
    }
    for (int k = 0; k < m->n_first; ++k) {
        if (graph->nodes[m->first[k]]->flags != m->store[0]->flags) {
            return false;
        }
        const int s = m->of_store[0] == k ? 0 : m->n_stores == 2 && m->of_store[1] == k ? 1 : -1;
        if (s >= 0 ? !only_for(graph, m->first[k], m->last, m->store[s]->src[0]) : m->other >= 0) {
            return false;
        }
        m->other = s < 0 ? k : m->other;
    }
    return m->n_stores == 2 || (m->rounded == 0 && m->n_first > 0);
}

/* The rotation of what a store writes, or NULL. */
static const ggml_tensor * turned_before(const ggml_cgraph * graph, const layer_stores & m, int s) { return m.of_store[s] < 0 ? NULL : graph->nodes[m.first[m.of_store[s]]]; }

/* All in one launch, if one of the stores rounds its rows. */
static bool fuse_rounded(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, const layer_stores & m) {
    const ggml_tensor * keys = m.store[m.rounded], * values = m.n_stores == 2 ? m.store[1 - m.rounded] : NULL, * queries = m.other >= 0 ? graph->nodes[m.first[m.other]] : NULL;
    const ggml_tensor * in[6], * out[3];
    int n_in = 0, n_out = 0;
    ggmlq_cuda_new_rows p = {};
    p.k_rows      = view_of(keys);
    p.k           = view_of(keys->src[0]);
    p.k_indices   = view_of(keys->src[1]);
    p.feedback    = view_of(keys->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]);
    p.index_bytes = index_bytes(keys->src[1]);
    const ggml_tensor * turned = turned_before(graph, m, m.rounded);
    if (turned) {
        p.k.data   = turned->src[1]->data;
        p.k_turned = turns(turned);
    }
    in[n_in++]   = turned ? turned->src[1] : keys->src[0];
    in[n_in++]   = keys->src[1];
    in[n_in++]   = keys->src[GGMLQ_GGML_SET_ROWS_FEEDBACK];
    out[n_out++] = keys;
    if (values) {
        p.v_rows    = view_of(values);
        p.v         = view_of(values->src[0]);
        p.v_indices = view_of(values->src[1]);
        turned = turned_before(graph, m, 1 - m.rounded);
        if (turned) {
            p.v.data   = turned->src[1]->data;
            p.v_turned = turns(turned);
        }
        in[n_in++]   = turned ? turned->src[1] : values->src[0];
        in[n_in++]   = values->src[1];
        out[n_out++] = values;
    }
    if (queries) {
        p.q        = (const float *) queries->src[1]->data;
        p.q_out    = (float *) queries->data;
        p.n_q      = ggml_nelements(queries);
        p.q_turned = turns(queries);
        in[n_in++]   = queries->src[1];
        out[n_out++] = queries;
    }
    /* All is read and written at the same time: memory that was free by the time of a node may not be when others are read. */
    for (int o = 0; o < n_out; ++o) {
        for (int k = 0; k < n_in; ++k) {
            const bool in_place = out[o] == queries && in[k] == queries->src[1] && in[k]->data == queries->data;
            if (!in_place && share_memory(out[o], in[k])) {
                return false;
            }
        }
        for (int k = 0; k < o; ++k) {
            if (share_memory(out[o], out[k])) {
                return false;
            }
        }
    }
    if (ggmlq_cuda_store_new_check(&p) != GGMLQ_OK) {
        return false;
    }
    require_ok(ggmlq_cuda_store_new(&p, ctx.stream()), __func__);
    return true;
}

/* --- with RoPE --------------------------------------------------------------------------------------------------- */

#if __has_include("fwht.cuh")

/* What a RoPE node does, if our kernels can do it too: contiguous floats [head size, heads, tokens], a position a token, one mode of pairs for all. */
static bool rope_of(const ggml_tensor * node, ggmlq_cuda_rope * r) {
    const ggml_tensor * x = node->src[0], * positions = node->src[1], * factors = node->src[2];
    /* As ggml_rope_ext keeps its arguments. */
    const int mode = ggml_get_op_params_i32(node, 2), first = ggml_get_op_params_i32(node, 15);
    if (node->op != GGML_OP_ROPE || (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) || first != 0 || ggml_get_op_params_f32(node, 7) != 0.0f ||
        node->type != GGML_TYPE_F32 || x->type != GGML_TYPE_F32 || node->ne[3] != 1 || !ggml_is_contiguous(x) || !ggml_is_contiguous(node) ||
        positions->type != GGML_TYPE_I32 || positions->ne[0] != node->ne[2] || ggml_nelements(positions) != node->ne[2] || !ggml_is_contiguous(positions)) {
        return false;
    }
    r->positions   = (const int32_t *) positions->data;
    r->factors     = factors ? (const float *) factors->data : NULL;
    r->n_rot       = ggml_get_op_params_i32(node, 1);
    r->neox        = mode == GGML_ROPE_TYPE_NEOX;
    r->theta_scale = powf(ggml_get_op_params_f32(node, 5), -2.0f/(float) r->n_rot);
    r->freq_scale  = ggml_get_op_params_f32(node, 6);
    r->attn_factor = ggml_get_op_params_f32(node, 8);
    return !factors || (factors->type == GGML_TYPE_F32 && ggml_is_contiguous(factors) && ggml_nelements(factors) >= r->n_rot/2);
}

/* Up to two RoPEs (of queries and keys) and up to three rotations, in any order, then the stores of K and V, nothing but views between them. A chain is what becomes of one
 * thing: its RoPE, its rotation; -1: none. */
static int fuse_roped(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i) {
    enum { K, V, Q, CHAINS, MOST = 5 };
    int found[MOST], n_found = 0, at = i;
    while (at < graph->n_nodes && n_found < MOST && (graph->nodes[at]->op == GGML_OP_ROPE || turns(graph->nodes[at]) != 0)) {
        found[n_found++] = at;
        at = next_computed(graph, at);
    }
    const int last = at < graph->n_nodes ? next_computed(graph, at) : graph->n_nodes;
    if (last >= graph->n_nodes || !is_store(graph->nodes[at]) || !is_store(graph->nodes[last])) {
        return 0;
    }
    const ggml_tensor * store[2] = { graph->nodes[at], graph->nodes[last] };
    if (store[0]->type != store[1]->type || store[0]->src[1]->type != store[1]->src[1]->type || !independent(store[0], store[1]) ||
        store[0]->src[GGMLQ_GGML_SET_ROWS_FEEDBACK] || store[1]->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]) {
        return 0;
    }
    int used = 0, rope[CHAINS] = { -1, -1, -1 }, turn[CHAINS] = { -1, -1, -1 };
    const ggml_tensor * from[CHAINS] = { store[0]->src[0], store[1]->src[0], NULL }, * result = NULL;
    /* Back from `from`, through nodes of which nothing else is needed. */
    auto follow = [&](int chain, bool is_result) {
        for (int k = n_found - 1; k >= 0; --k) {
            const ggml_tensor * node = graph->nodes[found[k]];
            if (!holds_all(from[chain], node)) {
                continue;
            }
            const bool is_rope = node->op == GGML_OP_ROPE;
            if (node->flags != store[0]->flags || rope[chain] >= 0 || (!is_rope && turn[chain] >= 0) || (!is_result && !only_for(graph, found[k], last, from[chain]))) {
                return false;
            }
            (is_rope ? rope : turn)[chain] = found[k];
            from[chain] = is_rope ? node->src[0] : node->src[1];
            is_result   = false;
            ++used;
        }
        return true;
    };
    if (store[0]->flags != store[1]->flags || !follow(K, false) || !follow(V, false)) {
        return 0;
    }
    for (int k = n_found - 1; k >= 0 && result == NULL; --k) { /* the last of the rest */
        bool taken = false;
        for (int chain = 0; chain < Q; ++chain) {
            taken = taken || found[k] == rope[chain] || found[k] == turn[chain];
        }
        if (!taken) {
            result = from[Q] = graph->nodes[found[k]];
        }
    }
    if (result && !follow(Q, true)) {
        return 0;
    }
    if (rope[K] < 0 && rope[V] >= 0) { /* stored in the other order */
        std::swap(rope[K], rope[V]);
        std::swap(turn[K], turn[V]);
        std::swap(from[K], from[V]);
        std::swap(store[0], store[1]);
    }
    ggmlq_cuda_roped_rows p = {};
    if (used != n_found || rope[K] < 0 || rope[V] >= 0 || (result && rope[Q] < 0) || !rope_of(graph->nodes[rope[K]], &p.k_rope) || (result && !rope_of(graph->nodes[rope[Q]], &p.q_rope))) {
        return 0;
    }
    for (int s = 0; s < 2; ++s) {
        p.rows[s]        = view_of(store[s]);
        p.values[s]      = view_of(store[s]->src[0]);
        p.values[s].data = from[s]->data;
        p.indices[s]     = view_of(store[s]->src[1]);
        p.turned[s]      = turn[s] >= 0 ? turns(graph->nodes[turn[s]]) : 0;
    }
    p.index_bytes = index_bytes(store[0]->src[1]);
    p.head_size   = graph->nodes[rope[K]]->ne[0];
    const ggml_tensor * in[12], * out[3] = { store[0], store[1], result };
    int n_in = 0;
    for (int s = 0; s < 2; ++s) {
        in[n_in++] = from[s];
        in[n_in++] = store[s]->src[1];
    }
    for (int chain = 0; chain < CHAINS; ++chain) {
        for (int source = 1; source < 3 && rope[chain] >= 0; ++source) {
            if (graph->nodes[rope[chain]]->src[source]) {
                in[n_in++] = graph->nodes[rope[chain]]->src[source];
            }
        }
    }
    if (result) {
        p.q         = (const float *) from[Q]->data;
        p.q_out     = (float *) result->data;
        p.turned[2] = turn[Q] >= 0 ? turns(graph->nodes[turn[Q]]) : 0;
        for (int axis = 0; axis < 3; ++axis) {
            p.q_ne[axis] = from[Q]->ne[axis];
        }
        in[n_in++] = from[Q];
    }
    /* All is read and written at the same time: memory that was free by the time of a node may not be when others are read. */
    for (int o = 0; o < 2 + (result != NULL); ++o) {
        for (int k = 0; k < n_in; ++k) {
            const bool in_place = o == 2 && in[k] == from[Q] && in[k]->data == result->data;
            if (share_memory(out[o], in[k]) && !in_place) {
                return 0;
            }
        }
        if (o == 2 && (share_memory(result, store[0]) || share_memory(result, store[1]))) {
            return 0;
        }
    }
    if (ggmlq_cuda_store_roped_check(&p) != GGMLQ_OK) {
        return 0;
    }
    require_ok(ggmlq_cuda_store_roped(&p, ctx.stream()), __func__);
    return last - i;
}

#else

static int fuse_roped(ggml_backend_cuda_context &, const ggml_cgraph *, int) { return 0; }

#endif

#if __has_include("fwht.cuh")

/* Centered keys, values and queries of new tokens: the nodes of ggml-ggmlq-center-graph.h, with the scale of V between them. */
struct new_tokens {
    ggmlq_cuda_centering p;
    const ggml_tensor * in[15], * out[5], * replaced[5]; /* which input an output may replace */
    int n_in, n_out;
};

static void writes(new_tokens * m, const ggml_tensor * out, const ggml_tensor * replaced) {
    m->out[m->n_out]        = out;
    m->replaced[m->n_out++] = replaced;
}

/* Nodes of these operations, nothing but views between them. */
static bool in_sequence(const ggml_cgraph * graph, int i, int n, const ggml_op * ops, int * found) {
    for (int k = 0; k < n; ++k, i = next_computed(graph, i)) {
        if (i >= graph->n_nodes || graph->nodes[i]->op != ops[k] || (graph->nodes[i]->type != GGML_TYPE_F32 && ops[k] != GGML_OP_SET_ROWS)) {
            return false;
        }
        found[k] = i;
    }
    return true;
}

/* Whether nobody needs what the nodes from `first` to `last` give but they themselves, `a` and `b` excepted, and all are to be computed. */
static bool only_inside(const ggml_cgraph * graph, int first, int last, const ggml_tensor * a, const ggml_tensor * b) {
    for (int i = first; i <= last; ++i) {
        const ggml_tensor * node = graph->nodes[i];
        if (!ggmlq_ggml_cuda_is_view(node) && node->flags != graph->nodes[first]->flags) {
            return false;
        }
        if (node == a || node == b) {
            continue;
        }
        int uses = 0;
        for (int k = i + 1; k <= last; ++k) {
            for (const ggml_tensor * source : graph->nodes[k]->src) {
                uses += source == node;
            }
        }
        if (uses != ggml_node_get_use_count(graph, i) || (node->flags & GGML_TENSOR_FLAG_OUTPUT)) {
            return false;
        }
    }
    return true;
}

static bool has_shape(const ggml_tensor * t, int64_t n0, int64_t n1, int64_t n2) { return t->ne[0] == n0 && t->ne[1] == n1 && t->ne[2] == n2 && t->ne[3] == 1; }

static bool are_floats(const ggml_tensor * t, int64_t n0, int64_t n1, int64_t n2) { return t->type == GGML_TYPE_F32 && has_shape(t, n0, n1, n2) && ggml_is_contiguous(t); }

/* All that `node` gives, in another shape. */
static bool is_all_of(const ggml_tensor * values, const ggml_tensor * node, int64_t n0, int64_t n1, int64_t n2) {
    return values->view_src == node && values->data == node->data && ggml_is_contiguous(node) && are_floats(values, n0, n1, n2);
}

/* The last node, or -1. */
static int match_keys(const ggml_cgraph * graph, int i, new_tokens * m) {
    static const ggml_op ops[] = { GGML_OP_MUL, GGML_OP_MUL_MAT, GGML_OP_SUB, GGML_OP_UNARY, GGML_OP_SET_ROWS, GGML_OP_REPEAT, GGML_OP_MUL, GGML_OP_SUB };
    int at[8];
    if (!in_sequence(graph, i, 8, ops, at)) {
        return -1;
    }
    const ggml_tensor * scaled = graph->nodes[at[0]], * along = graph->nodes[at[1]], * excess = graph->nodes[at[2]], * part = graph->nodes[at[3]],
        * store = graph->nodes[at[4]], * mean = graph->nodes[at[5]], * off = graph->nodes[at[6]], * result = graph->nodes[at[7]];
    const ggml_tensor * k = scaled->src[0], * s = scaled->src[1], * s_mu = mean->src[0], * s_mu_2 = excess->src[1];
    const int64_t n0 = k->ne[0], n1 = k->ne[1], tokens = k->ne[2];
    const bool same = k->type == GGML_TYPE_F32 && k->ne[3] == 1 && are_floats(s, n0, n1, 1) && are_floats(s_mu, n0, n1, 1) && are_floats(s_mu_2, 1, 1, 1) &&
        are_floats(along->src[0], n0*n1, 1, 1) && along->src[0]->data == s_mu->data && is_all_of(along->src[1], scaled, n0*n1, tokens, 1) &&
        excess->src[0] == along && part->src[0] == excess && ggml_get_unary_op(part) == GGML_UNARY_OP_STEP &&
        store->src[0] == part && store->type == GGML_TYPE_F16 && has_shape(store, 1, store->ne[1], 1) && has_shape(store->src[1], tokens, 1, 1) &&
        has_shape(mean, n0, n1, tokens) && off->src[0] == mean && is_all_of(off->src[1], part, 1, 1, tokens) &&
        result->src[0] == scaled && result->src[1] == off && are_floats(result, n0, n1, tokens) && only_inside(graph, i, at[7], store, result);
    if (!same) {
        return -1;
    }
    m->p.k           = view_of(k);
    m->p.part        = view_of(store);
    m->p.indices     = view_of(store->src[1]);
    m->p.index_bytes = index_bytes(store->src[1]);
    m->p.s           = (const float *) s->data;
    m->p.s_mu        = (const float *) s_mu->data;
    m->p.s_mu_2      = (const float *) s_mu_2->data;
    m->p.k_out       = (float *) result->data;
    for (const ggml_tensor * in : { k, s, s_mu, s_mu_2, (const ggml_tensor *) store->src[1] }) {
        m->in[m->n_in++] = in;
    }
    writes(m, store, nullptr);
    writes(m, result, k);
    return at[7];
}

static int match_values(const ggml_cgraph * graph, int i, new_tokens * m) {
    const ggml_tensor * node = i < graph->n_nodes ? graph->nodes[i] : nullptr;
    if (!node || node->op != GGML_OP_SCALE || node->type != GGML_TYPE_F32 || node->src[0]->type != GGML_TYPE_F32 || !ggml_is_contiguous(node) || !ggml_is_contiguous(node->src[0])) {
        return -1;
    }
    m->p.v       = (const float *) node->src[0]->data;
    m->p.v_out   = (float *) node->data;
    m->p.n_v     = ggml_nelements(node);
    m->p.v_scale = ggml_get_op_params_f32(node, 0);
    m->p.v_bias  = ggml_get_op_params_f32(node, 1);
    m->in[m->n_in++] = node->src[0];
    writes(m, node, node->src[0]);
    return i;
}

static int match_queries(const ggml_cgraph * graph, int i, new_tokens * m) {
    static const ggml_op ops[] = { GGML_OP_MUL, GGML_OP_ROPE, GGML_OP_MUL, GGML_OP_ADD, GGML_OP_MUL };
    int at[5];
    if (!in_sequence(graph, i, 5, ops, at)) {
        return -1;
    }
    const ggml_tensor * same = graph->nodes[at[0]], * turned = graph->nodes[at[1]], * turn = graph->nodes[at[2]], * w = graph->nodes[at[3]], * result = graph->nodes[at[4]];
    const ggml_tensor * q = same->src[0], * positions = turned->src[1];
    const int64_t n0 = q->ne[0], n1 = q->ne[1], tokens = q->ne[2];
    /* As ggml_rope_ext keeps its arguments. One frequency only, and nothing else. */
    const int n_rot = ggml_get_op_params_i32(turned, 1), mode = ggml_get_op_params_i32(turned, 2), first = ggml_get_op_params_i32(turned, 15);
    const bool one_angle = (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) && first == 0 && !turned->src[2] &&
        ggml_get_op_params_f32(turned, 5) == 1.0f && ggml_get_op_params_f32(turned, 7) == 0.0f && ggml_get_op_params_f32(turned, 8) == 1.0f;
    const bool right = one_angle && q->type == GGML_TYPE_F32 && q->ne[3] == 1 && turned->src[0] == q && result->src[0] == q && turn->src[0] == turned &&
        w->src[0] == same && w->src[1] == turn && positions->type == GGML_TYPE_I32 && has_shape(positions, tokens, 1, 1) && ggml_is_contiguous(positions) &&
        are_floats(same->src[1], n0, n1, 1) && are_floats(turn->src[1], n0, n1, 1) && are_floats(result->src[1], n0, n1, 1) &&
        are_floats(w, n0, n1, tokens) && are_floats(result, n0, n1, tokens) && only_inside(graph, i, at[4], w, result);
    if (!right) {
        return -1;
    }
    m->p.q         = view_of(q);
    m->p.mu_same   = (const float *) same->src[1]->data;
    m->p.mu_turn   = (const float *) turn->src[1]->data;
    m->p.s_inv     = (const float *) result->src[1]->data;
    m->p.positions = (const int32_t *) positions->data;
    m->p.turn      = ggml_get_op_params_f32(turned, 6);
    m->p.n_rot     = n_rot;
    m->p.neox      = mode == GGML_ROPE_TYPE_NEOX;
    m->p.q_out     = (float *) result->data;
    m->p.w         = (float *) w->data;
    for (const ggml_tensor * in : { q, positions, (const ggml_tensor *) same->src[1], (const ggml_tensor *) turn->src[1], (const ggml_tensor *) result->src[1] }) {
        m->in[m->n_in++] = in;
    }
    writes(m, w, q);
    writes(m, result, q);
    return at[4];
}

/* Memory is given anew as soon as a node that has read it is done: what is written at the time at which others still read must lie elsewhere. */
static bool are_apart(const new_tokens & m) {
    for (int o = 0; o < m.n_out; ++o) {
        for (int k = 0; k < m.n_in; ++k) {
            const bool in_place = m.in[k] == m.replaced[o] && m.in[k]->data == m.out[o]->data && ggml_is_contiguous(m.in[k]);
            if (!in_place && share_memory(m.out[o], m.in[k])) {
                return false;
            }
        }
        for (int k = 0; k < o; ++k) {
            if (share_memory(m.out[o], m.out[k])) {
                return false;
            }
        }
    }
    return true;
}

static int use_count(const ggml_cgraph * graph, const ggml_tensor * node) {
    return (node->flags & GGML_TENSOR_FLAG_OUTPUT) ? -1 : graph->use_counts[ggml_hash_find(&graph->visited_hash_set, node)];
}

/* The result of one node in place of another's, or one node's input. */
static void replace(const ggml_tensor ** list, int n, const ggml_tensor * old, const ggml_tensor * with) {
    for (int i = 0; i < n; ++i) {
        list[i] = list[i] == old ? with : list[i];
    }
}

static void reads_rope(new_tokens * m, const ggml_tensor * rope) {
    for (int source = 1; source < 3; ++source) {
        if (rope->src[source]) {
            m->in[m->n_in++] = rope->src[source];
        }
    }
}

/* RoPE of the queries before the nodes, which is where they come from and of which they alone need the result. */
static bool match_q_rope(const ggml_cgraph * graph, const ggml_tensor * rope, new_tokens * m) {
    bool read = false;
    for (int k = 0; k < m->n_in; ++k) {
        read = read || m->in[k] == rope;
    }
    if (!m->p.q.data || !read || use_count(graph, rope) != 3 || !rope_of(rope, &m->p.q_rope)) {
        return false;
    }
    m->p.q.data = rope->src[0]->data; /* as contiguous as its result is */
    replace(m->in, m->n_in, rope, rope->src[0]);
    replace(m->replaced, m->n_out, rope, rope->src[0]);
    reads_rope(m, rope);
    return true;
}

/* RoPE of the keys behind them. */
static bool match_k_rope(const ggml_cgraph * graph, const ggml_tensor * rope, new_tokens * m) {
    const ggml_tensor * keys = rope->src[0];
    if (rope->op != GGML_OP_ROPE || !m->p.k.data || m->p.k_out != (float *) keys->data || keys->op != GGML_OP_SUB || use_count(graph, keys) != 1 || !rope_of(rope, &m->p.k_rope)) {
        return false;
    }
    bool written = false;
    for (int k = 0; k < m->n_out; ++k) {
        written = written || m->out[k] == keys;
    }
    m->p.k_out = (float *) rope->data;
    replace(m->out, m->n_out, keys, rope);
    reads_rope(m, rope);
    return written;
}

static int fuse_centering(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i) {
    const ggml_tensor * q_rope = graph->nodes[i]->op == GGML_OP_ROPE ? graph->nodes[i] : nullptr;
    auto can = [&](const new_tokens & m, int end) { return graph->nodes[end]->flags == graph->nodes[i]->flags && are_apart(m) && ggmlq_cuda_center_check(&m.p) == GGMLQ_OK; };
    new_tokens all = {};
    int last = i - 1, next = q_rope ? next_computed(graph, i) : i;
    for (const auto & match : { match_keys, match_values, match_queries }) { /* each as far as it goes with those before */
        new_tokens more = all;
        const int end = next < graph->n_nodes ? match(graph, next, &more) : -1;
        if (end >= 0 && can(more, end)) {
            all  = more;
            last = end;
            next = next_computed(graph, end);
        }
    }
    if (!all.p.k.data && !all.p.q.data) { /* any model may scale something */
        return 0;
    }
    if (q_rope && (!match_q_rope(graph, q_rope, &all) || !can(all, last))) {
        return 0;
    }
    if (next < graph->n_nodes) {
        new_tokens more = all;
        if (match_k_rope(graph, graph->nodes[next], &more) && can(more, next)) {
            all  = more;
            last = next;
        }
    }
    require_ok(ggmlq_cuda_center(&all.p, ctx.stream()), __func__);
    return last - i;
}

#else

static int fuse_centering(ggml_backend_cuda_context &, const ggml_cgraph *, int) { return 0; }

#endif

static int fuse_attention(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i, ggmlq_ggml_cuda_attention_supported_t attention_supported);

int ggmlq_ggml_cuda_fuse(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i, ggmlq_ggml_cuda_attention_supported_t attention_supported) {
    layer_stores m;
    const ggml_tensor * node = graph->nodes[i];
    if (node->op == GGML_OP_FLASH_ATTN_EXT) {
        return fuse_attention(ctx, graph, i, attention_supported);
    }
    if (node->op == GGML_OP_ROPE || turns(node) != 0) {
        const int more = fuse_roped(ctx, graph, i);
        if (more != 0) {
            return more;
        }
        if (node->op == GGML_OP_ROPE) {
            return fuse_centering(ctx, graph, i);
        }
    }
    if (node->op == GGML_OP_MUL || node->op == GGML_OP_SCALE) {
        return fuse_centering(ctx, graph, i);
    }
    if ((node->op != GGML_OP_SET_ROWS && node->op != GGML_OP_MUL_MAT) || !match_stores(graph, i, &m)) {
        return 0;
    }
    if (m.rounded >= 0) {
        return fuse_rounded(ctx, graph, m) ? m.last - i : 0;
    }
    if (m.n_stores != 2) {
        return 0;
    }
    ggmlq_cuda_view rows[2], values[2], indices[2], to, from;
    for (int s = 0; s < 2; ++s) {
        rows[s]    = view_of(m.store[s]);
        values[s]  = view_of(m.store[s]->src[0]);
        indices[s] = view_of(m.store[s]->src[1]);
    }
    const int bytes = index_bytes(m.store[0]->src[1]);
    if (m.n_first == 0) {
        require_ok(ggmlq_cuda_set_rows_pair(rows, values, indices, bytes, ctx.stream()), __func__);
        return m.last - i;
    }
    if (m.store[0]->type != GGML_TYPE_PLANAR3) {
        return 0;
    }
    int turned[3] = { 0, 0, 0 };
    for (int s = 0; s < 2; ++s) {
        if (m.of_store[s] >= 0) {
            const ggml_tensor * source = graph->nodes[m.first[m.of_store[s]]];
            turned[s]      = turns(source);
            values[s].data = source->src[1]->data;
            if (share_memory(source->src[1], m.store[1 - s])) {
                return 0;
            }
        }
    }
    if (m.other >= 0) {
        /* The queries' result is written at the time at which others' sources, which it might have replaced, are read. */
        const ggml_tensor * queries = graph->nodes[m.first[m.other]];
        if (ggml_nelements(queries) % 128 != 0) {
            return 0;
        }
        for (int s = 0; s < 2; ++s) {
            const ggml_tensor * read = m.of_store[s] < 0 ? m.store[s]->src[0] : graph->nodes[m.first[m.of_store[s]]]->src[1];
            if (share_memory(queries, read) || share_memory(queries, m.store[s]->src[1]) || share_memory(queries, m.store[s]) || share_memory(queries->src[1], m.store[s])) {
                return 0;
            }
        }
        turned[2] = turns(queries);
        to   = flat_blocks(queries);
        from = flat_blocks(queries->src[1]);
    }
    if (ggmlq_cuda_set_rows_turned_check(rows, values, indices, bytes, m.other >= 0 ? &to : NULL, &from, turned) != GGMLQ_OK) {
        return 0;
    }
    require_ok(ggmlq_cuda_set_rows_turned(rows, values, indices, bytes, m.other >= 0 ? &to : NULL, &from, turned, ctx.stream()), __func__);
    return m.last - i;
}

bool ggmlq_ggml_cuda_get_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!ggmlq_ggml_is_cache_type(dst->src[0]->type)) {
        return false;
    }
    const ggmlq_cuda_view values = view_of(dst), rows = view_of(dst->src[0]), indices = view_of(dst->src[1]);
    require_ok(ggmlq_cuda_get_rows(&values, &rows, &indices, index_bytes(dst->src[1]), ctx.stream()), __func__);
    return true;
}

/* Blocks are whole numbers of 16-bit words, so copying our rows is copying f16 rows, which upstream does in any order of axes. */
static ggml_tensor as_words(const ggml_tensor * tensor) {
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description) static_assert(block_bytes % 2 == 0, "blocks of words");
#include "ggmlq-types.def"
    ggml_tensor words = *tensor;
    words.type  = GGML_TYPE_F16;
    words.ne[0] = (int64_t) ggml_row_size(tensor->type, tensor->ne[0])/2;
    words.nb[0] = 2;
    return words;
}

bool ggmlq_ggml_cuda_cpy(ggml_backend_cuda_context & ctx, const ggml_tensor * src, ggml_tensor * dst) {
    if (!ggmlq_ggml_is_cache_type(src->type) && !ggmlq_ggml_is_cache_type(dst->type)) {
        return false;
    }
    if (src->type == dst->type) {
        const ggml_tensor from = as_words(src);
        ggml_tensor       to   = as_words(dst);
        ggml_cuda_cpy(ctx, &from, &to);
    } else {
        const ggmlq_cuda_view to = view_of(dst), from = view_of(src);
        require_ok(ggmlq_cuda_copy(&to, &from, ctx.stream()), __func__);
    }
    return true;
}

bool ggmlq_ggml_cuda_concat(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!ggmlq_ggml_is_cache_type(dst->type)) {
        return false;
    }
    const int32_t axis = ggml_get_op_params_i32(dst, 0);
    ggml_tensor part = *dst;
    for (int i = 0; i < 2; ++i) {
        const ggml_tensor * src = dst->src[i];
        part.ne[axis] = src->ne[axis];
        ggmlq_ggml_cuda_cpy(ctx, src, &part);
        part.data = (char *) part.data + (axis == 0 ? ggml_row_size(src->type, src->ne[0]) : src->ne[axis]*dst->nb[axis]);
    }
    return true;
}

/* --- products --------------------------------------------------------------------------------------------------- */

bool ggmlq_ggml_cuda_mul_mat(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, const ggml_tensor * src1, ggml_tensor * dst,
                             ggmlq_ggml_cuda_mul_mat_t mul_mat) {
    if (!ggmlq_ggml_is_cache_type(src0->type)) {
        return false;
    }
    if (src1->ne[1] <= MAX_DOT_COLUMNS) {
        const ggmlq_cuda_view out = view_of(dst), rows = view_of(src0), x = view_of(src1);
        const int64_t bytes = ggmlq_cuda_mul_mat_workspace_bytes(rows.type, &x);
        ggml_cuda_pool_alloc<char> workspace(ctx.pool());
        allocate(workspace, bytes, __func__);
        require_ok(ggmlq_cuda_mul_mat(&out, &rows, &x, workspace.get(), ctx.stream()), __func__);
    } else {
        ggml_cuda_pool_alloc<half> rows_f16(ctx.pool(), ggml_nelements(src0));
        const ggml_tensor rows = contiguous_like(src0, GGML_TYPE_F16, rows_f16.get());
        const ggmlq_cuda_view to = view_of(&rows), from = view_of(src0);
        require_ok(ggmlq_cuda_copy(&to, &from, ctx.stream()), __func__);
        mul_mat(ctx, &rows, src1, dst);
    }
    return true;
}

/* --- attention -------------------------------------------------------------------------------------------------- */

/* V is (the first part of) K: they are the same rows of the same cache. */
static bool is_part_of(const ggml_tensor * v, const ggml_tensor * k) {
    const bool same_place = v == k || (v->view_src && (v->view_src == k || (v->view_src == k->view_src && v->view_offs == k->view_offs)));
    return same_place && v->type == k->type && v->ne[0] <= k->ne[0] && v->ne[1] == k->ne[1] &&
        v->nb[1] == k->nb[1] && v->nb[2] == k->nb[2] && v->nb[3] == k->nb[3];
}

/* The same attention with K and V in f16, and keys whole: what upstream's kernels are given. Addresses come later. */
struct attention_f16 {
    ggml_tensor k, v, dst;
    bool        k_is_made, v_is_k, v_is_made;

    /* Copies point at each other, and so must stay where they are. */
    attention_f16(const ggml_tensor * op, bool centered) {
        const ggml_tensor * k_rows = op->src[1], * v_rows = op->src[2];
        k_is_made = centered || k_rows->type != GGML_TYPE_F16;
        v_is_k    = !centered && is_part_of(v_rows, k_rows);
        v_is_made = !v_is_k && v_rows->type != GGML_TYPE_F16;
        dst = *op;
        k   = k_is_made ? contiguous_like(k_rows, GGML_TYPE_F16, nullptr) : *k_rows;
        v   = v_is_made || (v_is_k && k_is_made) ? contiguous_like(v_rows, GGML_TYPE_F16, nullptr) : *v_rows;
        if (v_is_k) {
            for (int i = 0; i < 4; ++i) {
                v.nb[i] = k.nb[i];
            }
            v.view_src  = &k;
            v.view_offs = 0;
        }
        dst.src[1] = &k;
        dst.src[2] = &v;
        for (const int source : { GGMLQ_GGML_ATTEND_W, GGMLQ_GGML_ATTEND_TURNS, GGMLQ_GGML_ATTEND_POSITIONS, GGMLQ_GGML_ATTEND_PART, GGMLQ_GGML_ATTEND_MEAN }) {
            dst.src[source] = nullptr;
        }
    }
    attention_f16(const attention_f16 &) = delete;
    attention_f16 & operator=(const attention_f16 &) = delete;
};

/* What our kernels make of it: rows of our types, and keys whole that are centered. Those of other types are f16 by then. */
static ggmlq_cuda_f16_rows made_by_us(const ggml_tensor * op, const ggmlq_attend_params * p, const attention_f16 & f16) {
    ggmlq_cuda_f16_rows rows = {};
    const ggml_tensor * mean = op->src[GGMLQ_GGML_ATTEND_MEAN];
    const bool of_k = ggmlq_ggml_is_cache_type(op->src[1]->type), of_v = ggmlq_ggml_is_cache_type(op->src[2]->type);
    rows.wanted[0] = of_k || p->n_pairs > 0;
    rows.wanted[1] = of_v && f16.v_is_made;
    rows.values[0] = view_of(&f16.k);
    rows.values[1] = view_of(&f16.v);
    rows.rows[0]   = of_k || op->src[1]->type == GGML_TYPE_F16 ? view_of(op->src[1]) : rows.values[0];
    rows.rows[1]   = view_of(op->src[2]);
    if (p->n_pairs > 0) {
        rows.term   = p;
        rows.mean   = (const float *) mean->data;
        rows.factor = ggml_get_op_params_f32(op, GGMLQ_GGML_ATTEND_MEAN_FACTOR_AT);
        rows.turned = ggml_get_op_params_i32(op, GGMLQ_GGML_ATTEND_MEAN_TURNED_AT);
    }
    return rows;
}

static bool can_become_f16(const ggml_tensor * rows) {
    if (!whole_blocks(rows)) {
        return false;
    }
    if (ggmlq_ggml_is_cache_type(rows->type) || rows->type == GGML_TYPE_F16) {
        return true;
    }
    const size_t block_bytes = ggml_type_size(rows->type);
    return ggml_get_to_fp16_nc_cuda(rows->type) != nullptr &&
        rows->nb[1] % block_bytes == 0 && rows->nb[2] % block_bytes == 0 && rows->nb[3] % block_bytes == 0;
}

/* Keys are centered by a mean that the node tells, as graphs of libllama do. */
static bool knows_mean(const ggml_tensor * op) {
    const ggml_tensor * k = op->src[1], * mean = op->src[GGMLQ_GGML_ATTEND_MEAN];
    return mean && mean->type == GGML_TYPE_F32 && ggml_is_contiguous(mean) && mean->ne[0] == k->ne[0] && mean->ne[1] == k->ne[2] && mean->ne[2] == 1 && mean->ne[3] == 1;
}

static bool can_become_f16(const ggml_tensor * op, const ggmlq_attend_params * p, const attention_f16 & f16) {
    if (!can_become_f16(op->src[1]) || !can_become_f16(op->src[2])) {
        return false;
    }
    const ggmlq_cuda_f16_rows rows = made_by_us(op, p, f16);
    return ggmlq_cuda_to_f16_check(&rows) == GGMLQ_OK;
}

/* Rows of upstream's types. */
static void to_f16(ggml_backend_cuda_context & ctx, const ggml_tensor * f16, const ggml_tensor * rows) {
    const int64_t block_bytes = (int64_t) ggml_type_size(rows->type);
    ggml_get_to_fp16_nc_cuda(rows->type)(rows->data, (half *) f16->data, rows->ne[0], rows->ne[1], rows->ne[2], rows->ne[3],
        rows->nb[1]/block_bytes, rows->nb[2]/block_bytes, rows->nb[3]/block_bytes, ctx.stream());
}

static void attend_f16(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const ggmlq_attend_params * p) {
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    attention_f16 f16(dst, p->n_pairs > 0);

    ggml_cuda_pool_alloc<half> k_buffer(ctx.pool());
    ggml_cuda_pool_alloc<half> v_buffer(ctx.pool());
    if (f16.k_is_made) {
        f16.k.data = k_buffer.alloc(ggml_nelements(k));
        if (!ggmlq_ggml_is_cache_type(k->type) && k->type != GGML_TYPE_F16) {
            to_f16(ctx, &f16.k, k);
        }
    }
    if (f16.v_is_made) {
        f16.v.data = v_buffer.alloc(ggml_nelements(v));
        if (!ggmlq_ggml_is_cache_type(v->type)) {
            to_f16(ctx, &f16.v, v);
        }
    }
    const ggmlq_cuda_f16_rows rows = made_by_us(dst, p, f16);
    require_ok(ggmlq_cuda_to_f16(&rows, ctx.stream()), __func__);
    if (f16.v_is_k) {
        f16.v.data = f16.k.data;
    }
    ggml_cuda_flash_attn_ext(ctx, &f16.dst);
}

/* What attention_supported doesn't look at, and upstream's models don't have: its kernels for 576 read K in place of V, whatever V is,
 * and those with a softcap exist for three head sizes only; for others they stop the program. */
static bool f16_kernels_take(int64_t head_size, int64_t head_size_v, bool v_is_k, float logit_softcap) {
    if (logit_softcap != 0.0f && (head_size != head_size_v || (head_size != 128 && head_size != 256 && head_size != 512))) {
        return false;
    }
    return head_size != 576 || v_is_k;
}

enum attention_way { ATTENTION_REFUSED, ATTENTION_OURS, ATTENTION_SELECTED, ATTENTION_F16 };

/* Gathering pays where few of many rows are seen: on an H100 from 2048 rows for one query token (docs/DEEPSEEK.md); each further token costs
 * the dense kernel that much again. More queries than this share a tile of the dense kernels, or go through f16, and their gathered rows
 * would take megabytes each. */
static const int64_t MIN_PAIRS_TO_SELECT = 2048, MAX_QUERIES_TO_SELECT = 8;

static bool takes_selected(const ggml_tensor * dst, const ggmlq_attend_params * p) {
    const int64_t most = ggmlq_ggml_attend_most_visible(dst), tokens = p->n_queries*p->n_seqs;
    if (most == 0 || p->n_kv*tokens < MIN_PAIRS_TO_SELECT || p->n_kv < 2*most || tokens > MAX_QUERIES_TO_SELECT) {
        return false;
    }
    const char * kernel = ggmlq_cuda_attend_selected_kernel(p, most);
    return kernel && strcmp(kernel, "plain") != 0;
}

/* Over selected rows, if the graph selects; a fast kernel of ours, else upstream's f16 kernels, else a slow kernel of ours, which
 * takes every shape. */
static attention_way choose_attention(int device, const ggml_tensor * dst, const ggmlq_attend_params * p,
                                      ggmlq_ggml_cuda_attention_supported_t attention_supported) {
    if (takes_selected(dst, p)) {
        return ATTENTION_SELECTED;
    }
    const bool ours = ggmlq_cuda_attend_check(p) == GGMLQ_OK;
    if (ours && strcmp(ggmlq_cuda_attend_kernel(p), "plain") != 0) {
        return ATTENTION_OURS;
    }
    if (p->n_pairs == 0 || knows_mean(dst)) {
        const attention_f16 f16(dst, p->n_pairs > 0);
        if (can_become_f16(dst, p, f16) && f16_kernels_take(f16.k.ne[0], f16.v.ne[0], f16.v_is_k, p->logit_softcap) && attention_supported(device, &f16.dst)) {
            return ATTENTION_F16;
        }
    }
    return ours ? ATTENTION_OURS : ATTENTION_REFUSED;
}

bool ggmlq_ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst,
                                    ggmlq_ggml_cuda_attention_supported_t attention_supported) {
    ggmlq_attend_params p;
    if (!ggmlq_ggml_attend_params_centered(dst, &p)) {
        return false;
    }
    ggml_cuda_set_device(ctx.device);
    switch (choose_attention(ctx.device, dst, &p, attention_supported)) {
        case ATTENTION_OURS: {
            const int64_t bytes = ggmlq_cuda_attend_workspace_bytes(&p);
            ggml_cuda_pool_alloc<char> workspace(ctx.pool());
            allocate(workspace, bytes, __func__);
            require_ok(ggmlq_cuda_attend(&p, workspace.get(), ctx.stream()), __func__);
        } break;
        case ATTENTION_SELECTED: {
            const int64_t most  = ggmlq_ggml_attend_most_visible(dst);
            const int64_t bytes = ggmlq_cuda_attend_selected_workspace_bytes(&p, most);
            ggml_cuda_pool_alloc<char> workspace(ctx.pool());
            allocate(workspace, bytes, __func__);
            require_ok(ggmlq_cuda_attend_selected(&p, most, workspace.get(), ctx.stream()), __func__);
        } break;
        case ATTENTION_F16:
            attend_f16(ctx, dst, &p);
            break;
        case ATTENTION_REFUSED:
            GGML_ABORT("%s: K %s and V %s were refused by supports_op", __func__, ggml_type_name(dst->src[1]->type), ggml_type_name(dst->src[2]->type));
    }
    return true;
}

/* Attention whose output llama.cpp turns back (attn_rot) and needs for nothing else: turned as it is written. */
static int fuse_attention(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i, ggmlq_ggml_cuda_attention_supported_t attention_supported) {
    const ggml_tensor * op = graph->nodes[i];
    const int next = next_computed(graph, i);
    if (next >= graph->n_nodes || turns(graph->nodes[next]) != 64) {
        return 0;
    }
    const ggml_tensor * turned = graph->nodes[next];
    ggmlq_attend_params p;
    if (!holds_all(turned->src[1], op) || turned->flags != op->flags || !only_for(graph, i, next, turned->src[1]) || !ggmlq_ggml_attend_params_centered(op, &p)) {
        return 0;
    }
    /* Some heads' results are written while others are read: memory that was free after attention isn't yet. */
    for (const ggml_tensor * source : op->src) {
        if (source && share_memory(turned, source)) {
            return 0;
        }
    }
    ggml_cuda_set_device(ctx.device);
    p.out = (float *) turned->data;
    if (choose_attention(ctx.device, op, &p, attention_supported) != ATTENTION_OURS || ggmlq_cuda_attend_turned_check(&p) != GGMLQ_OK) {
        return 0;
    }
    const int64_t bytes = ggmlq_cuda_attend_workspace_bytes(&p);
    ggml_cuda_pool_alloc<char> workspace(ctx.pool());
    allocate(workspace, bytes, __func__);
    require_ok(ggmlq_cuda_attend_turned(&p, workspace.get(), ctx.stream()), __func__);
    return next - i;
}

/* --- the lightning indexer --------------------------------------------------------------------------------------- */

bool ggmlq_ggml_cuda_lightning_indexer(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!ggmlq_ggml_is_cache_type(dst->src[1]->type)) {
        return false;
    }
    const ggmlq_cuda_view scores = view_of(dst), q = view_of(dst->src[0]), rows = view_of(dst->src[1]), weights = view_of(dst->src[2]), mask = view_of(dst->src[3]);
    const int64_t bytes = ggmlq_cuda_indexer_workspace_bytes(rows.type, &q);
    ggml_cuda_pool_alloc<char> workspace(ctx.pool());
    allocate(workspace, bytes, __func__);
    require_ok(ggmlq_cuda_indexer(&scores, &q, &rows, &weights, &mask, workspace.get(), ctx.stream()), __func__);
    return true;
}

/* --- what can be done ------------------------------------------------------------------------------------------- */

bool ggmlq_ggml_cuda_involved(const ggml_tensor * op) {
    bool involved = ggmlq_ggml_is_cache_type(op->type) || (op->op == GGML_OP_FLASH_ATTN_EXT && op->src[GGMLQ_GGML_ATTEND_TURNS]) ||
        (op->op == GGML_OP_SET_ROWS && op->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]);
    for (int i = 0; i < GGML_MAX_SRC && !involved; ++i) {
        involved = op->src[i] && ggmlq_ggml_is_cache_type(op->src[i]->type);
    }
    return involved;
}

bool ggmlq_ggml_cuda_is_view(const ggml_tensor * op) {
    return op->op == GGML_OP_NONE || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_VIEW || op->op == GGML_OP_PERMUTE ||
        op->op == GGML_OP_TRANSPOSE;
}

static bool supports_copy(const ggml_tensor * src, const ggml_tensor * dst) {
    if (src->type == dst->type) {
        return whole_blocks(src) && whole_blocks(dst);
    }
    const ggmlq_cuda_view to = view_of(dst), from = view_of(src);
    return ggmlq_cuda_copy_check(&to, &from) == GGMLQ_OK;
}

bool ggmlq_ggml_cuda_supports_op(int device, const ggml_tensor * op, ggmlq_ggml_cuda_attention_supported_t attention_supported) {
    switch (op->op) {
        case GGML_OP_SET_ROWS: {
            const ggmlq_cuda_view rows = view_of(op), values = view_of(op->src[0]), indices = view_of(op->src[1]);
            if (op->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]) {
                const ggmlq_cuda_view feedback = view_of(op->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]);
                return ggmlq_cuda_set_rows_for_queries_check(&rows, &values, &indices, index_bytes(op->src[1]), &feedback) == GGMLQ_OK;
            }
            return ggmlq_cuda_set_rows_check(&rows, &values, &indices, index_bytes(op->src[1])) == GGMLQ_OK;
        }
        case GGML_OP_GET_ROWS: {
            const ggmlq_cuda_view values = view_of(op), rows = view_of(op->src[0]), indices = view_of(op->src[1]);
            return ggmlq_cuda_get_rows_check(&values, &rows, &indices, index_bytes(op->src[1])) == GGMLQ_OK;
        }
        case GGML_OP_CPY:
            return supports_copy(op->src[0], op->src[1]);
        case GGML_OP_DUP:
        case GGML_OP_CONT:
            return supports_copy(op->src[0], op);
        case GGML_OP_CONCAT:
            return whole_blocks(op) && supports_copy(op->src[0], op) && supports_copy(op->src[1], op);
        case GGML_OP_MUL_MAT: {
            /* A matrix of weights that is spread over devices by rows (-sm row) isn't ours to multiply. */
            const ggml_backend_buffer_t buffer = op->src[0]->buffer;
            if (buffer && strstr(ggml_backend_buft_name(ggml_backend_buffer_get_type(buffer)), "_Split") != nullptr) {
                return false;
            }
            const ggmlq_cuda_view out = view_of(op), rows = view_of(op->src[0]), x = view_of(op->src[1]);
            return ggmlq_cuda_mul_mat_check(&out, &rows, &x) == GGMLQ_OK;
        }
        case GGML_OP_FLASH_ATTN_EXT: {
            ggmlq_attend_params p;
            if (!ggmlq_ggml_attend_params_centered(op, &p)) {
                return false;
            }
            alignas(256) static const uint16_t no_address_yet = 0;
            if (op->src[3] && !p.mask) {
                p.mask = &no_address_yet;
            }
            return choose_attention(device, op, &p, attention_supported) != ATTENTION_REFUSED;
        }
#if __has_include("lightning-indexer.cuh") /* older trees don't know the operation */
        case GGML_OP_LIGHTNING_INDEXER: {
            const ggmlq_cuda_view scores = view_of(op), q = view_of(op->src[0]), rows = view_of(op->src[1]), weights = view_of(op->src[2]), mask = view_of(op->src[3]);
            return ggmlq_cuda_indexer_check(&scores, &q, &rows, &weights, &mask) == GGMLQ_OK;
        }
#endif
        default:
            return ggmlq_ggml_cuda_is_view(op);
    }
}
