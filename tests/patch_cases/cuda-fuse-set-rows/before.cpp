static bool ggml_cuda_can_fuse(const ggml_cgraph * cgraph, int i) {
    ggml_tensor * node = cgraph->nodes[i];
    return node->op == GGML_OP_ROPE;
}

static int ggml_cuda_try_fuse(ggml_backend_cuda_context * cuda_ctx, ggml_cgraph * cgraph, int i) {

    ggml_tensor * node = cgraph->nodes[i];

    return ggml_cuda_can_fuse(cgraph, i);
}
