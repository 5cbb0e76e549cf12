void llama_memory_recurrent::clear(bool data) {
    reset();
}
