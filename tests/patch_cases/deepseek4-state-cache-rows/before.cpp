static void dsv4_state_read_k_cache(
        llama_io_read_i  & io,
        llama_kv_cache   * kv) {
    for (uint32_t il : layer_ids) {
        dsv4_state_read_tensor_streams(io, kv->get_k_storage(il), kv_size, n_rows_ref, s0, ns);
    }
}
