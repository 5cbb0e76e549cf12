// attn_rot_k
void llama_kv_cache::clear(bool data) {
    // pyggmlq:begin llama-state-cache-clear
    if (data && ggmlq_llama_postpone([this]() {
            for (auto & [_, buf] : ctxs_bufs) {
                ggml_backend_buffer_clear(buf.get(), 0);
            }
        })) {
        data = false;
    }
    // pyggmlq:end llama-state-cache-clear
    reset();
}
