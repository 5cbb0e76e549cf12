# SPDX-License-Identifier: MIT
"""`pyggmlq bench llama`: a whole model inside llama.cpp, cache types in turns, at several depths of the cache.

Each sample is a llama-bench process of its own: llama-bench takes its types one after the other, and what changes slowly
(clocks, temperature, neighbours) would be taken for a difference between them. Depths are spread over the devices, one
at a time on each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

from .._pairs import Case
from .._types import cache_types
from ..llama import last_error, parse_bench
from . import record
from .reference import BenchError

FORMAT = "pyggmlq-bench-llama-1"
"""`format` of what `as_json` makes."""

SAMPLE_SECONDS = 0.2
"""Between two looks at the memory of a GPU. What a model takes stays until it ends, so nothing is missed."""


@dataclass(frozen=True)
class Depth:
    """A number of cached tokens, and how many times each pair of types is measured there."""

    tokens: int
    rounds: int


@dataclass(frozen=True)
class Options:
    """What is measured: pairs of cache types in `programs`, but those of none of our types in `unmodified` if that is given."""

    model: Path
    programs: Path
    unmodified: Path | None
    pairs: tuple[Case, ...]
    depths: tuple[Depth, ...]
    n_prompt: int
    n_gen: int
    repetitions: int
    """Of each llama-bench process."""
    devices: tuple[int, ...]
    """Numbers of GPUs as nvidia-smi counts them; none: llama.cpp chooses, and memory isn't measured."""
    threads: int
    arguments: tuple[str, ...] = ()
    """Further ones for llama-bench."""
    timeout: float = 600.0
    """Seconds for a llama-bench process."""


@dataclass
class Row:
    """The samples of a pair at a depth: tokens per second, one for each repetition of each round."""

    depth: int
    k: str
    v: str
    code: str
    """`unmodified` or `patched`: whose llama-bench ran."""
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    peak_mib: int | None = None
    """Most memory in use on the GPU while it ran, all programs together."""
    device: str | None = None
    """The GPU, else the processor, as llama-bench names it."""


def parse_depths(text: str) -> tuple[Depth, ...]:
    """``"0x5,32768"``: depth 0 in five rounds, depth 32768 in one. ValueError for anything else."""
    result = []
    for word in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:x([1-9]\d*))?\s*", word)
        if not found:
            raise ValueError(f"found {word!r}, wanted a number of tokens such as 32768, or 0x5 for five rounds at 0")
        result.append(Depth(int(found[1]), int(found[2] or 1)))
    if len({depth.tokens for depth in result}) < len(result):
        raise ValueError(f"found a depth twice in {text!r}")
    return tuple(result)


def parse_devices(text: str) -> tuple[int, ...]:
    """``"0,1"``. ValueError for anything else."""
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise ValueError(f"found {text!r}, wanted different numbers of GPUs, as in 0,1")
    return tuple(int(word) for word in words)


def run(options: Options, measured: Callable[[list[Row]], None] = lambda rows: None) -> list[Row]:
    """Measure everything; `measured` is called after each sample with the rows that have one, by one thread at a time.
    BenchError if a llama-bench fails.

    The deepest come first: they take longest, and the device that is free next takes the next.
    """
    for folder in {options.programs, options.unmodified or options.programs}:
        if not (folder / "llama-bench").is_file():
            raise BenchError(f"{folder} holds no llama-bench: build the target llama-bench, and give the folder that it lies in")
    free: SimpleQueue = SimpleQueue()
    for device in options.devices or (None,):
        free.put(device)
    stop, reporting = threading.Event(), threading.Lock()
    ours = {info.name for info in cache_types()}

    def row(depth: Depth, pair: Case) -> Row:
        patched = options.unmodified is None or pair.k in ours or pair.v in ours
        return Row(depth.tokens, pair.k, pair.v, "patched" if patched else "unmodified")

    rows = {depth: [row(depth, pair) for pair in options.pairs] for depth in options.depths}
    every = [row for depth in options.depths for row in rows[depth]]

    def measure(depth: Depth) -> None:
        device = free.get()
        try:
            for number in range(depth.rounds):
                for row in rows[depth] if number % 2 == 0 else rows[depth][::-1]:  # a drift then favours nobody
                    if stop.is_set():
                        return
                    _sample(options, row, device)
                    with reporting:
                        measured([row for row in every if row.decode or row.prefill])
        except BaseException:
            stop.set()
            raise
        finally:
            free.put(device)

    with ThreadPoolExecutor(max(1, len(options.devices))) as pool:
        list(pool.map(measure, sorted(options.depths, key=lambda depth: -depth.tokens)))
    return every


def _sample(options: Options, row: Row, device: int | None) -> None:
    folder = options.programs if row.code == "patched" or options.unmodified is None else options.unmodified
    command = [
        folder / "llama-bench", "-m", options.model, "-o", "jsonl", "-fa", 1, "-ctk", row.k, "-ctv", row.v, "-d", row.depth,
        "-p", options.n_prompt, "-n", options.n_gen, "-r", options.repetitions, "-t", options.threads, *options.arguments,
    ]  # fmt: skip
    environment = dict(os.environ)
    if os.name != "nt":  # a build that was moved doesn't find its own libraries
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(folder), environment.get("LD_LIBRARY_PATH")]))
    if device is not None:
        environment.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=str(device))
    with tempfile.TemporaryFile("w+") as log, _Memory(device) as memory:
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=environment, text=True)
        try:
            output, _ = process.communicate(timeout=options.timeout)
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise BenchError(f"llama-bench with {row.k}/{row.v} at depth {row.depth} took longer than {options.timeout:g} s") from None
            raise
        log.seek(0)
        said = log.read()
    records = parse_bench(output)
    if process.returncode or not records:
        ended = f"was ended by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else f"ended with {process.returncode}"
        raise BenchError(f"llama-bench with {row.k}/{row.v} at depth {row.depth} {ended}: {last_error(said)}")
    for record, speed in records:
        row.device = record.get("gpu_info") or record.get("cpu_info") or row.device
        (row.prefill if record["n_prompt"] else row.decode).extend(speed.samples)
    if memory.peak is not None:
        row.peak_mib = max(memory.peak, row.peak_mib or 0)


class _Memory:
    """Asks nvidia-smi for the memory in use of a GPU until the end of the block; `peak` is the most, in MiB, None without nvidia-smi."""

    def __init__(self, device: int | None) -> None:
        self.peak: int | None = None
        self._device, self._end = device, threading.Event()
        self._thread = None
        if device is not None and shutil.which("nvidia-smi"):
            self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "-i", str(self._device), "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while True:
            done = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True)
            if done.stdout.strip().isdigit():
                self.peak = max(self.peak or 0, int(done.stdout))
            if self._end.wait(SAMPLE_SECONDS):
                return


def table(rows: Sequence[Row], n_prompt: int) -> list[str]:
    """Lines: medians in tokens per second, their ratio to f16 / f16 at the same depth, the samples' range, memory."""
    lines = [f"{'depth':>7} {'K/V':<17} {'code':<10} {'decode t/s':>10} {'range':>15} {'x f16':>6} {f'prefill {n_prompt} t/s':>16} {'range':>15} {'x f16':>6} {'peak MiB':>8}"]
    for row in rows:
        base = next((other for other in rows if (other.depth, other.k, other.v) == (row.depth, "f16", "f16")), None)
        words = [f"{row.depth:>7} {row.k + '/' + row.v:<17} {row.code:<10}"]
        for name, width in (("decode", 10), ("prefill", 16)):
            samples = getattr(row, name)
            against = getattr(base, name) if base else []
            middle = f"{median(samples):.1f}" if samples else "-"
            spread = f"{min(samples):.1f}-{max(samples):.1f}" if samples else "-"
            ratio = f"{median(samples) / median(against):.3f}" if samples and against else "-"
            words.append(f"{middle:>{width}} {spread:>15} {ratio:>6}")
        words.append(f"{'-' if row.peak_mib is None else row.peak_mib:>8}")
        lines.append(" ".join(words))
    return lines


def as_json(options: Options, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """Every sample, and what was asked for."""
    asked = {
        "model": options.model.name, "n_prompt": options.n_prompt, "n_gen": options.n_gen, "repetitions": options.repetitions, "depths": [asdict(depth) for depth in options.depths],
        "threads": options.threads, "arguments": list(options.arguments), "unmodified": options.unmodified is not None,
    }  # fmt: skip
    facts = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": record.machine(), "pyggmlq": record.our_version()}
    return {"command": "bench llama", "ok": True, "format": FORMAT, **facts, "seconds": round(seconds, 1), "options": asked, "rows": [asdict(row) for row in rows]}


def write(path: Path, options: Options, rows: Sequence[Row], seconds: float) -> None:
    """`as_json` to a file."""
    path.write_text(json.dumps(as_json(options, rows, seconds), indent=1) + "\n", encoding="utf-8")
