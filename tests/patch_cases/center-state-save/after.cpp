void llama_kv_cache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    // pyggmlq:begin center-state-save
    ggmlq_llama_center_write(*ggmlq_center, io);
    // pyggmlq:end center-state-save
    io.write(&n_stream, sizeof(n_stream));

    for (uint32_t s = 0; s < n_stream; ++s) {
    }
}
