bool ggml_metal_device_supports_op(ggml_metal_device_t dev, const struct ggml_tensor * op) {
    const bool has_simdgroup_mm = dev->props.has_simdgroup_mm;
    return has_simdgroup_mm;
}
