ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {
        ggml_tensor * kqv = ggml_mul_mat(ctx0, v, kq);
        // pyggmlq:begin center-graph-output
        kqv = ggmlq_llama_center_graph::add_to_output(ctx0, kqv, ggmlq_term);
        // pyggmlq:end center-graph-output
        cb(kqv, "kqv", il);
}
