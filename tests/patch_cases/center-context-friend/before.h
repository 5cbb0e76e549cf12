struct llama_context {
    // init
};
