void set_input() {
    if (inp_attn->self_k_rot) {
        k_cur = set_input_k_rot(inp_attn->self_k_rot);
    }
}

ggml_tensor * build_attn() {
    if (inp->self_k_rot) {
        q_cur = llama_mul_mat_hadamard(ctx0, q_cur, inp->self_k_rot);
        // pyggmlq:begin llama-rotations-together
        ggmlq_llama_puts_rotations_together(gf, inp->mctx->type_k(), q_cur, k_cur, v_cur);
        // pyggmlq:end llama-rotations-together
        k_cur = llama_mul_mat_hadamard(ctx0, k_cur, inp->self_k_rot);
    }
}
