/* SPDX-License-Identifier: MIT */
#include "ggml-metal-ggmlq.h"

#include "ggml-ggmlq-attend.h"
#include "ggml-impl.h"
#include "ggmlq-metal-plan.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <string>

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

/* A launch with the tensors that it works on; `offset` bytes into the first. */
struct step {
    ggmlq_metal_launch  launch;
    const ggml_tensor * operands[GGMLQ_METAL_MAX_OPERANDS];
    size_t              offset;
};

enum { MAX_STEPS = 2 };

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

static int plan_copy(const ggml_tensor * src, const ggml_tensor * dst, step & s) {
    const ggmlq_cuda_view to = view_of(dst), from = view_of(src);
    s.operands[0] = dst;
    s.operands[1] = s.operands[2] = src;
    return src->type == dst->type ? ggmlq_metal_copy_rows(&to, &from, &s.launch) : ggmlq_metal_convert(&to, &from, false, &s.launch);
}

static int plan_concat(const ggml_tensor * op, step steps[MAX_STEPS]) {
    const int32_t axis = ggml_get_op_params_i32(op, 0);
    for (int i = 0; i < 2; ++i) {
        const ggml_tensor * src = op->src[i];
        ggmlq_cuda_view to = view_of(op);
        const ggmlq_cuda_view from = view_of(src);
        to.ne[axis] = src->ne[axis];
        steps[i].offset = i == 0 ? 0 : axis == 0 ? ggml_row_size(op->type, op->src[0]->ne[0]) : op->src[0]->ne[axis]*op->nb[axis];
        steps[i].operands[0] = op;
        steps[i].operands[1] = src;
        const int error = ggmlq_metal_copy_rows(&to, &from, &steps[i].launch);
        if (error) {
            return error;
        }
    }
    return GGMLQ_OK;
}

static int plan_attention(const ggml_tensor * op, step & s) {
    ggmlq_attend_params p;
    if (!ggmlq_ggml_attend_params(op, &p)) {
        return GGMLQ_ERROR_TYPE;
    }
    /* Whether they are there counts, and they may have no address yet. */
    static const uint16_t no_mask = 0;
    static const float    no_sinks = 0;
    p.mask  = op->src[3] ? &no_mask : nullptr;
    p.sinks = op->src[4] ? &no_sinks : nullptr;
    const ggml_tensor * q = op->src[0];
    const ggml_tensor * operands[] = { q, op->src[1], op->src[2], op->src[3] ? op->src[3] : q, op->src[4] ? op->src[4] : q, q, op };
    std::copy(std::begin(operands), std::end(operands), s.operands);
    return ggmlq_metal_attend(&p, nullptr, 0, &s.launch);
}

/* The launches that do an operation; negative: a ggmlq_error, it isn't supported. Addresses aren't looked at. */
static int plan(const ggml_tensor * op, step steps[MAX_STEPS]) {
    step & s = steps[0];
    for (int i = 0; i < MAX_STEPS; ++i) {
        steps[i] = {};
    }
    int error = GGMLQ_ERROR_TYPE, n = 1;
    switch (op->op) {
        case GGML_OP_SET_ROWS: {
            const ggmlq_cuda_view rows = view_of(op), values = view_of(op->src[0]), indices = view_of(op->src[1]);
            error = ggmlq_metal_set_rows(&rows, &values, &indices, index_bytes(op->src[1]), &s.launch);
            s.operands[0] = op;
            s.operands[1] = op->src[0];
            s.operands[2] = op->src[1];
        } break;
        case GGML_OP_GET_ROWS: {
            const ggmlq_cuda_view values = view_of(op), rows = view_of(op->src[0]), indices = view_of(op->src[1]);
            error = ggmlq_metal_get_rows(&values, &rows, &indices, index_bytes(op->src[1]), false, &s.launch);
            s.operands[0] = op;
            s.operands[1] = op->src[0];
            s.operands[2] = op->src[1];
        } break;
        case GGML_OP_CPY:
            error = plan_copy(op->src[0], op->src[1], s);
            break;
        case GGML_OP_DUP:
        case GGML_OP_CONT:
            error = plan_copy(op->src[0], op, s);
            break;
        case GGML_OP_CONCAT:
            error = plan_concat(op, steps);
            n = 2;
            break;
        case GGML_OP_MUL_MAT: {
            const ggmlq_cuda_view out = view_of(op), rows = view_of(op->src[0]), x = view_of(op->src[1]);
            error = ggmlq_metal_mul_mat(&out, &rows, &x, &s.launch);
            s.operands[0] = op;
            s.operands[1] = op->src[0];
            s.operands[2] = op->src[1];
        } break;
        case GGML_OP_FLASH_ATTN_EXT:
            error = plan_attention(op, s);
            break;
        default:
            break;
    }
    return error ? error : n;
}

/* --- what the hooks call ---------------------------------------------------------------------------------------- */

bool ggmlq_ggml_metal_involved(const ggml_tensor * op) {
    bool involved = ggmlq_ggml_is_cache_type(op->type);
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
    step steps[MAX_STEPS];
    const int n = plan(op, steps);
    const ggml_metal_library_t library = n > 0 ? library_of(dev) : nullptr;
    for (int i = 0; i < n; ++i) {
        if (!library || (steps[i].launch.kernel && !pipeline_of(library, steps[i].launch).pipeline)) {
            return false;
        }
    }
    return n > 0;
}

bool ggmlq_ggml_metal_encode(ggml_metal_device_t dev, ggml_metal_encoder_t encoder, const ggml_tensor * op, ggmlq_ggml_metal_buffer_id_t buffer_id) {
    if (!ggmlq_ggml_metal_involved(op)) {
        return false;
    }
    step steps[MAX_STEPS];
    const int n = plan(op, steps); /* supports_op was asked before: it is positive */
    for (int i = 0; i < n; ++i) {
        step & s = steps[i];
        if (s.launch.kernel == nullptr) {
            continue;
        }
        ggml_metal_encoder_set_pipeline(encoder, pipeline_of(library_of(dev), s.launch));
        ggml_metal_encoder_set_bytes(encoder, &s.launch.args, s.launch.args_bytes, 0);
        for (int j = 0; j < s.launch.n_operands; ++j) {
            ggml_metal_buffer_id id = buffer_id(s.operands[j]);
            id.offs += j == 0 ? s.offset : 0;
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
