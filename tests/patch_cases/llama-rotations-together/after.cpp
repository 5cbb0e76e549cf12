void set_input() {
    if (inp_attn->self_k_rot) {
        k_cur = set_input_k_rot(inp_attn->self_k_rot);
    }
}

ggml_tensor * build_attn() {
    if (inp->self_k_rot) {
        q_cur = llama_mul_mat_hadamard(ctx0, q_cur, inp->self_k_rot);
        // pyggmlq:begin llama-rotations-together
        if (ggmlq_llama_joins_attn_rot(inp->mctx->type_k())) {
            ggml_build_forward_expand(gf, v_cur);
            ggml_build_forward_expand(gf, k_cur);
        }
        // pyggmlq:end llama-rotations-together
        k_cur = llama_mul_mat_hadamard(ctx0, k_cur, inp->self_k_rot);
    }
}
