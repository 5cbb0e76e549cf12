class Other(IntEnum):
    F32 = 0


class GGMLQuantizationType(IntEnum):
    # pyggmlq:begin gguf-types
    TQ3_0 = 90
    PLANAR3 = 91
    # pyggmlq:end gguf-types
    F32     = 0
    LAST    = 42
