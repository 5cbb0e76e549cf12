    uint32_t n_stream_cur;
    io.read(&n_stream_cur, sizeof(n_stream_cur));
    // pyggmlq:begin center-state-restore
    size_t ggmlq_n_values = 0;
    for (const auto & layer : layers) {
        ggmlq_n_values += hparams.n_embd_k_gqa(layer.il);
    }
    ggmlq_llama_center_restore ggmlq_restore(*ggmlq_center, io, n_stream_cur, layers.size(), ggmlq_n_values, v_cells, seq_id,
        flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE);
    // pyggmlq:end center-state-restore
    if (n_stream_cur != n_stream) {
        throw std::runtime_error("n_stream mismatch");
    }
