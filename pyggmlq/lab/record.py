# SPDX-License-Identifier: MIT
"""The files that the lab writes and `pyggmlq report` reads: one JSON object with what was measured, on what, and when."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._files import write_atomically
from ..bench import model as bench_model
from ..bench import record as bench_record
from . import LabError

KLD, EVAL, ATTENTION, NEEDLE = "pyggmlq-kld-1", "pyggmlq-eval-1", "pyggmlq-attention-1", "pyggmlq-needle-1"
"""`format` of the files of `pyggmlq kld`, of `eval` on rows and on a dump, and of `needle`: a list `rows` of flat objects,
beside the facts of `start`."""

BENCH, BENCH_LLAMA = bench_record.FORMAT, bench_model.FORMAT


def start(format: str, **facts: Any) -> dict[str, Any]:
    """A record without rows: format, date (UTC), machine, versions, and `facts`."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    machine, version = bench_record.machine(), bench_record.our_version()
    return {"format": format, "date": date, "machine": machine, "pyggmlq": version, **facts, "rows": []}


def write(path: Path, data: dict[str, Any]) -> None:
    """Replace `path` by `data`, at once. A number that is none (NaN, infinite) becomes null: JSON has no word for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n[-+.,\d\se]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list of numbers on one line
    write_atomically(path, text + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace `path` by `rows`, which have the same keys, as comma-separated values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> dict[str, Any]:
    """A file of this module or of `pyggmlq bench --json`; `LabError` if it is neither."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"{path} can't be read as JSON: {error}") from None
    found = data.get("format") if isinstance(data, dict) else None
    if found not in (KLD, EVAL, ATTENTION, NEEDLE, BENCH, BENCH_LLAMA):
        raise LabError(f"{path}: found format {found!r}, wanted a file that `pyggmlq kld`, `eval`, `needle` or `bench` wrote")
    return data
