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


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, bias: float, n_terms: int) -> float:
    """Norm of the error of one output row of float32 attention against float64.

    A score is a sum of head_size products: its error is at most (head_size + 8) U times the sum of their magnitudes
    (8: scale, softcap, exponent), plus 16 U of the largest mask value, whose slope is a power. A score that is off by e
    moves its weight, and the sum of the weights, by a factor within exp(-e)..exp(e). The sums over n_terms tokens add
    2 n_terms U, the un-rotation ROTATION. q: (n_queries, n), k: (n_kv, n), v: (n_kv, m).
    """
    head_size = q.shape[1]
    magnitude = np.abs(scale) * (np.abs(q) @ np.abs(k).T).max(initial=0)
    e = (head_size + 8) * U * magnitude + 16 * U * bias
    return (2 * e + 2 * n_terms * U + ROTATION) * np.linalg.norm(v, axis=1).max(initial=0)
