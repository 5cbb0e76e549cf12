static bool ggml_cuda_can_fuse(const ggml_cgraph * cgraph, int i) {
    ggml_tensor * node = cgraph->nodes[i];
    return node->op == GGML_OP_ROPE;
}

static int ggml_cuda_try_fuse(ggml_backend_cuda_context * cuda_ctx, ggml_cgraph * cgraph, int i) {

    ggml_tensor * node = cgraph->nodes[i];
    // pyggmlq:begin cuda-fuse-set-rows
    if (cuda_ctx->stream_context().concurrent_events.empty()) {
        const int ggmlq_fused = ggmlq_ggml_cuda_fuse(*cuda_ctx, cgraph, i, ggml_cuda_flash_attn_ext_supported);
        if (ggmlq_fused != 0) {
            return ggmlq_fused;
        }
    }
    // pyggmlq:end cuda-fuse-set-rows

    return ggml_cuda_can_fuse(cgraph, i);
}
