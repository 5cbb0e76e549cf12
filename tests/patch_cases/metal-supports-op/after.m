bool ggml_metal_device_supports_op(ggml_metal_device_t dev, const struct ggml_tensor * op) {
    // pyggmlq:begin metal-supports-op
    if (ggmlq_ggml_metal_involved(op)) {
        return ggmlq_ggml_metal_supports_op(dev, op);
    }
    // pyggmlq:end metal-supports-op
    const bool has_simdgroup_mm = dev->props.has_simdgroup_mm;
    return has_simdgroup_mm;
}
