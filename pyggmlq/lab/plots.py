# SPDX-License-Identifier: MIT
"""The lab's drawings, by matplotlib, without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .._files import write_atomically
from .._pairs import OURS
from . import LabError, require
from .tables import key, pair

KINDS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """`LabError` if nothing can be drawn to `path`: before the work, not after it."""
    if path.suffix.lower() not in KINDS:
        raise LabError(f"{path}: found the ending {path.suffix!r}, wanted one of {', '.join(KINDS)}")
    require("matplotlib")


def evaluation(rows: Sequence[dict[str, Any]]) -> Any:
    """Relative MSE against bits, one axis for each data set of `pyggmlq eval`; a matplotlib figure."""
    sets = list(dict.fromkeys(row["data"] for row in rows))
    figure = _figure(max(5.2 * len(sets), 7.5), 6)
    for i, name in enumerate(sets):
        axis = figure.add_subplot(1, len(sets), i + 1)
        axis.set_prop_cycle(color=require("matplotlib").colormaps["tab20"].colors)
        for family, points in _families([row for row in rows if row["data"] == name]).items():
            ours = family in OURS
            axis.plot([row["bits"] for row in points], [row["relative_mse"] for row in points], marker="*" if ours else "o",
                      markersize=13 if ours else 5, linewidth=1, label=family)  # fmt: skip
        axis.set(title=name, xlabel="bits per value", yscale="log", ylabel="relative MSE" if i == 0 else "")
        _grid(axis)
    _legend(figure)
    return figure


def kld(rows: Sequence[dict[str, Any]], places: Sequence[tuple[str, int]]) -> Any:
    """Mean KLD against the size of the cache, one axis for each (model, context) of a kld record; a matplotlib figure."""
    figure = _figure(7.5 * len(places), 5)
    for i, (model, n_ctx) in enumerate(places):
        axis = figure.add_subplot(1, len(places), i + 1)
        here = [row for row in rows if (row["model"], row["n_ctx"]) == (model, n_ctx) and not row["refused"]]
        whole = next(row["mib_k"] + row["mib_v"] for row in here)  # f16 comes first
        named: list[tuple[float, float, str]] = []
        for row in sorted(here, key=lambda row: -(row["kld"] or 0)):
            if (row["k"], row["v"]) == ("f16", "f16") or not row["kld"]:
                continue
            share = 100 * (row["mib_k"] + row["mib_v"]) / whole
            ours, off = row["k"] in OURS or row["v"] in OURS, row["attn_rot"] == "off"
            axis.errorbar(share, row["kld"], yerr=row["kld_error"], fmt="*" if ours else "o", markersize=11 if ours else 6,
                          color="C1" if ours else "C0", markerfacecolor="none" if off else None)  # fmt: skip
            if not off:  # its name stands beside the full one
                named.append((share, row["kld"], key(row) if row["k"] == row["v"] else pair(row)))
        unrotated = any(row["attn_rot"] == "off" for row in here)
        axis.set(title=f"{model}, context {n_ctx}", xlabel="cache, % of f16" + ("; hollow: attn_rot off" if unrotated else ""), yscale="log", ylabel="mean KLD" if i == 0 else "")
        axis.margins(x=0.18)
        _grid(axis)
        _names(axis, named)
    return figure


def _names(axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside points (x, y, name): each on the first side where it covers neither a point nor another name, if there is one."""
    figure = axis.figure
    figure.draw_without_rendering()  # places and sizes are known after that
    scale = figure.dpi / 72
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in axis.transData.transform([point[:2] for point in points])] if points else []
    for x, y, name in points:
        texts = []
        for dx, dy in ((6, 4), (6, -10), (-6, 4), (-6, -10), (6, 14), (6, -20), (-6, 14), (-6, -20)):
            text = axis.annotate(name, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=8, ha="left" if dx > 0 else "right")
            box = text.get_window_extent().extents
            frame = axis.bbox.extents
            free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            texts.append((not free, box[0] < frame[0] or box[2] > frame[2], len(texts), text, tuple(box)))
        best = min(texts, key=lambda one: one[:3])
        for one in texts:
            if one is not best:
                one[3].remove()
        taken.append(best[4])


def memory(contexts: Sequence[int], sizes: Mapping[str, Sequence[float]]) -> Any:
    """MiB of each pair's cache against the context; a matplotlib figure."""
    figure = _figure(7.5, 5)
    axis = figure.add_subplot()
    for pair, mib in sizes.items():
        axis.plot(contexts, mib, marker="o", linewidth=1, label=pair)
    axis.set(xlabel="context, tokens", ylabel="MiB", xscale="log", yscale="log")
    _grid(axis)
    _legend(figure)
    return figure


def depth(rows: Sequence[Any]) -> Any | None:
    """Time per pair of query head and cached token against cached tokens, from records of `pyggmlq bench cpu`, one axis for
    each shape; a matplotlib figure, or None if no shape was measured at two depths."""
    shapes: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        shape = f"head {row.shape['head']}, {row.shape['heads_kv']} KV heads, GQA {row.shape['gqa']}, threads {row.threads}"
        shapes.setdefault(shape, {}).setdefault(f"{row.types}, {row.code} {row.level}", []).append(row)
    shapes = {shape: lines for shape, lines in shapes.items() if any(len(points) > 1 for points in lines.values())}
    if not shapes:
        return None
    figure = _figure(5.2 * len(shapes), 6)
    for i, (shape, lines) in enumerate(shapes.items()):
        axis = figure.add_subplot(1, len(shapes), i + 1)
        for label, points in lines.items():
            points = sorted(points, key=lambda row: row.shape["kv"])
            axis.plot([row.shape["kv"] for row in points], [row.summary.median / row.count for row in points], marker="o", linewidth=1, label=label)
        axis.set(title=shape, xlabel="cached tokens", ylabel="ns per query head and token" if i == 0 else "", xscale="log", yscale="log")
        _grid(axis)
    _legend(figure)
    return figure


def speed(rows: Sequence[dict[str, Any]]) -> Any | None:
    """Decoding against the depth of the cache, tokens per second over f16's, from the rows of `pyggmlq bench llama`; a
    matplotlib figure, or None without f16 or without two depths."""
    base = {row["depth"]: median(row["decode"]) for row in rows if (row["k"], row["v"]) == ("f16", "f16") and row["decode"]}
    lines: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["decode"] and row["depth"] in base:
            lines.setdefault(f"{row['k']}/{row['v']}", {})[row["depth"]] = median(row["decode"]) / base[row["depth"]]
    if len(base) < 2:
        return None
    figure = _figure(7.5, 5)
    axis = figure.add_subplot()
    for label, points in lines.items():
        axis.plot(sorted(points), [points[depth] for depth in sorted(points)], marker="o", linewidth=1, label=label)
    axis.set(xlabel="cached tokens", ylabel="decoding, tokens per second over f16's")
    axis.set_xscale("symlog", linthresh=min(depth for depth in base if depth))
    axis.set_xticks(sorted(base), [f"{depth // 1024}k" if depth % 1024 == 0 and depth else str(depth) for depth in sorted(base)])
    axis.minorticks_off()
    _grid(axis)
    _legend(figure)
    return figure


def heat(rows: Sequence[dict[str, Any]], codecs: Sequence[str] = (), key: str = "k_kld") -> Any:
    """Where K hurts: divergence of the attention weights by layer (down) and KV head (across), one map for each codec of an
    attention record, all on one logarithmic scale; a matplotlib figure."""
    names = [name for name in codecs or dict.fromkeys(row["codec"] for row in rows) if any(row["codec"] == name for row in rows)]
    layers, heads = (sorted({row[axis] for row in rows}) for axis in ("layer", "head"))
    values = {(row["codec"], row["layer"], row["head"]): row[key] for row in rows if row[key] is not None}
    positive = [value for (name, _, _), value in values.items() if name in names and value > 0]
    if not positive:
        raise LabError(f"found no {key} above zero, so there is nothing to draw")
    least = max(min(positive), 1e-4 * max(positive))
    norm = require("matplotlib.colors").LogNorm(least, max(max(positive), 1.01 * least))
    figure = _figure(1.6 + max(1.1, 0.28 * len(heads)) * len(names), max(3.5, 0.2 * len(layers) + 1.6))
    image = None
    for i, name in enumerate(names):
        axis = figure.add_subplot(1, len(names), i + 1)
        grid = [[max(values.get((name, layer, head), float("nan")), least) for head in heads] for layer in layers]
        image = axis.imshow(grid, norm=norm, cmap="inferno", aspect="auto", interpolation="nearest")
        step = max(1, len(layers) // 16)
        axis.set(title=name.replace(":", ":\n"), xlabel="KV head", ylabel="layer" if i == 0 else "", xticks=range(0, len(heads), max(1, len(heads) // 4)))
        axis.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]] if i == 0 else [])
        axis.title.set_fontsize(9)
    figure.colorbar(image, ax=figure.axes, label="KLD of the attention weights, nats" if key == "k_kld" else key, fraction=0.05)
    return figure


def pairs(layers: Sequence[dict[str, Any]], codecs: Sequence[str]) -> Any | None:
    """Share of the logit error by layer (down) and RoPE pair (across, the fastest first), one map for each codec; a
    matplotlib figure, or None if no layer has pairs."""
    some = [layer for layer in layers if layer["pairs"]]
    names = [name for name in codecs if some and name in some[0]["pairs"]]
    if not names:
        return None
    figure = _figure(1.6 + 3 * len(names), max(3.5, 0.2 * len(some) + 1.6))
    width = max(len(layer["pairs"][names[0]]) for layer in some)
    image = None
    for i, name in enumerate(names):
        axis = figure.add_subplot(1, len(names), i + 1)
        grid = [shares + [float("nan")] * (width - len(shares)) for shares in (layer["pairs"].get(name, []) for layer in some)]
        image = axis.imshow(grid, norm=require("matplotlib.colors").LogNorm(1e-4, 1), cmap="inferno", aspect="auto", interpolation="nearest")
        axis.set(title=name.replace(":", ":\n"), xlabel="RoPE pair", ylabel="layer" if i == 0 else "")
        axis.title.set_fontsize(9)
    figure.colorbar(image, ax=figure.axes, label="share of the logit error", fraction=0.05)
    return figure


def _families(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Codecs that differ in bits only, ascending, without those after a Hadamard transform."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        family, _, bits = row["codec"].rpartition("-")
        if not row["codec"].startswith("h+"):
            found.setdefault(family if bits.isdigit() else row["codec"], []).append(row)
    return {family: sorted(points, key=lambda row: row["bits"]) for family, points in found.items()}


def _legend(figure: Any) -> None:
    """One legend below all axes; what occurs in several is named once."""
    named = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize=8, framealpha=0)


def _grid(axis: Any) -> None:
    axis.grid(alpha=0.3)
    for part in (axis.title, axis.xaxis.label, axis.yaxis.label):
        part.set_fontsize(10)


def _figure(width: float, height: float) -> Any:
    """An empty figure of that many inches; without pyplot, whose state and windows a library has no use for."""
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Any) -> str:
    """The drawing as an element of a page: no background, and lines that are black take the page's text colour."""
    drawn = io.StringIO()
    with require("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyggmlq"}):  # text as text; repeatable
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    least = round(4.5 * figure.get_figwidth())  # narrower than that, letters can't be read: a phone scrolls instead
    return text.replace("#000000", "currentColor").replace("<svg ", f'<svg style="min-width: {least}rem" ', 1)


def save(figure: Any, path: Path) -> None:
    """Replace `path` by the drawing, at once."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, drawn.getvalue())
