# SPDX-License-Identifier: MIT
"""Perplexity and KLD of pairs of cache types on real models, by the llama-perplexity of a patched llama.cpp.

For every model and context the f16 cache's token distributions are written once; each pair is compared with them. Or they go
through pipes to several pairs at a time, and are written nowhere. Every run is a step whose result is kept under a key of model, text, programs and flags, so a second call repeats nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from .. import _tree, llama
from .._pairs import OURS, Case, bits_per_value, divergence_alarms, memory_alarms
from .._steps import Steps, slug
from . import LabError, pipes, record, runs

TARGETS = ("llama-perplexity",)

NOISE = 1e-3
"""Mean KLD of f16 against its own stored distributions (16 bits a value) above which the measurement is no good."""


@dataclass(frozen=True)
class Options(runs.Grid):
    """What to measure and how; names as on the command line."""

    windows: int
    kept: bool
    """Run nothing: only rows that earlier runs measured."""
    at_once: int = 0
    """So many pairs at a time, beside a run of the reference; 0: one after the other, with the reference in a file."""


@dataclass
class Row:
    """One pair on one model at one context; `refused` is llama.cpp's sentence if it said no."""

    model: str
    n_ctx: int
    case: Case
    setting: runs.Setting
    """What was asked for."""
    windows: int = 0
    rotated: tuple[bool, bool] | None = None
    """Whether llama.cpp rotated K and V; None where it can't."""
    memory: llama.KvMemory | None = None
    divergence: llama.Divergence | None = None
    placement: llama.Placement | None = None
    seconds: float = 0.0
    centered: int | None = None
    """Layers whose keys it centered; None: none."""
    refused: str | None = None

    def __str__(self) -> str:
        return f"{self.model}, context {self.n_ctx}, {self.case}{self.setting}"

    def as_dict(self) -> dict[str, Any]:
        """The row as it is written: flat, sizes in MiB, `same_top` in percent."""
        rotated = self.rotated or (None, None)
        sizes = asdict(self.memory) if self.memory else {}
        return {
            "model": self.model, "n_ctx": self.n_ctx, "windows": self.windows, "k": self.case.k, "v": self.case.v,
            "bits_k": bits_per_value(self.case.k), "bits_v": bits_per_value(self.case.v),
            "attn_rot": self.setting.attn_rot, "rotated_k": rotated[0], "rotated_v": rotated[1],
            "kv_center": self.setting.kv_center, "centered_layers": self.centered,
            "mib_k": sizes.get("mib_k"), "mib_v": sizes.get("mib_v"),
            "device": self.placement.device if self.placement else None, "splits": self.placement.splits if self.placement else None,
            **(asdict(self.divergence) if self.divergence else {}), "seconds": self.seconds, "refused": self.refused,
        }  # fmt: skip


def default_pairs() -> list[Case]:
    """llama.cpp's types and ours on both sides; ours and q4_0 on one side; ours for V beside a q8_0 K. The f16 reference first."""
    pairs = [Case(name, name) for name in ("f16", "q8_0", "q5_0", "q4_0", "iq4_nl", *OURS)]
    for name in ("q4_0", *OURS):
        pairs += [Case(name, "f16"), Case("f16", name)]
    return pairs + [Case("q8_0", name) for name in OURS]


def parse_pairs(text: str) -> list[Case]:
    """`"q8_0,tq3_0/f16"`: q8_0 on both sides, and tq3_0 for K beside an f16 V. ValueError for unknown types."""
    pairs = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        k, _, v = word.partition("/")
        pairs.append(Case(k, v or k))
        for name in (pairs[-1].k, pairs[-1].v):
            bits_per_value(name)
    if not pairs:
        raise ValueError(f"found no pair in {text!r}, wanted K/V pairs such as q8_0/tq3_0, separated by commas")
    return list(dict.fromkeys(pairs))


def run(options: Options, steps: Steps, finished: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure everything; the record, `finished` being called with it after each row. StepFailed if a step fails."""
    for case in options.pairs:  # a missing package must not end the grid in the middle
        bits_per_value(case.k), bits_per_value(case.v)
    subjects = [runs.subject(name, options, steps) for name in options.models]
    titles = [subject.title for subject in subjects]
    if len(set(titles)) < len(titles):
        raise LabError(f"models: found two that are called {max(titles, key=titles.count)}, wanted different file names")
    folder, tree = runs.folder_and_tree(options, steps, TARGETS)
    text = runs.text_file(options.text, tree, options, steps)
    with steps.named("reading the built programs"):
        programs = {"sha256": _tree.programs_hash(folder, TARGETS), **runs.version(folder, TARGETS[0])}
    data = record.start(
        record.KLD, llama_cpp=programs, models=[subject.facts for subject in subjects], notes=[], alarms=[], text=runs.text_facts(text),
        options={"contexts": options.contexts, "windows": options.windows, "threads": options.threads, "extra": options.extra},
    )  # fmt: skip
    rows: list[Row] = []
    for subject in subjects:
        grid = _Grid(subject, text, data["text"]["sha256"], options, steps, folder, programs["sha256"])
        for n_ctx in options.contexts:
            for row in grid.rows(n_ctx):
                rows.append(row)
                data["rows"].append(row.as_dict())
                data["alarms"] = alarms(rows)
                data["notes"] = notes(rows, options.windows)
                finished(data)
    return data


class _Grid:
    """All pairs on one model."""

    def __init__(
        self, subject: runs.Subject, text: Path, text_sha256: str, options: Options, steps: Steps, folder: Path, programs: str
    ) -> None:  # fmt: skip
        self.subject, self.text, self.options, self.steps = subject, text, options, steps
        # Threads are left out: they change no figure by more than the rounding of sums.
        self.inputs = {"programs": programs, "model": subject.sha256, "text": text_sha256, "windows": options.windows, "extra": options.extra,
                       "statistics": [*llama.Divergence.__dataclass_fields__, *llama.Placement.__dataclass_fields__]}  # fmt: skip
        self.tools = llama.Tools(folder, options.work_dir / "logs", options.threads, self._watch, options.extra, runs.Setting().environment)

    def rows(self, n_ctx: int) -> Iterator[Row]:
        """A row for every pair and setting, one after the other; the distributions go when all are there."""
        logits = self._logits_path(n_ctx)
        f16 = None
        plain = set()  # what llama.cpp doesn't rotate anyway is measured once
        for case, setting in self._measured(n_ctx, plain):
            row = self._row(case, n_ctx, setting, logits)
            if row is None:
                if f16 is None:  # the reference comes first
                    return
                continue
            f16 = f16 or row.divergence
            if row.divergence and f16:
                # The program's own ratio is to what it reads from the file, where no probability is below e^-16 of the highest.
                row.divergence = replace(row.divergence, ppl_ratio=row.divergence.ppl / f16.ppl)
                if case.is_reference and not row.centered:  # to itself; the program's error is the root of what rounding left, NaN at times
                    row.divergence = replace(row.divergence, ppl_ratio_error=0.0)
            if row.rotated == (False, False):
                plain.add((case, setting.kv_center))
            yield row
        if not self.options.kept:
            logits.unlink(missing_ok=True)

    def _measured(self, n_ctx: int, plain: set[tuple[Case, str]]) -> Iterator[tuple[Case, runs.Setting]]:
        """What to make rows of, but for what is in `plain` by then; with `at_once` only when it is measured."""
        for rotation, part in groupby(self.options.settings(), lambda one: one[1].attn_rot):
            todo = [(case, setting) for case, setting in part if rotation == "on" or (case, setting.kv_center) not in plain]
            size = 0 if self.options.kept else self.options.at_once
            for i, one in enumerate(todo):
                if size and i % size == 0:
                    self._measure_at_once(n_ctx, todo[i : i + size])
                yield one

    def _inputs(self, row: Row) -> dict[str, Any]:
        return {**self.inputs, "n_ctx": row.n_ctx, **row.setting.facts()}

    def _measure(self, row: Row, logits: Path, tools: llama.Tools) -> dict[str, Any]:
        """Compare a pair with the distributions in `logits`; what is kept of it."""
        name, case, setting = slug(str(row)), row.case, row.setting
        try:
            found, log = replace(tools, environment=setting.environment).divergence(name, self.subject.path, logits, case.k, case.v, n_ctx=row.n_ctx)
        except llama.ToolError as error:
            sentence = error.refusal((case.k, case.v))
            if sentence is None:
                raise
            return {"refused": sentence}
        memory, placement, windows = llama.parse_kv_memory(log), llama.parse_placement(log), llama.parse_windows(log)
        if memory is None or placement is None or windows is None:
            what = "the KV cache's size" if memory is None else "where the KV cache lies" if placement is None else "its windows"
            raise llama.ToolError(f"llama-perplexity printed no line on {what}", tools.logs / f"{name}.log")
        if setting.ignored(log):
            return {"refused": setting.ignored(log)}
        return {"divergence": asdict(found), "memory": asdict(memory), "placement": asdict(placement), "rotated": llama.parse_rotation(log),
                "centered": llama.parse_centering(log), "windows": windows}  # fmt: skip

    def _row(self, case: Case, n_ctx: int, setting: runs.Setting, logits: Path) -> Row | None:
        """None where nothing must be run and no result is kept."""
        row = Row(self.subject.title, n_ctx, case, setting)
        inputs = self._inputs(row)
        if self.options.kept and not self.steps.has(str(row), inputs):
            return None

        def measure() -> dict[str, Any]:
            self._ensure_logits(n_ctx, logits)
            return self._measure(row, logits, self.tools)

        kept = self.steps.kept_with_time(str(row), inputs, measure)
        found, row.seconds = kept["result"], kept["seconds"]
        if "refused" in found:
            row.refused = found["refused"]
            return row
        row.divergence, row.memory = llama.Divergence(**found["divergence"]), llama.KvMemory(**found["memory"])
        row.placement = llama.Placement(**found["placement"])
        row.rotated = tuple(found["rotated"]) if found["rotated"] else None
        row.windows, row.centered = found["windows"], found["centered"]
        if setting.attn_rot == "off" and row.rotated is None:
            raise LabError("this version of llama.cpp has no attn_rot: leave out --attn-rot")
        return row

    def _logits_path(self, n_ctx: int) -> Path:
        """The name tells of all that the distributions depend on, so that an interrupted run's can be used."""
        return self.options.work_dir / f"{slug(self.subject.title)}-{self.steps.key('distributions', {**self.inputs, 'n_ctx': n_ctx})}.logits"

    def _ensure_logits(self, n_ctx: int, logits: Path) -> None:
        if logits.exists():
            return
        # Log-probabilities of 16 bits for the second half of each window, as perplexity.cpp writes them.
        size = self.options.windows * (n_ctx - 1 - n_ctx // 2) * 2 * (self.subject.n_vocab + 5)
        free = shutil.disk_usage(logits.parent).free
        if free < size:
            raise LabError(
                f"{logits.parent} has {free / 1e9:.1f} GB free, wanted {size / 1e9:.1f} for the reference's distributions: "
                "use fewer --windows or another --work-dir"
            )
        unfinished = logits.with_suffix(".unfinished")
        title = self.steps.current
        self.steps.current = self._reference(n_ctx)
        try:
            self._save_logits(n_ctx, unfinished, self.tools)
            unfinished.replace(logits)
        finally:
            unfinished.unlink(missing_ok=True)
        self.steps.current = title

    def _reference(self, n_ctx: int) -> str:
        return f"{self.subject.title}, context {n_ctx}: the f16 cache's distributions"

    def _save_logits(self, n_ctx: int, logits: Path, tools: llama.Tools) -> None:
        name = f"{slug(self.subject.title)}-{n_ctx}-reference"
        try:
            tools.save_logits(name, self.subject.path, self.text, logits, n_ctx=n_ctx, chunks=self.options.windows)
        except llama.ToolError as error:
            short = runs.too_short(error)
            if short is None:
                raise runs.unloadable(error, self.subject.path) or error from None
            raise LabError(
                f"{self.text} is too short: found {short} tokens of {self.subject.title}, wanted at least {2 * n_ctx} "
                f"for windows of {n_ctx}"
            ) from None

    def _measure_at_once(self, n_ctx: int, wanted: Sequence[tuple[Case, runs.Setting]]) -> None:
        """Measure and keep what isn't kept of `wanted`, in runs side by side that get the reference's distributions while it makes them."""
        rows = [Row(self.subject.title, n_ctx, case, setting) for case, setting in wanted]
        rows = [row for row in rows if not self.steps.has(str(row), self._inputs(row))]
        if not rows:
            return
        self.steps.current = f"{self._reference(n_ctx)}, with {len(rows)} beside it"

        def tools(descriptor: int, tick: Callable[[Path], None]) -> tuple[Path, llama.Tools]:
            return Path(f"/dev/fd/{descriptor}"), replace(self.tools, descriptors=(descriptor,), watch=tick)

        def write(descriptor: int, check: Callable[[], None]) -> None:
            def tick(log: Path) -> None:
                check()
                self._watch(log)

            self._save_logits(n_ctx, *tools(descriptor, tick))

        def reader(row: Row) -> pipes.Work:
            def read(descriptor: int, check: Callable[[], None]) -> dict[str, Any]:
                return self._measure(row, *tools(descriptor, lambda log: check()))

            return read

        reference, found = pipes.run(write, [reader(row) for row in rows])
        for row, outcome in zip(rows, found):
            if outcome.error is None:
                self.steps.keep(str(row), self._inputs(row), outcome.value, outcome.seconds)
        failed = [(str(row), outcome.error) for row, outcome in zip(rows, found) if outcome.error]
        if failed and reference.error and not isinstance(reference.error, pipes.Stopped):  # why none of them got what it waited for
            failed = [(self._reference(n_ctx), reference.error)]
        for title, error in failed:
            with self.steps.named(title):
                raise error

    def _watch(self, log: Path) -> None:
        """Say which window is being evaluated; the programs print a line or a word for each."""
        printed = log.with_suffix(".out").read_text(encoding="utf-8", errors="replace")
        numbers = re.findall(r"^ *(\d+) {4}|\[(\d+)\]", printed, re.MULTILINE)
        done = max((int(row or word) for row, word in numbers), default=0)
        self.steps.progress.update(f"  {self.steps.current}: window {done} of {self.options.windows}")


def alarms(rows: Sequence[Row]) -> list[str]:
    """What can't be right: a cache that was not quantized, bytes that don't fit the type, no number, noise."""
    found: list[str] = []
    for row in rows:
        reference = next(r for r in rows if (r.model, r.n_ctx) == (row.model, row.n_ctx))  # f16 comes first
        found += [f"{row}: {what}" for what in _row_alarms(row, reference, rows)]
    return found


def _row_alarms(row: Row, reference: Row, rows: Sequence[Row]) -> list[str]:
    memory, divergence = row.memory, row.divergence
    if memory is None or divergence is None or reference.memory is None or reference.divergence is None:
        return []  # refused
    found = []
    if (memory.type_k, memory.type_v) != (row.case.k, row.case.v):
        found.append(f"was run with K {memory.type_k} and V {memory.type_v}")
    found += memory_alarms(row.case, memory, reference.memory)
    found += divergence_alarms(row.case, divergence, reference.divergence)
    if row is reference and not divergence.kld <= NOISE:
        found.append(f"mean KLD to itself is {divergence.kld:.6f}, wanted at most {NOISE}: the programs' results vary")
    if row.setting.attn_rot == "off" and row.rotated and any(row.rotated):
        found.append("K or V was rotated all the same")
    if row.setting.kv_center == "off" and row.centered:
        found.append("keys were centered all the same")
    for other in rows[: rows.index(row)]:
        same_place = (other.model, other.n_ctx) == (row.model, row.n_ctx) and other.refused is None
        if same_place and other is not reference and other.divergence == row.divergence:
            if (other.case, other.rotated, other.centered) != (row.case, row.rotated, row.centered):
                found.append(f"equals {other.case}{other.setting} in every digit")
    return found


def notes(rows: Sequence[Row], windows: int) -> list[str]:
    """What the reader should know of the rows."""
    found = []
    for model, n_ctx in dict.fromkeys((row.model, row.n_ctx) for row in rows):
        everything = [row for row in rows if (row.model, row.n_ctx) == (model, n_ctx)]
        for sentence in dict.fromkeys(row.refused for row in everything if row.refused):
            found.append(f"{model}, context {n_ctx}, refused by llama.cpp: {sentence}")
        here = [row for row in everything if row.refused is None]
        fewer = [row.windows for row in here if row.windows < windows]
        if fewer:
            found.append(f"{model}, context {n_ctx}: the text gave only {fewer[0]} of {windows} windows")
        splits = {f"{row.case}{row.setting}": row.placement.splits for row in here if row.placement and row.placement.splits}
        cut = [name for name, n in splits.items() if n > splits.get("f16/f16", n)]
        if cut:
            found.append(
                f"{model}, context {n_ctx}: the device has no attention for {', '.join(cut)}, which the CPU computed "
                f"({splits[cut[0]]} pieces of the graph instead of f16's {splits['f16/f16']})"
            )
        plain = [str(row.case) for row in here if row.setting.attn_rot == "on" and row.rotated == (False, False) and row.case.wants_attn_rot]
        if plain:
            found.append(f"{model}, context {n_ctx}: llama.cpp rotates neither side of {', '.join(plain)}")
    return found
