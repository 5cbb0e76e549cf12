static void dsv4_state_read_tensor_streams(
        llama_io_read_i & io,
        ggml_tensor     * tensor) {
    if (type_i != type_i_ref || ne0 != ne0_ref) {
        // pyggmlq:begin deepseek4-state-type
        if (ggmlq_cache && type_i != type_i_ref && ne0 == ne0_ref && rows == rows_ref && n_rows <= tensor_rows &&
                ggmlq_llama_convert_compressed_rows(io, type_i_ref, row_size_ref, tensor, tensor_rows, n_rows, s0, ns, ggmlq_cache->ggmlq_rotation_k(),
                    tensor == ggmlq_cache->get_k_storage(ggmlq_cache->get_layer_ids().front()))) {
            return;
        }
        // pyggmlq:end deepseek4-state-type
        throw std::runtime_error("DSV4 state tensor metadata mismatch");
    }
}
