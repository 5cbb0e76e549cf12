void ggml_cuda_op_concat(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    // pyggmlq:begin cuda-concat
    if (ggmlq_ggml_cuda_concat(ctx, dst)) {
        return;
    }
    // pyggmlq:end cuda-concat
    run(ctx, dst);
}
