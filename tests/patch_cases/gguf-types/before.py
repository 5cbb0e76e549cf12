class Other(IntEnum):
    F32 = 0


class GGMLQuantizationType(IntEnum):
    F32     = 0
    LAST    = 42
