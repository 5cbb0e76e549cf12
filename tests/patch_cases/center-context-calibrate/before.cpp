llama_context * llama_init_from_model(
                 llama_model * model) {
    try {
        auto * ctx = new llama_context(*model, params);

        return ctx;
    } catch (...) {
    }
}
