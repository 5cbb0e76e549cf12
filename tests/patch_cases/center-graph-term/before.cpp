ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {

    // split the batch into streams if needed
    const auto n_stream = k->ne[3];
}
