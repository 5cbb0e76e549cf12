# SPDX-License-Identifier: MIT
"""The lab's tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def kld(rows: Sequence[dict[str, Any]], model: str, n_ctx: int) -> Table:
    """The rows of a `pyggmlq-kld-1` record for one model and context."""
    here = [row for row in rows if (row["model"], row["n_ctx"]) == (model, n_ctx)]
    windows = max(row["windows"] or 0 for row in here)
    right = ("bits K/V", "MiB K + V", "PPL / f16's", "mean KLD", "median", "99.9 %", "maximum", "same top")
    table = _table(f"{model}, {windows} windows of {n_ctx} tokens", ("cache K/V", "attn_rot"), right)
    for row in here:
        pair = f"{row['k']}/{row['v']}"
        if row["refused"]:
            table.add_row(pair, "refused")
            continue
        table.add_row(
            pair, rotated(row), f"{row['bits_k']:g}/{row['bits_v']:g}", f"{row['mib_k']:.2f} + {row['mib_v']:.2f}",
            f"{number(row['ppl_ratio'], 4)}±{number(row['ppl_ratio_error'], 4)}", f"{number(row['kld'], 4)}±{number(row['kld_error'], 4)}",
            number(row["kld_median"], 4), number(row["kld_999"], 3), number(row["kld_max"], 2), f"{row['same_top']:.1f} %",
        )  # fmt: skip
    return table


def fit(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The rows of `pyggmlq fit`."""
    right = ("bits K/V", "longest context", "K MiB", "V MiB", "state MiB", "sum MiB")
    table = _table(title, ("cache K/V",), right)
    for row in rows:
        pair, bits = f"{row['k']}/{row['v']}", f"{row['bits_k']:g}/{row['bits_v']:g}"
        if row["refused"]:
            table.add_row(pair, bits, "refused")
            continue
        context = "any" if row["n_ctx"] is None else "none fits" if row["n_ctx"] == 0 else str(row["n_ctx"])
        sizes = [f"{row[name] / (1 << 20):.2f}" for name in ("bytes_k", "bytes_v", "bytes_state")]
        table.add_row(pair, bits, context, *sizes, f"{(row['bytes_k'] + row['bytes_v'] + row['bytes_state']) / (1 << 20):.2f}")
    return table


def rotated(row: dict[str, Any]) -> str:
    """Which sides llama.cpp rotated, in a few characters."""
    sides = [side for side, on in (("K", row["rotated_k"]), ("V", row["rotated_v"])) if on]
    return "+".join(sides) or "–"


def number(value: float | None, digits: int) -> str:
    """A number of a record; null there was none (NaN or infinite)."""
    return "none" if value is None else f"{value:.{digits}f}"


KLD_LEGEND = """
± is the standard error. KLD is that of the pair's token distributions from the f16 cache's, in nats. attn_rot: which sides llama.cpp rotated.
MiB: the cache at that context, as llama.cpp reports it."""
