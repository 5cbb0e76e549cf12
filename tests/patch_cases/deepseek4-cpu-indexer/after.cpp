static void ggml_compute_forward_lightning_indexer_f32(int x) {
}

void ggml_compute_forward_lightning_indexer(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
    // pyggmlq:begin deepseek4-cpu-indexer
    if (!params->use_ref && ggmlq_ggml_cpu_lightning_indexer(params, dst)) {
        return;
    }
    // pyggmlq:end deepseek4-cpu-indexer
    run(params, dst);
}
