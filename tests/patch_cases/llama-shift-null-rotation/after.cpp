ggml_tensor * llama_kv_cache::build_rope_shift(
        ggml_tensor * rot) const {
    if (quantized) {
        // pyggmlq:begin llama-shift-null-rotation
        if (rot) { tmp = llama_mul_mat_hadamard(ctx, tmp, rot); }
        // pyggmlq:end llama-shift-null-rotation

        // pyggmlq:begin llama-shift-null-rotation
        if (rot) { tmp = llama_mul_mat_hadamard(ctx, tmp, rot); }
        // pyggmlq:end llama-shift-null-rotation
    }
}
void elsewhere() {
        tmp = llama_mul_mat_hadamard(ctx, tmp, rot);
}
