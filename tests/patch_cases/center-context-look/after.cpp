void llama_context::sched_reserve() {
    resolve_fused_ops(mctx.get(), n_seqs);
    // pyggmlq:begin center-context-look
    if (ggmlq_center_start) {
        ggmlq_center_start->look(mctx.get());
    }
    // pyggmlq:end center-context-look

    // reserve worst-case graph
}
