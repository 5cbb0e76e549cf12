# SPDX-License-Identifier: MIT
"""Run llama.cpp's own tools and read what they report: memory of the KV cache, speed, perplexity, divergence.

The parsers are pure functions of the printed text; `Tools` starts the programs and keeps each one's output in a log.
Nothing here knows of particular cache types: a pair is given by name, as to ``-ctk`` and ``-ctv``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = [
    "CMAKE_OPTIONS",
    "Divergence",
    "KvMemory",
    "Placement",
    "Score",
    "Speed",
    "ToolError",
    "Tools",
    "last_error",
    "parse_bench",
    "parse_centering",
    "parse_divergence",
    "parse_kv_memory",
    "parse_model_info",
    "parse_not_centered",
    "parse_perplexity",
    "parse_placement",
    "parse_rotation",
    "parse_windows",
    "refusal",
]

CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
"""What every build of llama.cpp here is configured with: release, without what needs libraries or a download."""

_NUMBER = r"([-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf))"
_STAMP = r"^(?:\d+\.\d+\.\d+\.\d+ )?"
"""Newer versions put the time and a level letter before a line; older ones print the bare text."""


class ToolError(RuntimeError):
    """A llama.cpp tool failed or printed no result; `log` holds what it said."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log

    def refusal(self, types: Sequence[str]) -> str | None:
        """llama.cpp's sentence about a cache type of `types` not fitting the model, if that is why."""
        return refusal(self.log.read_text(encoding="utf-8", errors="replace"), types)


@dataclass(frozen=True)
class KvMemory:
    """What llama.cpp allocated for the K and the V side, summed over its caches (sliding-window models have two)."""

    type_k: str
    type_v: str
    mib_k: float
    mib_v: float
    caches: int = 1
    """Caches summed; each was printed rounded to 0.01 MiB."""


@dataclass(frozen=True)
class Placement:
    """Where llama.cpp computed."""

    device: str
    """Of the KV cache: `CPU`, or what the driver calls the GPUs."""
    splits: int | None
    """Pieces that the graph of a batch was cut into: a new one begins where an operation must go to another device."""


@dataclass(frozen=True)
class Divergence:
    """Distance of a run's token distributions from those of the reference run; errors are standard errors."""

    ppl: float
    ppl_error: float
    kld: float
    kld_error: float
    kld_99: float
    kld_max: float
    same_top: float
    """Share of positions whose most likely token is the reference's, in percent."""
    same_top_error: float
    ppl_ratio: float
    """Perplexity over the reference's. Its error is smaller than that of `ppl`: both saw the same text."""
    ppl_ratio_error: float
    kld_median: float
    kld_999: float
    """99.9th percentile."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one llama-bench test: mean, standard deviation and every sample."""

    mean: float
    deviation: float
    samples: tuple[float, ...]
    cpu_share: float | None = None
    """Processor time that the run got, of all its threads' time. Well below 1 on a CPU: other programs were running."""


@dataclass(frozen=True)
class Score:
    """How likely a model finds an answer after a context."""

    n_tokens: int
    """Of the answer."""
    nll: float
    """Sum of -log p over them, in nats."""
    n_top: int
    """How many of them were the most likely token: all, if greedy decoding gives the answer."""
    n_context: int
    """Tokens of the context."""

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives the answer."""
        return self.n_top == self.n_tokens


# Parsers -------------------------------------------------------------------------------------------------------------

_KV_LINE = re.compile(r"size\s*=\s*[\d.]+ MiB \(.*\), K \((\w+)\):\s*([\d.]+) MiB, V \((\w+)\):\s*([\d.]+) MiB")


def parse_kv_memory(log: str) -> KvMemory | None:
    """The KV cache of the last context that `log` (at verbosity 4) tells of; None if it tells of none.

    Only the last, because newer versions first make a trial context to see whether everything fits.
    """
    found = _KV_LINE.findall(log.rsplit("constructing llama_context", 1)[-1])
    if not found:
        return None
    types_k, types_v = {line[0] for line in found}, {line[2] for line in found}
    return KvMemory(
        "+".join(sorted(types_k)),
        "+".join(sorted(types_v)),
        round(sum(float(line[1]) for line in found), 2),
        round(sum(float(line[3]) for line in found), 2),
        len(found),
    )


def parse_placement(log: str) -> Placement | None:
    """Where the KV cache of the last context lies, and how the graph was cut (at verbosity 4); None if `log` doesn't tell."""
    last = log.rsplit("constructing llama_context", 1)[-1]
    names = dict.fromkeys(re.findall(r"(\S+) KV buffer size", last))
    if not names:
        return None
    described = dict(re.findall(r"using device (\S+) \((.*?)\)(?: \(| - )", log))
    splits = [int(n) for n in re.findall(r"\bsplits = (\d+)", last)]
    return Placement(", ".join(dict.fromkeys(described.get(name, name) for name in names)), max(splits, default=None))


def parse_model_info(log: str) -> dict[str, str]:
    """The ``name = value`` lines of ``print_info`` (n_layer, n_embd_head_k, n_vocab, general.name, ..)."""
    return dict(re.findall(r"print_info: (\S+)\s*= (.*?)\s*$", log, re.MULTILINE))


def parse_perplexity(output: str) -> tuple[float, float] | None:
    """(perplexity, standard error) of a plain llama-perplexity run."""
    found = re.search(rf"Final estimate: PPL = {_NUMBER} \+/- {_NUMBER}", output)
    return (float(found[1]), float(found[2])) if found else None


def parse_divergence(output: str) -> Divergence | None:
    """The statistics that ``llama-perplexity --kl-divergence`` ends with; None if it did not get that far."""

    def pair(label: str) -> tuple[float, float] | None:
        found = re.search(rf"^{label}\s*:\s*{_NUMBER} ± +{_NUMBER}", output, re.MULTILINE)
        return (float(found[1]), float(found[2])) if found else None

    def single(label: str) -> float:
        found = re.search(rf"^{label}\s*:\s*{_NUMBER}", output, re.MULTILINE)
        return float(found[1]) if found else float("nan")

    ppl, ratio = pair(r"Mean PPL\(Q\)"), pair(r"Mean PPL\(Q\)/PPL\(base\)")
    kld, top = pair(r"Mean +KLD"), pair(r"Same top p")
    if ppl is None or ratio is None or kld is None or top is None:
        return None
    kld_99, kld_max = single(r"99\.0% +KLD"), single("Maximum KLD")
    return Divergence(*ppl, *kld, kld_99, kld_max, *top, *ratio, single("Median +KLD"), single(r"99\.9% +KLD"))


def parse_rotation(log: str) -> tuple[bool, bool] | None:
    """Whether llama.cpp rotates K and V of the last context's cache (`attn_rot`); None in versions that can't.

    A model with several caches rotates in all or in none.
    """
    found = re.findall(r"attn_rot_([kv]) = ([01])", log.rsplit("constructing llama_context", 1)[-1])
    sides = {side: value == "1" for side, value in found}
    return (sides["k"], sides["v"]) if len(sides) == 2 else None


def parse_centering(log: str) -> int | None:
    """How many layers' keys the last context centers (`--kv-center`); None if it centers none."""
    found = re.search(r"keys are centered: (\d+) layers", log.rsplit("constructing llama_context", 1)[-1])
    return int(found[1]) if found else None


def parse_not_centered(log: str) -> str | None:
    """llama.cpp's sentence on why it centers no keys, if `log` holds one."""
    found = re.search(r"keys are not centered: .*", log.rsplit("constructing llama_context", 1)[-1])
    return found[0].strip() if found else None


def parse_windows(output: str) -> int | None:
    """How many windows ``llama-perplexity --kl-divergence`` evaluated: it prints a line for each; None if it printed none."""
    found = re.findall(rf"^ *(\d+) +{_NUMBER} ± ", output, re.MULTILINE)
    return int(found[-1][0]) if found else None


def parse_bench(output: str) -> list[tuple[dict[str, Any], Speed]]:
    """The (record, speed) of each test in ``llama-bench -o jsonl`` output; a type that is missing there is f16."""
    records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [(record, Speed(record["avg_ts"], record["stddev_ts"], tuple(record["samples_ts"]))) for record in records]


def last_error(log: str) -> str:
    """The line of `log` that most likely says why a tool failed, without its time stamp."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.search(_STAMP + r"(E |.*\b(error|failed|unable|unsupported|GGML_ASSERT)\b)", line, re.IGNORECASE)
    ]
    return _bare((errors or lines or ["it printed nothing"])[0])


def refusal(log: str, types: Sequence[str]) -> str | None:
    """llama.cpp's sentence about a cache type of `types` not fitting the model's head size, if `log` holds one."""
    for line in log.splitlines():
        names_type = any(re.search(rf"\b{re.escape(name)}\b", line) for name in types)
        if names_type and re.search(r"head.?size|n_embd_head|does not (fit|divide)", line):
            return _bare(line.strip())
    return None


def _bare(line: str) -> str:
    line = re.sub(r"^\d+\.\d+\.\d+\.\d+ [A-Z] ", "", line)
    return re.sub(r"^(?:\S+ +)?\w+: (?=\S+ )", "", line)


# Programs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tools:
    """llama.cpp's programs in `folder`; every run's output goes to ``<logs>/<name>.log``.

    `watch` is called about twice a second with the path of the log while a program runs; what the program prints to
    standard output grows meanwhile in the file of that name with the suffix ``.out``.
    """

    folder: Path
    logs: Path
    threads: int
    watch: Callable[[Path], None] | None = None
    extra: tuple[str, ...] = ()
    """Further arguments of the programs that run a model on a text, such as ``-ngl 99``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set for the programs beside those of this process."""
    descriptors: tuple[int, ...] = ()
    """Open files that the programs inherit, such as ends of pipes, which they open as ``/dev/fd/N`` (not on Windows)."""

    def program(self, name: str) -> Path:
        """The path of the executable `name`; FileNotFoundError if it was not built."""
        path = self.folder / (name + (".exe" if os.name == "nt" else ""))
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: build the target {name} first.")
        return path

    def complete(
        self, name: str, model: Path, prompt: Path, k: str, v: str, *, n_ctx: int, n_predict: int
    ) -> tuple[str, str]:
        """Continue the text in the file `prompt` greedily; return (what was generated, the log)."""
        log = self._run(
            name,
            "llama-completion",
            "-lv",
            "4",
            "-m",
            model,
            "-f",
            prompt,
            "-c",
            n_ctx,
            "-n",
            n_predict,
            "--temp",
            0,
            "--seed",
            1,
            "-no-cnv",
            "--no-display-prompt",
            "-t",
            self.threads,
            *_cache(k, v),
        )
        return self._stdout(name).read_text(encoding="utf-8", errors="replace").strip(), log

    def bench(self, name: str, model: Path, k: str, v: str, *, depth: int, n_gen: int, repetitions: int) -> Speed:
        """Speed of generating `n_gen` tokens after `depth` cached ones."""
        start, used = time.monotonic(), _children_seconds()
        self._run(
            name,
            "llama-bench",
            "-m",
            model,
            "-p",
            0,
            "-n",
            n_gen,
            "-d",
            depth,
            "-r",
            repetitions,
            "-o",
            "jsonl",
            "-t",
            self.threads,
            "-ctk",
            k,
            "-ctv",
            v,
            "-fa",
            1,
            timed=True,
        )
        elapsed, ended = time.monotonic() - start, _children_seconds()
        share = None if used is None or ended is None else round((ended - used) / elapsed / self.threads, 2)
        for record, speed in parse_bench(self._stdout(name).read_text(encoding="utf-8", errors="replace")):
            if (record.get("type_k"), record.get("type_v")) == (k, v):
                return replace(speed, cpu_share=share)
        raise ToolError(f"llama-bench printed no result for {k}/{v}", self._log(name))

    def save_logits(
        self, name: str, model: Path, text: Path, logits: Path, *, n_ctx: int, chunks: int
    ) -> tuple[float, float]:
        """Write the reference's token distributions (f16 cache) to `logits`; return its perplexity and error.

        The file takes about ``chunks * n_ctx * vocabulary`` bytes.
        """
        arguments = ["-f", text, "--chunks", chunks, "--kl-divergence-base", logits]
        log = self._perplexity(name, model, arguments, "f16", "f16", n_ctx)
        result = parse_perplexity(log)
        if result is None:
            raise ToolError(f"llama-perplexity printed no estimate ({last_error(log)})", self._log(name))
        return result

    def divergence(self, name: str, model: Path, logits: Path, k: str, v: str, *, n_ctx: int) -> tuple[Divergence, str]:
        """Compare a run with the cache types `k` and `v` with the distributions in `logits`; return also the log."""
        log = self._perplexity(name, model, ["--kl-divergence", "--kl-divergence-base", logits], k, v, n_ctx)
        result = parse_divergence(log)
        if result is None:
            raise ToolError(f"llama-perplexity printed no divergence ({last_error(log)})", self._log(name))
        return result, log

    def dump_rows(
        self, name: str, model: Path, text: Path, folder: Path, k: str, v: str, *, n_ctx: int, windows: int, tokens: int
    ) -> int:
        """Write rows of Q, K and V of `tokens` tokens of each window of `text` to files in `folder`; the number of windows."""
        words = ("-m", model, "-c", n_ctx, "-t", self.threads, *_cache(k, v), *self.extra)
        log = self._run(name, "llama-ggmlq-lab", "dump", folder, text, windows, tokens, *words)
        found = re.search(r"^windows (\d+) of \d+$", log, re.MULTILINE)
        if found is None:
            raise ToolError(f"llama-ggmlq-lab printed no windows ({last_error(log)})", self._log(name))
        return int(found[1])

    def calibrate(self, name: str, model: Path, text: Path, file: Path, *, tokens: int, n_ctx: int) -> str:
        """Write a calibration of centered keys to `file`, of up to `tokens` tokens of `text` in windows of n_ctx; the log."""
        words = ("-lv", "4", "-m", model, "-c", n_ctx, "-t", self.threads, *self.extra)
        return self._run(name, "llama-ggmlq-lab", "calibrate", file, text, tokens, *words)

    def score(self, name: str, model: Path, cases: Path, k: str, v: str, *, n_ctx: int) -> tuple[list[Score], str]:
        """What the model makes of the answers in the file `cases` (context 0x1f answer 0x1e, ..); return also the log."""
        words = ("-lv", "4", "-m", model, "-c", n_ctx, "-t", self.threads, *_cache(k, v), *self.extra)
        log = self._run(name, "llama-ggmlq-lab", "score", cases, *words)
        found = re.findall(r"^case \d+ (\d+) (\S+) (\d+) (\d+)$", log, re.MULTILINE)
        return [Score(int(n), float(nll), int(top), int(before)) for n, nll, top, before in found], log

    def _perplexity(self, name: str, model: Path, arguments: list[object], k: str, v: str, n_ctx: int) -> str:
        return self._run(
            name, "llama-perplexity", "-lv", "4", "-m", model, *arguments, *self._window(n_ctx), *_cache(k, v)
        )  # fmt: skip

    def _window(self, n_ctx: int) -> tuple[object, ...]:
        """A window in one call, cut into batches of llama.cpp's default size, on which the cache of sliding windows depends."""
        return "-c", n_ctx, "-b", n_ctx, "-ub", min(n_ctx, 512), "-t", self.threads, *self.extra

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _stdout(self, name: str) -> Path:
        return self.logs / f"{name}.out"

    def _run(self, name: str, program: str, *arguments: object, timed: bool = False) -> str:
        """Run to the end; return standard output followed by standard error, which the log keeps.

        Where no speed is reported, idle OpenMP threads sleep: spinning ones made runs on a busy machine 2-3 times slower.
        """
        command = [str(self.program(program)), *map(str, arguments)]
        self.logs.mkdir(parents=True, exist_ok=True)
        log, stdout = self._log(name), self._stdout(name)
        environment = {**({} if timed else {"OMP_WAIT_POLICY": "passive"}), **os.environ, **self.environment}
        with stdout.open("wb") as out, log.open("wb") as err:
            status = wait(
                subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment, pass_fds=self.descriptors),
                lambda: self.watch(log) if self.watch else None,
            )
        text = (
            stdout.read_text(encoding="utf-8", errors="replace")
            + "\n"
            + log.read_text(encoding="utf-8", errors="replace")
        )
        log.write_text(f"$ {' '.join(command)}\n{text}\nexit status {status}\n", encoding="utf-8")
        if status != 0:
            raise ToolError(f"{program} ended with status {status} ({last_error(text)})", log)
        return text


def _children_seconds() -> float | None:
    """Processor time of this process's ended children; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cache(k: str, v: str) -> tuple[str, ...]:
    return "-ctk", k, "-ctv", v, "-fa", "on"


def wait(process: subprocess.Popen[bytes], tick: Callable[[], None] | None = None) -> int:
    """Wait for `process`, calling `tick` twice a second; on an exception (Ctrl-C) end the process first."""
    try:
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if tick is not None:
                    tick()
    except BaseException:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
