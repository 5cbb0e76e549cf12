    GGML_ASSERT(v_mla == nullptr);

    // pyggmlq:begin center-graph-attention
    if (!cparams.training) {
        ggmlq_llama_puts_ropes_together(gf, inp->mctx->type_k(), q_cur, k_cur, v_cur);
        ggmlq_center.apply(ctx0, gf, [this](std::unique_ptr<llm_graph_input_i> input) { res->add_input(std::move(input)); },
            inp->mctx->ggmlq_center(), inp->mctx->ggmlq_k_storage(il), q_cur, k_cur, v_cur, inp->get_k_idxs(), il);
    }

    // pyggmlq:end center-graph-attention
    if (inp->self_k_rot) {
        q_cur = llama_mul_mat_hadamard(ctx0, q_cur, inp->self_k_rot);
    }
