# SPDX-License-Identifier: MIT
"""Centered keys (docs/CENTERING.md) in saved states: csrc/ggml/llama-ggmlq-center-state.cpp writes what is read here."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from .center import pairs

MARK, VERSION = 0x63716767, 1


class Damaged(ValueError):
    """The bytes are no calibration; the message is a part of a sentence."""


@dataclass(frozen=True, eq=False)
class Layer:
    """mean and scale: float32 (KV heads, head size)."""

    index: int
    rope: int
    mean: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, eq=False)
class Centering:
    """How the keys of one cache are centered; ropes: n_rot and neox of each."""

    rotates: bool
    ropes: tuple[tuple[int, bool], ...]
    layers: tuple[Layer, ...]

    def cell_bytes(self) -> int:
        """What a state holds of each cell: c of every RoPE in f16, and a byte for every layer."""
        return 2 * sum(n_rot for n_rot, _ in self.ropes) + len(self.layers)

    def before(self, x: np.ndarray, at: int, cells: list[np.ndarray], first_cell: int) -> np.ndarray:
        """Keys of layers[at] as stored (decoded, not rotated), float32 (cells, values), from `first_cell` on, -> the keys as they were;
        cells: as `of_cells` gives them."""
        known, end = self.layers[at], first_cell + len(x)
        c, part = cells[known.rope][first_cell:end], cells[len(self.ropes) + at][first_cell:end]
        n_rot, neox = self.ropes[known.rope]
        first, second = pairs(n_rot, neox)
        x = x.reshape(len(x), *known.mean.shape) / known.scale
        m0, m1, c0, c1 = known.mean[:, first], known.mean[:, second], c[:, None, first], c[:, None, second]
        part = part.astype(bool)[:, None, None]
        x[..., first] += np.where(part, m0 * c0 - m1 * c1, 0)
        x[..., second] += np.where(part, m0 * c1 + m1 * c0, 0)
        return x.reshape(len(x), -1)

    def of_cells(self, data: bytes, n_cells: int) -> list[np.ndarray]:
        """What a state holds of the cells of a stream: float32 (cells, n_rot) for every RoPE, then uint8 (cells,) for every layer."""
        found, at = [], 0
        for n_rot, _ in self.ropes:
            found.append(np.frombuffer(data, "<f2", n_cells * n_rot, at).reshape(n_cells, n_rot).astype(np.float32))
            at += 2 * n_cells * n_rot
        for _ in self.layers:
            found.append(np.frombuffer(data, np.uint8, n_cells, at))
            at += n_cells
        return found


def checksum(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def parse(data: bytes, rotates: bool) -> Centering:
    """A calibration as a state has it. Damaged if it can't be one."""
    at = 0

    def numbers(n: int) -> tuple[int, ...]:
        nonlocal at
        at += 4 * n
        if at > len(data):
            raise Damaged("that ends too early")
        return struct.unpack_from(f"<{n}I", data, at - 4 * n)

    def values(shape: tuple[int, int]) -> np.ndarray:
        nonlocal at
        at += 4 * shape[0] * shape[1]
        if at > len(data):
            raise Damaged("that ends too early")
        return np.frombuffer(data, "<f4", shape[0] * shape[1], at - 4 * shape[0] * shape[1]).reshape(shape)

    (n_ropes,) = numbers(1)
    ropes = [numbers(2) for _ in range(min(n_ropes, len(data)))]
    if any(n_rot % 2 or neox > 1 for n_rot, neox in ropes):
        raise Damaged("with a RoPE of no pairs")
    (n_layers,) = numbers(1)
    layers: list[Layer] = []
    for _ in range(min(n_layers, len(data))):
        index, rope, head_size, n_heads = numbers(4)
        if rope >= len(ropes) or not 0 < ropes[rope][0] <= head_size:
            raise Damaged(f"with an unknown RoPE in layer {index}")
        layers.append(Layer(index, rope, values((n_heads, head_size)), values((n_heads, head_size))))
        values((n_heads, head_size))  # mean squares of queries
        if not (np.isfinite(layers[-1].mean).all() and np.isfinite(layers[-1].scale).all() and (layers[-1].scale > 0).all()):
            raise Damaged(f"with impossible values in layer {index}")
    if at != len(data):
        raise Damaged(f"of {len(data)} bytes where {at} are used")
    return Centering(rotates, tuple((n_rot, bool(neox)) for n_rot, neox in ropes), tuple(sorted(layers, key=lambda layer: layer.index)))
