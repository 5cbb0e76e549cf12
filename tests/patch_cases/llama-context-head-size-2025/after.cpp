void other() {
    if (params.n_batch == 0 && params.n_ubatch == 0) {
    }
}
llama_context * llama_init_from_model(
                 llama_model * model) {
    // pyggmlq:begin llama-context-head-size-2025
    if (!ggmlq_llama_fits("K", params.type_k, model->hparams.n_embd_head_k, 0) ||
        !ggmlq_llama_fits("V", params.type_v, model->hparams.n_embd_head_v, 0)) {
        return nullptr;
    }
    ggmlq_llama_warn_if_unrotated(params.type_k, false);

    // pyggmlq:end llama-context-head-size-2025
    if (params.n_batch == 0 && params.n_ubatch == 0) {
        return nullptr;
    }
    check(model->hparams.n_embd_head_k);
}
