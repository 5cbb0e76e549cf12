# SPDX-License-Identifier: MIT
"""Statistics of samples: medians, ratios with an error, the Mann-Whitney test, the geometric mean."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000
_EXACT_LIMIT = 30


@dataclass(frozen=True)
class Summary:
    """Of one row's samples."""

    median: float
    p10: float
    p90: float
    minimum: float
    n: int

    @property
    def spread(self) -> float:
        """Width of p10 to p90 as a share of the median."""
        return (self.p90 - self.p10) / self.median if self.median else math.inf


@dataclass(frozen=True)
class Ratio:
    """A ratio and its standard error."""

    value: float
    error: float


def summary(samples: Sequence[float]) -> Summary:
    """Median and percentiles, interpolated linearly between samples."""
    if not samples:
        raise ValueError("samples: found none, wanted at least one")
    p10, median, p90 = np.percentile(np.asarray(samples, float), [10, 50, 90])
    return Summary(float(median), float(p10), float(p90), float(min(samples)), len(samples))


def ratio(reference: Sequence[float], ours: Sequence[float], paired: bool = True) -> Ratio:
    """How many times faster `ours` is: median(reference) / median(ours).

    The error is half the distance of the 16th and 84th percentile over bootstrap resamples, with a fixed seed. `paired`:
    the samples were taken in turns and are resampled in pairs, so a drift of the machine that hit both cancels.
    """
    a, b = np.asarray(reference, float), np.asarray(ours, float)
    if not a.size or not b.size:
        raise ValueError("samples: found none, wanted at least one")
    value = float(np.median(a) / np.median(b))
    random = np.random.default_rng(0)
    index_a = random.integers(0, a.size, (_RESAMPLES, a.size))
    index_b = index_a if paired and a.size == b.size else random.integers(0, b.size, (_RESAMPLES, b.size))
    ratios = np.median(a[index_a], axis=1) / np.median(b[index_b], axis=1)
    low, high = np.percentile(ratios, [16, 84])
    return Ratio(value, float(high - low) / 2)


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p value that `a` and `b` come from one distribution: exact for few samples without ties, else the normal
    approximation with corrections for ties and continuity."""
    n_a, n_b = len(a), len(b)
    if not n_a or not n_b:
        raise ValueError("samples: found none, wanted at least one")
    pooled = np.concatenate([np.asarray(a, float), np.asarray(b, float)])
    _, inverse, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]
    u = float(ranks[:n_a].sum() - n_a * (n_a + 1) / 2)
    u = min(u, n_a * n_b - u)
    if counts.max() == 1 and max(n_a, n_b) <= _EXACT_LIMIT:
        ways = _u_distribution(n_a, n_b)
        return min(1.0, 2 * sum(ways[: int(round(u)) + 1]) / sum(ways))
    n = n_a + n_b
    ties = float((counts**3 - counts).sum()) / (n * (n - 1))
    variance = n_a * n_b / 12 * (n + 1 - ties)
    if variance <= 0:
        return 1.0
    z = max(0.0, n_a * n_b / 2 - u - 0.5) / math.sqrt(variance)
    return min(1.0, math.erfc(z / math.sqrt(2)))


def _u_distribution(n_a: int, n_b: int) -> list[int]:
    """In how many orders of the samples U takes each of its values 0 .. n_a * n_b: the Gaussian binomial coefficients."""
    ways = [1] + [0] * (n_a * n_b)
    for i in range(1, n_a + 1):
        for value in range(n_a * n_b, n_b + i - 1, -1):  # times (1 - x^(n_b + i))
            ways[value] -= ways[value - n_b - i]
        for value in range(i, n_a * n_b + 1):  # divided by (1 - x^i)
            ways[value] += ways[value - i]
    return ways


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))
