# SPDX-License-Identifier: MIT
"""Rows to measure codecs on: made ones, or those of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import LabError, dump, require

f32 = np.float32


def random_normal(random: np.random.Generator, n_rows: int, width: int) -> np.ndarray:
    """Standard normal values: what a good rotation makes of any row."""
    return random.standard_normal((n_rows, width), dtype=np.float32)


def random_uniform(random: np.random.Generator, n_rows: int, width: int) -> np.ndarray:
    """Uniform over (-1, 1)."""
    return random.uniform(-1, 1, (n_rows, width)).astype(np.float32)


def sparse(random: np.random.Generator, n_rows: int, width: int) -> np.ndarray:
    """Nineteen of twenty values are zero, the others standard normal; no row is all zeros."""
    x = random_normal(random, n_rows, width) * (random.random((n_rows, width)) < 0.05)
    x[np.arange(n_rows), random.integers(0, width, n_rows)] = 1
    return x.astype(np.float32)


def outlier(random: np.random.Generator, n_rows: int, width: int) -> np.ndarray:
    """Standard normal, and one channel in 64 has a bias of 15 to 30, the same for all rows: keys of models with a K bias."""
    x = random_normal(random, n_rows, width)
    channels = random.choice(width, max(1, width // 64), replace=False)
    x[:, channels] += (random.uniform(15, 30, len(channels)) * random.choice([-1, 1], len(channels))).astype(np.float32)
    return x


def ds4_like(random: np.random.Generator, n_rows: int, width: int) -> np.ndarray:
    """Rows as a latent cache with FP8 values has them: an eighth of each row rotates with the position (RoPE pairs), the rest
    was rounded to E4M3."""
    n_rotary = width // 8 // 2 * 2
    values = round_to_e4m3(random_normal(random, n_rows, width - n_rotary))
    frequency = 10000.0 ** -(np.arange(n_rotary // 2) / max(n_rotary // 2, 1))
    pair = random.standard_normal((1, n_rotary // 2, 2)) + 0.3 * random.standard_normal((n_rows, n_rotary // 2, 2))
    angle = np.arange(n_rows)[:, None] * frequency
    turned = (pair[..., 0] + 1j * pair[..., 1]) * np.exp(1j * angle)
    rotary = np.stack([turned.real, turned.imag], axis=2).reshape(n_rows, n_rotary)
    return np.hstack([values, rotary]).astype(np.float32)


def round_to_e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest 8-bit float with 4 exponent and 3 fraction bits: four significant bits, steps of 2**-9 near zero, up to 448."""
    _, exponent = np.frexp(x)
    step = np.ldexp(f32(1), np.maximum(exponent, -5) - 4)
    return np.clip(np.rint(x / step) * step, -448, 448).astype(np.float32)


MADE: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    made.__name__: made for made in (random_normal, random_uniform, sparse, outlier, ds4_like)
}


FLOATS = ("F64", "F32", "F16", "BF16")
"""Of .safetensors files."""


def load(path: Path, n_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of a .npy or .safetensors file by name, float32 (n, width): the last axis of each array is a row.

    Of more than `n_rows` rows that many are taken, spread at random. Of a .safetensors file every tensor of `FLOATS`
    of two axes or more counts. `LabError` for a file that can't be read, one without rows, and rows with NaN or infinity.
    """
    random = np.random.default_rng(seed)
    return {name: _checked(path, name, array, n_rows, random) for name, array in _arrays(path).items()}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npy":
            return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
        if path.suffix == ".safetensors":
            tensors, _, start = dump.header(path)
            floats = {name: tensor for name, tensor in tensors.items() if tensor["dtype"] in FLOATS and len(tensor["shape"]) >= 2}
            if not floats:
                raise LabError(f"{path}: found no tensor of two axes or more of {', '.join(FLOATS)}")
            with require("safetensors").safe_open(path, framework="np") as file:
                return {name: _bf16(path, start, tensor) if tensor["dtype"] == "BF16" else file.get_tensor(name) for name, tensor in floats.items()}
    except LabError:
        raise
    except Exception as error:  # numpy and safetensors raise many kinds for damaged files
        raise LabError(f"{path} can't be read: {error}") from None
    raise LabError(f"{path}: found a file of another kind, wanted .npy or .safetensors")


def _bf16(path: Path, start: int, tensor: dict[str, Any]) -> np.ndarray:
    """A tensor of bfloat16, which numpy doesn't know, as float32: the same bits, and 16 more that are zero."""
    bits = np.memmap(path, "<u2", "r", start + tensor["data_offsets"][0], tuple(tensor["shape"]))
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _checked(path: Path, name: str, array: np.ndarray, n_rows: int, random: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f" or array.ndim < 2 or 0 in array.shape:
        raise LabError(f"{path}, {name}: found {array.dtype} of shape {array.shape}, wanted rows of floats, (.., n, width)")
    rows = array.reshape(-1, array.shape[-1])
    if len(rows) > n_rows:
        rows = rows[np.sort(random.choice(len(rows), n_rows, replace=False))]
    rows = np.ascontiguousarray(rows, np.float32)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise LabError(f"{path}, {name}: found NaN or infinity in {bad.size} of {len(rows)} rows, wanted finite values")
    return rows
