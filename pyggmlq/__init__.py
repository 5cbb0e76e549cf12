# SPDX-License-Identifier: MIT
"""3-bit KV-cache types, tq3_0 and planar3: a codec for numpy arrays, and a patch engine that adds the same code to a
llama.cpp tree. Formats: docs/FORMAT.md."""
from __future__ import annotations

from ._cuda_array import CudaArray
from ._sources import version as _version
from .api import (
    Backend,
    CpuLevel,
    TypeInfo,
    backends,
    cpu_level,
    cpu_levels,
    dequantize,
    flash_attn,
    get_rows,
    mul_mat_vec,
    quantize,
    rotate,
    set_rows,
    types,
    unrotate,
    vec_dot,
)

__version__ = _version()
__all__ = [
    "Backend",
    "CpuLevel",
    "CudaArray",
    "TypeInfo",
    "backends",
    "cpu_level",
    "cpu_levels",
    "dequantize",
    "flash_attn",
    "get_rows",
    "mul_mat_vec",
    "quantize",
    "rotate",
    "set_rows",
    "types",
    "unrotate",
    "vec_dot",
]
