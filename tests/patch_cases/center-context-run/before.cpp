void llama_context::sched_reserve() {
    resolve_fused_ops(mctx.get(), n_seqs);

    // reserve worst-case graph
}
