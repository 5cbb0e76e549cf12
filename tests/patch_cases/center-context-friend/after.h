struct llama_context {
    // pyggmlq:begin center-context-friend
    friend struct ggmlq_llama_center_access;
    std::shared_ptr<class ggmlq_llama_center_start> ggmlq_center_start;

    // pyggmlq:end center-context-friend
    // init
};
