static void ggml_compute_forward_flash_attn_ext_f16(int x) {
}

void ggml_compute_forward_flash_attn_ext(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
    // pyggmlq:begin cpu-flash-attn
    if ((!params->use_ref || dst->src[GGMLQ_GGML_ATTEND_TURNS]) && ggmlq_ggml_cpu_flash_attn_ext(params, dst)) {
        return;
    }
    // pyggmlq:end cpu-flash-attn
    run(params, dst);
}
