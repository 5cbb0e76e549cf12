# SPDX-License-Identifier: MIT
"""Centered keys (docs/CENTERING.md) in saved states: csrc/ggml/llama-ggmlq-center-state.cpp writes what is read here."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from .center import cos_sin, pairs

MARK, VERSION = 0x63716767, 2
NO_ROPE = 0xFFFFFFFF  # of a layer: rows of MLA


class Unknown(ValueError):
    """Of a kind that isn't read here; the message is a part of a sentence."""


class Damaged(ValueError):
    """The bytes are no calibration; the message is a part of a sentence."""


@dataclass(frozen=True, eq=False)
class Rope:
    """turns: uint64 (pairs,), none of a RoPE that no centered layer has; magnitude: what it multiplies all values by."""

    neox: bool
    magnitude: float
    turns: np.ndarray


@dataclass(frozen=True, eq=False)
class Layer:
    """mean and scale: float32 (KV heads, head size)."""

    index: int
    rope: int
    mean: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, eq=False)
class Centering:
    """How the keys of one cache are centered."""

    rotates: bool
    ropes: tuple[Rope, ...]
    layers: tuple[Layer, ...]

    def cell_bytes(self) -> int:
        """What a state holds of each cell: a byte for every layer, whether its key is centered."""
        return len(self.layers)

    def before(self, x: np.ndarray, at: int, positions: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Keys of layers[at] as stored (decoded, not rotated), float32 (cells, values), -> the keys as they were; positions, int32 (cells,), and
        part, uint8 (cells,), of these cells."""
        known = self.layers[at]
        rope = self.ropes[known.rope]
        first, second = pairs(2 * len(rope.turns), rope.neox)
        cos, sin = (rope.magnitude * y[:, None].astype(np.float32) for y in cos_sin(rope.turns, positions))
        x = x.reshape(len(x), *known.mean.shape) / known.scale
        m0, m1, centered = known.mean[:, first], known.mean[:, second], part.astype(bool)[:, None, None]
        x[..., first] += np.where(centered, m0 * cos - m1 * sin, 0)
        x[..., second] += np.where(centered, m0 * sin + m1 * cos, 0)
        return x.reshape(len(x), -1)


def checksum(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def parse(data: bytes, rotates: bool) -> Centering:
    """A calibration as a state has it. Damaged if it can't be one, Unknown if it is one of MLA."""
    at = 0

    def numbers(n: int) -> tuple[int, ...]:
        nonlocal at
        at += 4 * n
        if at > len(data):
            raise Damaged("that ends too early")
        return struct.unpack_from(f"<{n}I", data, at - 4 * n)

    def values(kind: str, *shape: int) -> np.ndarray:
        nonlocal at
        start, n = at, math.prod(shape)
        at += np.dtype(kind).itemsize * n
        if at > len(data):
            raise Damaged("that ends too early")
        return np.frombuffer(data, kind, n, start).reshape(shape)

    (n_ropes,) = numbers(1)
    ropes: list[Rope] = []
    for _ in range(min(n_ropes, len(data))):
        n_rot, neox = numbers(2)
        ropes.append(Rope(bool(neox), float(values("<f4", 1)[0]), values("<u8", n_rot // 2)))
        if n_rot % 2 or neox > 1 or not (np.isfinite(ropes[-1].magnitude) and ropes[-1].magnitude > 0):
            raise Damaged(f"with a RoPE of {n_rot} values")
    (n_layers,) = numbers(1)
    layers: list[Layer] = []
    for _ in range(min(n_layers, len(data))):
        index, rope, head_size, n_heads = numbers(4)
        if rope == NO_ROPE:
            raise Unknown(f"of rows without values (MLA) in layer {index}")
        if rope >= len(ropes) or not 0 < 2 * len(ropes[rope].turns) <= head_size:
            raise Damaged(f"with an unknown RoPE in layer {index}")
        layers.append(Layer(index, rope, values("<f4", n_heads, head_size), values("<f4", n_heads, head_size)))
        values("<f4", n_heads, head_size)  # mean squares of queries
        if not (np.isfinite(layers[-1].mean).all() and np.isfinite(layers[-1].scale).all() and (layers[-1].scale > 0).all()):
            raise Damaged(f"with impossible values in layer {index}")
    if at != len(data):
        raise Damaged(f"of {len(data)} bytes where {at} are used")
    return Centering(rotates, tuple(ropes), tuple(sorted(layers, key=lambda layer: layer.index)))
