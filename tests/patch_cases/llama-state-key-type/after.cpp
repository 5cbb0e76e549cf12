static const bool attn_rot_k = true;

bool llama_kv_cache::state_read_data(llama_io_read_i & io, const slot_info & sinfo) {
    for (const auto & layer : layers) {
        int32_t k_type_i_ref;
        // pyggmlq:begin llama-state-key-type
        if (k_type_i != k_type_i_ref && ggmlq_llama_convert_rows(io, "K", k_type_i_ref, k, n_embd_k_gqa, sinfo.idxs[0], 0,
                { attn_rot_k, n_embd_head_k_all, hparams.n_embd_head_k(), true, hparams.is_mla(), hparams.n_embd_head_k_full == hparams.indexer_head_size }, &layer == &layers.front())) {
            continue;
        }
        // pyggmlq:end llama-state-key-type
        if (k_type_i != k_type_i_ref) {
            return false;
        }
    }
}
