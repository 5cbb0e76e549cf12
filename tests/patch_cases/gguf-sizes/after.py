GGML_QUANT_SIZES: dict[GGMLQuantizationType, tuple[int, int]] = {
    # pyggmlq:begin gguf-sizes
    GGMLQuantizationType.TQ3_0: (32, 14),
    GGMLQuantizationType.PLANAR3: (128, 50),
    # pyggmlq:end gguf-sizes
    GGMLQuantizationType.F32: (1, 4),
}
