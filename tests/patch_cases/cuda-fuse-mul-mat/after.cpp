static bool ggml_cuda_should_fuse_mul_mat_vec_f(const ggml_tensor * tensor) {
    return false;
}

static bool ggml_cuda_should_fuse_mul_mat_vec_q(const ggml_tensor * tensor) {
    // pyggmlq:begin cuda-fuse-mul-mat
    if (ggmlq_ggml_cuda_involved(tensor)) {
        return false;
    }
    // pyggmlq:end cuda-fuse-mul-mat
    return quantized(tensor->src[0]);
}
