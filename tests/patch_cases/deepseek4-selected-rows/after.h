    GGML_API struct ggml_tensor * ggml_flash_attn_ext(struct ggml_context * ctx);

    // n_kv_max bounds the finite entries of a mask row
    GGML_API void ggml_flash_attn_ext_set_n_kv_max(
            struct ggml_tensor * a,
            int32_t              n_kv_max);
// pyggmlq:begin deepseek4-selected-rows
#define GGMLQ_GGML_N_KV_MAX_AT 4 // in op_params, as int32_t
// pyggmlq:end deepseek4-selected-rows

    GGML_API void ggml_other(struct ggml_tensor * a);
