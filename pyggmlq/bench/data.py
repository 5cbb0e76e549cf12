# SPDX-License-Identifier: MIT
"""The numbers that are attended to: the same here and in ggml_bench.cpp, so that results can be compared."""
from __future__ import annotations

from functools import lru_cache

import numpy as np

from .. import api
from .._types import cache_types, type_info

PERIOD = 786432
"""Values after which the data repeat: whole blocks of every type. Only as many are encoded, which keeps set-up short."""

SEED_K, SEED_V, SEED_Q = 1, 2, 3


@lru_cache(maxsize=4)
def _period(seed: int) -> np.ndarray:
    index = np.arange(PERIOD, dtype=np.uint32) * np.uint32(4)
    total = np.zeros(PERIOD)
    for j in range(4):
        h = index + np.uint32((j + seed * 0x9E3779B9) & 0xFFFFFFFF)
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
        total += (h >> np.uint32(8)) / 16777216.0
    return ((total - 2.0) * 1.7320508075688772).astype(np.float32)


def values(n: int, seed: int) -> np.ndarray:
    """`n` float32 values, about standard normal."""
    return np.resize(_period(seed), n)


def encoded(type_name: str, n: int, seed: int) -> np.ndarray:
    """`values(n, seed)` as the bytes (f16: values) of a row of any of the types that attention reads."""
    info = type_info(type_name)
    first = _period(seed)[: min(n, PERIOD)]
    rows = _encode(type_name, first)
    return np.resize(rows, n // info.block_length * info.block_bytes // rows.itemsize)


def _encode(type_name: str, x: np.ndarray) -> np.ndarray:
    if type_name in [info.name for info in cache_types()]:
        return api.quantize(x, type=type_name)
    if type_name == "f16":
        return x.astype(np.float16)
    if type_name == "q8_0":
        return _encode_q8_0(x)
    raise ValueError(f"type_name: found {type_name!r}, wanted one of our types, f16 or q8_0")


def _encode_q8_0(x: np.ndarray) -> np.ndarray:
    """ggml's q8_0: blocks of 32, an f16 scale and 32 signed bytes."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    levels = np.rint(blocks / np.where(scale == 0, 1, scale)).astype(np.int8)
    return np.hstack([scale.astype(np.float16).view(np.uint8), levels.view(np.uint8)]).reshape(-1)
