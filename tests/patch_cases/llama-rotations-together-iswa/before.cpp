ggml_tensor * build_attn(
        llm_graph_input_attn_kv_iswa * inp,
        int il) {
    auto * k_rot = is_swa ? inp->self_k_rot_swa : inp->self_k_rot;

    if (k_rot) {
        q_cur = ggml_mul_mat_aux(ctx0, q_cur, k_rot);
        if (k_cur) {
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
