static const bool attn_rot_v = true;

bool llama_kv_cache::state_read_data(llama_io_read_i & io, const slot_info & sinfo) {
    for (const auto & layer : layers) {
            if (v_type_i != v_type_i_ref) {
                return false;
            }
    }
    for (const auto & layer : layers) {
                if (v_type_i != v_type_i_ref) {
                    return false;
                }
    }
}
