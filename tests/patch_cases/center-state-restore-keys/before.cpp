void llama_kv_cache::state_write_data(llama_io_write_i & io, const cell_ranges_t & cr) const {
        const int32_t k_type_i = (int32_t) k->type;
}

bool llama_kv_cache::state_read_data(llama_io_read_i & io, uint32_t strm, uint32_t cell_count, const slot_info & sinfo) {
        io.read(&k_type_i_ref, sizeof(k_type_i_ref));
        const int32_t k_type_i = (int32_t) k->type;
        if (k_type_i != k_type_i_ref) {
            return false;
        }
}
