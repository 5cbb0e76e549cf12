# SPDX-License-Identifier: MIT
"""Positional centering of keys, in numpy: the reference of what docs/CENTERING.md describes and csrc/ggml/llama-ggmlq-center.cpp does.

RoPE turns pairs of values: `neox=False` pairs neighbours (0, 1), (2, 3), ...; `neox=True` pairs i with i + n_rot/2. Values from n_rot on
are not turned. The angles come as `cos` and `sin`, (tokens, n_rot/2), and may hold anything that scales a pair as a whole: frequency
factors, YaRN's interpolation, its magnitude. Everything is computed in float64 and returned so.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import reference
from ._hadamard import hadamard as hadamard_transform

# As in csrc/ggml/llama-ggmlq-center.cpp.
FIRST = 4  # tokens of a text that have no part in its mean
FLOOR = 1e-3  # of the mean, under the moments of a pair
SCALES = (0.1, 10.0)
GAIN = {"tq3_0": 1.024, "planar3": 1.032}
"""Rows come back from least-squares rounding shorter by their squared error over their square, on average. The cache stores centered keys, and
the values beside them, longer by so much: scores and sums over many tokens average random errors, but not this one, common to all."""


@dataclass(frozen=True)
class Calibration:
    """What is fixed before the first key is stored, for one layer.

    mean   float64 (kv_heads, head_size): of the keys before RoPE; 0 where there is no RoPE
    scale  float64 (kv_heads, head_size): positive, the same for both values of a pair
    n_rot, neox: the RoPE
    """

    mean: np.ndarray
    scale: np.ndarray
    n_rot: int
    neox: bool


class Term(NamedTuple):
    """What attention adds to the products of queries and centered keys (`term=` of pyggmlq.flash_attn): part * <w, cosines and sines of the position>.

    w          float32 ([n_seqs,] n_heads, n_queries, 2*pairs): as `query` gives it, times RoPE's magnitude
    turns      uint64 (pairs,): how far a pair turns from one position to the next, as `turns` gives it
    positions  int32 ([n_seqs_kv,] n_kv): of the cached tokens, in any order; negative ones turn back
    neox       how pairs lie in w, as above
    part       float16 ([n_seqs_kv,] n_kv): a factor of each token's term, 0 where its key isn't centered; None: 1

    Arrays may be in device memory where q may.
    """

    w: Any
    turns: Any
    positions: Any
    neox: bool = False
    part: Any = None


def turns(frequencies):
    """Radians per position, (pairs,), that is base**(-2i/n_rot) and what scales it -> uint64 (pairs,): the fraction of a full turn in units of 2^-64.
    ValueError if one isn't finite."""
    frequencies = np.asarray(frequencies, np.float64)
    if frequencies.ndim != 1 or not np.isfinite(frequencies).all():
        raise ValueError(f"frequencies are {frequencies.shape}, wanted finite numbers (pairs,)")
    return np.array([round(turn * 2.0**64) % 2**64 for turn in (frequencies / (2 * np.pi)).tolist()], np.uint64)


def cos_sin(turns, positions):
    """float64 (..., tokens, pairs) twice: cosines and sines of positions, integers (..., tokens), by turns as `turns` gives them."""
    rows = reference.positional_rows(np.asarray(turns, np.uint64), positions, True)
    return rows[..., : len(turns)], rows[..., len(turns) :]


def pairs(n_rot, neox):
    """Two index arrays (n_rot/2,): the first and the second value of every pair. ValueError unless n_rot is even and positive."""
    if n_rot < 2 or n_rot % 2:
        raise ValueError(f"n_rot is {n_rot}, wanted a positive even number")
    half = np.arange(n_rot // 2)
    return (half, half + n_rot // 2) if neox else (2 * half, 2 * half + 1)


def rope(x, cos, sin, neox):
    """(..., tokens, head_size) before RoPE -> the same after it. ValueError if cos and sin don't fit."""
    x = np.array(x, np.float64)
    cos, sin = _angles(cos, sin)
    if cos.shape[0] != x.shape[-2] or 2 * cos.shape[1] > x.shape[-1]:
        raise ValueError(f"cos and sin are {cos.shape}, x is {x.shape}: wanted (tokens, n_rot/2) of its tokens, n_rot at most the head size")
    first, second = pairs(2 * cos.shape[1], neox)
    a, b = x[..., first], x[..., second]
    x[..., first], x[..., second] = a * cos - b * sin, a * sin + b * cos
    return x


def fit(keys, queries, n_rot, neox, rounded=False):
    """Calibration from a text's keys before RoPE, (kv_heads, tokens, head_size), and queries, (heads, tokens, head_size), before or after
    RoPE, which keeps what is used of them. The first FIRST tokens, unlike all others in many models, are left out.

    If the error of a stored key is spread evenly over its head, that of a logit goes with sum(q^2/s^2) * sum(s^2 * variance), which is
    least for s^4 = q^2/variance. `rounded`: for keys that go through `round_for_queries`, s^8 = q^2/variance^3, halfway to s^2 = 1/variance, which
    would be best if rounding could move all errors to where queries are small. ValueError for shapes that don't belong together, or fewer than FIRST + 2 tokens.
    """
    keys, queries = np.asarray(keys, np.float64), np.asarray(queries, np.float64)
    if keys.ndim != 3 or queries.ndim != 3 or keys.shape[1:] != queries.shape[1:] or queries.shape[0] % keys.shape[0]:
        raise ValueError(f"keys are {keys.shape}, queries {queries.shape}: wanted (kv_heads, tokens, head_size), heads a multiple of kv_heads")
    n_kv, n_tokens, head_size = keys.shape
    if n_tokens < FIRST + 2 or n_rot > head_size:
        raise ValueError(f"found {n_tokens} tokens of {head_size} values, wanted at least {FIRST + 2} of at least n_rot = {n_rot}")
    keys, queries = keys[:, FIRST:], queries[:, FIRST:]
    first, second = pairs(n_rot, neox)

    mean = np.zeros((n_kv, head_size))
    mean[:, :n_rot] = keys[..., :n_rot].mean(1)

    def per_pair(moment):
        moment = moment.copy()
        moment[:, first] = moment[:, second] = (moment[:, first] + moment[:, second]) / 2
        return moment + FLOOR * moment.mean(1, keepdims=True)

    variance = per_pair(((keys - mean[:, None]) ** 2).mean(1))
    energy = per_pair((queries.reshape(n_kv, -1, head_size) ** 2).mean(1))
    scale = np.ones_like(mean)
    known = (variance.mean(1) > 0) & (energy.mean(1) > 0)
    of_query = 1 / 8 if rounded else 1 / 4
    log = of_query * np.log(energy[known]) - (1 / 2 - of_query) * np.log(variance[known])
    scale[known] = np.clip(np.exp(log - log.mean(1, keepdims=True)), *SCALES)
    return Calibration(mean, scale, n_rot, neox)


def shorter(calibration, keys):
    """bool (tokens,): whose keys before RoPE, (kv_heads, tokens, head_size), are shorter as stored, over all heads, without the mean. The others,
    in many models a few that all later tokens attend to, are stored with it. ValueError for a shape that isn't the calibration's."""
    keys = np.asarray(keys, np.float64)
    if keys.ndim != 3 or (keys.shape[0], keys.shape[2]) != calibration.mean.shape:
        raise ValueError(f"keys are {keys.shape}, wanted (kv_heads, tokens, head_size) with {calibration.mean.shape} heads and values")
    along = calibration.scale * calibration.mean
    return np.einsum("htd,hd->t", calibration.scale[:, None] * keys, along) > (along**2).sum() / 2


def center(calibration, keys, cos, sin, centered=None):
    """Keys after RoPE, (kv_heads, tokens, head_size), -> what is stored, S (k - R mean). `centered`, bool (tokens,), as `shorter` gives it: False
    keeps a token's key as it is, but for S; None: all are centered. The cache takes the shorter way, S R (key before RoPE - mean), which is the same."""
    keys = np.asarray(keys, np.float64)
    mean = np.broadcast_to(calibration.mean[:, None], keys.shape)
    mean = mean * _mask(centered, keys.shape[1])[:, None]
    return calibration.scale[:, None] * (keys - rope(mean, cos, sin, calibration.neox))


def row(cos, sin, neox, centered=None):
    """c, (tokens, n_rot): the RoPE of the pairs (1, 0), that is cos and sin of a token's position, where x has the values of a pair. One row per
    token for all layers and heads of the same RoPE. Zeros for a token that isn't centered: the cache keeps that apart, a number per layer."""
    cos, sin = _angles(cos, sin)
    first, _ = pairs(2 * cos.shape[1], neox)
    one = np.zeros((cos.shape[0], 2 * cos.shape[1]))
    one[:, first] = 1
    return rope(one, cos, sin, neox) * _mask(centered, cos.shape[0])[:, None]


def query(calibration, queries):
    """Queries after RoPE, (heads, tokens, head_size), -> (S^-1 q, w), w being (heads, tokens, n_rot): per pair (q0 m0 + q1 m1, q1 m0 - q0 m1).
    Then q . k = (S^-1 q) . center(k) + w . row, up to rounding."""
    queries = np.asarray(queries, np.float64)
    n_kv = calibration.mean.shape[0]
    if queries.ndim != 3 or queries.shape[0] % n_kv or queries.shape[2] != calibration.mean.shape[1]:
        raise ValueError(f"queries are {queries.shape}, wanted (heads, tokens, {calibration.mean.shape[1]}), heads a multiple of {n_kv}")
    group = queries.shape[0] // n_kv
    mean = np.repeat(calibration.mean, group, 0)[:, None]
    first, second = pairs(calibration.n_rot, calibration.neox)
    q0, q1, m0, m1 = queries[..., first], queries[..., second], mean[..., first], mean[..., second]
    w = np.empty(queries.shape[:2] + (calibration.n_rot,))
    w[..., first], w[..., second] = q0 * m0 + q1 * m1, q1 * m0 - q0 * m1
    return queries / np.repeat(calibration.scale, group, 0)[:, None], w


def round_for_queries(rows, square, name, hadamard):
    """float32 (n, head_size), the stored keys of one head before llama.cpp's rotation, which turns blocks of `hadamard` values (0: none) -> the same
    rounded to the levels of cache type `name`, so that their products with queries change little, rather than the values themselves.
    `square`, (head_size,): mean squares of those queries' values. ValueError for a head that isn't a whole number of blocks.

    The values are rounded one after the other, and what rounding one does to the products is taken up by those that follow, as GPTQ
    (arXiv 2210.17323) does it for weights. llama-ggmlq-round.h does the same.
    """
    rows, square = np.asarray(rows, np.float32), np.asarray(square, np.float64)
    codec = {"tq3_0": reference.TQ3_0, "planar3": reference.Planar3}[name]
    length = codec.block_length
    if rows.ndim != 2 or rows.shape[1] % length or square.shape != rows.shape[1:]:
        raise ValueError(f"rows are {rows.shape}, square is {square.shape}: wanted (n, head_size) and (head_size,), head_size a multiple of {length}")

    def turned(x, turn):
        return turn(np.ascontiguousarray(x).reshape(-1, length)).reshape(x.shape)

    def spread(x):
        return hadamard_transform(x, hadamard) if hadamard else x

    turn = turned(spread(np.eye(rows.shape[1], dtype=np.float32)), codec.rotate_blocks).astype(np.float64)  # row k: what value k becomes
    moment = turn.T @ (square[:, None] * turn)
    moment += (0.1 * square.mean() + 1e-30) * np.eye(len(turn))  # queries of other texts look elsewhere, too
    take_up = np.linalg.cholesky(np.linalg.inv(moment)).T
    left = turned(spread(rows), codec.rotate_blocks).astype(np.float64)
    rounded = np.empty_like(left)
    for i in range(rows.shape[1]):
        if i % length == 0:
            _, step = reference.search_levels(left[:, i : i + length].astype(np.float32))
            step = (step * codec.scale_unit).astype(np.float16).astype(np.float32) / codec.scale_unit
        rounded[:, i] = step * reference.LEVELS[reference.assign_levels(left[:, i : i + 1].astype(np.float32), step)][:, 0]
        left[:, i + 1 :] -= ((left[:, i] - rounded[:, i]) / take_up[i, i])[:, None] * take_up[i, i + 1 :]
    return spread(turned(rounded.astype(np.float32), codec.unrotate_blocks))


def _angles(cos, sin):
    cos, sin = np.asarray(cos, np.float64), np.asarray(sin, np.float64)
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[1] == 0:
        raise ValueError(f"cos is {cos.shape}, sin {sin.shape}: wanted both (tokens, n_rot/2)")
    return cos, sin


def _mask(centered, n_tokens):
    if centered is None:
        return np.ones(n_tokens)
    centered = np.asarray(centered)
    if centered.shape != (n_tokens,) or centered.dtype != bool:
        raise ValueError(f"centered is {centered.dtype} {centered.shape}, wanted bool ({n_tokens},)")
    return centered.astype(np.float64)
