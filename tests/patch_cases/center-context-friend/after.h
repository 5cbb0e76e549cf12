struct llama_context {
    // pyggmlq:begin center-context-friend
    friend struct ggmlq_llama_center_access;

    // pyggmlq:end center-context-friend
    // init
};
