/* SPDX-License-Identifier: MIT
 *
 * The executable form of docs/FORMAT.md: types, rotations, encoder, decoder, 8-bit query. Every other kernel must equal it.
 * Written for exactness first: each rounding is that of the plain float32 operation written here.
 */
#include "ggmlq-fp-contract.h"

#include "ggmlq-block.h"
#include "ggmlq.h"

_Static_assert(sizeof(struct ggmlq_block_tq3_0)      ==  14, "docs/FORMAT.md");
_Static_assert(sizeof(struct ggmlq_block_planar3)    ==  50, "docs/FORMAT.md");
_Static_assert(sizeof(struct ggmlq_block_tq3_0_q8)   ==  36, "ggmlq-types.def");
_Static_assert(sizeof(struct ggmlq_block_planar3_q8) == 132, "ggmlq-types.def");

/* --- types ------------------------------------------------------------------------------------------------------ */

static const struct ggmlq_type_info type_infos[] = {
#define GGMLQ_TYPE(NAME, name, id, length, bytes, description)         { id, #name, length, bytes, GGMLQ_TYPE_##NAME##_Q8, description },
#define GGMLQ_QUERY_TYPE(NAME, name, id, length, bytes, description)   { id, #name, length, bytes, -1, description },
#define GGMLQ_FOREIGN_TYPE(NAME, name, id, length, bytes, description) { id, #name, length, bytes, -1, description },
#include "ggmlq-types.def"
};

const char * ggmlq_error_text(int error) {
    switch (error) {
        case GGMLQ_OK:               return "no error";
        case GGMLQ_ERROR_TYPE:       return "the type id is unknown or can't be used here";
        case GGMLQ_ERROR_LENGTH:     return "the length is negative or not a multiple of the type's block length";
        case GGMLQ_ERROR_INDEX:      return "a row index is out of range";
        case GGMLQ_ERROR_NOT_FINITE: return "a value is NaN or infinite";
        case GGMLQ_ERROR_SHAPE:      return "the shapes don't belong together or are beyond a limit";
        case GGMLQ_ERROR_LEVEL:      return "the CPU level is unknown or can't be used here (GGMLQ_CPU)";
        default:                     return "unknown error";
    }
}

const struct ggmlq_type_info * ggmlq_type_info_get(int type) {
    for (size_t i = 0; i < sizeof(type_infos)/sizeof(type_infos[0]); ++i) {
        if (type_infos[i].id == type) {
            return &type_infos[i];
        }
    }
    return NULL;
}

int64_t ggmlq_row_bytes(int type, int64_t n) {
    const struct ggmlq_type_info * info = ggmlq_type_info_get(type);
    if (info == NULL) {
        return GGMLQ_ERROR_TYPE;
    }
    if (n < 0 || n % info->block_length != 0) {
        return GGMLQ_ERROR_LENGTH;
    }
    return n / info->block_length * info->block_bytes;
}

int ggmlq_attend_check_shapes(const struct ggmlq_attend_params * p) {
    const int     types[2] = { p->type_k,      p->type_v      };
    const int64_t sizes[2] = { p->head_size_k, p->head_size_v };
    for (int i = 0; i < 2; ++i) {
        switch (types[i]) {
#define GGMLQ_TYPE(NAME, name, id, length, bytes, description)         case id: break;
#define GGMLQ_FOREIGN_TYPE(NAME, name, id, length, bytes, description) case id: break;
#include "ggmlq-types.def"
            default: return GGMLQ_ERROR_TYPE;
        }
        if (ggmlq_row_bytes(types[i], sizes[i]) <= 0) {
            return GGMLQ_ERROR_LENGTH;
        }
        if (sizes[i] > GGMLQ_ATTEND_MAX_HEAD_SIZE) {
            return GGMLQ_ERROR_SHAPE;
        }
    }
    if (p->n_kv < 0 || p->n_queries < 0 || p->n_heads_kv < 1 || p->n_seqs_kv < 1 || p->n_heads < 0 || p->n_seqs < 0 ||
        p->n_heads % p->n_heads_kv != 0 || p->n_seqs % p->n_seqs_kv != 0 ||
        (p->mask && (p->mask_heads < 1 || p->mask_seqs < 1)) ||
        p->n_pairs < 0 || p->n_pairs > p->head_size_k/2) {
        return GGMLQ_ERROR_SHAPE;
    }
    return GGMLQ_OK;
}

/* 0 if `type` is a cache type and n a whole number of its blocks. */
static int check_row(int type, int64_t n) {
    if (type != GGMLQ_TYPE_TQ3_0 && type != GGMLQ_TYPE_PLANAR3) {
        return GGMLQ_ERROR_TYPE;
    }
    const int64_t bytes = ggmlq_row_bytes(type, n);
    return bytes < 0 ? (int) bytes : GGMLQ_OK;
}

/* --- rotations -------------------------------------------------------------------------------------------------- */

static const float tq3_0_signs[32]        = GGMLQ_TQ3_0_SIGNS_INIT;
static const float planar3_cos_sin[64][2] = GGMLQ_PLANAR3_COS_SIN_INIT;

/* One step of it; `half` is known where it is called, so that the compiler makes vectors of the larger ones. */
static inline void hadamard32_step(float v[32], int half) {
    for (int start = 0; start < 32; start += 2*half) {
        for (int i = start; i < start + half; ++i) {
            const float a = v[i];
            const float b = v[i + half];
            v[i]        = a + b;
            v[i + half] = a - b;
        }
    }
}

/* Orthonormal Walsh-Hadamard transform of 32 values, natural order; its own inverse. */
static void hadamard32(float v[32]) {
    hadamard32_step(v, 1);
    hadamard32_step(v, 2);
    hadamard32_step(v, 4);
    hadamard32_step(v, 8);
    hadamard32_step(v, 16);
    for (int i = 0; i < 32; ++i) {
        v[i] *= 0.17677669529663689f; /* 1/sqrt(32) */
    }
}

static void rotate_block_tq3_0(const float * x, float * y) {
    float v[32];
    for (int i = 0; i < 32; ++i) {
        v[i] = tq3_0_signs[i] * x[i];
    }
    hadamard32(v);
    memcpy(y, v, sizeof(v));
}

static void unrotate_block_tq3_0(const float * y, float * x) {
    float v[32];
    memcpy(v, y, sizeof(v));
    hadamard32(v);
    for (int i = 0; i < 32; ++i) {
        x[i] = tq3_0_signs[i] * v[i];
    }
}

/* Turns every pair by its angle (direction = 1) or back (-1). Even and odd values are computed apart: GCC 12 makes a fused
 * multiply-addsub of them when they alternate, even where contraction is off. */
static void turn_pairs(const float * v, float * turned, float direction) {
    float even[64], odd[64];
    for (int i = 0; i < 64; ++i) {
        even[i] = planar3_cos_sin[i][0]*v[2*i] - direction*planar3_cos_sin[i][1]*v[2*i + 1];
    }
    for (int i = 0; i < 64; ++i) {
        odd[i] = direction*planar3_cos_sin[i][1]*v[2*i] + planar3_cos_sin[i][0]*v[2*i + 1];
    }
    for (int i = 0; i < 64; ++i) {
        turned[2*i]     = even[i];
        turned[2*i + 1] = odd[i];
    }
}

static void rotate_block_planar3(const float * x, float * y)   { turn_pairs(x, y,  1.0f); }
static void unrotate_block_planar3(const float * y, float * x) { turn_pairs(y, x, -1.0f); }

int ggmlq_rotate_row(int type, const float * x, float * y, int64_t n) {
    const int error = check_row(type, n);
    if (error) {
        return error;
    }
    if (type == GGMLQ_TYPE_TQ3_0) {
        for (int64_t i = 0; i < n; i += 32) {
            rotate_block_tq3_0(x + i, y + i);
        }
    } else {
        for (int64_t i = 0; i < n; i += 128) {
            rotate_block_planar3(x + i, y + i);
        }
    }
    return GGMLQ_OK;
}

int ggmlq_unrotate_row(int type, const float * y, float * x, int64_t n) {
    const int error = check_row(type, n);
    if (error) {
        return error;
    }
    if (type == GGMLQ_TYPE_TQ3_0) {
        for (int64_t i = 0; i < n; i += 32) {
            unrotate_block_tq3_0(y + i, x + i);
        }
    } else {
        for (int64_t i = 0; i < n; i += 128) {
            unrotate_block_planar3(y + i, x + i);
        }
    }
    return GGMLQ_OK;
}

/* --- encoder ---------------------------------------------------------------------------------------------------- */

static const int8_t levels_table[8]     = GGMLQ_LEVELS_INIT;
static const float  boundaries_table[7] = GGMLQ_BOUNDARIES_INIT;

/* Sums over a block run in eight lanes (lane j % 8), which are then folded: an order that vectors of any width keep. */
enum { LANES = 8 };

static inline float fold_lanes(const float s[LANES]) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* Least-squares search of the step for rotated values y: docs/FORMAT.md, "Encoder". Writes the level index of each
 * value and returns the step. y is finite and not all zero, max |x| was in [0.5, 1). */
static float search_levels(const float * y, int n, uint8_t * indices) {
    static const float starts[3] = { 0.8f, 1.0f, 1.2f };

    float square_sum[LANES] = { 0 };
    for (int i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; ++l) {
            square_sum[l] += y[i + l]*y[i + l];
        }
    }
    const float base = sqrtf(fold_lanes(square_sum)/(float) n) / GGMLQ_LEVEL_SIGMA;

    float best_step  = 0.0f;
    float best_error = INFINITY;
    float levels[GGMLQ_MAX_BLOCK_LENGTH];
    float best_levels[GGMLQ_MAX_BLOCK_LENGTH];

    for (int start = 0; start < 3; ++start) {
        float step = starts[start] * base;
        for (int pass = 0; pass < 3; ++pass) {
            float bounds[7];
            for (int b = 0; b < 7; ++b) {
                bounds[b] = boundaries_table[b]*step;
            }
            float y_level[LANES] = { 0 }, level_level[LANES] = { 0 };
            for (int i = 0; i < n; i += LANES) {
                for (int l = 0; l < LANES; ++l) {
                    const float value = y[i + l];
                    float level = levels_table[0];
                    for (int b = 0; b < 7; ++b) { /* sums of small integers: exact */
                        level += value >= bounds[b] ? (float) (levels_table[b + 1] - levels_table[b]) : 0.0f;
                    }
                    levels[i + l]   = level;
                    y_level[l]     += value*level;
                    level_level[l] += level*level;
                }
            }
            step = fold_lanes(y_level)/fold_lanes(level_level);
        }
        float error_sum[LANES] = { 0 };
        for (int i = 0; i < n; i += LANES) {
            for (int l = 0; l < LANES; ++l) {
                const float d = y[i + l] - step*levels[i + l];
                error_sum[l] += d*d;
            }
        }
        const float error = fold_lanes(error_sum);
        if (error < best_error) {
            best_error = error;
            best_step  = step;
            memcpy(best_levels, levels, sizeof(float)*(size_t) n);
        }
    }
    for (int i = 0; i < n; ++i) {
        uint8_t index = 0;
        for (int b = 1; b < 8; ++b) {
            index += best_levels[i] >= (float) levels_table[b];
        }
        indices[i] = index;
    }
    return best_step;
}

/* x -> level indices and the fp16 scale, in `per_step` units of the step. False: the scale alone says it all and every
 * field is zero (zero block: 0, not finite: NaN). */
static bool encode_levels(const float * x, int n, void (* rotate_block)(const float *, float *), float per_step,
                          uint8_t * indices, uint16_t * scale) {
    int e;
    if (!ggmlq_block_exponent(x, n, &e)) {
        *scale = 0x7e00;
        return false;
    }
    if (e == INT32_MIN) {
        *scale = 0;
        return false;
    }
    /* An exact normalization: nothing below can overflow, and multiplying x by 2^k multiplies the scale by 2^k. */
    float y[GGMLQ_MAX_BLOCK_LENGTH] = { 0 }; /* n of them are used, which GCC doesn't see */
    ggmlq_scale_by_power_of_two(x, y, n, -e);
    rotate_block(y, y);
    float result = per_step * search_levels(y, n, indices);
    ggmlq_scale_by_power_of_two(&result, &result, 1, e);
    *scale = ggmlq_half_from_float(result);
    return true;
}

static void encode_block_tq3_0(const float * x, struct ggmlq_block_tq3_0 * block) {
    uint8_t  v[32];
    uint16_t gamma;
    memset(block, 0, sizeof(*block));
    if (encode_levels(x, 32, rotate_block_tq3_0, 1.0f/GGMLQ_TQ3_0_UNIT, v, &gamma)) {
        for (int i = 0; i < 32; ++i) {
            v[i] = (uint8_t) (v[i] >> 1 | (v[i] & 1) << 2); /* coarse cell in the 2-bit field, residual sign in the 1-bit field */
        }
        ggmlq_pack_plane(v, block->qs, block->qr);
    }
    ggmlq_store_u16(block->gamma, gamma);
}

static void encode_block_planar3(const float * x, struct ggmlq_block_planar3 * block) {
    uint8_t  v[128];
    uint16_t norm;
    memset(block, 0, sizeof(*block));
    if (encode_levels(x, 128, rotate_block_planar3, 1.0f/GGMLQ_PLANAR3_UNIT, v, &norm)) {
        for (int g = 0; g < 4; ++g) {
            ggmlq_pack_plane(v + GGMLQ_PLANE*g, block->qs + 8*g, block->signs + 4*g);
        }
    }
    ggmlq_store_u16(block->norm, norm);
}

int ggmlq_encode_row(int type, const float * x, void * row, int64_t n) {
    const int error = check_row(type, n);
    if (error) {
        return error;
    }
    if (type == GGMLQ_TYPE_TQ3_0) {
        struct ggmlq_block_tq3_0 * blocks = row;
        for (int64_t i = 0; i < n/32; ++i) {
            encode_block_tq3_0(x + 32*i, &blocks[i]);
        }
    } else {
        struct ggmlq_block_planar3 * blocks = row;
        for (int64_t i = 0; i < n/128; ++i) {
            encode_block_planar3(x + 128*i, &blocks[i]);
        }
    }
    return GGMLQ_OK;
}

/* --- encoder with feedback -------------------------------------------------------------------------------------- */

static inline uint8_t field_of(int type, int index) {
    return (uint8_t) (type == GGMLQ_TYPE_TQ3_0 ? index >> 1 | (index & 1) << 2 : index);
}

/* One level of a rotated block, as the encoder would choose it and the scale says it. False: a square is no float. */
static bool step_for_queries(int type, const float * y, int n, uint16_t * scale, float * step) {
    const float unit = type == GGMLQ_TYPE_TQ3_0 ? GGMLQ_TQ3_0_UNIT : GGMLQ_PLANAR3_UNIT;
    uint8_t indices[GGMLQ_MAX_BLOCK_LENGTH];
    float square_sum[LANES] = { 0 };
    for (int i = 0; i < n; ++i) {
        square_sum[i % LANES] += y[i]*y[i];
    }
    const bool finite = fold_lanes(square_sum) <= 3.402823466e+38f;
    *scale = finite ? ggmlq_half_from_float(1.0f/unit*search_levels(y, n, indices)) : 0x7e00;
    *step  = finite ? ggmlq_half_to_float(*scale)*unit : 0.0f;
    return finite;
}

int64_t ggmlq_feedback_values(int64_t n) {
    if (n < 0 || n % GGMLQ_PLANE != 0) {
        return GGMLQ_ERROR_LENGTH;
    }
    const int planes = (int) (n/GGMLQ_PLANE);
    return n > GGMLQ_ATTEND_MAX_HEAD_SIZE ? GGMLQ_ERROR_SHAPE : ggmlq_feedback_before(planes, planes);
}

int ggmlq_encode_row_for_queries(int type, const float * x, const uint16_t * feedback, void * row, int64_t n) {
    const int error = check_row(type, n);
    if (error || n > GGMLQ_ATTEND_MAX_HEAD_SIZE) {
        return error ? error : GGMLQ_ERROR_SHAPE;
    }
    float rest[GGMLQ_ATTEND_MAX_HEAD_SIZE];
    ggmlq_rotate_row(type, x, rest, n);
    const int length = type == GGMLQ_TYPE_TQ3_0 ? 32 : 128;
    for (int64_t start = 0; start < n; start += length) {
        uint8_t  fields[GGMLQ_MAX_BLOCK_LENGTH] = { 0 };
        uint16_t scale;
        float    step;
        const bool coded = step_for_queries(type, rest + start, length, &scale, &step);
        const float b1 = boundaries_table[4]*step, b2 = boundaries_table[5]*step, b3 = boundaries_table[6]*step;
        for (int64_t i = start; i < start + length; ++i) {
            const float a = fabsf(rest[i]);
            const int   cell = (a >= b1) + (a >= b2) + (a >= b3);
            const int   index = signbit(rest[i]) ? 3 - cell : 4 + cell;
            const float off = coded ? rest[i] - step*(float) levels_table[index] : 0.0f;
            fields[i - start] = step > 0.0f ? field_of(type, index) : 0;
            const int64_t    plane = i/GGMLQ_PLANE;
            const uint16_t * by = feedback + ggmlq_feedback_before((int) plane, (int) (n/GGMLQ_PLANE)) + GGMLQ_PLANE*(i % GGMLQ_PLANE);
            for (int64_t first = GGMLQ_PLANE*plane; first < n; first += GGMLQ_PLANE, by += GGMLQ_PLANE*GGMLQ_PLANE) {
                for (int64_t j = i < first ? 0 : i + 1 - first; j < GGMLQ_PLANE; ++j) {
                    rest[first + j] -= off*ggmlq_half_to_float(by[j]);
                }
            }
        }
        if (type == GGMLQ_TYPE_TQ3_0) {
            struct ggmlq_block_tq3_0 * block = (struct ggmlq_block_tq3_0 *) row + start/length;
            ggmlq_pack_plane(fields, block->qs, block->qr);
            ggmlq_store_u16(block->gamma, scale);
        } else {
            struct ggmlq_block_planar3 * block = (struct ggmlq_block_planar3 *) row + start/length;
            for (int g = 0; g < 4; ++g) {
                ggmlq_pack_plane(fields + GGMLQ_PLANE*g, block->qs + 8*g, block->signs + 4*g);
            }
            ggmlq_store_u16(block->norm, scale);
        }
    }
    return GGMLQ_OK;
}

/* --- decoder ---------------------------------------------------------------------------------------------------- */

static void decode_block_rotated_tq3_0(const struct ggmlq_block_tq3_0 * block, float * y) {
    int8_t levels[32];
    const float scale = ggmlq_unpack_block_tq3_0(block, levels);
    for (int i = 0; i < 32; ++i) {
        y[i] = scale * (float) levels[i];
    }
}

static void decode_block_rotated_planar3(const struct ggmlq_block_planar3 * block, float * y) {
    int8_t levels[128];
    const float scale = ggmlq_unpack_block_planar3(block, levels);
    for (int i = 0; i < 128; ++i) {
        y[i] = scale * (float) levels[i];
    }
}

int ggmlq_decode_row_rotated(int type, const void * row, float * y, int64_t n) {
    const int error = check_row(type, n);
    if (error) {
        return error;
    }
    if (type == GGMLQ_TYPE_TQ3_0) {
        const struct ggmlq_block_tq3_0 * blocks = row;
        for (int64_t i = 0; i < n/32; ++i) {
            decode_block_rotated_tq3_0(&blocks[i], y + 32*i);
        }
    } else {
        const struct ggmlq_block_planar3 * blocks = row;
        for (int64_t i = 0; i < n/128; ++i) {
            decode_block_rotated_planar3(&blocks[i], y + 128*i);
        }
    }
    return GGMLQ_OK;
}

int ggmlq_decode_row(int type, const void * row, float * x, int64_t n) {
    const int error = ggmlq_decode_row_rotated(type, row, x, n);
    return error ? error : ggmlq_unrotate_row(type, x, x, n);
}

int ggmlq_validate_row(int type, const void * row, int64_t n, int64_t * block) {
    const int error = check_row(type, n);
    if (error) {
        return error;
    }
    const struct ggmlq_type_info * info = ggmlq_type_info_get(type);
    const size_t scale_at = type == GGMLQ_TYPE_TQ3_0 ? offsetof(struct ggmlq_block_tq3_0, gamma) : offsetof(struct ggmlq_block_planar3, norm);
    for (int64_t i = 0; i < n/info->block_length; ++i) {
        const uint8_t * scale = (const uint8_t *) row + i*info->block_bytes + scale_at;
        if ((ggmlq_load_u16(scale) & 0x7c00) == 0x7c00) {
            if (block) {
                *block = i;
            }
            return GGMLQ_ERROR_NOT_FINITE;
        }
    }
    return GGMLQ_OK;
}

/* --- query ------------------------------------------------------------------------------------------------------ */

/* n rotated values -> scale and 8-bit values, nearest with ties to even. */
static void encode_query_block(const float * y, int n, float * d, int8_t * qs) {
    float max    = 0.0f;
    bool  finite = true;
    for (int i = 0; i < n; ++i) {
        const float a = fabsf(y[i]);
        finite &= a <= 3.402823466e+38f;
        max = a > max ? a : max;
    }
    *d = finite ? max/127.0f : NAN;
    if (!(*d >= 1.175494351e-38f)) { /* no query at all, or one whose scale would be subnormal and its inverse infinite */
        *d = finite ? 0.0f : NAN;
        memset(qs, 0, (size_t) n);
        return;
    }
    const float inverse = 1.0f / *d;
    for (int i = 0; i < n; ++i) {
        const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
        const float scaled = y[i]*inverse;
        const float bound  = scaled > 127.0f ? 127.0f : scaled < -127.0f ? -127.0f : scaled;
        qs[i] = (int8_t) ((bound + magic) - magic);
    }
}

int ggmlq_encode_query_row(int type, const float * x, void * query, int64_t n) {
    const int error = check_row(type, n);
    if (error) {
        return error;
    }
    float y[GGMLQ_MAX_BLOCK_LENGTH];
    if (type == GGMLQ_TYPE_TQ3_0) {
        struct ggmlq_block_tq3_0_q8 * blocks = query;
        for (int64_t i = 0; i < n/32; ++i) {
            rotate_block_tq3_0(x + 32*i, y);
            encode_query_block(y, 32, &blocks[i].d, blocks[i].qs);
        }
    } else {
        struct ggmlq_block_planar3_q8 * blocks = query;
        for (int64_t i = 0; i < n/128; ++i) {
            rotate_block_planar3(x + 128*i, y);
            encode_query_block(y, 128, &blocks[i].d, blocks[i].qs);
        }
    }
    return GGMLQ_OK;
}

/* --- rows by index ---------------------------------------------------------------------------------------------- */

static int check_indices(const int64_t * indices, int64_t n_indices, int64_t n_rows) {
    for (int64_t i = 0; i < n_indices; ++i) {
        if (indices[i] < 0 || indices[i] >= n_rows) {
            return GGMLQ_ERROR_INDEX;
        }
    }
    return GGMLQ_OK;
}

int ggmlq_set_rows(int type, void * rows, int64_t row_stride, int64_t n_rows,
                   const float * src, const int64_t * indices, int64_t n_indices, int64_t n) {
    int error = check_row(type, n);
    error = error ? error : check_indices(indices, n_indices, n_rows);
    for (int64_t i = 0; !error && i < n_indices; ++i) {
        error = ggmlq_encode_row(type, src + i*n, (uint8_t *) rows + indices[i]*row_stride, n);
    }
    return error;
}

int ggmlq_get_rows(int type, const void * rows, int64_t row_stride, int64_t n_rows,
                   float * dst, const int64_t * indices, int64_t n_indices, int64_t n) {
    int error = check_row(type, n);
    error = error ? error : check_indices(indices, n_indices, n_rows);
    for (int64_t i = 0; !error && i < n_indices; ++i) {
        error = ggmlq_decode_row(type, (const uint8_t *) rows + indices[i]*row_stride, dst + i*n, n);
    }
    return error;
}
