int ggml_metal_op_concat(ggml_metal_op_t ctx, int idx) {
    ggml_tensor * op = ctx->node(idx);
    return 1;
}

int ggml_metal_op_flash_attn_ext(ggml_metal_op_t ctx, int idx) {
    ggml_tensor * op = ctx->node(idx);
    // pyggmlq:begin metal-attention-f16
    ggmlq_ggml_metal_stand_in ggmlq_stand_in;
    op = ggmlq_ggml_metal_in_place_of(op, &ggmlq_stand_in);
    // pyggmlq:end metal-attention-f16

    ggml_metal_library_t lib = ctx->lib;
    return 1;
}
