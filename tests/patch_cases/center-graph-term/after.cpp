ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {

    // pyggmlq:begin center-graph-term
    const auto ggmlq_term = ggmlq_center.take(ctx0, k, kq_scale);

    // pyggmlq:end center-graph-term
    // split the batch into streams if needed
    const auto n_stream = k->ne[3];
}
