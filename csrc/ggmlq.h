/* SPDX-License-Identifier: MIT
 *
 * ggmlq: the 3-bit KV-cache types tq3_0 and planar3. Public C API.
 *
 * Knows neither ggml nor Python, allocates nothing, keeps no state but the chosen CPU level: every function may be called
 * from any thread.
 * Format: docs/FORMAT.md. Types, ids and sizes: ggmlq-types.def.
 *
 * Conventions. `type` is an id of ggmlq-types.def. `n` counts values and must be a multiple of the type's block
 * length, never truncated. Strides are in bytes. Buffers need no alignment beyond that of their element type
 * (encoded rows: none). Every function that can fail returns 0 or a negative ggmlq_error, and on an error that its
 * arguments alone reveal it has written nothing.
 */
#ifndef GGMLQ_H
#define GGMLQ_H

#include "ggmlq-deps.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
#define GGMLQ_TYPE(NAME, name, id, block_length, block_bytes, description)         GGMLQ_TYPE_##NAME = id,
#define GGMLQ_QUERY_TYPE(NAME, name, id, block_length, block_bytes, description)   GGMLQ_TYPE_##NAME = id,
#define GGMLQ_FOREIGN_TYPE(NAME, name, id, block_length, block_bytes, description) GGMLQ_TYPE_##NAME = id,
#include "ggmlq-types.def"
};

/* The text between the two markers is also what Python's cffi reads: plain C declarations,
 * GGMLQ_API (functions of csrc) and GGMLQ_CPU_API (of csrc/cpu) are removed, nothing else needs a preprocessor. */
/* cffi: begin */
enum ggmlq_error {
    GGMLQ_OK               =  0,
    GGMLQ_ERROR_TYPE       = -1, /* type id unknown, or not usable here                                        */
    GGMLQ_ERROR_LENGTH     = -2, /* length negative, or not a multiple of the block length                     */
    GGMLQ_ERROR_INDEX      = -3, /* row index out of range                                                     */
    GGMLQ_ERROR_NOT_FINITE = -4, /* a NaN or an infinity (validation only; encoding stores a NaN scale)        */
    GGMLQ_ERROR_SHAPE      = -5, /* shapes that don't belong together, or beyond a stated limit                */
    GGMLQ_ERROR_LEVEL      = -6  /* no such CPU level, or one that can't run here                              */
};

/* Limits of ggmlq_attend, which keeps its working set on the stack. */
enum { GGMLQ_ATTEND_MAX_HEAD_SIZE = 1024 };

struct ggmlq_type_info {
    int          id;
    const char * name;
    int64_t      block_length; /* values */
    int64_t      block_bytes;
    int          query_type;   /* id of the type that ggmlq_encode_query_row writes; -1: none */
    const char * description;
};

/* One sentence for an error code; never NULL. */
GGMLQ_API const char * ggmlq_error_text(int error);

/* Information on any type of ggmlq-types.def; NULL if the id is unknown. */
GGMLQ_API const struct ggmlq_type_info * ggmlq_type_info_get(int type);

/* Bytes of a row of n values, or a negative ggmlq_error. */
GGMLQ_API int64_t ggmlq_row_bytes(int type, int64_t n);

/* The rotation of every block, y = R x, and its exact inverse, x = R^T y. In place (x == y) is allowed. */
GGMLQ_API int ggmlq_rotate_row  (int type, const float * x, float * y, int64_t n);
GGMLQ_API int ggmlq_unrotate_row(int type, const float * y, float * x, int64_t n);

/* n values <-> encoded blocks. A row may be any number of blocks: blocks are independent. */
GGMLQ_API int ggmlq_encode_row(int type, const float * x, void * row, int64_t n);
GGMLQ_API int ggmlq_decode_row(int type, const void * row, float * x, int64_t n);
/* The same without the inverse rotation: scale * level. */
GGMLQ_API int ggmlq_decode_row_rotated(int type, const void * row, float * y, int64_t n);

/* The n values of a head, at most GGMLQ_ATTEND_MAX_HEAD_SIZE, are rounded one after the other, and those that follow take up what each one's rounding
 * does to products with queries (docs/CENTERING.md, "Rounding for the model's queries"): an error e of rotated value i takes e*f from every rotated value
 * j > i, f being the half of i and j in `feedback`, which holds ggmlq_feedback_values(n) of them; their order: ggmlq-values.h. A block whose sum of squares is
 * no float becomes NaN and moves nothing. */
GGMLQ_API int ggmlq_encode_row_for_queries(int type, const float * x, const uint16_t * feedback, void * row, int64_t n);
/* Of a head of n values, a multiple of 32 and at most GGMLQ_ATTEND_MAX_HEAD_SIZE; otherwise a negative ggmlq_error. */
GGMLQ_API int64_t ggmlq_feedback_values(int64_t n);

/* GGMLQ_ERROR_NOT_FINITE if a block's scale is NaN or infinite; its index goes to *block (may be NULL). */
GGMLQ_API int ggmlq_validate_row(int type, const void * row, int64_t n, int64_t * block);

/* n values, rotated and rounded to 8 bits, as the `query_type` of `type`. */
GGMLQ_API int ggmlq_encode_query_row(int type, const float * x, void * query, int64_t n);

/* CPU levels: the same kernels for several instruction sets, best first. One is active: the best usable one, or the one that
 * the environment variable GGMLQ_CPU names; if that can't be used, every function below gives GGMLQ_ERROR_LEVEL. */
GGMLQ_CPU_API int          ggmlq_cpu_level_count(void);
GGMLQ_CPU_API const char * ggmlq_cpu_level_name(int i);   /* "avx2" */
GGMLQ_CPU_API const char * ggmlq_cpu_level_needs(int i);  /* instruction sets */
GGMLQ_CPU_API const char * ggmlq_cpu_level_reason(int i); /* why it can't be used; empty if it can */
GGMLQ_CPU_API int64_t      ggmlq_cpu_level_calls(int i);  /* kernels entered at this level; counted with GGMLQ_COUNT_CALLS only */
GGMLQ_CPU_API const char * ggmlq_cpu_level_active(void);  /* NULL: GGMLQ_CPU names none that can be used */
/* Name NULL: the best usable one. Not while kernels run. */
GGMLQ_CPU_API int          ggmlq_cpu_level_select(const char * name);

/* The functions without cpu in their names, at the active level: the same bytes. */
GGMLQ_CPU_API int ggmlq_cpu_encode_row        (int type, const float * x, void * row, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_decode_row        (int type, const void * row, float * x, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_decode_row_rotated(int type, const void * row, float * y, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_rotate_row        (int type, const float * x, float * y, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_unrotate_row      (int type, const float * y, float * x, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_encode_query_row  (int type, const float * x, void * query, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_encode_row_for_queries(int type, const float * x, const uint16_t * feedback, void * row, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_set_rows(int type, void * rows, int64_t row_stride, int64_t n_rows,
                                     const float * src, const int64_t * indices, int64_t n_indices, int64_t n);
GGMLQ_CPU_API int ggmlq_cpu_get_rows(int type, const void * rows, int64_t row_stride, int64_t n_rows,
                                     float * dst, const int64_t * indices, int64_t n_indices, int64_t n);

/* *result = <row, query>: integer products per block, blocks added in ascending order in float32. */
GGMLQ_CPU_API int ggmlq_dot_row(int type, const void * row, const void * query, int64_t n, float * result);

/* out[iq][ir] = <rows[ir], queries[iq]>, queries as written by ggmlq_encode_query_row, contiguous. */
GGMLQ_CPU_API int ggmlq_mul_mat_vec(int type, const void * rows, int64_t row_stride, int64_t n_rows,
                                    const void * queries, int64_t n_queries, int64_t n, float * out);

/* Row indices[i] of `rows` (n_rows of them) <- encoded src row i, and back. All indices are checked first. */
GGMLQ_API int ggmlq_set_rows(int type, void * rows, int64_t row_stride, int64_t n_rows,
                             const float * src, const int64_t * indices, int64_t n_indices, int64_t n);
GGMLQ_API int ggmlq_get_rows(int type, const void * rows, int64_t row_stride, int64_t n_rows,
                             float * dst, const int64_t * indices, int64_t n_indices, int64_t n);

/* softmax(scale * Q K^T + mask) V for every query head of every sequence, any pair of types of which K and V may be
 * ours or foreign. Grouped-query attention: n_heads is a multiple of n_heads_kv; n_seqs of n_seqs_kv. */
struct ggmlq_attend_params {
    int          type_k, type_v;
    int64_t      head_size_k, head_size_v;   /* values of a K (and query) row, of a V (and output) row             */
    int64_t      n_kv;                       /* cached tokens                                                      */
    int64_t      n_queries;                  /* tokens that ask                                                    */
    int64_t      n_heads, n_heads_kv;
    int64_t      n_seqs, n_seqs_kv;
    const float * q;      int64_t q_stride[3];   /* strides: token, head, sequence                                 */
    const void  * k;      int64_t k_stride[3];
    const void  * v;      int64_t v_stride[3];
    float       * out;    int64_t out_stride[3];
    const uint16_t * mask;                   /* fp16, n_kv values per row, added to the score; NULL: none          */
    int64_t      mask_stride[3];             /* query token, head, sequence                                        */
    int64_t      mask_heads, mask_seqs;      /* mask rows repeat with these periods                                */
    const float * sinks;                     /* one extra logit per head that takes part in the sum only; or NULL  */
    float        scale;
    float        max_bias;                   /* ALiBi; 0: off                                                      */
    float        logit_softcap;              /* s <- cap * tanh(s / cap); 0: off                                   */
    /* One more term of every dot product, before scale: part of the token times <w of the query head, the positional row of the token>, which is what
     * centered keys lack (docs/CENTERING.md). n_pairs 0: none. Pair i of a positional row is (cos, sin) of the angle of which position*turns[i] mod 2^64 is
     * the fraction of a full turn, in units of 2^-64; back ends look at its upper 32 bits. A back end may round w, or w turned back by a position near the
     * token's, to halves, or to integers with one scale for a row (sums of 128 pairs, |first| + |second|, are at most 260000, pairs at most 32000);
     * cosines and sines to halves or to 13 bits and a sign, and of pairs that turn by less than a twentieth of a turn in 64 positions to
     * parabolas and lines, within 2^-12. */
    int64_t      n_pairs;                    /* pairs of values of w, at most head_size_k/2                        */
    int          pairs_are_halves;           /* pair i of w is (i, i + n_pairs), otherwise (2i, 2i + 1)            */
    const float    * w;   int64_t w_stride[3];   /* strides: token, head, sequence                                 */
    const uint64_t * turns;                  /* n_pairs                                                            */
    const int32_t  * positions; int64_t positions_stride; /* n_kv; stride: sequence                                */
    const uint16_t * part; int64_t part_stride;  /* fp16, n_kv factors of the terms, such as 0 where a key isn't centered; stride: sequence; NULL: 1 */
};

/* 0, or which types and shapes no attention here takes, on whatever device. Numbers only: no pointer is followed. */
GGMLQ_API int ggmlq_attend_check_shapes(const struct ggmlq_attend_params * p);

/* 0, or why ggmlq_attend can't do it. */
GGMLQ_CPU_API int ggmlq_attend_check(const struct ggmlq_attend_params * p);

/* Part ith of nth of the work; parts are independent and may run in parallel. A query that every token is masked
 * from gives zeros. */
GGMLQ_CPU_API int ggmlq_attend(const struct ggmlq_attend_params * p, int ith, int nth);

/* The same where the cached tokens may be split over threads too, which few heads and a long context need: every part, then
 * a barrier, then every combine. The workspace, aligned for floats, is shared. 0 bytes: nothing would be split, use
 * ggmlq_attend; negative: a ggmlq_error. The result depends on nth within float rounding, and on nothing else. */
GGMLQ_CPU_API int64_t ggmlq_attend_workspace_bytes(const struct ggmlq_attend_params * p, int nth);
GGMLQ_CPU_API int     ggmlq_attend_part   (const struct ggmlq_attend_params * p, void * workspace, int ith, int nth);
GGMLQ_CPU_API int     ggmlq_attend_combine(const struct ggmlq_attend_params * p, const void * workspace, int ith, int nth);
/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
