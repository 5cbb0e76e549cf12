        // pyggmlq:begin llama-state-sequence-file
        const size_t nread = ggmlq_llama_restore_file(file,
            [&](llama_io_read_i & io) { return state_seq_read_data(io, seq_id, 0); },
            [&]() { if (memory) { memory->seq_rm(seq_id, -1, -1); } });
        // pyggmlq:end llama-state-sequence-file
        if (!nread) {
            return 0;
        }
