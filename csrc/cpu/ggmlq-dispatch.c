/* SPDX-License-Identifier: MIT
 *
 * The CPU levels, which of them runs, and the functions of ggmlq.h that run on it. The only file that asks the processor.
 * The level is chosen once, by the first call: the environment variable GGMLQ_CPU if it is set, else the best usable one.
 */
#define GGMLQ_WANT_CPUID
#include "ggmlq-cpu-impl.h"

/* Best first. */
static const struct ggmlq_cpu_level * const levels[] = {
    &ggmlq_cpu_level_avx512,
    &ggmlq_cpu_level_avx2,
    &ggmlq_cpu_level_neon_dotprod,
    &ggmlq_cpu_level_neon,
    &ggmlq_cpu_level_portable,
};
enum { N_LEVELS = sizeof(levels)/sizeof(levels[0]) };

/* --- the processor ---------------------------------------------------------------------------------------------- */

#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)

static void cpuid(uint32_t leaf, uint32_t r[4]) {
#ifdef _MSC_VER
    int regs[4];
    __cpuid(regs, 0);
    const bool known = (uint32_t) regs[0] >= leaf;
    __cpuidex(regs, (int) leaf, 0);
    for (int i = 0; i < 4; ++i) {
        r[i] = known ? (uint32_t) regs[i] : 0;
    }
#else
    if (!__get_cpuid_count(leaf, 0, &r[0], &r[1], &r[2], &r[3])) {
        memset(r, 0, 4*sizeof(r[0]));
    }
#endif
}

/* The register files that the operating system saves. */
static uint32_t saved_state(void) {
#ifdef _MSC_VER
    return (uint32_t) _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile ("xgetbv" : "=a" (low), "=d" (high) : "c" (0));
    return low;
#endif
}

static uint32_t processor_has(void) {
    enum { EBX = 1, ECX = 2 };
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };               /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30, VBMI = 1 << 1, VNNI = 1 << 11 }; /* leaf 7, ebx and ecx */
    const uint32_t VL = 1u << 31;
    enum { YMM = 0x06, ZMM = 0xe6 };
    uint32_t one[4], seven[4], found = 0;
    cpuid(1, one);
    cpuid(7, seven);
    const uint32_t avx = FMA | OSXSAVE | AVX | F16C, avx512 = F | DQ | BW | VL;
    if ((one[ECX] & avx) != avx) {
        return 0;
    }
    const uint32_t saved = saved_state();
    if ((seven[EBX] & AVX2) && (saved & YMM) == YMM) {
        found |= GGMLQ_NEEDS_AVX2;
    }
    if ((seven[EBX] & avx512) == avx512 && (seven[ECX] & VNNI) && (saved & ZMM) == ZMM) {
        found |= GGMLQ_NEEDS_AVX512 | (seven[ECX] & VBMI ? GGMLQ_NEEDS_VBMI : 0);
    }
    return found;
}

#elif defined(__aarch64__)

static bool has_dotprod(void) {
#if defined(__ARM_FEATURE_DOTPROD) /* this file was compiled for it, so the whole program was */
    return true;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    int    found = 0;
    size_t size  = sizeof(found);
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, NULL, 0) == 0 && found != 0;
#else
    return false;
#endif
}

static uint32_t processor_has(void) { return GGMLQ_NEEDS_NEON | (has_dotprod() ? GGMLQ_NEEDS_DOTPROD : 0); }

#else

static uint32_t processor_has(void) { return 0; }

#endif

/* --- choice ----------------------------------------------------------------------------------------------------- */

static const struct ggmlq_cpu_level * chosen;

static bool is_usable(const struct ggmlq_cpu_level * level) {
    return level->kernels != NULL && (processor_has() & level->needs) == level->needs;
}

/* NULL: no level of that name, or not usable. */
static const struct ggmlq_cpu_level * find_level(const char * name) {
    for (int i = 0; i < N_LEVELS; ++i) {
        if ((name == NULL || strcmp(levels[i]->name, name) == 0) && is_usable(levels[i])) {
            return levels[i];
        }
    }
    return NULL;
}

/* NULL if GGMLQ_CPU names no usable level. */
static const struct ggmlq_cpu_level * active_level(void) {
    const struct ggmlq_cpu_level * level = GGMLQ_LOAD(chosen);
    if (level == NULL) {
        const char * name = getenv("GGMLQ_CPU");
        level = find_level(name && *name ? name : NULL); /* every thread finds the same */
        GGMLQ_STORE(chosen, level);
    }
    return level;
}

int ggmlq_cpu_level_count(void) { return N_LEVELS; }

const char * ggmlq_cpu_level_name(int i) { return levels[i]->name; }

const char * ggmlq_cpu_level_needs(int i) { return levels[i]->needs_text; }

const char * ggmlq_cpu_level_reason(int i) {
    return levels[i]->kernels == NULL ? "not built: the compiler had no instructions for it" :
           !is_usable(levels[i])      ? "this processor, or its operating system, lacks what it needs" : "";
}

int64_t ggmlq_cpu_level_calls(int i) {
    return levels[i]->kernels && levels[i]->kernels->calls ? GGMLQ_LOAD(*levels[i]->kernels->calls) : 0;
}

const char * ggmlq_cpu_level_active(void) {
    const struct ggmlq_cpu_level * level = active_level();
    return level ? level->name : NULL;
}

int ggmlq_cpu_level_select(const char * name) {
    const struct ggmlq_cpu_level * level = find_level(name);
    if (level == NULL) {
        return GGMLQ_ERROR_LEVEL;
    }
    GGMLQ_STORE(chosen, level);
    return GGMLQ_OK;
}

/* --- the functions of ggmlq.h ----------------------------------------------------------------------------------- */

static int check_row(int type, int64_t n, const struct ggmlq_cpu_kernels ** kernels) {
    if (type != GGMLQ_TYPE_TQ3_0 && type != GGMLQ_TYPE_PLANAR3) {
        return GGMLQ_ERROR_TYPE;
    }
    const struct ggmlq_cpu_level * level = active_level();
    if (level == NULL) {
        return GGMLQ_ERROR_LEVEL;
    }
    *kernels = level->kernels;
    const int64_t bytes = ggmlq_row_bytes(type, n);
    return bytes < 0 ? (int) bytes : GGMLQ_OK;
}

#define GGMLQ_ROW_FUNCTION(name, from, to) \
    int ggmlq_cpu_##name(int type, from, to, int64_t n) { \
        const struct ggmlq_cpu_kernels * kernels; \
        const int error = check_row(type, n, &kernels); \
        if (error == GGMLQ_OK) { \
            kernels->name(type, source, target, n); \
        } \
        return error; \
    }
GGMLQ_ROW_FUNCTION(encode_row,         const float * source, void * target)
GGMLQ_ROW_FUNCTION(decode_row,         const void * source,  float * target)
GGMLQ_ROW_FUNCTION(decode_row_rotated, const void * source,  float * target)
GGMLQ_ROW_FUNCTION(rotate_row,         const float * source, float * target)
GGMLQ_ROW_FUNCTION(unrotate_row,       const float * source, float * target)
GGMLQ_ROW_FUNCTION(encode_query_row,   const float * source, void * target)

int ggmlq_cpu_encode_row_for_queries(int type, const float * x, const uint16_t * feedback, void * row, int64_t n) {
    const struct ggmlq_cpu_kernels * kernels;
    const int error = check_row(type, n, &kernels);
    if (error || n > GGMLQ_ATTEND_MAX_HEAD_SIZE) {
        return error ? error : GGMLQ_ERROR_SHAPE;
    }
    kernels->encode_row_for_queries(type, x, feedback, row, n);
    return GGMLQ_OK;
}

int ggmlq_dot_row(int type, const void * row, const void * query, int64_t n, float * result) {
    const struct ggmlq_cpu_kernels * kernels;
    const int error = check_row(type, n, &kernels);
    if (error == GGMLQ_OK) {
        kernels->dot_row(type, row, query, n, result);
    }
    return error;
}

int ggmlq_mul_mat_vec(int type, const void * rows, int64_t row_stride, int64_t n_rows,
                      const void * queries, int64_t n_queries, int64_t n, float * out) {
    const struct ggmlq_cpu_kernels * kernels;
    const int error = check_row(type, n, &kernels);
    if (error == GGMLQ_OK) {
        const int64_t query_bytes = ggmlq_row_bytes(ggmlq_type_info_get(type)->query_type, n);
        kernels->mul_mat_vec(type, rows, row_stride, n_rows, queries, query_bytes, n_queries, n, out);
    }
    return error;
}

static int check_indices(const int64_t * indices, int64_t n_indices, int64_t n_rows) {
    for (int64_t i = 0; i < n_indices; ++i) {
        if (indices[i] < 0 || indices[i] >= n_rows) {
            return GGMLQ_ERROR_INDEX;
        }
    }
    return GGMLQ_OK;
}

int ggmlq_cpu_set_rows(int type, void * rows, int64_t row_stride, int64_t n_rows,
                       const float * src, const int64_t * indices, int64_t n_indices, int64_t n) {
    const struct ggmlq_cpu_kernels * kernels;
    int error = check_row(type, n, &kernels);
    error = error ? error : check_indices(indices, n_indices, n_rows);
    for (int64_t i = 0; !error && i < n_indices; ++i) {
        kernels->encode_row(type, src + i*n, (uint8_t *) rows + indices[i]*row_stride, n);
    }
    return error;
}

int ggmlq_cpu_get_rows(int type, const void * rows, int64_t row_stride, int64_t n_rows,
                       float * dst, const int64_t * indices, int64_t n_indices, int64_t n) {
    const struct ggmlq_cpu_kernels * kernels;
    int error = check_row(type, n, &kernels);
    error = error ? error : check_indices(indices, n_indices, n_rows);
    for (int64_t i = 0; !error && i < n_indices; ++i) {
        kernels->decode_row(type, (const uint8_t *) rows + indices[i]*row_stride, dst + i*n, n);
    }
    return error;
}

/* --- attention -------------------------------------------------------------------------------------------------- */

int ggmlq_attend_check(const struct ggmlq_attend_params * p) {
    const int error = ggmlq_attend_check_shapes(p);
    return error ? error : active_level() ? GGMLQ_OK : GGMLQ_ERROR_LEVEL;
}

static int check_part(const struct ggmlq_attend_params * p, int ith, int nth) {
    const int error = ggmlq_attend_check(p);
    return error ? error : nth < 1 || ith < 0 || ith >= nth ? GGMLQ_ERROR_SHAPE : GGMLQ_OK;
}

int ggmlq_attend(const struct ggmlq_attend_params * p, int ith, int nth) {
    const int error = check_part(p, ith, nth);
    if (error == GGMLQ_OK) {
        active_level()->kernels->attend(p, NULL, ith, nth);
    }
    return error;
}

int64_t ggmlq_attend_workspace_bytes(const struct ggmlq_attend_params * p, int nth) {
    const int error = check_part(p, 0, nth);
    return error ? error : (int64_t) sizeof(float)*active_level()->kernels->attend_partials(p, nth);
}

int ggmlq_attend_part(const struct ggmlq_attend_params * p, void * workspace, int ith, int nth) {
    const int error = check_part(p, ith, nth);
    if (error == GGMLQ_OK) {
        active_level()->kernels->attend(p, workspace, ith, nth);
    }
    return error;
}

int ggmlq_attend_combine(const struct ggmlq_attend_params * p, const void * workspace, int ith, int nth) {
    const int error = check_part(p, ith, nth);
    if (error == GGMLQ_OK) {
        active_level()->kernels->attend_combine(p, workspace, ith, nth);
    }
    return error;
}
