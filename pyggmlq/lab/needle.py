# SPDX-License-Identifier: MIT
"""A needle in a haystack: how well a model finds a fact again, by depth and cache type.

A number of a city is hidden in a passage, beside that of another city, and the passage ends with the beginning of the same
sentence. Measured is -log p of the right number, which small models have, too, where they don't answer: what a cache
loses is what it has above f16. Where the needle is left out, the same value says what guessing costs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from .. import _tree, llama
from .._files import write_atomically
from .._pairs import Case
from .._steps import Steps, slug
from . import LabError, record, runs

TARGETS = ("llama-ggmlq-lab",)
CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Dublin", "Athens", "Warsaw", "Nairobi", "Prague", "Havana", "Vienna", "Seoul")


@dataclass(frozen=True)
class Options(runs.Grid):
    """What to measure and how; names as on the command line."""

    depths: tuple[int, ...]
    needles: int


@dataclass(frozen=True)
class Question:
    """A passage with a needle (or, `depth` None, without), and the answer to its last sentence."""

    depth: int | None
    context: str
    answer: str


def questions(text: str, n_characters: int, depths: tuple[int, ...], needles: int) -> list[Question]:
    """For each needle one question without it, and one for each depth, over the same passage. `LabError` if `text` is short."""
    if len(text) < n_characters + needles:
        raise LabError(f"the text is too short: found {len(text)} characters, wanted {n_characters + needles} for haystacks of that length")
    found = []
    for number in range(needles):
        chance = random.Random(number)  # the same needles in every run
        start = number * (len(text) - n_characters) // max(1, needles - 1) if needles > 1 else 0
        passage = text[start : start + n_characters]
        city, other = chance.sample(CITIES, 2)
        right, wrong = (str(chance.randrange(10000, 100000)) for _ in range(2))
        with_other = _hidden(passage, chance.randrange(10, 91), f"The secret number of {other} is {wrong}.")
        question = f"\n\nThe secret number of {city} is"
        found.append(Question(None, with_other + question, f" {right}"))
        for depth in depths:
            found.append(Question(depth, _hidden(with_other, depth, f"The secret number of {city} is {right}.") + question, f" {right}"))
    return found


def _hidden(passage: str, depth: int, sentence: str) -> str:
    """`sentence` behind the sentence or line of `passage` that ends nearest to `depth` percent."""
    ends = [0, *(match.end() for match in re.finditer(r"[.!?]\s+|\n+", passage)), len(passage)]
    at = min(ends, key=lambda end: abs(end - depth / 100 * len(passage)))
    return f"{passage[:at]}{'' if at == 0 or passage[at - 1].isspace() else ' '}{sentence} {passage[at:]}"


def run(options: Options, steps: Steps, finished: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure everything; the record, `finished` being called with it after each pair. StepFailed if a step fails."""
    folder, tree = runs.folder_and_tree(options, steps, TARGETS)
    path = runs.text_file(options.text, tree, options, steps)
    text = path.read_text(encoding="utf-8", errors="replace").replace("\x1e", " ").replace("\x1f", " ")
    if len(text) < max(options.contexts):  # a token has a character at least
        raise LabError(f"{path} is too short: found {len(text)} characters, wanted enough for haystacks of {max(options.contexts)} tokens")
    with steps.named("reading the built programs"):
        programs = {"sha256": _tree.programs_hash(folder, TARGETS), **runs.version(folder, TARGETS[0])}
    data = record.start(
        record.NEEDLE, llama_cpp=programs, models=[], notes=[], text=runs.text_facts(path),
        options={"contexts": options.contexts, "depths": options.depths, "needles": options.needles, "extra": options.extra},
    )  # fmt: skip
    for name in options.models:
        subject = runs.subject(name, options, steps)
        data["models"].append(subject.facts)
        grid = _Grid(subject, text, data["text"]["sha256"], options, steps, folder, programs["sha256"])
        for n_ctx in options.contexts:
            for case, setting in options.settings():
                rows = grid.rows(n_ctx, case, setting)
                data["rows"] += rows
                if rows[0]["refused"]:
                    data["notes"] = list(dict.fromkeys([*data["notes"], f"{subject.title}, refused by llama.cpp: {rows[0]['refused']}"]))
                finished(data)
    return data


class _Grid:
    """All pairs on one model."""

    def __init__(
        self, subject: runs.Subject, text: str, text_sha256: str, options: Options, steps: Steps, folder: Path, programs: str
    ) -> None:  # fmt: skip
        self.subject, self.text, self.options, self.steps = subject, text, options, steps
        self.inputs = {"programs": programs, "model": subject.sha256, "text": text_sha256, "depths": options.depths, "needles": options.needles,
                       "extra": options.extra, "results": ["nll", "exact", "tokens", "device"]}  # fmt: skip
        self.tools = llama.Tools(folder, options.work_dir / "logs", options.threads, _watch(steps), options.extra, runs.Setting().environment)

    def rows(self, n_ctx: int, case: Case, setting: runs.Setting) -> list[dict[str, Any]]:
        """A row for each depth."""
        name = f"{self.subject.title}, needle in {n_ctx}, {case}{setting}"
        tools = replace(self.tools, environment=setting.environment)

        def measure() -> dict[str, Any]:
            n_characters = self._characters(n_ctx)
            self.steps.current = name
            asked = questions(self.text, n_characters, self.options.depths, self.options.needles)
            try:
                found, log = self._score(tools, name, asked, case, -(-3 * n_ctx // 512) * 256)  # half as much again: passages differ
            except llama.ToolError as error:
                sentence = error.refusal((case.k, case.v))
                if sentence is None:
                    raise
                return {"refused": sentence}
            placement = llama.parse_placement(log)
            scores = [{"depth": one.depth, "nll": got.nll, "exact": got.exact, "tokens": got.n_context} for one, got in zip(asked, found)]
            return {"refused": setting.ignored(log), "scores": scores, "device": placement.device if placement else None}

        found = self.steps.kept(name, {**self.inputs, "n_ctx": n_ctx, **setting.facts()}, measure)
        scores, rows = [] if found["refused"] else found["scores"], []
        for depth in self.options.depths:
            mine = [one for one in scores if one["depth"] == depth]
            rows.append({
                "model": self.subject.title, "n_ctx": n_ctx, "k": case.k, "v": case.v, **setting.facts(), "depth": depth, "needles": len(mine),
                "nll": mean(one["nll"] for one in mine) if mine else None, "found": mean(one["exact"] for one in mine) if mine else None,
                "nll_without": mean(one["nll"] for one in scores if one["depth"] is None) if mine else None,
                "tokens": round(mean(one["tokens"] for one in mine)) if mine else None, "device": found.get("device"), "refused": found["refused"],
            })  # fmt: skip
        return rows

    def _characters(self, n_ctx: int) -> int:
        """Of a haystack, by the tokens that the beginning of the text has; room is left for the sentences that come into it."""
        sample = self.text[: 4 * n_ctx]
        name = f"{self.subject.title}: tokens of the text"
        tokens = self.steps.kept(name, {**self.inputs, "n_ctx": n_ctx},
                                 lambda: self._score(self.tools, name, [Question(None, sample, " 1")], Case("f16", "f16"), 8 * n_ctx)[0][0].n_context)  # fmt: skip
        return int(len(sample) / max(1, tokens) * (n_ctx - 64))

    def _score(self, tools: llama.Tools, name: str, asked: list[Question], case: Case, room: int) -> tuple[list[llama.Score], str]:
        """Answers in order, and the program's log, in a context of `room` tokens."""
        cases = self.options.work_dir / f"{slug(name)}.cases"
        write_atomically(cases, "".join(f"{one.context}\x1f{one.answer}\x1e" for one in asked))
        try:
            found, log = tools.score(slug(name), self.subject.path, cases, case.k, case.v, n_ctx=room)
        except llama.ToolError as error:
            raise runs.unloadable(error, self.subject.path) or error from None
        finally:
            cases.unlink(missing_ok=True)
        if len(found) != len(asked):
            raise llama.ToolError(f"llama-ggmlq-lab answered {len(found)} of {len(asked)} questions", tools.logs / f"{slug(name)}.log")
        return found, log


def _watch(steps: Steps) -> Callable[[Path], None]:
    def watch(log: Path) -> None:
        done = len(re.findall(r"^case ", log.with_suffix(".out").read_text(encoding="utf-8", errors="replace"), re.MULTILINE))
        steps.progress.update(f"  {steps.current}: {done} questions answered")

    return watch
