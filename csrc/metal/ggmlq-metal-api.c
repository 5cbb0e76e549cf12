/* SPDX-License-Identifier: MIT
 *
 * ggmlq-cuda.h and ggmlq-cuda-sparse.h on Metal: every function makes a plan and has it run. For Python, and for the tests' emulator; llama.cpp encodes its
 * launches itself.
 */
#include "ggmlq-cuda-sparse.h"
#include "ggmlq-metal-run.h"

const char * ggmlq_cuda_error_text(int error) { return error == GGMLQ_ERROR_DEVICE ? ggmlq_metal_device_error() : ggmlq_error_text(error); }

static int run(int error, const struct ggmlq_metal_launch * launch, const void * const * operands, void * stream) {
    return error ? error : launch->kernel == NULL ? GGMLQ_OK : ggmlq_metal_run(launch, operands, stream);
}

int ggmlq_cuda_set_rows_check(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices, int index_bytes) {
    struct ggmlq_metal_launch launch;
    return ggmlq_metal_set_rows(rows, values, indices, index_bytes, &launch);
}

int ggmlq_cuda_get_rows_check(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * indices, int index_bytes) {
    struct ggmlq_metal_launch launch;
    return ggmlq_metal_get_rows(values, rows, indices, index_bytes, false, &launch);
}

int ggmlq_cuda_copy_check(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src) {
    struct ggmlq_metal_launch launch;
    return ggmlq_metal_convert(dst, src, false, &launch);
}

int ggmlq_cuda_mul_mat_check(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * x) {
    struct ggmlq_metal_launch launch;
    return ggmlq_metal_mul_mat(out, rows, x, &launch);
}


int ggmlq_cuda_set_rows(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                        int index_bytes, void * stream) {
    struct ggmlq_metal_launch launch;
    const void * const operands[] = { rows->data, values->data, indices->data };
    return run(ggmlq_metal_set_rows(rows, values, indices, index_bytes, &launch), &launch, operands, stream);
}

int ggmlq_cuda_set_rows_for_queries(const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * indices,
                                    int index_bytes, const struct ggmlq_cuda_view * feedback, void * stream) {
    struct ggmlq_metal_launch launch;
    const void * const operands[] = { rows->data, values->data, indices->data, feedback->data };
    return run(ggmlq_metal_set_rows_for_queries(rows, values, indices, index_bytes, feedback, &launch), &launch, operands, stream);
}

int ggmlq_cuda_get_rows(const struct ggmlq_cuda_view * values, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * indices,
                        int index_bytes, void * stream) {
    struct ggmlq_metal_launch launch;
    const void * const operands[] = { values->data, rows->data, indices->data };
    return run(ggmlq_metal_get_rows(values, rows, indices, index_bytes, false, &launch), &launch, operands, stream);
}

static int convert(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool rotated, void * stream) {
    struct ggmlq_metal_launch launch;
    const void * const operands[] = { dst->data, src->data, src->data };
    return run(ggmlq_metal_convert(dst, src, rotated, &launch), &launch, operands, stream);
}

int ggmlq_cuda_copy(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) { return convert(dst, src, false, stream); }
int ggmlq_cuda_decode_rotated(const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) { return convert(dst, src, true, stream); }

static int rotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, bool back, void * stream) {
    struct ggmlq_metal_launch launch;
    const void * const operands[] = { dst->data, src->data };
    return run(ggmlq_metal_rotate(type, dst, src, back, &launch), &launch, operands, stream);
}

int ggmlq_cuda_rotate  (int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) { return rotate(type, dst, src, false, stream); }
int ggmlq_cuda_unrotate(int type, const struct ggmlq_cuda_view * dst, const struct ggmlq_cuda_view * src, void * stream) { return rotate(type, dst, src, true, stream); }

/* The query's 8-bit values are in threadgroup memory: no workspace. */
int64_t ggmlq_cuda_mul_mat_workspace_bytes(int type, const struct ggmlq_cuda_view * x) {
    struct ggmlq_cuda_view rows = *x, out = *x;
    rows.type  = type;
    out.type   = GGMLQ_CUDA_F32;
    out.nb[0]  = sizeof(float);
    out.ne[0]  = rows.ne[1];
    return ggmlq_cuda_mul_mat_check(&out, &rows, x);
}

int ggmlq_cuda_mul_mat(const struct ggmlq_cuda_view * out, const struct ggmlq_cuda_view * rows, const struct ggmlq_cuda_view * x, void * workspace, void * stream) {
    (void) workspace;
    struct ggmlq_metal_launch launch;
    const void * const operands[] = { out->data, rows->data, x->data };
    return run(ggmlq_metal_mul_mat(out, rows, x, &launch), &launch, operands, stream);
}

/* --- attention -------------------------------------------------------------------------------------------------- */

static int attend(const struct ggmlq_attend_params * p, int64_t most, void * workspace, void * stream) {
    struct ggmlq_metal_attention a;
    int error = ggmlq_metal_attend(p, most, &a);
    void * parts = a.combine.kernel ? (uint8_t *) workspace + a.parts_at : NULL;
    const void * const of_select[]  = { p->mask, workspace };
    const void * const of_attend[]  = { p->q, p->k, p->v, p->mask, p->sinks, most > 0 ? workspace : NULL, parts ? parts : p->out, p->w, p->turns, p->positions, p->part };
    const void * const of_combine[] = { parts, p->sinks, p->out };
    error = run(error, &a.select,  of_select,  stream);
    error = run(error, &a.attend,  of_attend,  stream);
    return  run(error, &a.combine, of_combine, stream);
}

static int64_t workspace_bytes(const struct ggmlq_attend_params * p, int64_t most) {
    struct ggmlq_metal_attention a;
    const int error = ggmlq_metal_attend(p, most, &a);
    return error ? error : a.workspace_bytes;
}

static const char * attend_kernel(const struct ggmlq_attend_params * p, int64_t most) {
    struct ggmlq_metal_attention a;
    return ggmlq_metal_attend(p, most, &a) ? NULL : a.attend.kernel == NULL ? "none" : a.combine.kernel ? "split" : "whole";
}

int ggmlq_cuda_attend_check(const struct ggmlq_attend_params * p) {
    struct ggmlq_metal_attention a;
    return ggmlq_metal_attend(p, 0, &a);
}

const char * ggmlq_cuda_attend_kernel(const struct ggmlq_attend_params * p)                    { return attend_kernel(p, 0); }
int64_t ggmlq_cuda_attend_workspace_bytes(const struct ggmlq_attend_params * p)                { return workspace_bytes(p, 0); }
int ggmlq_cuda_attend(const struct ggmlq_attend_params * p, void * workspace, void * stream)   { return attend(p, 0, workspace, stream); }

int ggmlq_cuda_attend_selected_check(const struct ggmlq_attend_params * p, int64_t most) {
    struct ggmlq_metal_attention a;
    return most < 1 ? GGMLQ_ERROR_SHAPE : ggmlq_metal_attend(p, most, &a);
}

const char * ggmlq_cuda_attend_selected_kernel(const struct ggmlq_attend_params * p, int64_t most) {
    return ggmlq_cuda_attend_selected_check(p, most) ? NULL : attend_kernel(p, most);
}

int64_t ggmlq_cuda_attend_selected_workspace_bytes(const struct ggmlq_attend_params * p, int64_t most) {
    const int error = ggmlq_cuda_attend_selected_check(p, most);
    return error ? error : workspace_bytes(p, most);
}

int ggmlq_cuda_attend_selected(const struct ggmlq_attend_params * p, int64_t most, void * workspace, void * stream) {
    const int error = ggmlq_cuda_attend_selected_check(p, most);
    return error ? error : attend(p, most, workspace, stream);
}

/* --- the lightning indexer --------------------------------------------------------------------------------------- */

int ggmlq_cuda_indexer_check(const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                             const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask) {
    struct ggmlq_metal_launch launch;
    return ggmlq_metal_indexer(scores, q, rows, weights, mask, &launch);
}

int64_t ggmlq_cuda_indexer_workspace_bytes(int type, const struct ggmlq_cuda_view * q) { return ggmlq_cuda_mul_mat_workspace_bytes(type, q); }

int ggmlq_cuda_indexer(const struct ggmlq_cuda_view * scores, const struct ggmlq_cuda_view * q, const struct ggmlq_cuda_view * rows,
                       const struct ggmlq_cuda_view * weights, const struct ggmlq_cuda_view * mask, void * workspace, void * stream) {
    (void) workspace;
    struct ggmlq_metal_launch launch;
    const void * const operands[] = { scores->data, q->data, rows->data, weights->data, mask->data };
    return run(ggmlq_metal_indexer(scores, q, rows, weights, mask, &launch), &launch, operands, stream);
}
