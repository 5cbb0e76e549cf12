# SPDX-License-Identifier: MIT
"""The lab's tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from .runs import CENTERS


def _table(title: str | None, left: Sequence[str], right: Sequence[str]) -> Table:
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
    table = _table(f"{model}, {windows} window{'s' * (windows > 1)} of {n_ctx} tokens", ("cache K/V", "attn_rot"), right)
    for row in here:
        if row["refused"]:
            table.add_row(pair(row), "refused")
            continue
        table.add_row(
            pair(row), rotated(row), f"{row['bits_k']:g}/{row['bits_v']:g}", f"{row['mib_k']:.2f} + {row['mib_v']:.2f}",
            f"{number(row['ppl_ratio'], 4)}±{number(row['ppl_ratio_error'], 4)}", f"{number(row['kld'], 4)}±{number(row['kld_error'], 4)}",
            number(row["kld_median"], 4), number(row["kld_999"], 3), number(row["kld_max"], 2), f"{row['same_top']:.1f} %",
        )  # fmt: skip
    return table


def fit(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `pyggmlq fit`."""
    more = {"bytes_center": "centering MiB", "bytes_work": "work MiB"}
    shown = [name for name in more if any(row[name] for row in rows)]
    names = ("bytes_k", "bytes_v", "bytes_state", *shown)
    right = ("bits K/V", "context", "K MiB", "V MiB", "state MiB", *(more[name] for name in shown), "sum MiB")
    table = _table(None, ("cache K/V",), right)
    for row in rows:
        bits = f"{row['bits_k']:g}/{row['bits_v']:g}"
        if row["refused"]:
            table.add_row(pair(row), bits, "refused")
            continue
        context = "any" if row["n_ctx"] is None else "none fits" if row["n_ctx"] == 0 else str(row["n_ctx"])
        table.add_row(pair(row), bits, context, *(f"{size / (1 << 20):.2f}" for size in [*map(row.get, names), sum(map(row.get, names))]))
    return table


def evaluation(rows: Sequence[dict[str, Any]], data: str) -> Table:
    """The rows of a `pyggmlq-eval-1` record for one data set."""
    here = [row for row in rows if row["data"] == data]
    right = ("bits", "cosine", "p1", "min", "rel. MSE", "max error", "norm error", "score r", "top-1", "softmax KLD", "parameters", "madds")
    table = _table(f"{data}, {here[0]['n_rows']} rows of {here[0]['width']}", ("codec",), right)
    for row in here:
        table.add_row(
            row["codec"], number(row["bits"], 3), number(row["cosine_mean"], 4), number(row["cosine_p1"], 4), number(row["cosine_min"], 4),
            number(row["relative_mse"], 5), number(row["max_error"], 2), number(row["norm_error"], 4), number(row["score_pearson"], 4),
            f"{100 * row['top1']:.1f} %", number(row["softmax_kld"], 5), str(row["parameters"]), str(row["multiply_adds"]),
        )  # fmt: skip
    return table


def attention(rows: Sequence[dict[str, Any]], name: str) -> Table:
    """The rows of `attention.summary`."""
    right = ("bits", "K rel. MSE", "logit error", "K: KLD", "K: top-1", "K: output", "V rel. MSE", "V: output", "worst head", "its KLD")
    table = _table(f"{name}, means over layers and KV heads", ("codec",), right)
    for row in rows:
        table.add_row(
            row["codec"], number(row["bits"], 3), number(row["k_mse"], 5), number(row["logit_error"], 4), number(row["k_kld"], 5),
            f"{100 * row['k_top1']:.1f} %", number(row["k_output"], 5), number(row["v_mse"], 5), number(row["v_output"], 5), row["worst"],
            number(row["worst_kld"], 4),
        )  # fmt: skip
    return table


def needle(rows: Sequence[dict[str, Any]], model: str, n_ctx: int) -> Table:
    """The rows of a `pyggmlq-needle-1` record for one model and context: by cache and depth."""
    here = [row for row in rows if (row["model"], row["n_ctx"]) == (model, n_ctx)]
    depths = sorted({row["depth"] for row in here if row["depth"] is not None})
    table = _table(f"{model}, haystacks of {n_ctx} tokens: NLL of the answer, found", ("cache K/V", "attn_rot"), (*(f"{depth} %" for depth in depths), "all", "without"))
    for name, rotation in dict.fromkeys((pair(row), row["attn_rot"]) for row in here):
        mine = [row for row in here if (pair(row), row["attn_rot"]) == (name, rotation)]
        if mine[0]["refused"]:
            table.add_row(name, "refused")
            continue
        cells = [f"{number(row['nll'], 2)} {100 * row['found']:3.0f} %" for row in sorted(mine, key=lambda row: row["depth"])]
        n = len(mine)
        all_nll, all_found, without = (sum(row[key] for row in mine) / n for key in ("nll", "found", "nll_without"))
        table.add_row(name, rotation, *cells, f"{number(all_nll, 2)} {100 * all_found:3.0f} %", number(without, 2))
    return table


def key(row: dict[str, Any]) -> str:
    """What K is stored as: its type, and whether it was centered (records before that could be have no word on it)."""
    center = row.get("kv_center", "off")
    return row["k"] + ("" if center == "off" else " centered" if center in CENTERS else f" centered by {center.rsplit(' ', 1)[0]}")


def pair(row: dict[str, Any]) -> str:
    """`K/V` of a row."""
    return f"{key(row)}/{row['v']}"


def rotated(row: dict[str, Any]) -> str:
    """Which sides llama.cpp rotated, in a few characters."""
    sides = [side for side, on in (("K", row["rotated_k"]), ("V", row["rotated_v"])) if on]
    return "+".join(sides) or "–"


def number(value: float | None, digits: int) -> str:
    """A number of a record; null there was none (NaN or infinite)."""
    if value is None:
        return "none"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


KLD_LEGEND = """
± is the standard error, positions being taken for independent. KLD is that of the pair's token distributions from the f16 cache's, in nats. attn_rot: which sides llama.cpp rotated.
MiB: the cache at that context, as llama.cpp reports it."""

EVAL_LEGEND = """
cosine: between a row and what comes back, mean, 1st percentile, minimum. max error: in units of the data's rms. score r, top-1, softmax KLD: of attention
over 512 keys with normal queries. parameters, madds: of the rotation of a row. h+: after a Hadamard transform of the row, as llama.cpp's attn_rot."""

ATTENTION_LEGEND = """
Each layer by itself, with the model's own queries. logit error: rms, in nats, without what is the same for all keys. K: KLD of the attention weights, share of
queries whose heaviest key stays, and squared error of the head's output if only K goes through the codec; V: output if only V does. `cache ..`: what was
dumped. h+: after a Hadamard transform of a head, as llama.cpp's attn_rot; c+: keys centered before that, as --kv-center. worst head: LAYER.HEAD."""

NEEDLE_LEGEND = """
NLL: -log p of the answer in nats, mean over needles; %: of answers that greedy decoding finds. Columns are depths, 0 % being the beginning.
without: the same answers where the needle is not in the text. What a cache loses is its NLL above f16's."""
