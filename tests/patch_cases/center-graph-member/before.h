struct llm_graph_context {
    const llm_arch arch;
};
