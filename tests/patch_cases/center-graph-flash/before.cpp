ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {
        ggml_flash_attn_ext_add_sinks(cur, sinks);
}
