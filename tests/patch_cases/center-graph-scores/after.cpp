ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {
        ggml_tensor * kq = ggml_mul_mat(ctx0, k, q);
        // pyggmlq:begin center-graph-scores
        kq = ggmlq_center.add_to_scores(ctx0, kq, ggmlq_term);
        // pyggmlq:end center-graph-scores
}
