ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {
        ggml_flash_attn_ext_add_sinks(cur, sinks);
        // pyggmlq:begin center-graph-flash
        ggmlq_llama_center_graph::add_to_flash(ctx0, cur, ggmlq_term);
        // pyggmlq:end center-graph-flash
}
