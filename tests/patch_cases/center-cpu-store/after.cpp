void ggml_compute_forward_set_rows(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
    // pyggmlq:begin center-cpu-store
    if (ggmlq_ggml_cpu_set_rows(params, dst)) {
        return;
    }
    // pyggmlq:end center-cpu-store

    switch (src0->type) {
    }
}
