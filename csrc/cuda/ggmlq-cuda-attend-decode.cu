/* SPDX-License-Identifier: MIT
 *
 * Attention for few queries on tensor cores: which shapes, how the work is cut, launch. Kernel: ggmlq-cuda-attend-decode.cuh.
 */
#include "ggmlq-cuda-deps.cuh"
#include "ggmlq-cuda-attend.h"
#include "ggmlq-cuda-attend-decode.h"

#if defined(GGMLQ_HIP) || defined(GGMLQ_MUSA)

bool    ggmlq_cuda_attend_decode_supports       (const struct ggmlq_attend_params *)                 { return false; }
int64_t ggmlq_cuda_attend_decode_workspace_bytes(const struct ggmlq_attend_params *)                 { return GGMLQ_ERROR_SHAPE; }
int     ggmlq_cuda_attend_decode_launch         (const struct ggmlq_attend_params *, void *, void *) { return GGMLQ_ERROR_SHAPE; }
bool    ggmlq_cuda_attend_decode_turns          (const struct ggmlq_attend_params *)                 { return false; }
int     ggmlq_cuda_attend_decode_turned         (const struct ggmlq_attend_params *, void *, void *) { return GGMLQ_ERROR_SHAPE; }

#else

typedef const ggmlq_decode_instance * (* instance_list)(int i);

static const instance_list instance_lists[] = {
    ggmlq_decode_instances_tq3_0, ggmlq_decode_instances_planar3, ggmlq_decode_instances_f16_k,
    ggmlq_decode_instances_f16_v, ggmlq_decode_instances_q8_0_k,  ggmlq_decode_instances_q8_0_v,
    ggmlq_decode_instances_wide,
    ggmlq_decode_instances_term_tq3_0, ggmlq_decode_instances_term_planar3, ggmlq_decode_instances_term_f16_v, ggmlq_decode_instances_term_q8_0_v,
};

/* The widest slice of which the head is 1, 2 or 4. */
static bool slice_fits(int64_t head_size, int slice) {
    return head_size == slice || head_size == 2*slice || head_size == 4*slice;
}

/* Tokens apart in memory: what a few hundred of them span is added in 32 bits. */
static bool is_near(const int64_t stride[]) { return stride[0] >= 0 && stride[0] < 1 << 20; }

static bool is_aligned(const void * data, const int64_t stride[3], int64_t align) {
    return (int64_t) (uintptr_t) data % align == 0 && stride[0] % align == 0 && stride[1] % align == 0 && stride[2] % align == 0;
}

/* Positions and parts are found by 32 bits. */
static bool term_fits(const ggmlq_attend_params * p) {
    return p->n_pairs == 0 || (p->n_seqs_kv*p->positions_stride + 4*p->n_kv <= INT32_MAX && p->positions_stride >= 0 && p->n_seqs_kv*p->part_stride + 2*p->n_kv <= INT32_MAX && p->part_stride >= 0);
}

static bool v_is_in_k(const ggmlq_attend_params * p) {
    return p->k == p->v && p->type_k == p->type_v && memcmp(p->k_stride, p->v_stride, sizeof(p->k_stride)) == 0;
}

/* What the lean instances take. */
static bool is_lean(const ggmlq_attend_params * p, int tiles) {
    return (p->n_queries == 1 || tiles > 1) && p->logit_softcap == 0.0f && !v_is_in_k(p) && (p->mask == NULL || (p->mask_heads == 1 && is_aligned(p->mask, p->mask_stride, 16))) &&
        is_aligned(p->q, p->q_stride, 16) && is_aligned(p->out, p->out_stride, 16);
}

static const ggmlq_decode_instance * find_instance(const ggmlq_attend_params * p, int tiles) {
    const ggmlq_decode_instance * best = NULL;
    for (size_t l = 0; l < sizeof(instance_lists)/sizeof(instance_lists[0]); ++l) {
        const ggmlq_decode_instance * instance;
        for (int i = 0; (instance = instance_lists[l](i)) != NULL; ++i) {
            const bool several = p->head_size_v > instance->slice; /* slices: then 16 warps, where there is such an instance */
            if (instance->lean && (several || !is_lean(p, tiles))) {
                continue;
            }
            if (instance->combine && (several || (p->mask && p->mask_heads > 1))) {
                continue;
            }
            if (instance->term == (p->n_pairs > 0) && instance->type_k == p->type_k && instance->type_v == p->type_v && instance->tiles == tiles &&
                instance->tail == p->head_size_k - p->head_size_v && slice_fits(p->head_size_v, instance->slice) &&
                instance->tail <= 32*(p->head_size_v/instance->slice) /* a plane for a warp */ &&
                (tiles > 1 || instance->warps == 12 || (instance->warps == 16) == several) && (best == NULL || instance->slice > best->slice || ((instance->combine || instance->lean) && instance->slice == best->slice))) {
                best = instance;
            }
        }
    }
    return best && term_fits(p) && is_near(p->k_stride) && is_near(p->v_stride) && is_aligned(p->k, p->k_stride, best->align_k) && is_aligned(p->v, p->v_stride, best->align_v) ? best : NULL;
}

struct device_info { int multiprocessors, capability, shared_bytes; };

static bool get_device_info(device_info * info) {
    int device, major, minor;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&info->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&info->multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
        (void) cudaGetLastError();
        return false;
    }
    info->capability = 10*major + minor;
#ifdef GGMLQ_DECODE_AS_TURING
    info->shared_bytes = 64*1024;
#endif
    return true;
}

/* Microseconds on an H100, fitted to head sizes 128 and, for four slices, 512 (bench_selected search); only their proportions matter. A turn is one tile in every group of warps, memory_time what
 * reading the cache takes all multiprocessors together. Parts that are to be added up cost more in a model than in a loop: it drives that code out of the caches between two layers. */
static double estimate(const ggmlq_decode_instance * instance, const ggmlq_decode_plan * plan, int splits, int multiprocessors, int resident, double memory_time) {
    const int slots = multiprocessors*resident;
    const int64_t blocks = (int64_t) plan->units*splits, waves = (blocks + slots - 1)/slots;
    const int64_t tiles = (plan->n_kv + instance->rows - 1)/instance->rows, groups = instance->warps/plan->slices;
    const double turns = (double) ((tiles + splits - 1)/splits)/(double) groups; /* not rounded up: the groups share a multiprocessor */
    const double fill = blocks < slots ? (double) blocks/slots : 1.0, turn = 1.86*instance->rows/16*(fill < 0.5 ? 0.625 : 0.25 + 0.75*fill);
    const bool   wide = plan->slices > 2; /* one block on a multiprocessor in any case; the last one adds up 16 ranges at once */
    const double loop = (double) waves*turns*(wide ? 1.86*instance->rows/16 : turn), memory = 20*blocks < 19*multiprocessors ? memory_time*multiprocessors/(double) blocks : memory_time;
    return 8.0*(double) waves + (loop > memory ? loop : memory) + (splits == 1 ? 0.0 : 3.0 + (wide ? 1.5*((splits + 15)/16) : 0.14*splits));
}

/* `splits`: of a test; 0: as many as are fastest. */
static bool plan_instance(const ggmlq_attend_params * p, const ggmlq_decode_instance * instance, ggmlq_decode_plan * plan, int splits = 0) {
    device_info device;
    if (!get_device_info(&device) || device.capability < 75) {
        return false;
    }
    plan->n_kv        = (int) p->n_kv;
    plan->heads_kv    = (int) p->n_heads_kv;
    plan->group       = (int) (p->n_heads/p->n_heads_kv);
    plan->seqs_per_kv = (int) (p->n_seqs/p->n_seqs_kv);
    plan->columns     = plan->group*(int) p->n_queries;
    plan->chunks      = (plan->columns + 8*instance->tiles - 1)/(8*instance->tiles);
    plan->slices      = (int) p->head_size_v/instance->slice;
    const int64_t units = p->n_heads_kv*p->n_seqs*plan->chunks;
    plan->term_rows = GGMLQ_TERM_LEAST_ROWS;
    instance->place(plan, p);
    if (plan->shared_bytes > device.shared_bytes || units > INT32_MAX) {
        return false;
    }
    plan->units = (int) units;
    plan->v_in_k = v_is_in_k(p);
    plan->out_turned   = false;
    plan->one_mask     = p->mask != NULL && p->n_queries == 1 && p->mask_heads == 1;
    plan->unit         = 65536;
    plan->mask_aligned = p->mask != NULL && is_aligned(p->mask, p->mask_stride, 16);
    plan->q_aligned    = is_aligned(p->q, p->q_stride, 16);
    plan->out_aligned  = is_aligned(p->out, p->out_stride, 16);

    int resident;
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, instance->kernel) != cudaSuccess || attributes.ptxVersion < 75 /* compiled for older devices: empty */ ||
        /* the same for every plan, since another thread's call may come between this one and the launch */
        cudaFuncSetAttribute(instance->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes - (int) attributes.sharedSizeBytes) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, instance->kernel, 32*instance->warps, (size_t) plan->shared_bytes) != cudaSuccess || resident < 1) {
        (void) cudaGetLastError();
        return false;
    }
    plan->overlaps = device.capability >= 90 && attributes.ptxVersion >= 90; /* compiled for less, it would not wait for the kernel before it */
    const int slots = resident*device.multiprocessors, columns = 8*instance->tiles;
    const int64_t tiles = (p->n_kv + instance->rows - 1)/instance->rows;
    const int64_t factors = instance->sum_bytes/4/columns /* one a split and column, which the combining block keeps */, possible = factors < tiles ? factors : tiles;
    if (splits > possible) {
        return false;
    }
    int64_t most = possible > 4*slots/plan->units + 1 ? 4*slots/plan->units + 1 : possible;
    if (plan->slices > 2 && plan->units <= slots && most > slots/plan->units) {
        most = slots/plan->units; /* a second wave cost up to a quarter */
    }
    const int64_t row_bytes = ggmlq_row_bytes(p->type_k, p->head_size_k) + (plan->v_in_k ? 0 : ggmlq_row_bytes(p->type_v, p->head_size_v));
    const double memory_time = (double) (p->n_kv*p->n_heads_kv*p->n_seqs_kv)*(double) row_bytes/3.0e6;
    plan->splits = splits ? splits : 1;
    double least = estimate(instance, plan, plan->splits, device.multiprocessors, resident, memory_time);
    for (int n = 2; n <= most && !splits; ++n) {
        const double time = estimate(instance, plan, n, device.multiprocessors, resident, memory_time);
        if (time < least) {
            least = time;
            plan->splits = n;
        }
    }
    for (int rows = 2*plan->term_rows; instance->term && rows <= GGMLQ_TERM_MOST_ROWS; rows *= 2) {
        ggmlq_decode_plan more = *plan;
        more.term_rows = rows;
        instance->place(&more, p);
        if ((int64_t) plan->term_rows*plan->splits*(instance->warps/plan->slices) >= p->n_kv ||
            resident*(more.shared_bytes + 1024) > device.shared_bytes + 1024 /* a kilobyte of each block is the system's */) {
            break;
        }
        *plan = more;
    }
    const int64_t parts = plan->splits > 1 || instance->combine ? units*plan->splits : 0;
    plan->stats_at        = (8*units + 255)/256*256;
    plan->partials_at     = plan->stats_at + parts*columns*8;
    plan->workspace_bytes = parts == 0 ? 0 : plan->partials_at + parts*plan->slices*instance->tiles*instance->m_tiles*32*16;
    return true;
}

/* Heads of four slices: until there is so much to do (columns times tokens), 8 columns at once, in 16 warps, are faster than 16 in 8, which read and decode
 * a row half as often (bench_selected, H100). */
static const int64_t MOST_BY_8 = 6 << 20;

/* The instance that takes most columns at once, but no more than there are, and fits this device; NULL: none. */
static const ggmlq_decode_instance * make_plan(const ggmlq_attend_params * p, ggmlq_decode_plan * plan) {
    if (p->n_queries > GGMLQ_DECODE_MAX_QUERIES || p->n_heads/p->n_heads_kv > GGMLQ_DECODE_MAX_GROUP || (p->head_size_k != p->head_size_v && !v_is_in_k(p)) ||
        p->n_seqs*GGMLQ_DECODE_MAX_QUERIES*GGMLQ_DECODE_MAX_GROUP/8 > 65535 /* the grid's third axis */) {
        return NULL;
    }
    const int64_t columns = p->n_queries*(p->n_heads/p->n_heads_kv);
    if (p->head_size_k > 256 && columns*p->n_kv*p->n_heads_kv*p->n_seqs <= MOST_BY_8) {
        const ggmlq_decode_instance * instance = find_instance(p, 1);
        if (instance && plan_instance(p, instance, plan)) {
            return instance;
        }
    }
    for (int tiles = columns > 16 ? 4 : columns > 8 ? 2 : 1; tiles > 0; tiles /= 2) {
        const ggmlq_decode_instance * instance = find_instance(p, tiles);
        if (instance && plan_instance(p, instance, plan)) {
            return instance;
        }
    }
    return NULL;
}

bool ggmlq_cuda_attend_decode_supports(const ggmlq_attend_params * p) {
    ggmlq_decode_plan plan;
    return make_plan(p, &plan) != NULL;
}

int64_t ggmlq_cuda_attend_decode_workspace_bytes(const ggmlq_attend_params * p) {
    ggmlq_decode_plan plan;
    return make_plan(p, &plan) ? plan.workspace_bytes : (int64_t) GGMLQ_ERROR_DEVICE;
}

static int launch(const ggmlq_attend_params * p, const ggmlq_decode_instance * instance, ggmlq_decode_plan * plan, void * workspace, void * stream) {
    const int tiles = (plan->n_kv + instance->rows - 1)/instance->rows;
    plan->tiles_per_split = tiles/plan->splits;
    plan->longer_splits   = tiles%plan->splits;
    plan->short_loop      = plan->tiles_per_split*plan->slices < 4*instance->warps;
    ggmlq_attend_params params = *p;
    void * args[3] = { &params, plan, &workspace };
    const dim3 blocks((unsigned) plan->heads_kv, (unsigned) plan->splits, (unsigned) (plan->units/plan->heads_kv)), threads((unsigned) (32*instance->warps));
    if (!plan->overlaps || !ggmlq_launch_waiting(instance->kernel, blocks, threads, (size_t) plan->shared_bytes, (cudaStream_t) stream, args)) {
        (void) cudaLaunchKernel(instance->kernel, blocks, threads, args, (size_t) plan->shared_bytes, (cudaStream_t) stream);
    }
    if (instance->combine) {
        const dim3 parts((unsigned) (4*instance->tiles*plan->units));
        if (!plan->overlaps || !ggmlq_launch_waiting(instance->combine, parts, dim3(256), 0, (cudaStream_t) stream, args)) {
            (void) cudaLaunchKernel(instance->combine, parts, dim3(256), args, 0, (cudaStream_t) stream);
        }
    }
    return ggmlq_cuda_launched();
}

int ggmlq_cuda_attend_decode_launch(const ggmlq_attend_params * p, void * workspace, void * stream) {
    ggmlq_decode_plan plan;
    const ggmlq_decode_instance * instance = make_plan(p, &plan);
    return instance ? launch(p, instance, &plan, workspace, stream) : (int) GGMLQ_ERROR_DEVICE;
}

/* The types of V that llama.cpp rotates; a kernel that combines on its own doesn't turn. */
static bool turns_output(const ggmlq_attend_params * p, const ggmlq_decode_instance * instance) {
    return (p->type_v == GGMLQ_TYPE_PLANAR3 || p->type_v == GGMLQ_TYPE_Q8_0) && instance && !instance->combine && instance->slice % 64 == 0;
}

bool ggmlq_cuda_attend_decode_turns(const ggmlq_attend_params * p) {
    ggmlq_decode_plan plan;
    return turns_output(p, make_plan(p, &plan));
}

int ggmlq_cuda_attend_decode_turned(const ggmlq_attend_params * p, void * workspace, void * stream) {
    ggmlq_decode_plan plan;
    const ggmlq_decode_instance * instance = make_plan(p, &plan);
    if (!turns_output(p, instance)) {
        return GGMLQ_ERROR_SHAPE;
    }
    plan.out_turned = true;
    return launch(p, instance, &plan, workspace, stream);
}

#endif
