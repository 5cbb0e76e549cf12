void other() {
    if (params.n_batch == 0 && params.n_ubatch == 0) {
    }
}
llama_context * llama_init_from_model(
                 llama_model * model) {
    // pyggmlq:begin llama-context-head-size
    for (uint32_t il = 0; il < model->hparams.n_layer(); ++il) {
        if (!ggmlq_llama_fits("K", params.type_k, model->hparams.n_embd_head_k(il), il) ||
            !ggmlq_llama_fits("V", params.type_v, model->hparams.n_embd_head_v(il), il)) {
            return nullptr;
        }
    }

    // pyggmlq:end llama-context-head-size
    if (params.n_batch == 0 && params.n_ubatch == 0) {
        return nullptr;
    }
    check(model->hparams.n_embd_head_k(il));
}
