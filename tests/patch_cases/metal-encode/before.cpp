static int ggml_metal_op_encode_impl(ggml_metal_op_t ctx, int idx) {
    switch (node->op) {
        case GGML_OP_NONE:
            return 1;
    }
    int n_fuse = 1;
    switch (node->op) {
        case GGML_OP_CONCAT:
            n_fuse = ggml_metal_op_concat(ctx, idx);
            break;
    }
    return n_fuse;
}
