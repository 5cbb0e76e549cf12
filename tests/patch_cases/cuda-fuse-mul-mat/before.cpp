static bool ggml_cuda_should_fuse_mul_mat_vec_f(const ggml_tensor * tensor) {
    return false;
}

static bool ggml_cuda_should_fuse_mul_mat_vec_q(const ggml_tensor * tensor) {
    return quantized(tensor->src[0]);
}
