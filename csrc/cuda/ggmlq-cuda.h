/* SPDX-License-Identifier: MIT
 *
 * ggmlq on CUDA and HIP: the operations of ggmlq.h on device memory. Public C API.
 *
 * Conventions of ggmlq.h, and: every pointer inside a view or ggmlq_attend_params is a device pointer, the structures
 * themselves are host memory. Work is queued on `stream` of the current device and nothing waits for it. Nothing is
 * allocated: where a function needs memory, ..._workspace_bytes says how much (a host-side count, or a negative
 * ggmlq_error) and the caller provides it, 16-byte aligned. Workspaces may be reused by the next call on the same stream.
 * Contents that only the device sees can't be checked here: a row index out of range is skipped.
 */
#ifndef GGMLQ_CUDA_H
#define GGMLQ_CUDA_H

#include "ggmlq.h"

/* Inside llama.cpp the kernels stay inside the back end's library. */
#if defined(PYGGMLQ_CUDA_LIBRARY) && defined(_WIN32)
#    define GGMLQ_CUDA_API __declspec(dllexport)
#elif defined(PYGGMLQ_CUDA_LIBRARY)
#    define GGMLQ_CUDA_API __attribute__((visibility("default")))
#elif defined(__GNUC__) && !defined(_WIN32)
#    define GGMLQ_CUDA_API __attribute__((visibility("hidden")))
#else
#    define GGMLQ_CUDA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */
enum { GGMLQ_ERROR_DEVICE = -16 }; /* the driver refused a launch: ggmlq_cuda_error_text */

/* What a view may hold besides cache types; ids are ggml's. */
enum {
    GGMLQ_CUDA_F32  = 0,
    GGMLQ_CUDA_F16  = 1,
    GGMLQ_CUDA_BF16 = 30
};

/* Up to four axes, as in ggml: ne counts values, nb are bytes from one to the next; nb[0] is the size of an element (float
 * types) or unused (encoded: blocks of a row are adjacent). */
struct ggmlq_cuda_view {
    void  * data;
    int     type;
    int64_t ne[4];
    int64_t nb[4];
};

/* What the driver said to the last call of this thread that gave GGMLQ_ERROR_DEVICE; ggmlq_error_text otherwise. */
GGMLQ_CUDA_API const char * ggmlq_cuda_error_text(int error);

/* rows[index[i, i2 % .., i3 % ..], i2, i3] <- encoded values[i, i2, i3]: ggml's SET_ROWS. values: f32 or f16. indices: int32 or
 * int64 (index_bytes 4 or 8), ne = { values.ne[1], divides values.ne[2], divides values.ne[3], 1 }. */
GGMLQ_CUDA_API int ggmlq_cuda_set_rows(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                                       const struct ggmlq_cuda_view * indices, int index_bytes, void * stream);

/* For llama.cpp only, not in the library: two such calls in one launch (K and V of a layer), with the same result: rows of one type, indices
 * of one size. What one of them writes the other must neither read nor write. */
int ggmlq_cuda_set_rows_pair(const struct ggmlq_cuda_view rows[2], const struct ggmlq_cuda_view values[2],
                             const struct ggmlq_cuda_view indices[2], int index_bytes, void * stream);

/* The same for planar3 rows of values that are first turned as llama.cpp does it (attn_rot): turned[i] adjacent values each, 64 or 128 (0: none),
 * by a Walsh-Hadamard transform over their square root. Unless `to` is NULL also to <- from, turned by turned[2]: f32 of equal shapes, rows of
 * whole blocks of 128. No view may be empty. */
int ggmlq_cuda_set_rows_turned(const struct ggmlq_cuda_view rows[2], const struct ggmlq_cuda_view values[2],
                               const struct ggmlq_cuda_view indices[2], int index_bytes, const struct ggmlq_cuda_view * to,
                               const struct ggmlq_cuda_view * from, const int turned[3], void * stream);

/* Also for llama.cpp only: keys that are rounded for the model's queries (ggmlq_encode_row_for_queries), with the same bytes as there. values: f32 [length*heads,
 * tokens]; feedback: f16 [ggmlq_feedback_values(length), heads], heads on addresses that are multiples of 16; length up to 512. */
int ggmlq_cuda_set_rows_for_queries(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                                    const struct ggmlq_cuda_view * indices, int index_bytes, const struct ggmlq_cuda_view * feedback, void * stream);

/* values[i, i2, i3] <- decoded rows[index[i, i2, i3], i2, i3]: ggml's GET_ROWS. values: f32, f16 or bf16. indices: ne = { values.ne[1],
 * values.ne[2], values.ne[3], 1 }, rows.ne[2] and [3] the same. */
GGMLQ_CUDA_API int ggmlq_cuda_get_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows,
                                       const struct ggmlq_cuda_view * indices, int index_bytes, void * stream);

/* dst <- src, one of them encoded, the other f32, f16 or bf16 (encoding: f32 or f16): ggml's CPY. Values keep their order; shapes may
 * differ if they hold equally many and every row of both is a whole number of blocks. */
GGMLQ_CUDA_API int ggmlq_cuda_copy(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream);

/* The same from encoded without the inverse rotation: scale * level. */
GGMLQ_CUDA_API int ggmlq_cuda_decode_rotated(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream);

/* dst <- every block of src rotated as `type` does, or back. Equal shapes, f32, in place allowed. */
GGMLQ_CUDA_API int ggmlq_cuda_rotate  (int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream);
GGMLQ_CUDA_API int ggmlq_cuda_unrotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream);

/* out[ir, ic, i2, i3] = <rows[ir, i2 / r2, i3 / r3], x[ic, i2, i3]>, the query rotated and rounded to 8 bits, integer products:
 * ggml's MUL_MAT. rows: encoded [n, n_rows, h, s]; x: f32 [n, columns, h*r2, s*r3]; out: f32 [n_rows, columns, h*r2, s*r3]. Rows are read
 * once for every 8 columns. */
GGMLQ_CUDA_API int64_t ggmlq_cuda_mul_mat_workspace_bytes(int type, const struct ggmlq_cuda_view * x);
GGMLQ_CUDA_API int     ggmlq_cuda_mul_mat(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows,
                                          const struct ggmlq_cuda_view * x, void * workspace, void * stream);

/* 0, or why the function of that name refuses these arguments: all that it checks itself. Looks at types, shapes and strides, at no
 * address. */
GGMLQ_CUDA_API int ggmlq_cuda_set_rows_check(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                                             const struct ggmlq_cuda_view * indices, int index_bytes);
int ggmlq_cuda_set_rows_for_queries_check(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values,
                                          const struct ggmlq_cuda_view * indices, int index_bytes, const struct ggmlq_cuda_view * feedback);
int ggmlq_cuda_set_rows_turned_check(const struct ggmlq_cuda_view rows[2], const struct ggmlq_cuda_view values[2],
                                     const struct ggmlq_cuda_view indices[2], int index_bytes, const struct ggmlq_cuda_view * to,
                                     const struct ggmlq_cuda_view * from, const int turned[3]);
GGMLQ_CUDA_API int ggmlq_cuda_get_rows_check(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows,
                                             const struct ggmlq_cuda_view * indices, int index_bytes);
GGMLQ_CUDA_API int ggmlq_cuda_copy_check    (const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src);
GGMLQ_CUDA_API int ggmlq_cuda_mul_mat_check (const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows,
                                             const struct ggmlq_cuda_view * x);

/* ggmlq_attend on the device, head sizes that ggmlq_cuda_attend_check allows: 0, or why not. The kernel is chosen by shape and device;
 * ggmlq_cuda_attend_kernel names it ("decode", "plain", ..). The same input gives the same output, bit for bit. turns are taken to be constant: they may be read
 * before the kernel ahead in the stream has ended, if that one lets the next start early (programmatic dependent launch). */
GGMLQ_CUDA_API int          ggmlq_cuda_attend_check          (const struct ggmlq_attend_params * p);
GGMLQ_CUDA_API const char * ggmlq_cuda_attend_kernel         (const struct ggmlq_attend_params * p);
GGMLQ_CUDA_API int64_t      ggmlq_cuda_attend_workspace_bytes(const struct ggmlq_attend_params * p);
GGMLQ_CUDA_API int          ggmlq_cuda_attend                (const struct ggmlq_attend_params * p, void * workspace, void * stream);
/* cffi: end */

/* llama.cpp's RoPE of one position a token (not YaRN's mixture of frequencies): pair i of the first n_rot values of a head (adjacent ones, or with `neox` n_rot/2 apart) is turned by
 * positions[token]*theta_scale^i/factors[i]*freq_scale and multiplied by attn_factor. positions NULL: none. Steps as in llama.cpp's kernel, and compiled as that is the same bits. */
struct ggmlq_cuda_rope {
    const int32_t * positions;
    const float   * factors; /* n_rot/2 of them, or NULL: ones */
    int             n_rot, neox;
    float           theta_scale, freq_scale, attn_factor;
};

/* For llama.cpp only: keys (index 0) and values of few new tokens as ggmlq_cuda_set_rows and, for planar3, ggmlq_cuda_set_rows_turned store them, in one launch, the keys before that turned by
 * RoPE: contiguous f32 [head_size*heads, tokens]. And unless q is NULL q_out <- q after RoPE, then every turned[2] values (64, 128, 256; 0: not) by a Walsh-Hadamard transform: contiguous
 * [q_ne[0], q_ne[1] heads, q_ne[2] tokens]; it may replace q. What one part writes another must neither read nor write. Queries lie on addresses that are multiples of 16. */
struct ggmlq_cuda_roped_rows {
    struct ggmlq_cuda_view rows[2], values[2], indices[2];
    int           index_bytes, turned[3];
    int64_t       head_size; /* of keys */
    struct ggmlq_cuda_rope k_rope, q_rope;
    const float * q;
    float       * q_out;
    int64_t       q_ne[3];
};
int ggmlq_cuda_store_roped_check(const struct ggmlq_cuda_roped_rows * p);
int ggmlq_cuda_store_roped      (const struct ggmlq_cuda_roped_rows * p, void * stream);

/* For llama.cpp only: attention, and every 64 values of the output are turned as llama.cpp turns them back (attn_rot), by a Walsh-Hadamard transform over 8, whose steps and
 * their order are those of its kernel, and so are the bits. V has heads of whole 64 values. */
int ggmlq_cuda_attend_turned_check(const struct ggmlq_attend_params * p);
int ggmlq_cuda_attend_turned      (const struct ggmlq_attend_params * p, void * workspace, void * stream);

#ifdef __cplusplus
}
#endif

#endif
