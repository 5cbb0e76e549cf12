# SPDX-License-Identifier: MIT
"""`pyggmlq bench cpu`: our kernels, at each level, and llama.cpp's, in turns.

In every repetition each subject of a case (an implementation with a pair of types) gives one sample, in an order that
rotates, so that a change of the machine's mood falls on all of them. A sample is the mean of as many calls as take
TARGET_NS. Inside our clock: the public function, `pyggmlq.flash_attn` and so on, with its argument checks and, with
several threads, its thread pool.
"""
from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np

import pyggmlq

from . import data, record, reference, warnings
from .cases import CASES, REFERENCES, Case
from .record import LLAMA, OURS, PATCHED, Record, Run
from .reference import BenchError

TARGET_NS = 20e6
"""A sample takes at least about this long."""

LONG_NS = 300e6
"""A call that takes longer is not warmed before every sample: its own beginning is a small part of it."""

SETTLE_SECONDS = 0.02
"""Pause between the subjects of a case with several threads: idle OpenMP threads spin for some ms and would take a core."""

OUTPUT_VALUES = 4096
"""How many values of a result are compared."""

SIMILARITY = 0.9
"""Cosine with llama.cpp's f16 result below which a row computed something else. 3-bit caches reach 0.96."""


@dataclass(frozen=True)
class Level:
    """One set of our kernels."""

    name: str
    usable: bool
    reason: str


def levels() -> list[Level]:
    """Every level of this build, slowest first. A build without a choice of level has one, "portable"."""
    known = getattr(pyggmlq, "cpu_levels", None)  # best first
    return [Level(level.name, bool(level.usable), level.reason) for level in reversed(known())] if known else [Level("portable", True, "")]


def _at_level(name: str) -> Any:
    choose = getattr(pyggmlq, "cpu_level", None)
    return choose(name) if choose else contextlib.nullcontext()


@dataclass(frozen=True)
class Options:
    """What to measure and how."""

    quick: bool = False
    tree: Optional[Path] = None
    patched: Optional[Path] = None
    work_dir: Path = field(default_factory=reference.default_work_dir)
    threads: tuple[int, ...] = (1,)
    levels: tuple[str, ...] = ()
    """Empty: all that are usable; quick: the last of them."""
    only: str = ""
    repetitions: int = 9
    cold: bool = False
    cpu_time: bool = False
    """Measure processor time where one thread runs: on a busy machine, waiting for a turn doesn't count."""
    no_reference: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For the record; folders are nobody's business."""
        return {"quick": self.quick, "threads": list(self.threads), "only": self.only,
                "repetitions": self.repetitions, "cold": self.cold, "cpu_time": self.cpu_time}


def chosen_levels(options: Options) -> tuple[str, ...]:
    """Names of the levels to measure; ValueError, with the reason, for one that can't run here."""
    known = {level.name: level for level in levels()}
    for name in options.levels:
        if name not in known:
            raise ValueError(f"--level: found {name!r}, wanted one of {', '.join(known)}")
        if not known[name].usable:
            raise ValueError(f"--level: {name} is not usable here: {known[name].reason}")
    usable = tuple(name for name, level in known.items() if level.usable)
    return options.levels or (usable[-1:] if options.quick else usable)


# Subjects ------------------------------------------------------------------------------------------------------------


class Subject(Protocol):
    """One implementation with one pair of types, in one case."""

    code: str
    type_k: str
    type_v: str
    level: str

    def sample(self, inner: int, warm: bool, clock: str = "wall") -> float:
        """ns per call, the mean of `inner` calls."""

    def output(self) -> np.ndarray:
        """The first values of the last result."""

    def close(self) -> None:
        """Free the data."""


class Ours:
    """This package's module at a level."""

    code = OURS

    def __init__(self, case: Case, type_k: str, type_v: str, level: str, threads: int, prepared: dict[Any, Any]) -> None:
        self.type_k, self.type_v, self.level = type_k, type_v, level
        self._call, self._out = _our_call(case, type_k, type_v, threads, prepared)

    def sample(self, inner: int, warm: bool, clock: str = "wall") -> float:
        now = time.thread_time_ns if clock == "cpu" else time.perf_counter_ns
        with _at_level(self.level):
            call = self._call
            if warm:
                call()
            start = now()
            for _ in range(inner):
                call()
            return (now() - start) / inner

    def output(self) -> np.ndarray:
        return self._out().reshape(-1)[:OUTPUT_VALUES].copy()

    def close(self) -> None:
        del self._call, self._out


def _our_call(case: Case, type_k: str, type_v: str, threads: int, prepared: dict[Any, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A function that runs the case once, and one that returns the result. `prepared` keeps encoded rows between levels."""

    def rows(type_name: str, n: int, seed: int) -> np.ndarray:
        key = (type_name, n, seed)
        if key not in prepared:
            prepared[key] = data.encoded(type_name, n, seed)
        return prepared[key]

    if case.what == "attention":
        head, heads_kv, n_kv, n_queries = case["head"], case["heads_kv"], case["kv"], case["queries"]
        heads = heads_kv * case["gqa"]
        n = head * heads_kv * n_kv
        # llama.cpp's layout: a row is one token, all heads side by side
        k = rows(type_k, n, data.SEED_K).reshape(n_kv, heads_kv, -1).transpose(1, 0, 2)
        v = rows(type_v, n, data.SEED_V).reshape(n_kv, heads_kv, -1).transpose(1, 0, 2)
        q = data.values(head * heads * n_queries, data.SEED_Q).reshape(n_queries, heads, head).transpose(1, 0, 2)
        visible = np.arange(n_kv) <= n_kv - n_queries + np.arange(n_queries)[:, None]
        mask = np.where(visible, np.float16(0), np.float16(-np.inf))
        out = np.empty((heads, n_queries, head), np.float32)
        return (lambda: pyggmlq.flash_attn(q, k, v, type_k=type_k, type_v=type_v, mask=mask, n_threads=threads, out=out),
                lambda: out.transpose(1, 0, 2))
    width, n_rows = case["width"], case["rows"]
    if case.what == "encode":
        x = data.values(width * n_rows, data.SEED_K).reshape(n_rows, width)
        encoded = np.empty((n_rows, rows(type_k, width, data.SEED_K).size), np.uint8)
        return (lambda: pyggmlq.quantize(x, type=type_k, out=encoded), lambda: pyggmlq.dequantize(encoded, type=type_k))
    encoded = rows(type_k, width * n_rows, data.SEED_K).reshape(n_rows, -1)
    if case.what == "decode":
        out = np.empty((n_rows, width), np.float32)
        return lambda: pyggmlq.dequantize(encoded, type=type_k, out=out), lambda: out
    x = data.values(width, data.SEED_Q)
    last: list[np.ndarray] = [np.empty(0, np.float32)]

    def dot() -> None:
        last[0] = pyggmlq.mul_mat_vec(encoded, x, type=type_k)

    return dot, lambda: last[0]


class InGgml:
    """ggml's CPU back end, of an unmodified or a patched tree."""

    level = "native"

    def __init__(self, program: reference.Program, code: str, case: Case, type_k: str, type_v: str, threads: int) -> None:
        self.code, self.type_k, self.type_v = code, type_k, type_v
        self._program, self._name = program, f"{type_k}-{type_v}"
        options: dict[str, object] = {"op": case.what, "k": type_k, **dict(case.shape)}
        if case.what == "attention":
            options.update(v=type_v, threads=threads)
        program.open(self._name, **options)

    def sample(self, inner: int, warm: bool, clock: str = "wall") -> float:
        return self._program.run(self._name, warm=warm, inner=inner, clock=clock)[0]

    def output(self) -> np.ndarray:
        return np.array(self._program.output(self._name, OUTPUT_VALUES), np.float32)

    def close(self) -> None:
        self._program.close(self._name)


# Measuring -----------------------------------------------------------------------------------------------------------


def run(options: Options, say: Callable[[str], None], finished: Callable[[Run, Case, int], None]) -> Run:
    """Measure; `finished` is called when all rows of a case are in the run. BenchError if that can't be done."""
    names = chosen_levels(options)
    result = record.start({**options.as_dict(), "levels": list(names)})
    with contextlib.ExitStack() as stack:
        programs: dict[str, reference.Program] = {}
        if not options.no_reference:
            tree, about = reference.obtain_tree(options.tree, options.work_dir, say)
            programs[LLAMA] = stack.enter_context(_started(tree, options.work_dir, LLAMA, say))
            result.llama_cpp = about
        if options.patched:
            tree, about = reference.patched_tree(options.patched)
            programs[PATCHED] = stack.enter_context(_started(tree, options.work_dir, PATCHED, say))
            result.llama_cpp = {**(result.llama_cpp or {}), "patched": about}
        for case, threads in selected(options):
            if threads not in result.copy_gb_per_s:
                say(f"measuring the copy rate of {threads} thread{'s' if threads > 1 else ''}")
                result.copy_gb_per_s[threads] = copy_rates(threads, options.repetitions)
            rows = measure(case, threads, names, programs, options, say)
            result.records += rows
            finished(result, case, threads)
    result.warnings = [vars(warning) for warning in warnings.of(result)]
    return result


def _started(tree: Path, work: Path, code: str, say: Callable[[str], None]) -> reference.Program:
    program = reference.build(tree, work, say)
    return reference.Program(program, program.parent.parent / "run.log")


def selected(options: Options) -> Iterator[tuple[Case, int]]:
    """The cases of a run, with the number of threads of each."""
    for case in CASES:
        if options.quick and not case.quick:
            continue
        for threads in options.threads if case.is_parallel else (1,):
            if any(_wanted(options, case, pair) for pair in case.pairs()):
                yield case, threads


def lines(options: Options) -> list[str]:
    """What `--list` prints: what `--only` is matched with."""
    return [_line(case, pair) for case in dict(selected(options)) for pair in case.pairs() if _wanted(options, case, pair)]


def _line(case: Case, pair: tuple[str, str]) -> str:
    return f"{case.name} | " + ("/".join(pair) if case.what == "attention" else pair[0])


def _wanted(options: Options, case: Case, pair: tuple[str, str]) -> bool:
    if options.quick and pair[0] != pair[1]:
        return False
    return re.search(options.only, _line(case, pair)) is not None


def measure(case: Case, threads: int, names: Sequence[str], programs: dict[str, reference.Program], options: Options,
            say: Callable[[str], None]) -> list[Record]:
    """All rows of a case: llama.cpp's types, then ours at each level, then ours inside a patched llama.cpp."""
    title = f"{case.name}, {threads} thread{'s' if threads > 1 else ''}"
    say(f"{title}: preparing")
    pairs = [pair for pair in case.pairs() if _wanted(options, case, pair)]
    prepared: dict[Any, Any] = {}
    subjects: list[Subject] = []
    try:
        if LLAMA in programs:
            subjects += [InGgml(programs[LLAMA], LLAMA, case, name, name, threads) for name in REFERENCES if case.fits(name)]
        for level in names:
            subjects += [Ours(case, *pair, level, threads, prepared) for pair in pairs]
        if PATCHED in programs:
            subjects += [InGgml(programs[PATCHED], PATCHED, case, *pair, threads) for pair in pairs]
        sampled = _sample(subjects, threads, options, lambda text: say(f"{title}: {text}"))
        _compare_outputs(case, subjects)
    finally:
        for subject in subjects:
            subject.close()
    return [
        Record(case.name, s.code, s.type_k, s.type_v, s.level, threads, "cold" if options.cold else "warm",
               _clock(options, threads), case.unit, case.count,
               case.cache_bytes(s.type_k, s.type_v), inner, tuple(samples), dict(case.shape))
        for s, (inner, samples) in zip(subjects, sampled)
    ]


def _clock(options: Options, threads: int) -> str:
    return "cpu" if options.cpu_time and threads == 1 else "wall"


def _sample(subjects: Sequence[Subject], threads: int, options: Options, say: Callable[[str], None]) -> list[tuple[int, list[float]]]:
    """(calls per sample, samples) of each subject."""
    inner, warm, clock = [], [], _clock(options, threads)
    for number, subject in enumerate(subjects):
        say(f"warming up [{number + 1}/{len(subjects)}]")
        once = subject.sample(1, False)
        if once < LONG_NS:
            once = subject.sample(1, True)
        inner.append(1 if options.cold else max(1, min(10_000, math.ceil(TARGET_NS / once))))
        warm.append(not options.cold and once < LONG_NS)
    sweep = _sweeper() if options.cold else None
    samples: list[list[float]] = [[] for _ in subjects]
    for repetition in range(options.repetitions):
        say(f"repetition [{repetition + 1}/{options.repetitions}]")
        for turn in range(len(subjects)):
            index = (turn + repetition) % len(subjects)
            if threads > 1:
                time.sleep(SETTLE_SECONDS)
            if sweep:
                sweep()
            samples[index].append(subjects[index].sample(inner[index], warm[index], clock))
    return list(zip(inner, samples))


def _sweeper() -> Callable[[], None]:
    """A function that fills the caches with something else."""
    buffer = np.zeros(max(64 << 20, 4 * (record.last_level_cache() or 0)) // 8)

    def sweep() -> None:
        np.add(buffer, 1, out=buffer)

    return sweep


def _compare_outputs(case: Case, subjects: Sequence[Subject]) -> None:
    """BenchError if a subject computed something else than the first one, f16: its time would mean nothing."""
    if not subjects:
        return
    wanted = subjects[0].output()
    for subject in subjects[1:]:
        found = similarity(wanted, subject.output())
        if not found >= SIMILARITY:
            raise BenchError(f"{case.name}: the result of {subject.code} {subject.level} {subject.type_k}/{subject.type_v} is not that of "
                             f"{subjects[0].code} {subjects[0].type_k} (cosine {found:.3f}, wanted at least {SIMILARITY}): please report it")


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two results; NaN if one of them has no finite direction."""
    n = min(a.size, b.size)
    a, b = a[:n].astype(float), b[:n].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def copy_rates(threads: int, repetitions: int) -> list[float]:
    """GB/s, read plus written, of copying an array far larger than the caches, split over threads."""
    n = max(128 << 20, 4 * (record.last_level_cache() or 0)) // 8
    source, target = np.ones(n), np.zeros(n)
    edges = [n * part // threads for part in range(threads + 1)]

    def copy(part: int) -> None:
        np.copyto(target[edges[part]:edges[part + 1]], source[edges[part]:edges[part + 1]])

    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for repetition in range(repetitions + 1):
            start = time.perf_counter_ns()
            list(pool.map(copy, range(threads)))
            if repetition:  # the first one touches the pages
                rates.append(2 * source.nbytes / (time.perf_counter_ns() - start))
    return rates
