static int ggml_metal_op_encode_impl(ggml_metal_op_t ctx, int idx) {
    switch (node->op) {
        case GGML_OP_NONE:
            return 1;
    }
    int n_fuse = 1;
    // pyggmlq:begin metal-encode
    if (ggmlq_ggml_metal_encode(ctx->dev, ctx->enc, node, ggml_metal_get_buffer_id,
            [ctx] { ggml_metal_op_concurrency_reset(ctx); }, [ctx, idx] { ggml_metal_op_flash_attn_ext(ctx, idx); })) {
        if (!ggml_metal_op_concurrency_add(ctx, node)) {
            ggml_metal_op_concurrency_reset(ctx);
        }
        return 1;
    }

    // pyggmlq:end metal-encode
    switch (node->op) {
        case GGML_OP_CONCAT:
            n_fuse = ggml_metal_op_concat(ctx, idx);
            break;
    }
    return n_fuse;
}
