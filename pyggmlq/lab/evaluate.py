# SPDX-License-Identifier: MIT
"""What codecs do to rows: errors of the values, and errors of the attention that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .codecs import Codec

KEYS = 512
"""Rows over which a softmax runs: a context of that many tokens."""


def queries(n: int, width: int, seed: int) -> np.ndarray:
    """`n` standard normal queries, float32 (n, width); another sequence than the data's."""
    return np.random.default_rng([seed, 1]).standard_normal((n, width), dtype=np.float32)


def value_errors(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Errors of rows `y` against `x`, float32 (n_rows, width) both.

    `cosine_*`: over rows, `p1` the first percentile.  `relative_mse`: sum of squared errors over sum of squares.
    `max_error`: largest error of a value, in units of the rms of all values.  `norm_error`: mean of | |y|/|x| - 1 |.
    Rows of zeros are left out of cosine and norm.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    norm_x, norm_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    some = norm_x > 0
    product = norm_x[some] * norm_y[some]
    cosine = np.divide((x[some] * y[some]).sum(axis=1), product, out=np.zeros_like(product), where=product > 0)
    square = (x * x).sum()
    return {
        "cosine_mean": float(cosine.mean()), "cosine_p1": float(np.percentile(cosine, 1)), "cosine_min": float(cosine.min()),
        "relative_mse": float(((x - y) ** 2).sum() / square), "max_error": float(np.abs(x - y).max() / np.sqrt(square / x.size)),
        "norm_error": float(np.abs(norm_y[some] / norm_x[some] - 1).mean()),
    }  # fmt: skip


def attention_errors(q: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Errors of softmax(q k^T / sqrt(width)) where keys `y` stand for `x`, (n_keys, width), queries (n_queries, width).

    `score_pearson`: correlation of the scores, mean over queries.  `top1`: share of queries whose highest score is the same
    key's.  `softmax_kld`: mean over queries of the divergence of the weights from those with `x`, in nats. Keys come in runs
    of `KEYS`; a shorter last run counts only if there is no other.
    """
    pearson, top, kld = [], [], []
    n_runs = max(1, len(x) // KEYS)
    for run in range(n_runs):
        keys = slice(run * KEYS, (run + 1) * KEYS)
        scale = 1 / np.sqrt(x.shape[1])
        exact = scale * (q @ x[keys].T).astype(np.float64)
        found = scale * (q @ y[keys].T).astype(np.float64)
        a, b = exact - exact.mean(axis=1, keepdims=True), found - found.mean(axis=1, keepdims=True)
        spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        pearson.append(np.divide((a * b).sum(axis=1), spread, out=np.zeros_like(spread), where=spread > 0))
        top.append(exact.argmax(axis=1) == found.argmax(axis=1))
        log_p, log_q = log_softmax(exact), log_softmax(found)
        kld.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    return {"score_pearson": float(np.mean(pearson)), "top1": float(np.mean(top)), "softmax_kld": float(np.mean(kld))}


def log_softmax(score: np.ndarray) -> np.ndarray:
    """Along the last axis of (n_queries, n_keys)."""
    shifted = score - score.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def run(
    sets: dict[str, np.ndarray], codecs: Sequence[Codec], q: Callable[[int], np.ndarray], step: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, notes): every codec on every set, `step` being called before each with a name.

    A codec that can't take a set's width is left out, with a note.
    """
    rows, notes = [], []
    for name, x in sets.items():
        width = x.shape[1]
        for codec in codecs:
            step(f"{name}, {codec.name}")
            if width % codec.multiple_of:
                notes.append(f"{name}: {codec.name} needs rows of a multiple of {codec.multiple_of} values, but these have {width}")
                continue
            y = codec.round_trip(x)
            rows.append({
                "data": name, "codec": codec.name, "width": width, "n_rows": len(x), "bits": codec.bits(width),
                **value_errors(x, y), **attention_errors(q(width), x, y),
                "parameters": codec.parameters(width), "multiply_adds": codec.multiply_adds(width),
            })  # fmt: skip
    return rows, notes
