ggml_tensor * build_attn(
        llm_graph_input_attn_kv_iswa * inp,
        int il) {
    auto * k_rot = is_swa ? inp->self_k_rot_swa : inp->self_k_rot;

    if (k_rot) {
        q_cur = ggml_mul_mat_aux(ctx0, q_cur, k_rot);
        if (k_cur) {
            // pyggmlq:begin llama-rotations-together-iswa
            if (v_cur) {
                ggmlq_llama_puts_rotations_together(gf, (is_swa ? inp->mctx->get_swa() : inp->mctx->get_base())->type_k(), q_cur, k_cur, v_cur);
            }
            // pyggmlq:end llama-rotations-together-iswa
            k_cur = ggml_mul_mat_aux(ctx0, k_cur, k_rot);
        }
    }
}

ggml_tensor * build_attn(
        llm_graph_input_attn_k_iswa * inp,
        int il) {
    if (k_rot) {
        if (k_cur) {
            k_cur = ggml_mul_mat_aux(ctx0, k_cur, k_rot);
        }
    }
}
