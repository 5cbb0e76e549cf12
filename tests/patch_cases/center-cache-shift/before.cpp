ggml_cgraph * llama_kv_cache::build_graph_shift(llm_graph_result * res, llama_context * lctx) const {
    }

    res->add_input(std::move(inp));

    return gf;
}
