struct llm_graph_context {
    // pyggmlq:begin center-graph-member
    mutable ggmlq_llama_center_graph ggmlq_center;

    // pyggmlq:end center-graph-member
    const llm_arch arch;
};
