    GGML_API struct ggml_tensor * ggml_flash_attn_ext(struct ggml_context * ctx);

    // n_kv_max bounds the finite entries of a mask row
    GGML_API void ggml_flash_attn_ext_set_n_kv_max(
            struct ggml_tensor * a,
            int32_t              n_kv_max);

    GGML_API void ggml_other(struct ggml_tensor * a);
