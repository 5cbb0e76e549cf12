static void ggml_compute_forward_flash_attn_ext_f16(int x) {
}

void ggml_compute_forward_flash_attn_ext(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
    run(params, dst);
}
