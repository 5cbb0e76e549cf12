template <typename T>
static void ggml_cuda_cpy_rows(int x) {
}

void ggml_cuda_cpy(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, ggml_tensor * src1) {
    run(ctx, src0, src1);
}

void ggml_cuda_dup(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    ggml_cuda_cpy(ctx, dst->src[0], dst);
}
