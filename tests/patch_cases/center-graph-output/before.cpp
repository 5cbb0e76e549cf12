ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {
        ggml_tensor * kqv = ggml_mul_mat(ctx0, v, kq);
        cb(kqv, "kqv", il);
}
