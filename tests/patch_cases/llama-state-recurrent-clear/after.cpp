void llama_memory_recurrent::clear(bool data) {
    // pyggmlq:begin llama-state-recurrent-clear
    if (data && ggmlq_llama_postpone([this]() {
            for (auto & [_, buf] : ctxs_bufs) {
                ggml_backend_buffer_clear(buf.get(), 0);
            }
        })) {
        data = false;
    }
    // pyggmlq:end llama-state-recurrent-clear
    reset();
}
