void ggml_cuda_op_set_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    // pyggmlq:begin cuda-set-rows
    if (ggmlq_ggml_cuda_set_rows(ctx, dst)) {
        return;
    }
    // pyggmlq:end cuda-set-rows
    const ggml_tensor * src0 = dst->src[0];
    run(ctx, src0, dst);
}
