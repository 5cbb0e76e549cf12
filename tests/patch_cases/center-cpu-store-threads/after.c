static int ggml_get_n_tasks(struct ggml_tensor * node, int n_threads) {
    switch (node->op) {
        case GGML_OP_GET_ROWS:
        case GGML_OP_SET_ROWS:
            {
                // pyggmlq:begin center-cpu-store-threads
                if (node->op == GGML_OP_SET_ROWS && node->src[GGMLQ_GGML_SET_ROWS_FEEDBACK]) {
                    n_tasks = n_threads;
                    break;
                }
                // pyggmlq:end center-cpu-store-threads
                n_tasks = 1;
            } break;
    }
}
