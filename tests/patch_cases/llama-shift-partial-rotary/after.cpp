bool llama_kv_cache::get_can_shift() const {
    // pyggmlq:begin llama-shift-partial-rotary
    for (const auto & layer : layers) {
        if (layer.k && ggmlq_llama_is_cache_type(layer.k->type) && hparams.n_rot(layer.il) != hparams.n_embd_head_k(layer.il)) {
            return false;
        }
    }
    // pyggmlq:end llama-shift-partial-rotary
    return true;
}
