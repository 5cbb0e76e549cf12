llama_context * llama_init_from_model(
                 llama_model * model) {
    try {
        auto * ctx = new llama_context(*model, params);

        // pyggmlq:begin center-context-calibrate
        if (!params.ctx_other) { // whose cache it would share, and whose calibration
            ggmlq_llama_center_calibrate(ctx, params.type_k);
        }

        // pyggmlq:end center-context-calibrate
        return ctx;
    } catch (...) {
    }
}
