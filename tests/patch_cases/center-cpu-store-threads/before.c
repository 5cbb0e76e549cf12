static int ggml_get_n_tasks(struct ggml_tensor * node, int n_threads) {
    switch (node->op) {
        case GGML_OP_GET_ROWS:
        case GGML_OP_SET_ROWS:
            {
                n_tasks = 1;
            } break;
    }
}
