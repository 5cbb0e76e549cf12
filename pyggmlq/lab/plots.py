# SPDX-License-Identifier: MIT
"""The lab's drawings, by matplotlib, without a display."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import LabError, require

KINDS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """`LabError` if nothing can be drawn to `path`: before the work, not after it."""
    if path.suffix.lower() not in KINDS:
        raise LabError(f"{path}: found the ending {path.suffix!r}, wanted one of {', '.join(KINDS)}")
    require("matplotlib")


def evaluation(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Relative MSE against bits, one axis for each data set of `pyggmlq eval`."""
    sets = list(dict.fromkeys(row["data"] for row in rows))
    figure = _figure(5.2 * len(sets), 5.5)
    for i, name in enumerate(sets):
        axis = figure.add_subplot(1, len(sets), i + 1)
        for family, points in _families([row for row in rows if row["data"] == name]).items():
            ours = family in ("tq3_0", "planar3")
            axis.plot([row["bits"] for row in points], [row["relative_mse"] for row in points], marker="*" if ours else "o",
                      markersize=13 if ours else 5, linewidth=1, label=family)  # fmt: skip
        axis.set(title=name, xlabel="bits per value", yscale="log", ylabel="relative MSE" if i == 0 else "")
        axis.grid(alpha=0.3)
    figure.axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save(figure, path)


def _families(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Codecs that differ in bits only, ascending, without those after a Hadamard transform."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        family, _, bits = row["codec"].rpartition("-")
        if not row["codec"].startswith("h+"):
            found.setdefault(family if bits.isdigit() else row["codec"], []).append(row)
    return {family: sorted(points, key=lambda row: row["bits"]) for family, points in found.items()}


def _figure(width: float, height: float) -> Any:
    """An empty figure of that many inches; without pyplot, whose state and windows a library has no use for."""
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Replace `path` by the drawing, at once."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(drawn.getvalue())
    os.replace(temporary, path)
