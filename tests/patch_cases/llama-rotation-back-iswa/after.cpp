ggml_tensor * build_attn(
        llm_graph_input_attn_kv * inp,
        int il) {
    if (inp->self_v_rot) {
        v_cur = llama_mul_mat_hadamard(ctx0, v_cur, inp->self_v_rot);
    }

    ggml_tensor * cur = build_attn_mha(q, k, v, kq_b, kq_mask, sinks, v_mla, 0, kq_scale, il);

    if (inp->self_v_rot) {
        cur = llama_mul_mat_hadamard(ctx0, cur, inp->self_v_rot);
    }
}

ggml_tensor * build_attn(
        llm_graph_input_attn_kv_iswa * inp,
        int il) {
    if (v_rot) {
        cur = llama_mul_mat_hadamard(ctx0, cur, v_rot);
        // pyggmlq:begin llama-rotation-back-iswa
        ggmlq_llama_keeps_queries(cur);
        // pyggmlq:end llama-rotation-back-iswa
    }
}
