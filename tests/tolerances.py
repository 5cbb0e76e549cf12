# SPDX-License-Identifier: MIT
"""Every tolerance of the codec tests, with its derivation. What isn't here is compared bit for bit.

U is the unit roundoff of float32: one rounded operation has a relative error of at most U.
"""
from __future__ import annotations

import numpy as np

U = 2.0**-24

# Relative MSE and mean cosine on 20,000 rows of 512 standard normal values: docs/FORMAT.md, last table.
QUALITY = {"tq3_0": (0.0262, 0.9866), "planar3": (0.0322, 0.9836)}

# ||unrotate(rotate(x)) - x|| / ||x||. tq3_0: five butterfly stages, each an orthogonal map times sqrt(2) that rounds
# every output once (U), the product (U) and the rounded constant (U): 7 U a direction. planar3: two products, a sum and
# two rounded table entries, at most 4 U sqrt(2) a direction. Twice that, rounded up.
ROTATION = 16 * U


def dot(terms: np.ndarray) -> np.ndarray:
    """vec_dot against the same integer products: each term has two roundings and passes at most n_terms sums, which a
    back end may fuse or not. terms: (..., n_terms)."""
    return (terms.shape[-1] + 2) * U * np.abs(terms).sum(axis=-1)


def query_rounding(d: np.ndarray, rotated_row: np.ndarray) -> np.ndarray:
    """|<row, query rounded to 8 bits> - <row, query>|: every value of the query moves by at most d/2, plus what its own
    rotation and the float sum round. d: (..., n_blocks), rotated_row: (..., n_blocks, block_length)."""
    step = np.abs(rotated_row).sum(axis=-1) * d
    return (step * (0.5 + 127 * 2 * ROTATION)).sum(axis=-1)


def least_squares(norm: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """|<x, decoded> - <decoded, decoded>|: the fp16 scale is off by at most 2^-11 of itself, both rotations by ROTATION, and
    the sums of the encoder, 128/8 + 3 additions and a product each, by 20 U, twice."""
    return 2.0**-11 * (1 + 2.0**-10) * stored**2 + (2 * ROTATION + 40 * U) * norm * stored


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, bias: float, n_terms: int, more: float = 0.0) -> float:
    """Norm of the error of one output row of float32 attention against float64.

    A score is a sum of head_size products: its error is at most (head_size + 8) U times the sum of their magnitudes
    (8: scale, softcap, exponent), plus 16 U of the largest mask value, whose slope is a power. A score that is off by e
    moves its weight, and the sum of the weights, by a factor within exp(-e)..exp(e). The sums over n_terms tokens add
    2 n_terms U, the un-rotation ROTATION. more: by which a score may be off besides. q: (n_queries, n), k: (n_kv, n), v: (n_kv, m).
    """
    head_size = q.shape[1]
    magnitude = np.abs(scale) * (np.abs(q) @ np.abs(k).T).max(initial=0)
    e = (head_size + 8) * U * magnitude + 16 * U * bias + more
    return (2 * e + 2 * n_terms * U + ROTATION) * np.linalg.norm(v, axis=1).max(initial=0)


# A CUDA encoder may put a value within float rounding of a boundary into either cell (docs/FORMAT.md). Ours names every rounding and adds in
# the order of the format, so no block is expected to differ; this many of a million may.
ENCODER_TIES = 10

HALF = 2.0**-11  # unit roundoff of a half


def query_rounding_variance(kernel, type_k, q):
    """Variance of what a CUDA attention kernel adds to each value of a query by rounding it, taken as uniform. `plain` keeps floats.
    `decode` rounds to halves for f16 keys, else to 8 bits: steps of a 127th of the largest of a block, 2^-14 wider at most."""
    if kernel == "plain":
        return np.zeros_like(q)
    if type_k == "f16":
        return (HALF * q) ** 2 / 3
    blocks = q.reshape(len(q), -1, 128 if type_k == "planar3" else 32)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127 * (1 + 2.0**-14)
    return np.broadcast_to(step**2 / 12, blocks.shape).reshape(q.shape)


def attention_cuda(kernel, type_k, q, k, v, weights, out, scale, bias, term=None):
    """Norm of the error of every output row of a CUDA kernel against float64. q: (n_queries, n) and k: (n_kv, n), both as they
    are multiplied, so rotated where K is; v: (n_kv, m); weights: (n_queries, n_kv), a row's sum is 1 or less (sinks); out: (n_queries, m);
    term: of centered keys, w (n_queries, r), pairs side by side, and part times positional rows (n_kv, r). `decode` rounds a pair of w four times to halves: itself, by
    what it is turned, as turned, and the row that it is multiplied by.

    Three shares. 1. Rounded queries, and in `decode` weights and values rounded to halves: errors taken as independent and
    uniform. A score is off by the sum over the query's errors; weight i then moves by w_i times that, and pulls the output by
    it towards v_i or away. Weights and values add their own. Six standard deviations: one row in 10^8 by chance. 2. What isn't
    independent: equal weights are rounded alike, which scales the output; weights below a half's range vanish (2^-25
    of the largest each). 3. Float arithmetic as in `attention`: scores by the worst case; and the sums over the tokens as
    independent roundings where that is less, 6 sqrt(n_kv) U each, for the weighted sum and for the sum of weights.
    """
    half = 0 if kernel == "plain" else HALF
    n_kv, norms = len(k), np.linalg.norm(v, axis=1)
    variance = query_rounding_variance(kernel, type_k, q)
    if term is not None:
        w, c = term
        pairs = np.repeat(np.hypot(w[:, ::2], w[:, 1::2]), 2, axis=1)
        variance = np.concatenate([variance, 4 * query_rounding_variance(kernel, "f16", pairs)], axis=1)
        bias = bias + np.abs(scale) * pairs.sum(axis=1).max(initial=0) / 2  # cosines and sines, 16 U
        q, k = np.concatenate([q, w], axis=1), np.concatenate([k, c], axis=1)
    score_variance = scale**2 * (variance @ (k**2).T)
    pull = norms**2 + np.linalg.norm(out, axis=1, keepdims=True) ** 2
    deviation = np.sqrt((weights**2 * (score_variance + 2 * half**2 / 3) * pull).sum(axis=1))
    rounded = 6 * deviation + 2 * half * np.linalg.norm(out, axis=1)
    if half:
        rounded = rounded + n_kv * 2.0**-25 * weights.max(axis=1, initial=0) * norms.max(initial=0)
    magnitude = np.abs(scale) * (np.abs(q) @ np.abs(k).T).max(initial=0)
    e = (q.shape[1] + 16) * U * magnitude + 16 * U * bias + 8 * U
    chain = min(n_kv, 6 * np.sqrt(n_kv)) + 32
    return rounded + (2 * e + 2 * chain * U + 2 * ROTATION) * (weights @ norms)
