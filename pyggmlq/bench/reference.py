# SPDX-License-Identifier: MIT
"""llama.cpp's side of the comparison: obtains a tree, builds ggml_bench.cpp with its ggml, and talks to the program."""
from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

from .. import _sources, fetch, patch
from . import record

RELEASE = "0.3.36"
"""The pinned tree that is fetched when none is given."""

SOURCE = Path(__file__).resolve().parent / "ggml"


class BenchError(RuntimeError):
    """llama.cpp's side could not be built or stopped; the message says what to do, `log` holds the rest."""

    def __init__(self, message: str, log: Optional[Path] = None) -> None:
        super().__init__(message)
        self.log = log


def default_work_dir() -> Path:
    """`.cache` of the checkout, or pyggmlq's folder among the user's caches."""
    root = _sources.root()
    if root.name != "_sources":
        return root / ".cache"
    if platform.system() == "Windows":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform.system() == "Darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pyggmlq"


def obtain_tree(tree: Optional[Path], work: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """An unmodified llama.cpp, the given one or the pinned one, and what is known about it."""
    pinned = None
    if tree is None:
        pinned = RELEASE
        tree = fetch.fetch_tree(RELEASE, work / "trees" / RELEASE, say)
    status = patch.status(tree)
    if status.state != "unpatched":
        raise BenchError(f"{tree} is {status.state}, and the comparison is with an unmodified llama.cpp: "
                         f"leave out --tree, or run `pyggmlq revert {tree}`; --patched PATH times our types inside a patched tree")
    return tree.resolve(), {"release": pinned, **_described(tree, status, fetch.TREES[RELEASE].commit if pinned else None)}


def patched_tree(tree: Path) -> tuple[Path, dict[str, Any]]:
    """A tree that `pyggmlq patch` has patched, and what is known about it."""
    status = patch.status(tree)
    if status.state != "patched":
        raise BenchError(f"{tree} is {status.state}, wanted a patched llama.cpp: run `pyggmlq patch {tree}` first")
    return tree.resolve(), _described(tree, status, None)


def _described(tree: Path, status: Any, commit: Optional[str]) -> dict[str, Any]:
    return {"commit": commit or status.upstream.get("commit") or _fetched_commit(tree), "ggml": status.upstream.get("ggml"), "dirty": record.is_dirty(tree)}


def _fetched_commit(tree: Path) -> Optional[str]:
    try:
        return json.loads(tree.resolve().with_name(tree.resolve().name + ".fetched.json").read_text(encoding="utf-8"))["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build(tree: Path, work: Path, say: Callable[[str], None]) -> Path:
    """Build ggml_bench with the ggml of `tree`, which is not written to; return the program. What is built is kept."""
    tree = tree.resolve()
    folder = work / ("ggml-bench-" + hashlib.sha256(str(tree).encode()).hexdigest()[:12])
    program = folder / "bin" / ("ggml_bench" + (".exe" if os.name == "nt" else ""))
    cmake, ninja = _program("cmake"), _program("ninja")
    if cmake is None:
        raise BenchError("CMake is not installed: pip install cmake ninja")
    work.mkdir(parents=True, exist_ok=True)
    with (work / f"{folder.name}.lock").open("w", encoding="utf-8") as lock:
        fetch.lock_file(lock)
        _compile(tree, folder, program, cmake, ninja, say)
    return program


def _compile(tree: Path, folder: Path, program: Path, cmake: str, ninja: Optional[str], say: Callable[[str], None]) -> None:
    log = folder / "build.log"
    source = folder / "source"  # a copy, so that every installation of pyggmlq finds the same build
    source.mkdir(parents=True, exist_ok=True)
    for path in SOURCE.iterdir():
        copy = source / path.name
        if path.is_file() and not (copy.is_file() and copy.read_bytes() == path.read_bytes()):
            shutil.copyfile(path, copy)
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    configure = [cmake, "-S", str(source), "-B", str(folder), *generator, f"-DTREE={tree}", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
    compile_ = [cmake, "--build", str(folder), "--config", "Release", "--target", "ggml_bench", "--parallel", str(os.cpu_count() or 1)]
    if not program.exists():
        say(f"building ggml of {tree.name} (once; a minute or two)")
    with log.open("wb") as out:
        for command in (configure, compile_):
            status = subprocess.call(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            if status != 0:
                text = log.read_text(encoding="utf-8", errors="replace").splitlines()
                errors = [line.strip() for line in text if "error" in line.lower()] or text[-1:] or ["no output"]
                raise BenchError(f"building ggml of {tree} failed ({errors[0][:200]}); --no-reference goes without it", log)


def _program(name: str) -> Optional[str]:
    own = Path(sys.executable).parent / (name + (".exe" if os.name == "nt" else ""))
    return str(own) if own.is_file() else shutil.which(name)


class Program:
    """A running ggml_bench; each method is one command of it."""

    def __init__(self, path: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as err:
            self._process = subprocess.Popen([str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True,
                                             encoding="utf-8")

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    pass

    def types(self) -> list[str]:
        """Names of the types in this ggml."""
        return list(self._ask("types")["types"])

    def open(self, name: str, **options: object) -> None:
        """Make the data of a case."""
        self._ask(f"open {name} " + " ".join(f"{key}={value}" for key, value in options.items()))

    def run(self, name: str, *, warm: bool, inner: int, samples: int = 1, clock: str = "wall") -> list[float]:
        """ns per call, `samples` times the mean of `inner` calls."""
        return list(self._ask(f"run {name} warm={int(warm)} inner={inner} samples={samples} clock={clock}")["ns"])

    def output(self, name: str, count: int) -> list[float]:
        """The first values of the last result."""
        return [float("nan") if value is None else value for value in self._ask(f"output {name} count={count}")["values"]]

    def close(self, name: str) -> None:
        """Free the data."""
        self._ask(f"close {name}")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise BenchError(f"ggml_bench stopped at {line!r} ({said[-1] if said else 'it said nothing'})", self._log)
        data = json.loads(answer)
        if not data["ok"]:
            raise BenchError(f"ggml_bench refused {line!r}: {data['error']}")
        return dict(data)
