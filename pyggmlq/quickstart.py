# SPDX-License-Identifier: MIT
"""The quickstart: llama.cpp with our cache types, built and measured against f16, q8_0 and q4_0 on real models.

``tools/quickstart`` makes an environment and calls this; ``python -m pyggmlq.quickstart`` does the same in one that has
pyggmlq, cmake and ninja. Every measurement is a step whose result is kept under a key of all that it depends on, so a
second run repeats only what is missing or has changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from . import _sources, fetch, llama, patch
from ._files import write_atomically
from ._pairs import Case, divergence_alarms, memory_alarms
from ._quickstart_options import parser
from ._steps import Progress, StepFailed, Steps, slug
from ._tree import RELEASE, build, prepare_tree, programs_hash, prose
from ._types import cache_types, type_info

__all__ = ["Case", "Row", "StepFailed", "Steps", "alarms", "cases", "main", "prose", "render"]

MODELS = ("gemma3-270m", "smollm2-135m")
"""Pinned models that are fetched when no ``--model`` is given: head sizes 256 and 64."""

TARGETS = ("llama-completion", "llama-perplexity", "llama-bench")

MEMORY_CONTEXT = 2048
"""Context, in tokens, at which texts are generated and the cache's size is reported."""

QUALITY_CONTEXT = 512
"""Window, in tokens, of the perplexity and KLD runs; the second half of each window is scored."""

LOGITS_BYTES = 600e6
"""Bound on the reference's file of distributions, which limits the windows of models with a large vocabulary."""

DISK_BYTES = 2.5e9

PROMPT = """\
The harbour log of the island of Corrin, kept by the keeper's daughter.

Monday. The supply boat came in late. It is painted green, and its name is Patience. The skipper, old Tobias, brought \
three sacks of flour, a barrel of lamp oil and a letter for my father. He said that the storm had taken the roof of \
the chapel on the mainland.

Tuesday. Fog all day. We rang the bell every two minutes. My father read the letter again and said nothing.

Wednesday. The fog is gone. Tobias sailed home with two of our goats and a basket of eggs. My father told me at last: \
his brother is coming to live with us, and he is bringing a telescope.

Question: What is the name of the supply boat?
Answer: Patience.

Question: What did the skipper bring to the island?
Answer:"""


# What is measured ----------------------------------------------------------------------------------------------------


def cases() -> list[Case]:
    """f16, ggml's own types, and each of ours: both sides, K only, V only, and V with a q8_0 K."""
    pairs = [Case("f16", "f16"), Case("q8_0", "q8_0"), Case("q4_0", "q4_0")]
    for ours in (info.name for info in cache_types()):
        pairs += [Case(ours, ours), Case(ours, "f16"), Case("f16", ours), Case("q8_0", ours)]
    return pairs


@dataclass(frozen=True)
class Plan:
    """How much is run; `quick` trades error bars for time."""

    n_predict: int = 32
    depth: int = 1024
    n_gen: int = 32
    repetitions: int = 3
    chunks: int = 8

    @staticmethod
    def of(quick: bool) -> Plan:
        """The plan for a full or a quick run."""
        return Plan(n_predict=16, depth=512, n_gen=16, repetitions=1, chunks=2) if quick else Plan()


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    title: str
    path: Path


@dataclass
class Row:
    """What was found for one model and one pair of cache types; `refused` is llama.cpp's sentence if it said no."""

    model: str
    case: Case
    memory: llama.KvMemory | None = None
    speed: llama.Speed | None = None
    divergence: llama.Divergence | None = None
    measured_as: llama.KvMemory | None = None
    """The cache that the divergence was measured with, as that run reported it."""
    centered: int | None = None
    """Layers whose keys that run centered; None: none."""
    text: str = ""
    refused: str | None = None


# Inputs --------------------------------------------------------------------------------------------------------------


def subjects(options: Any, steps: Steps) -> list[Subject]:
    """The models: the user's, or the two pinned ones."""
    if options.model:
        return [Subject(path.stem, path) for path in options.model]
    result = []
    for name in MODELS:
        title = fetch.MODELS[name].title
        with steps.named(f"fetching {title}"):
            path = fetch.fetch_model(name, options.work_dir / "models", steps.progress.update)
        steps.progress.line(f"{title} in {path}")
        result.append(Subject(title, path))
    return result


def write_text(tree: Path, options: Any, steps: Steps) -> Path:
    """The file to measure on."""
    if options.text:
        return options.text
    path = options.work_dir / "text.txt"
    with steps.named("collecting text"):
        text = prose(tree)
        if len(text) < 20_000:
            raise StepFailed(
                steps.current,
                f"the documents of {tree} hold only {len(text)} characters of prose: give a text with --text FILE",
            )
        write_atomically(path, text)
    return path


# Measuring -----------------------------------------------------------------------------------------------------------


class Bench:
    """Measures one model with every pair of cache types."""

    def __init__(
        self, subject: Subject, tools: llama.Tools, text: Path, work: Path, plan: Plan, steps: Steps, programs: str
    ) -> None:
        self.subject, self.tools, self.text, self.work, self.plan, self.steps = subject, tools, text, work, plan, steps
        self.prompt = work / "prompt.txt"
        self.prompt.write_text(PROMPT, encoding="utf-8")
        self.logits = work / f"{slug(subject.title)}.logits"
        state = subject.path.stat()
        self.common = {
            "programs": programs,
            "threads": tools.threads,
            "model": [str(subject.path), state.st_size, state.st_mtime_ns],
            "kv_center": os.environ.get("GGMLQ_KV_CENTER", ""),
        }

    def rows(self, pairs: Sequence[Case]) -> list[Row]:
        """A row for every pair; the reference's distributions exist only meanwhile."""
        self.logits.unlink(missing_ok=True)  # a killed run's: who knows of which text
        try:
            return [self.row(case) for case in pairs]
        finally:
            self.logits.unlink(missing_ok=True)

    def row(self, case: Case) -> Row:
        """Everything about one pair."""
        row = Row(self.subject.title, case)
        answer = self._generate(case)
        if "refused" in answer:
            row.refused = answer["refused"]
            return row
        row.text, row.memory = answer["text"], llama.KvMemory(**answer["memory"])
        row.speed = llama.Speed(**self._speed(case))
        quality = self._quality(case, answer["n_vocab"])
        row.divergence, row.measured_as = llama.Divergence(**quality["divergence"]), llama.KvMemory(**quality["memory"])
        row.centered = quality["centered"]
        return row

    def _generate(self, case: Case) -> dict[str, Any]:
        title = self._title(case, "text and memory")

        def measure() -> dict[str, Any]:
            try:
                text, log = self.tools.complete(
                    slug(title),
                    self.subject.path,
                    self.prompt,
                    case.k,
                    case.v,
                    n_ctx=MEMORY_CONTEXT,
                    n_predict=self.plan.n_predict,
                )
            except llama.ToolError as error:
                sentence = error.refusal((case.k, case.v))
                if sentence is None:
                    raise
                return {"refused": sentence}
            vocabulary = llama.parse_model_info(log).get("n_vocab", "")
            return {
                "text": text,
                "memory": asdict(self._memory(log, title)),
                "n_vocab": int(vocabulary) if vocabulary.isdigit() else 262144,
            }

        return self.steps.kept(
            title, {**self.common, "prompt": PROMPT, "n_ctx": MEMORY_CONTEXT, "n_predict": self.plan.n_predict}, measure
        )

    def _speed(self, case: Case) -> dict[str, Any]:
        title = self._title(case, "speed")
        how = {"depth": self.plan.depth, "n_gen": self.plan.n_gen, "repetitions": self.plan.repetitions}
        return self.steps.kept(
            title,
            {**self.common, **how},
            lambda: asdict(self.tools.bench(slug(title), self.subject.path, case.k, case.v, **how)),
        )

    def _quality(self, case: Case, n_vocab: int) -> dict[str, Any]:
        title = self._title(case, "perplexity and KLD")
        chunks = max(1, min(self.plan.chunks, int(LOGITS_BYTES // (QUALITY_CONTEXT * n_vocab))))
        inputs = {**self.common, "text": fetch.sha256(self.text), "n_ctx": QUALITY_CONTEXT, "chunks": chunks}
        inputs["statistics"] = [*(field.name for field in fields(llama.Divergence)), "centered"]

        def measure() -> dict[str, Any]:
            self._ensure_logits(chunks)
            found, log = self.tools.divergence(
                slug(title), self.subject.path, self.logits, case.k, case.v, n_ctx=QUALITY_CONTEXT
            )
            return {"divergence": asdict(found), "memory": asdict(self._memory(log, title)), "centered": llama.parse_centering(log)}

        return self.steps.kept(title, inputs, measure)

    def _ensure_logits(self, chunks: int) -> None:
        if not self.logits.exists():
            name = f"{slug(self.subject.title)}-reference"
            unfinished = self.logits.with_suffix(".unfinished")
            try:
                self.tools.save_logits(
                    name, self.subject.path, self.text, unfinished, n_ctx=QUALITY_CONTEXT, chunks=chunks
                )
                os.replace(unfinished, self.logits)
            finally:
                unfinished.unlink(missing_ok=True)

    def _memory(self, log: str, title: str) -> llama.KvMemory:
        memory = llama.parse_kv_memory(log)
        if memory is None:
            raise StepFailed(
                title, "llama.cpp printed no line on the KV cache's size", self.tools.logs / f"{slug(title)}.log"
            )
        return memory

    def _title(self, case: Case, what: str) -> str:
        return f"{self.subject.title}, {case}: {what}"


# Judging -------------------------------------------------------------------------------------------------------------


def alarms(rows: Sequence[Row]) -> list[str]:
    """What can't be right in these rows: a cache that was not quantized, bytes that don't fit the type, no number."""
    found: list[str] = []
    for row in rows:
        reference = next((r for r in rows if r.model == row.model and r.case.is_reference), None)
        if row.refused is None and reference is not None:
            found += [f"{row.model}, {row.case}: {what}" for what in _row_alarms(row, reference)]
    return found


def _row_alarms(row: Row, reference: Row) -> Iterator[str]:
    for where, memory in (("the text", row.memory), ("perplexity", row.measured_as)):
        if memory is not None and (memory.type_k, memory.type_v) != (row.case.k, row.case.v):
            yield f"{where} was run with K {memory.type_k} and V {memory.type_v}"
    if row.memory is not None and reference.memory is not None:
        yield from memory_alarms(row.case, row.memory, reference.memory)
    if row.divergence is not None and reference.divergence is not None:
        yield from divergence_alarms(row.case, row.divergence, reference.divergence)


def advice(rows: Sequence[Row], cpu_only: bool = True) -> list[str]:
    """What the reader should know: which models suffer from a 3-bit K and what they stand better; disturbed speeds."""
    result = []
    timed = [row.speed for row in rows if row.speed]
    disturbed = [
        speed for speed in timed if speed.deviation > 0.15 * speed.mean or (cpu_only and (speed.cpu_share or 1) < 0.75)
    ]
    if disturbed:
        result.append(
            f"{len(disturbed)} of {len(timed)} speeds were disturbed by other programs and say nothing: "
            "let the machine be idle, delete the files *speed* in the work folder's steps/, and run again."
        )
    for row in rows:
        if (
            row.case.k not in {info.name for info in cache_types()}
            or row.case.k != row.case.v
            or row.divergence is None
        ):
            continue
        reference = _find(rows, row.model, Case("f16", "f16"))
        milder = _find(rows, row.model, Case("q8_0", row.case.v))
        if reference and milder and row.divergence.ppl > 1.1 * reference.ppl and milder.ppl < row.divergence.ppl:
            result.append(
                f"{row.model} pays for {row.case.k} in K: perplexity {row.divergence.ppl / reference.ppl - 1:+.1%} against f16; "
                f"with -ctk q8_0 -ctv {row.case.v} it is {milder.ppl / reference.ppl - 1:+.1%}."
            )
    return result


def _find(rows: Sequence[Row], model: str, case: Case) -> llama.Divergence | None:
    return next((row.divergence for row in rows if row.model == model and row.case == case), None)


# Reporting -----------------------------------------------------------------------------------------------------------

_HEADER = ("cache K/V", "bits K/V", "MiB K + V", "tok/s", "PPL", "KLD to f16", "same top")


def render(rows: Sequence[Row]) -> list[str]:
    """The table as lines: a heading per model, a line per pair, and in place of a refused pair llama.cpp's sentence."""
    cells = {id(row): _cells(row) for row in rows if row.refused is None}
    widths = [max(map(len, column)) for column in zip(_HEADER, *cells.values())]
    first = max([widths[0], *(len(str(row.case)) for row in rows)])
    widths[0] = first
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_join(_HEADER, widths)]
    model: str | None = None
    refused: set[str] = set()
    for row in rows:
        if row.model != model:
            model, refused = row.model, set()
            lines += [rule, row.model]
        if row.refused is None:
            lines.append(_join(cells[id(row)], widths))
        elif row.refused not in refused:  # the same sentence once is enough
            refused.add(row.refused)
            lines.append(f"{row.case!s:<{first}}  {row.refused}")
    return [*lines, rule]


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        [f"{cells[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:]))]
    ).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    bits = "/".join(f"{type_info(name).bits_per_value:g}" for name in (row.case.k, row.case.v))
    memory = f"{row.memory.mib_k:.2f} + {row.memory.mib_v:.2f}" if row.memory else ""
    speed = _speed_cell(row.speed) if row.speed else ""
    found = row.divergence
    if found is None:
        return str(row.case), bits, memory, speed, "", "", ""
    kld = "reference" if row.case.is_reference else f"{found.kld:.4f}±{found.kld_error:.4f}"
    return str(row.case), bits, memory, speed, f"{found.ppl:.2f}", kld, f"{found.same_top:.1f} %"


def _speed_cell(speed: llama.Speed) -> str:
    return f"{speed.mean:.1f}" + (f"±{speed.deviation:.1f}" if len(speed.samples) > 1 else "")


def report(rows: Sequence[Row], plan: Plan, threads: int, cpu_only: bool, out: TextIO) -> None:
    """Print table, texts and advice."""
    from rich.console import Console
    from rich.text import Text

    lines = render(rows)
    width = max(map(len, lines))
    console = Console(file=out, highlight=False, soft_wrap=True)
    titles = {row.model for row in rows}
    console.print()
    for number, line in enumerate(lines):
        console.print(Text(line, style="bold" if number == 0 or line in titles else ""))
    console.print(
        Text(
            f"MiB as llama.cpp reports them at {MEMORY_CONTEXT} tokens of context; tok/s: generating after {plan.depth} tokens on {threads} threads;\n"
            f"PPL and mean KLD: windows of {QUALITY_CONTEXT} tokens, ± is the standard error (tok/s: deviation).",
            style="dim",
        )
    )
    centered = dict.fromkeys(row.case.k for row in rows if row.centered)
    if centered:
        console.print(Text(f"Keys of {' and '.join(centered)} are centered, as they are by default (docs/CENTERING.md).", style="dim"))
    for title in dict.fromkeys(row.model for row in rows):
        console.print(
            Text(f'\nWhat {title} answered to "What did the skipper bring to the island?" (greedy)', style="bold")
        )
        for row in rows:
            if row.model == title and row.refused is None:
                console.print(Text(f"{row.case!s:<15}  {_excerpt(row.text, max(width, 100) - 17)}"))
    console.print()
    for sentence in advice(rows, cpu_only):
        console.print(Text("note: " + sentence, style="yellow"))


def _excerpt(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 2] + " …"


def write_json(path: Path, rows: Sequence[Row], found: Sequence[str], plan: Plan, options: Any, commit: str) -> None:
    """Everything that was measured, for other programs."""
    data = {
        "pyggmlq": _sources.version(),
        "llama.cpp": commit,
        "threads": options.threads,
        "plan": {**asdict(plan), "memory_context": MEMORY_CONTEXT, "quality_context": QUALITY_CONTEXT},
        "rows": [
            {
                **asdict(row),
                "bits_k": type_info(row.case.k).bits_per_value,
                "bits_v": type_info(row.case.v).bits_per_value,
            }
            for row in rows
        ],
        "alarms": list(found),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(data, indent=1) + "\n")


# The whole -----------------------------------------------------------------------------------------------------------


def run(options: Any, steps: Steps) -> int:
    """All steps; the exit status."""
    progress = steps.progress
    options.work_dir = options.work_dir.resolve()
    with steps.named("looking at the disk"):
        _require_space(options.work_dir, steps.current)
    tree = prepare_tree(options, steps)
    folder = build(tree, options, steps, TARGETS)
    models = subjects(options, steps)
    text = write_text(tree, options, steps)
    with steps.named("reading the built programs"):
        programs = programs_hash(folder, TARGETS)
    plan = Plan.of(options.quick)
    rows: list[Row] = []
    for subject in models:
        progress.line(f"measuring {subject.title}")
        tools = llama.Tools(folder, options.work_dir / "logs", options.threads, _elapsed(steps))
        rows += Bench(subject, tools, text, options.work_dir, plan, steps, programs).rows(cases())
    found = alarms(rows)
    progress.clear()
    report(rows, plan, options.threads, not options.cmake, progress.out)
    if options.json:
        with steps.named(f"writing {options.json}"):
            commit = patch.status(tree).upstream.get("commit") or (
                "unknown" if options.tree else fetch.TREES[RELEASE].commit
            )
            write_json(options.json, rows, found, plan, options, commit)
    best = cache_types()[0].name
    progress.line(
        f"\nChat on such a cache:\n  {folder / 'llama-completion'} -cnv -fa on -ctk {best} -ctv {best} -m {models[-1].path}"
    )
    if options.tree:
        progress.line(f"Take the patch back:\n  {Path(sys.executable).parent / 'pyggmlq'} revert {tree}")
    for sentence in found:
        progress.line(f"ALARM {sentence}")
    return 1 if found else 0


def _require_space(folder: Path, title: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES and not (folder / "steps").is_dir():
        raise StepFailed(
            title,
            f"{folder} has {free / 1e9:.1f} GB free, wanted {DISK_BYTES / 1e9:.1f}: make room or choose another folder with --work-dir",
        )


def _elapsed(steps: Steps) -> Callable[[Path], None]:
    state: dict[str, Any] = {"title": "", "start": 0.0}

    def watch(_: Path) -> None:
        if state["title"] != steps.current:
            state.update(title=steps.current, start=time.monotonic())
        steps.progress.update(f"  {steps.current}: {time.monotonic() - state['start']:.0f} s ..")

    return watch


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = parser("python -m pyggmlq.quickstart", Path(".cache") / "quickstart").parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console without our signs shows a question mark
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end, too, takes running programs along
    progress = Progress(sys.stdout)
    current = "starting"
    try:
        steps = Steps(options.work_dir.resolve() / "steps", progress)
        try:
            return run(options, steps)
        finally:
            current = steps.current
    except StepFailed as error:
        progress.clear()
        log = f"\n  log       {error.log}" if error.log else ""
        print(
            f"\nquickstart: failed at: {error.step}\n  reason    {error}{log}\n  continue  {options.invoked_as}",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(
            f"\nquickstart: cannot use {options.work_dir} ({error.strerror}): choose another folder with --work-dir",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        progress.clear()
        print(f"\nquickstart: interrupted at: {current}\n  continue  {options.invoked_as}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
