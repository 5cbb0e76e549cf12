# SPDX-License-Identifier: MIT
"""The rotation that llama.cpp gives quantized caches (attn_rot)."""

from __future__ import annotations

import numpy as np


def hadamard(x: np.ndarray, size: int) -> np.ndarray:
    """The orthonormal Walsh-Hadamard transform of every `size` values, a power of two, in natural order: its own inverse.

    float32 (n_rows, width), `size` divides width -> the same shape.
    """
    half = 1
    while half < size:
        pairs = x.reshape(-1, 2, half)
        x = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(x.shape)
        half *= 2
    return x * (np.float32(1) / np.sqrt(np.float32(size)))


def largest_block(width: int) -> int:
    """The largest power of two that divides `width`."""
    return width & -width
