# SPDX-License-Identifier: MIT
"""Long work in steps: progress on one line, results that are kept, failures that name the step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from . import fetch, llama, patch
from ._files import write_atomically


class Progress:
    """One line that is rewritten on a terminal; elsewhere only lines that stand on their own."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.live = out.isatty()
        self._percent = -1

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        print(text, file=self.out, flush=True)

    def update(self, text: str) -> None:
        """Show a passing state; nothing where lines can't be rewritten."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{text[:width]}", end="", file=self.out, flush=True)

    def fraction(self, text: str, done: int, total: int) -> None:
        """Show ``done/total``; without a terminal, a line for about every tenth of the way."""
        if self.live:
            self.update(f"{text} [{done}/{total}]")
        elif total > 0 and (done == total or 100 * done // total >= self._percent + 10):
            self.line(f"{text} [{done}/{total}] {100 * done // total} %")
            self._percent = 100 * done // total

    def clear(self) -> None:
        """Remove the passing state."""
        self._percent = -1
        if self.live:
            print("\r\x1b[2K", end="", file=self.out, flush=True)


class StepFailed(RuntimeError):
    """A step did not succeed: which one, why, and where its output is."""

    def __init__(self, step: str, reason: str, log: Path | None = None) -> None:
        super().__init__(reason)
        self.step = step
        self.log = log


class Steps:
    """Runs steps, keeps results as JSON in `folder`, and knows which step is running."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        self.current = "starting"
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def named(self, title: str) -> Iterator[None]:
        """Give the enclosed work a name, which failures carry."""
        self.current = title
        try:
            yield
        except patch.PatchError as error:
            advice = [text for finding in error.findings for label, text in finding.details if label in ("do", "or")]
            raise StepFailed(title, "; ".join([str(error), *dict.fromkeys(advice)])) from error
        except (fetch.FetchError, OSError) as error:
            raise StepFailed(title, str(error)) from error
        except llama.ToolError as error:
            raise StepFailed(title, str(error), error.log) from error

    def kept(self, title: str, inputs: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """The result of `measure` for these `inputs`: kept from before, or measured now and kept."""
        return self.kept_with_time(title, inputs, measure)["result"]

    def kept_with_time(self, title: str, inputs: dict[str, Any], measure: Callable[[], Any]) -> dict[str, Any]:
        """As `kept`, but the whole of what is kept: ``result``, and in ``seconds`` how long it took."""
        path = self._path(title, inputs)
        with self.named(title):
            if path.is_file():
                return json.loads(path.read_text(encoding="utf-8"))
            self.progress.update(title)
            start = time.monotonic()
            self.keep(title, inputs, measure(), time.monotonic() - start)
            return json.loads(path.read_text(encoding="utf-8"))

    def keep(self, title: str, inputs: dict[str, Any], result: Any, seconds: float) -> None:
        """Keep a `result` that was measured elsewhere, as `kept` would have."""
        kept = {"title": title, "inputs": inputs, "seconds": round(seconds, 1), "result": result}
        write_atomically(self._path(title, inputs), json.dumps(kept, indent=1, default=str))
        self.progress.line(f"  {title}: {kept['seconds']} s")

    def has(self, title: str, inputs: dict[str, Any]) -> bool:
        """Whether a result for these `inputs` is kept."""
        return self._path(title, inputs).is_file()

    def _path(self, title: str, inputs: dict[str, Any]) -> Path:
        return self.folder / f"{slug(title)}-{self.key(title, inputs)}.json"

    @staticmethod
    def key(title: str, inputs: dict[str, Any]) -> str:
        """A name for `inputs`: equal if and only if they are."""
        return hashlib.sha256(json.dumps([title, inputs], sort_keys=True, default=str).encode()).hexdigest()[:16]


def slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
