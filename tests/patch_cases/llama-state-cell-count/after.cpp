        // attn_rot_k
        const uint32_t strm = seq_id == -1 ? s : seq_to_stream[seq_id];
        // pyggmlq:begin llama-state-cell-count
        ggmlq_llama_require_cells(cell_count, v_cells[strm].size());
        // pyggmlq:end llama-state-cell-count

        slot_info sinfo;
