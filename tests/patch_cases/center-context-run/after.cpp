void llama_context::sched_reserve() {
    resolve_fused_ops(mctx.get(), n_seqs);
    // pyggmlq:begin center-context-run
    if (const auto start = std::move(ggmlq_center_start)) {
        start->run(mctx.get());
    }
    // pyggmlq:end center-context-run

    // reserve worst-case graph
}
