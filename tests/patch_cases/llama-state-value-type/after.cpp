static const bool attn_rot_v = true;

bool llama_kv_cache::state_read_data(llama_io_read_i & io, const slot_info & sinfo) {
    for (const auto & layer : layers) {
            // pyggmlq:begin llama-state-value-type
            if (v_type_i != v_type_i_ref && ggmlq_llama_convert_rows(io, "V", v_type_i_ref, v, n_embd_v_gqa, sinfo.idxs[0], v_trans ? cells.size() : 0,
                    { attn_rot_v, n_embd_head_v_all, hparams.n_embd_head_v(), false, false, false }, &layer == &layers.front())) {
                continue;
            }
            // pyggmlq:end llama-state-value-type
            if (v_type_i != v_type_i_ref) {
                return false;
            }
    }
    for (const auto & layer : layers) {
                // pyggmlq:begin llama-state-value-type
                if (v_type_i != v_type_i_ref && ggmlq_llama_convert_rows(io, "V", v_type_i_ref, v, n_embd_v_gqa, sinfo.idxs[0], v_trans ? cells.size() : 0,
                        { attn_rot_v, n_embd_head_v_all, hparams.n_embd_head_v(), false, false, false }, &layer == &layers.front())) {
                    continue;
                }
                // pyggmlq:end llama-state-value-type
                if (v_type_i != v_type_i_ref) {
                    return false;
                }
    }
}
