void llama_memory_recurrent::state_read(llama_io_read_i & io) {
    // pyggmlq:begin llama-state-recurrent-undo
    if (ggmlq_llama_restoring()) {
        ggmlq_llama_on_failure([this, cells = cells, head = head, used = used, n = n, rs_z = rs_z, rs_idx = rs_idx]() {
            this->cells  = cells;
            this->head   = head;
            this->used   = used;
            this->n      = n;
            this->rs_z   = rs_z;
            this->rs_idx = rs_idx;
        });
    }
    // pyggmlq:end llama-state-recurrent-undo
    uint32_t cell_count;
    io.read(&cell_count, sizeof(cell_count));
}
