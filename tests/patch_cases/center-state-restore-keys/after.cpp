void llama_kv_cache::state_write_data(llama_io_write_i & io, const cell_ranges_t & cr) const {
        const int32_t k_type_i = (int32_t) k->type;
}

bool llama_kv_cache::state_read_data(llama_io_read_i & io, uint32_t strm, uint32_t cell_count, const slot_info & sinfo) {
        io.read(&k_type_i_ref, sizeof(k_type_i_ref));
        // pyggmlq:begin center-state-restore-keys
        if (ggmlq_center->restore && ggmlq_center->restore->converts(k_type_i_ref, k)) {
            if (!ggmlq_center->restore->convert(io, k_type_i_ref, k, il, n_embd_k_gqa, sinfo.idxs[0], ggmlq_rotation_k(), &layer == &layers.front())) {
                return false;
            }
            continue;
        }
        // pyggmlq:end center-state-restore-keys
        const int32_t k_type_i = (int32_t) k->type;
        if (k_type_i != k_type_i_ref) {
            return false;
        }
}
