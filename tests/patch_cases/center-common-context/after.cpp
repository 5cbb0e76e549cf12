struct llama_context_params common_context_params_to_llama(const common_params & params) {
    auto cparams = llama_context_default_params();

    cparams.type_k = params.cache_type_k;
    cparams.type_v = params.cache_type_v;
    // pyggmlq:begin center-common-context
    if (!params.ggmlq_kv_center.empty()) {
        common_set_env("GGMLQ_KV_CENTER", params.ggmlq_kv_center);
    }
    // pyggmlq:end center-common-context

    return cparams;
}
