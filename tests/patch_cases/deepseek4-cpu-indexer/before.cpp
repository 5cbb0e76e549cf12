static void ggml_compute_forward_lightning_indexer_f32(int x) {
}

void ggml_compute_forward_lightning_indexer(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
    run(params, dst);
}
