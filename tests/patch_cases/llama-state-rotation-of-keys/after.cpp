// attn_rot_k
// pyggmlq:begin llama-state-rotation-of-keys
ggmlq_llama_rotation llama_kv_cache::ggmlq_rotation_k() const {
    ggmlq_llama_rotation rotation = { attn_rot_k, n_embd_head_k_all, hparams.n_embd_head_k(), true, hparams.is_mla(), hparams.n_embd_head_k_full == hparams.indexer_head_size };
    if (rotation.indexer) {
        if (model.arch_name() == "deepseek32" || model.arch_name() == "deepseek4") { // rotated whatever its type
            rotation.head_size_all = 0;
        }
    } else if (hparams.is_mla() && model.arch_name() != "deepseek4") { // V is part of K, and no graph but DeepSeek-V4's rotates such rows
        rotation.active        = false;
        rotation.head_size_all = 0;
    }
    return rotation;
}

// pyggmlq:end llama-state-rotation-of-keys
bool llama_kv_cache::state_read_data(llama_io_read_i & io, uint32_t strm, const slot_info & sinfo) {
    return true;
}
