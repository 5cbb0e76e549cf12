# SPDX-License-Identifier: MIT
"""Tables of runs and of comparisons, for people."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

from rich.table import Table
from rich.text import Text

from . import stats
from .cases import REFERENCES
from .record import LLAMA, OURS, Record, Run
from .stats import Ratio


_UNITS = (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0))


def duration(ns: float) -> str:
    """Three digits and a unit."""
    unit, size = _unit(ns)
    return f"{_digits(ns / size)} {unit}"


def span(low: float, high: float, median: float) -> str:
    """Two durations, in the unit that the median is shown in."""
    size = _unit(median)[1]
    return f"{_digits(low / size)}-{_digits(high / size)}"


def _unit(ns: float) -> tuple[str, float]:
    return next((entry for entry in _UNITS if ns >= entry[1]), _UNITS[-1])


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _bytes(n: float) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def ratio_to(row: Record, type_name: str, rows: Sequence[Record]) -> Optional[Ratio]:
    """How many times faster `row` is than unmodified llama.cpp with `type_name` in the same case, threads and run."""
    for other in rows:
        same = (other.case, other.threads, other.memory, other.clock) == (row.case, row.threads, row.memory, row.clock)
        if same and (other.code, other.type_k, other.type_v) == (LLAMA, type_name, type_name):
            return stats.ratio(other.samples_ns, row.samples_ns)
    return None


def header(run: Run) -> list[str]:
    """What the figures were measured with, in lines."""
    cache = run.machine.get("last_level_cache_bytes")
    of_cache = f", last-level cache {cache / 2**20:.0f} MiB" if cache else ""
    commit = run.pyggmlq.get("commit")
    ours = f"pyggmlq {run.pyggmlq['version']}" + (f" {commit[:9]}{'+' if run.pyggmlq.get('dirty') else ''}" if commit else "")
    theirs = "" if not run.llama_cpp else ", llama.cpp " + ((run.llama_cpp.get("commit") or "")[:9] or f"of an unknown commit, ggml {run.llama_cpp.get('ggml')}")
    busy = "" if run.load_at_start is None else f", load {run.load_at_start:g}"
    return [f"{run.machine['cpu']}, {run.machine['cores']} cores{of_cache}{busy}",
            f"{ours}{theirs}, levels {', '.join(run.options.get('levels', []))}, {run.date}"]


def case_table(rows: Sequence[Record], copy_rate: Optional[float]) -> Table:
    """The rows of one case and number of threads."""
    first = rows[0]
    unit = first.unit
    title = f"{first.case}, {first.threads} thread{'s' if first.threads > 1 else ''}, {first.memory}{', cpu time' if first.clock == 'cpu' else ''}"
    if copy_rate:
        title += f"; copy {copy_rate:.1f} GB/s"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("type", no_wrap=True)
    table.add_column("code", no_wrap=True)
    for heading in ("median", "p10-p90", f"ns/{unit}", "bytes", "GB/s", "% copy", *(f"x {name}" for name in REFERENCES)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found = row.summary
        reads_once = row.shape.get("queries", 1) == 1
        rate = [f"{row.gb_per_s:.2f}", f"{100 * row.gb_per_s / copy_rate:.0f}" if copy_rate else ""] if reads_once else ["", ""]
        cells = [row.types, _code(row), duration(found.median),
                 span(found.p10, found.p90, found.median), f"{found.median / row.count:.3g}", _bytes(row.cache_bytes), *rate]
        for name in REFERENCES:
            ratio = None if (row.code, row.type_k) == (LLAMA, name) else ratio_to(row, name, rows)
            cells.append(_ratio(ratio) if ratio else "")
        table.add_row(*cells, style="dim" if row.code == LLAMA else "")
    return table


def _code(row: Record) -> str:
    return row.level if row.code == OURS else "llama.cpp" if row.code == LLAMA else "patched"


def _ratio(ratio: Ratio) -> str:
    digits = 2 if ratio.value >= 0.995 else 3
    return f"{ratio.value:.{digits}f}±{ratio.error:.{digits}f}"


LEGEND = """\
code    llama.cpp: unmodified; patched: our types inside a patched llama.cpp; else the level of our own kernels
x f16   how many times faster than llama.cpp with that cache, in this run; ± is the standard error (bootstrap)
GB/s    encoded rows, each counted once; blank for prefill. copy: a large copy with as many threads, read and written
warm    a cache that fits into the processor's caches lies there; cold (--cold): they are swept before every call"""


# Comparing two runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A row that both runs have. `speedup` is a's median over b's: above 1, b is faster."""

    name: str
    code: str
    a_median_ns: float
    b_median_ns: float
    speedup: float
    error: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two runs, a the older."""

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def geometric_means(self) -> dict[str, float]:
        """Of the speed-ups, by whose code ran. That of an unchanged llama.cpp is what the machine itself did."""
        codes = dict.fromkeys(pair.code for pair in self.pairs)
        return {code: stats.geometric_mean([pair.speedup for pair in self.pairs if pair.code == code]) for code in codes}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "geometric_means": self.geometric_means}


def compare(a: Run, b: Run) -> Comparison:
    """Rows that match by name, and the names that don't."""
    rows_a, rows_b = ({row.name: row for row in run.records} for run in (a, b))
    pairs = []
    for name, row in rows_a.items():
        if name in rows_b:
            # samples of two runs were not taken in turns: the error is that of independent ones
            old, new = row.samples_ns, rows_b[name].samples_ns
            ratio = stats.ratio(old, new, paired=False)
            pairs.append(Pair(name, row.code, row.summary.median, rows_b[name].summary.median, ratio.value, ratio.error, stats.mann_whitney(old, new)))
    notes = [f"{what} differ: {left} and {right}" for what, left, right in (
        ("processors", a.machine.get("cpu"), b.machine.get("cpu")),
        ("commits of llama.cpp", (a.llama_cpp or {}).get("commit"), (b.llama_cpp or {}).get("commit")),
    ) if left != right]
    notes += [f"{name} warned: {warning['text']}; {warning['remedy']}" for name, run in (("a", a), ("b", b)) for warning in run.warnings]
    return Comparison(tuple(pairs), tuple(n for n in rows_a if n not in rows_b), tuple(n for n in rows_b if n not in rows_a), tuple(notes))


def comparison_table(found: Comparison) -> Table:
    """The rows that match."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("row", no_wrap=True)
    for heading in ("a", "b", "a/b", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in found.pairs:
        sure = pair.p < 0.05
        style = "" if not sure else "green" if pair.speedup > 1 else "red"
        table.add_row(pair.name, duration(pair.a_median_ns), duration(pair.b_median_ns), f"{pair.speedup:.3f}±{pair.error:.3f}",
                      f"{pair.p:.2g}", style=style)
    return table
