ggml_tensor * llama_kv_cache::build_rope_shift(
        ggml_tensor * rot) const {
    if (quantized) {
        tmp = llama_mul_mat_hadamard(ctx, tmp, rot);

        tmp = llama_mul_mat_hadamard(ctx, tmp, rot);
    }
}
void elsewhere() {
        tmp = llama_mul_mat_hadamard(ctx, tmp, rot);
}
