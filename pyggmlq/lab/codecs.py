# SPDX-License-Identifier: MIT
"""The codecs that `pyggmlq eval` compares: ours, ggml's, and numpy references of published methods.

The references are written from the papers' and projects' descriptions, to be read; none of them packs bits. All share one
form: a row is divided by its norm (kept as fp16), rotated, and each value rounded to a codebook for the Gaussian.

- TurboQuant (arXiv 2504.19874): a dense random rotation; with QJL one bit of each value goes to the sign of a random
  projection of what is left, which makes dot products unbiased. `wht`: a signed Walsh-Hadamard transform instead.
- RotorQuant: rotors of Cl(3,0) turn three values each. IsoQuant (arXiv 2603.28430): quaternions turn four, by two factors or
  (`fast`) by one. PlanarQuant: Givens rotations of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .. import _hadamard, api, reference
from .._pairs import bits_per_value, block_size
from .._types import cache_types
from . import require

f32 = np.float32
SEED = 42


@dataclass(frozen=True)
class Codec:
    """A way to store rows, float32 (n_rows, width).

    `parameters` and `multiply_adds` are of the rotation of one row; additions of a Walsh-Hadamard transform count as one
    multiply-add each, and codebooks and scales are left out.
    """

    name: str
    round_trip: Callable[[np.ndarray], np.ndarray]
    """Rows -> the rows as they come back, same shape and dtype."""
    bits: Callable[[int], float]
    """Width -> bits that a value takes, scales included."""
    parameters: Callable[[int], int] = lambda width: 0
    multiply_adds: Callable[[int], int] = lambda width: 0
    multiple_of: int = 1
    """Widths that it can take."""
    for_queries: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """As `round_trip`, for keys that queries of a known second moment, (width, width), meet; None if it makes no difference."""
    centered: bool = False
    """Keys are centered before (`pyggmlq.center`); rows that are no keys go through `round_trip` as they are."""


# Rotations: one orthonormal map per width ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rotation:
    """`apply(x)` and `undo(y)` on float32 (n_rows, width)."""

    apply: Callable[[np.ndarray], np.ndarray]
    undo: Callable[[np.ndarray], np.ndarray]
    parameters: Callable[[int], int]
    multiply_adds: Callable[[int], int]


@lru_cache(maxsize=8)
def dense(width: int) -> np.ndarray:
    """A random orthogonal matrix, uniform over all of them: the Q of a Gaussian matrix, its signs settled by R."""
    q, r = np.linalg.qr(np.random.default_rng(SEED).standard_normal((width, width)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def hadamard(x: np.ndarray) -> np.ndarray:
    """The orthonormal Walsh-Hadamard transform of each row, in blocks of the largest power of two that divides its width."""
    return _hadamard.hadamard(x, _hadamard.largest_block(x.shape[1]))


def _signs(width: int) -> np.ndarray:
    return np.random.default_rng(SEED).choice(np.array([-1, 1], np.float32), width)


def _turn(x: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Each group of a row times its matrix (n_groups, size, size); what is left over at the end of a row stays as it is."""
    size = matrices.shape[1]
    n = len(matrices) * size
    turned = np.einsum("gij,rgj->rgi", matrices, x[:, :n].reshape(len(x), -1, size), optimize=True).reshape(len(x), n)
    return np.concatenate([turned, x[:, n:]], axis=1).astype(np.float32)


def _unit_quaternions(n: int, seed: int) -> np.ndarray:
    q = np.random.default_rng(seed).standard_normal((n, 4))
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def _left(q: np.ndarray) -> np.ndarray:
    """The matrices of v -> q v on (w, x, y, z)."""
    w, x, y, z = q.T
    return np.stack([w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w], axis=1).reshape(-1, 4, 4)


def _right(q: np.ndarray) -> np.ndarray:
    """The matrices of v -> v q."""
    w, x, y, z = q.T
    return np.stack([w, -x, -y, -z, x, w, z, -y, y, -z, w, x, z, y, -x, w], axis=1).reshape(-1, 4, 4)


@lru_cache(maxsize=None)
def quaternion_pairs(n: int) -> np.ndarray:
    """v -> a v b for random unit quaternions a, b: all rotations of four dimensions."""
    return (_left(_unit_quaternions(n, SEED)) @ _right(_unit_quaternions(n, SEED + 1))).astype(np.float32)


@lru_cache(maxsize=None)
def quaternions(n: int) -> np.ndarray:
    """v -> a v."""
    return _left(_unit_quaternions(n, SEED)).astype(np.float32)


@lru_cache(maxsize=None)
def rotors(n: int) -> np.ndarray:
    """v -> R v R~ for a random rotor (a scalar and three bivectors, which multiply as a quaternion does), on (x, y, z)."""
    q = _unit_quaternions(n, SEED)
    conjugate = q * np.array([1, -1, -1, -1])
    return (_left(q) @ _right(conjugate))[:, 1:, 1:].astype(np.float32)


@lru_cache(maxsize=None)
def givens(n: int) -> np.ndarray:
    """Rotations of pairs by random angles."""
    angle = np.random.default_rng(SEED).uniform(0, 2 * np.pi, n)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c, -s, s, c], axis=1).reshape(-1, 2, 2).astype(np.float32)


def _blocks(matrices: Callable[[int], np.ndarray], size: int, parameters: int, multiply_adds: int) -> Rotation:
    """`parameters` and `multiply_adds` of a group."""
    return Rotation(
        lambda x: _turn(x, matrices(x.shape[1] // size)),
        lambda y: _turn(y, matrices(y.shape[1] // size).transpose(0, 2, 1)),
        lambda width: width // size * parameters,
        lambda width: width // size * multiply_adds,
    )


ROTATIONS = {
    "turboquant": Rotation(lambda x: x @ dense(x.shape[1]).T, lambda y: y @ dense(y.shape[1]), lambda n: n * n, lambda n: n * n),
    "turboquant-wht": Rotation(
        lambda x: hadamard(x * _signs(x.shape[1])), lambda y: hadamard(y) * _signs(y.shape[1]),
        lambda n: n, lambda n: n * int(math.log2(_hadamard.largest_block(n))),
    ),
    "rotorquant": _blocks(rotors, 3, 4, 56),  # two products of a rotor and a multivector, 28 each, as its authors count
    "isoquant": _blocks(quaternion_pairs, 4, 8, 32),
    "isoquant-fast": _blocks(quaternions, 4, 4, 16),
    "planarquant": _blocks(givens, 2, 2, 4),
}  # fmt: skip


# Codebooks -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def gaussian_codebook(bits: int) -> np.ndarray:
    """The 2**bits levels with the least mean squared error for the unit Gaussian (Lloyd and Max), ascending, float32."""
    n = 2**bits
    levels = np.linspace(-2.5, 2.5, n)
    cdf = np.vectorize(lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2))))
    for _ in range(2000):
        edges = np.concatenate([[-40.0], (levels[1:] + levels[:-1]) / 2, [40.0]])
        density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
        before, levels = levels, (density[:-1] - density[1:]) / np.diff(cdf(edges))  # each level the mean of its cell
        if np.abs(levels - before).max() < 1e-9:
            break
    return levels.astype(np.float32)


def _nearest(y: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, y)]


def _norms(x: np.ndarray) -> np.ndarray:
    """Of each row, as fp16 keeps it; 1 for a row of zeros, whose values stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    kept = norms.astype(np.float16).astype(np.float32)
    return np.where(kept > 0, kept, f32(1))


def _scalar(rotation: Rotation, bits: int) -> Callable[[np.ndarray], np.ndarray]:
    def round_trip(x: np.ndarray) -> np.ndarray:
        unit = f32(math.sqrt(x.shape[1]))  # a rotated row of norm 1 has values of variance 1/width
        norms = _norms(x)
        y = _nearest(rotation.apply(x / norms) * unit, gaussian_codebook(bits)) / unit
        return np.where(x.any(axis=1, keepdims=True), rotation.undo(y) * norms, f32(0))

    return round_trip


@lru_cache(maxsize=8)
def _projection(width: int) -> np.ndarray:
    return np.random.default_rng(SEED + 2).standard_normal((width, width)).astype(np.float32)


def _with_sketch(rotation: Rotation, bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """One bit less for the values; the sign of a Gaussian projection of the residual, and the residual's norm, beside them."""
    plain = _scalar(rotation, bits - 1)

    def round_trip(x: np.ndarray) -> np.ndarray:
        y = plain(x)
        residual, s = x - y, _projection(x.shape[1])
        norms = np.linalg.norm(residual, axis=1, keepdims=True).astype(np.float16).astype(np.float32)
        signs = np.where(residual @ s.T >= 0, f32(1), f32(-1))
        return y + f32(math.sqrt(math.pi / 2) / x.shape[1]) * norms * (signs @ s)

    return round_trip


# ggml's types --------------------------------------------------------------------------------------------------------


def _ggml(name: str) -> Callable[[np.ndarray], np.ndarray]:
    def round_trip(x: np.ndarray) -> np.ndarray:
        gguf = require("gguf")
        quants = require("gguf.quants")
        kind = gguf.GGMLQuantizationType[name.upper()]
        encoded = encode_iq4_nl(x) if name == "iq4_nl" else quants.quantize(x, kind)
        return quants.dequantize(encoded, kind)

    return round_trip


def encode_iq4_nl(x: np.ndarray) -> np.ndarray:
    """float32 (n_rows, width) -> iq4_nl, uint8 (n_rows, width / 32 * 18). The package gguf only decodes this type.

    As llama.cpp fills a cache: the value of largest magnitude goes to the level -127, then the scale is fitted once, values
    weighted by their squares.
    """
    quants = require("gguf.quants")
    levels = np.array(quants.IQ4_NL.kvalues, np.float32)
    blocks = x.reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    inverse = np.divide(levels[0], extreme, out=np.zeros_like(extreme), where=extreme != 0)
    index = np.searchsorted((levels[1:] + levels[:-1]) / 2, blocks * inverse).astype(np.uint8)
    level, weight = levels[index], blocks * blocks
    below = (weight * level * level).sum(axis=1)
    scale = np.divide((weight * level * blocks).sum(axis=1), below, out=np.zeros_like(below), where=below > 0)
    packed = index[:, :16] | index[:, 16:] << 4
    return np.hstack([scale.astype("<f2").view(np.uint8).reshape(-1, 2), packed]).reshape(len(x), -1)


# Other encoders of tq3_0's format -------------------------------------------------------------------------------------


def _fitted(y: np.ndarray, factors: Sequence[float], n_fits: int) -> tuple[np.ndarray, np.ndarray]:
    """(steps, levels) of rotated blocks, the best of several beginnings: `factors` are steps to begin with, in units of the
    block's rms; levels and step are then fitted to each other `n_fits` times."""
    rms = np.sqrt((y * y).mean(axis=1))
    steps, levels, least = np.zeros(len(y), np.float32), np.zeros_like(y), np.full(len(y), np.inf, np.float32)
    for factor in factors:
        step = f32(factor) * rms / reference.LEVEL_SIGMA
        level = reference.LEVELS[reference.assign_levels(y, step)]
        for _ in range(n_fits):
            step = (y * level).sum(axis=1) / (level * level).sum(axis=1)
            level = reference.LEVELS[reference.assign_levels(y, step)]
        step = (step * 64).astype(np.float16).astype(np.float32) / 64
        error = ((y - step[:, None] * level) ** 2).sum(axis=1)
        steps, levels = np.where(error < least, step, steps), np.where((error < least)[:, None], level, levels)
        least = np.minimum(error, least)
    return steps, levels


def _tq3_0_encoder(factors: Sequence[float], n_fits: int) -> Callable[[np.ndarray], np.ndarray]:
    def round_trip(x: np.ndarray) -> np.ndarray:
        codec = reference.TQ3_0
        steps, levels = _fitted(codec.rotate_blocks(x.reshape(-1, 32)), factors, n_fits)
        return codec.unrotate_blocks(steps[:, None] * levels).reshape(x.shape)

    return round_trip


def tq3_0_for_queries(x: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Rows float32 (n_rows, width) as they come back from tq3_0 if they were rounded so that their products with queries of the
    second moment `moment`, (width, width), change little, rather than the values themselves.

    The values of a block are rounded one after the other, and what rounding one does to the products is taken up by those
    that follow, as GPTQ (arXiv 2210.17323) does it for weights. The format and its decoder stay what they are.
    """
    codec, out = reference.TQ3_0, np.empty_like(x)
    turn = codec.rotate_blocks(np.eye(32, dtype=np.float32)).T.astype(np.float64)
    for at in range(0, x.shape[1], 32):
        here = turn @ moment[at : at + 32, at : at + 32] @ turn.T
        here += (0.1 * np.trace(here) / 32 + 1e-30) * np.eye(32)  # queries of another text look elsewhere, too
        order = np.argsort(-np.diag(here))
        take_up = np.linalg.cholesky(np.linalg.inv(here[np.ix_(order, order)])).T
        y = codec.rotate_blocks(np.ascontiguousarray(x[:, at : at + 32]))
        steps, _ = _fitted(y, (0.8, 1.0, 1.2), 3)
        left, rounded = y[:, order].astype(np.float64), np.empty_like(y)
        for i in range(32):
            rounded[:, order[i]] = steps * reference.LEVELS[reference.assign_levels(left[:, i : i + 1].astype(np.float32), steps)][:, 0]
            error = (left[:, i] - rounded[:, order[i]]) / take_up[i, i]
            left[:, i + 1 :] -= error[:, None] * take_up[i, i + 1 :]
        out[:, at : at + 32] = codec.unrotate_blocks(rounded)
    return out


def _encoders() -> list[Codec]:
    """`rms`: a step from the block's rms, as quick as can be; `search`: 41 steps to begin with, near the best there is for squared
    error; `queries`: rounded for the queries of the model, which `eval` knows from a dump (elsewhere: for any query)."""
    ours = _ours("tq3_0")
    variants = {"rms": _tq3_0_encoder((1.0,), 0), "search": _tq3_0_encoder([float(f) for f in np.linspace(0.5, 1.5, 41)], 3)}
    found = [replace(ours, name=f"tq3_0:{name}", round_trip=round_trip) for name, round_trip in variants.items()]
    for_any = replace(ours, name="tq3_0:queries", round_trip=lambda x: tq3_0_for_queries(x, np.eye(x.shape[1])), for_queries=tq3_0_for_queries)
    return [*found, for_any]


# The list ------------------------------------------------------------------------------------------------------------


def _ours(name: str) -> Codec:
    rotations = {"tq3_0": (lambda n: 32, lambda n: 6 * n), "planar3": (lambda n: 128, lambda n: 2 * n)}
    parameters, multiply_adds = rotations[name]  # 32 signs, then 5 stages and a product; 64 cosines and sines
    return Codec(name, lambda x: api.dequantize(api.quantize(x, type=name), type=name), _block_bits(name), parameters,
                 multiply_adds, block_size(name)[0])  # fmt: skip


def _block_bits(name: str) -> Callable[[int], float]:
    return lambda width: bits_per_value(name)


def _published(name: str, rotation: Rotation, bits: int) -> Codec:
    return Codec(name, _scalar(rotation, bits), lambda n: bits + 16 / n, rotation.parameters, rotation.multiply_adds)


def _sketched(name: str, rotation: Rotation, bits: int) -> Codec:
    return Codec(name, _with_sketch(rotation, bits), lambda n: bits + 32 / n,
                 lambda n: rotation.parameters(n) + n * n, lambda n: rotation.multiply_adds(n) + n * n)  # fmt: skip


def _after_hadamard(codec: Codec) -> Codec:
    def for_queries(x: np.ndarray, moment: np.ndarray) -> np.ndarray:
        turned = hadamard(hadamard(moment.astype(np.float32)).T)
        return hadamard(codec.for_queries(hadamard(x), turned))

    return Codec(
        f"h+{codec.name}", lambda x: hadamard(codec.round_trip(hadamard(x))), codec.bits, codec.parameters,
        lambda n: codec.multiply_adds(n) + n * int(math.log2(_hadamard.largest_block(n))), codec.multiple_of,
        for_queries if codec.for_queries else None,
    )  # fmt: skip


def all_codecs() -> list[Codec]:
    """Ours, ggml's, and each published method with 2, 3 and 4 bits; `h+` means that a Hadamard transform of the row comes
    first, as llama.cpp's `attn_rot` does it for every quantized cache; `c+`, before that, that keys of a dump are centered."""
    blocks = [_ours(info.name) for info in cache_types()]
    for name in ("q8_0", "q5_0", "q4_0", "iq4_nl"):
        blocks.append(Codec(name, _ggml(name), _block_bits(name), multiple_of=block_size(name)[0]))
    methods = []
    for bits in (2, 3, 4):
        for name, rotation in ROTATIONS.items():
            methods.append(_published(f"{name}-{bits}", rotation, bits))
            if name.startswith("turboquant"):
                methods.append(_sketched(f"{name}-qjl-{bits}", rotation, bits))
    mixed = [codec for codec in methods if not codec.name.startswith("turboquant")]
    centered = [replace(codec, name=f"c+{codec.name}", centered=True) for plain in blocks for codec in (plain, _after_hadamard(plain))]
    blocks += _encoders()
    return blocks + [_after_hadamard(codec) for codec in blocks] + centered + methods + [_after_hadamard(codec) for codec in mixed]
