void llama_memory_recurrent::state_read(llama_io_read_i & io) {
    uint32_t cell_count;
    io.read(&cell_count, sizeof(cell_count));
}
