llama_context * llama_init_from_model(
        llama_model * model,
        llama_context_params params) {
    if (params.n_batch == 0 && params.n_ubatch == 0) {
        return nullptr;
    }

    // pyggmlq:begin deepseek4-indexer-size
    if (model->hparams.indexer_head_size > 0 && !ggmlq_llama_fits("indexer", params.type_k, model->hparams.indexer_head_size, 0)) {
        return nullptr;
    }

    // pyggmlq:end deepseek4-indexer-size
    if (params.n_ctx == 0 && model->hparams.n_ctx_train == 0) {
        return nullptr;
    }
    return make(model, params);
}
