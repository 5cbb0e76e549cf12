    auto * k_rot = is_swa ? inp->self_k_rot_swa : inp->self_k_rot;
    auto * v_rot = is_swa ? inp->self_v_rot_swa : inp->self_v_rot;
    // pyggmlq:begin center-graph-attention-iswa
    if (!cparams.training) {
        const auto * ggmlq_mctx = is_swa ? inp->mctx->get_swa() : inp->mctx->get_base();
        ggmlq_llama_puts_ropes_together(gf, ggmlq_mctx->type_k(), q_cur, k_cur, v_cur);
        ggmlq_center.apply(ctx0, gf, [this](std::unique_ptr<llm_graph_input_i> input) { res->add_input(std::move(input)); },
            ggmlq_mctx->ggmlq_center(), ggmlq_mctx->ggmlq_k_storage(il), q_cur, k_cur, v_cur, is_swa ? inp->get_k_idxs_swa() : inp->get_k_idxs(), il);
    }

    // pyggmlq:end center-graph-attention-iswa
