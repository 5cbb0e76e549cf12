ggml_tensor * llm_graph_context::build_attn(
        llm_graph_input_attn_k * inp,
        ggml_tensor * q_cur) const {
    // these nodes are added to the graph together so that they are not reordered
    ggml_build_forward_expand(gf, q_cur);
}
ggml_tensor * llm_graph_context::build_attn(
        llm_graph_input_attn_k_dsa * inp,
        ggml_tensor * q_cur) const {
    // pyggmlq:begin center-graph-latent-selected
    if (!cparams.training) {
        const auto * ggmlq_mctx = inp->mctx->get_mla();
        ggmlq_center.apply_latent(ctx0, gf, ggmlq_mctx->ggmlq_center(), ggmlq_mctx->ggmlq_k_storage(il), q_cur, k_cur, v_cur, !sinks && !hparams.attn_soft_cap, il);
    }

    // pyggmlq:end center-graph-latent-selected
    // these nodes are added to the graph together so that they are not reordered
    ggml_build_forward_expand(gf, q_cur);
}
