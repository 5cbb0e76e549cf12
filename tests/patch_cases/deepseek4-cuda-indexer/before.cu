static __global__ void lightning_indexer_kernel(int x) {
}

void ggml_cuda_lightning_indexer(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    run(ctx, dst);
}

bool ggml_cuda_lightning_indexer_supported(int device, const ggml_tensor * dst) {
    return true;
}
