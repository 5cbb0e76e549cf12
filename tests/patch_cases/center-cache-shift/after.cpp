ggml_cgraph * llama_kv_cache::build_graph_shift(llm_graph_result * res, llama_context * lctx) const {
    }

    // pyggmlq:begin center-cache-shift
    for (const auto & rope : ggmlq_center->ropes) {
        if (rope.c) {
            ggml_tensor * c = ggml_view_3d(ctx, rope.c, rope.n_rot, 1, get_size()*n_stream, rope.c->nb[1], rope.c->nb[1], 0);
            ggml_build_forward_expand(gf, build_rope_shift(cparams, ctx, c, inp->k_shift, nullptr, model.get_rope_factors(cparams, rope.il),
                model.get_rope_freq_base(cparams, rope.il), model.get_rope_freq_scale(cparams, rope.il), rope.il));
        }
    }

    // pyggmlq:end center-cache-shift
    res->add_input(std::move(inp));

    return gf;
}
