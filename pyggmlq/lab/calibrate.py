# SPDX-License-Identifier: MIT
"""A calibration of centered keys (docs/CENTERING.md) on a text of the user's, as a small GGUF file: a patched llama.cpp's program
llama-ggmlq-lab makes it, `--kv-center FILE` of that llama.cpp reads it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import llama
from .._files import appearing
from .._gguf_file import GgufError, metadata
from .._steps import Steps, slug
from . import LabError, runs
from .dump import TARGETS

ERRORS = "ggmlq.score_error."
WINDOW = 512  # tokens that see each other; llama.cpp's own calibration has one such window


@dataclass(frozen=True)
class Options(runs.Programs):
    """What to calibrate; names as on the command line."""

    model: str
    """Path of a GGUF file, or a name of `fetch.MODELS`."""
    text: Path
    out: Path
    tokens: int


@dataclass(frozen=True)
class Calibrated:
    """Tokens that were used, layers whose keys can be centered by the file, what was said of others (empty: nothing), and by type of K what the file has
    of these layers in their order: the expected root mean square error of attention's scores, before rounding for queries takes some off; none: a type without such heads."""

    tokens: int
    layers: int
    left: str
    errors: dict[str, list[float]]


def run(options: Options, steps: Steps) -> Calibrated:
    """Write `options.out`, whole or not at all. `LabError` and StepFailed say what was in the way."""
    subject = runs.subject(options.model, options, steps)
    folder, _ = runs.folder_and_tree(options, steps, TARGETS)
    file = options.work_dir / "calibration.gguf"
    file.unlink(missing_ok=True)
    name = f"{slug(subject.title)}-calibrate"
    tools = llama.Tools(folder, options.work_dir / "logs", options.threads, _watch(steps, options.tokens), options.extra, {})
    with steps.named(f"calibrating {subject.path.name}"):
        try:
            said = tools.calibrate(name, subject.path, options.text, file, tokens=options.tokens, n_ctx=WINDOW)
        except llama.ToolError as error:
            log = error.log.read_text(encoding="utf-8", errors="replace")
            why = re.search(r"keys are not centered: (.*)", log)
            if "found no layer" in log or why:
                raise LabError(f"{subject.path.name} can't be calibrated: {why[1] if why else 'found no layer that can be'}") from None
            if re.search(r"^error: no calibration was written$", log, re.MULTILINE):
                raise LabError("this llama.cpp doesn't center keys: wanted a tree from 2026-10 on, patched by this pyggmlq") from None
            raise runs.unloadable(error, subject.path) or error from None
    found = re.search(r"wrote the calibration of (\d+) layers on (\d+) tokens(?:; )?(.*)", said)
    if found is None or not file.is_file():
        raise LabError("llama-ggmlq-lab said nothing of a calibration: build it again")
    try:
        written = metadata(file)
    except GgufError as error:
        raise LabError(f"llama-ggmlq-lab wrote what can't be read: {error}") from None
    known = {name[len(ERRORS):]: values for name, values in written.items() if name.startswith(ERRORS)}
    errors = {name: values for name, values in known.items() if all(values)}
    with steps.named(f"writing {options.out}"), file.open("rb") as source, appearing(options.out) as target:
        shutil.copyfileobj(source, target)
    file.unlink()
    return Calibrated(int(found[2]), int(found[1]), found[3].strip(), errors)


def _watch(steps: Steps, tokens: int) -> Callable[[Path], None]:
    def watch(log: Path) -> None:
        done = re.findall(r": (\d+) of (\d+) tokens$", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        steps.progress.update(f"  {steps.current}: {' of '.join(done[-1]) if done else f'0 of {tokens}'} tokens")

    return watch
