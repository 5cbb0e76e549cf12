        const size_t size = file.size() - file.tell();

        // pyggmlq:begin llama-state-session-file
        ggmlq_llama_require_string(file);
        const size_t n_read = ggmlq_llama_restore_file(file,
            [&](llama_io_read_i & io) { return state_read_data(io); },
            [&]() { if (memory) { memory->clear(true); } });
        // pyggmlq:end llama-state-session-file

        return n_read == size;
