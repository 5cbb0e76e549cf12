void other() {
    if (params.n_batch == 0 && params.n_ubatch == 0) {
    }
}
llama_context * llama_init_from_model(
                 llama_model * model) {
    if (params.n_batch == 0 && params.n_ubatch == 0) {
        return nullptr;
    }
    check(model->hparams.n_embd_head_k);
}
