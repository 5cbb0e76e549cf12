ggml_tensor * llm_graph_context::build_attn_mha(
         ggml_tensor * q) const {
        ggml_prec_set_acc(cur, GGML_PREC_F32);

        if (v_mla) {
#if 0
            cur = ggml_mul_mat(ctx0, v_mla, cur);
#endif
        }
        if (v_mla) {
            kqv = ggml_mul_mat(ctx0, v_mla, kqv);
        }
}
