llama_context * llama_init_from_model(
                 llama_model * model) {
    try {
        auto * ctx = new llama_context(*model, params);

        // pyggmlq:begin center-context-calibrate
        if (const auto ggmlq_center_start = std::move(ctx->ggmlq_center_start)) {
            std::unique_ptr<llama_context> owner(ctx);
            ggmlq_center_start->finish();
            owner.release();
        }

        // pyggmlq:end center-context-calibrate
        return ctx;
    } catch (...) {
    }
}
