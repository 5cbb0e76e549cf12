static const bool attn_rot_k = true;

bool llama_kv_cache::state_read_data(llama_io_read_i & io, const slot_info & sinfo) {
    for (const auto & layer : layers) {
        int32_t k_type_i_ref;
        if (k_type_i != k_type_i_ref) {
            return false;
        }
    }
}
