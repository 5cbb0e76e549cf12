# SPDX-License-Identifier: MIT
"""A patched llama.cpp to measure with: fetched or the user's, patched, built, identified."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import fetch, llama, patch
from ._steps import StepFailed, Steps

RELEASE = "0.3.36"
"""The pinned tree that is fetched when no tree of the user's is given."""

CMAKE_OPTIONS = (*llama.CMAKE_OPTIONS, "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TESTS=OFF")


def prepare_tree(options: Any, steps: Steps) -> Path:
    """The patched tree: the user's, or the pinned one, which is fetched and kept up to date with this pyggmlq."""
    progress = steps.progress
    if options.tree:
        tree = options.tree
        progress.line(f"using {tree}: patched in place, and taken back by `pyggmlq revert {tree}`")
    else:
        with steps.named(f"fetching the llama.cpp tree of llama-cpp-python {RELEASE}"):
            tree = fetch.fetch_tree(RELEASE, options.work_dir / "llama.cpp", progress.update)
            progress.line(f"llama.cpp {fetch.TREES[RELEASE].commit} in {tree}")
    with steps.named(f"patching {tree}"):
        before = patch.status(tree)
        if not options.tree and before.state != "unpatched" and not before.current:
            patch.revert(tree)
        status, _, written = patch.patch(tree)
        progress.line(
            f"patched by pyggmlq {status.version}: {len(status.files)} files" + ("" if written else " (already done)")
        )
    return tree


def build(tree: Path, options: Any, steps: Steps, targets: Sequence[str]) -> Path:
    """Configure and build `targets`; return the folder of the programs. Ninja knows what is already built."""
    name = "build" if not options.tree else "build-" + hashlib.sha256(str(tree).encode()).hexdigest()[:8]
    folder = options.work_dir / name
    log = options.work_dir / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    title = "building " + ", ".join(targets)
    with steps.named(title):
        _require_compiler(title)
        discard_moved_build(folder, tree)
        with log.open("wb") as out:
            configure = [
                _program("cmake"),
                "-S",
                str(tree),
                "-B",
                str(folder),
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}",
                *_cmake_options(options),
            ]
            steps.progress.update("configuring llama.cpp")
            run_logged(configure, out, title, log)
            start = time.monotonic()
            ninja = [_program("ninja"), "-C", str(folder), "-j", str(options.threads), *targets]
            did = run_logged(
                ninja, out, title, log, lambda done, total: steps.progress.fraction("building llama.cpp", done, total)
            )
        steps.progress.line(
            f"built in {folder}: " + (f"{did} steps, {time.monotonic() - start:.0f} s" if did else "nothing to do")
        )
    return folder / "bin"


def discard_moved_build(folder: Path, source: Path) -> None:
    """Delete CMake's build folder if it was made in another place or of another source (a moved checkout): CMake refuses it."""
    cache = folder / "CMakeCache.txt"
    if not cache.is_file():
        return
    known = dict(re.findall(r"^(CMAKE_HOME_DIRECTORY|CMAKE_CACHEFILE_DIR):INTERNAL=(.*)$", cache.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))
    here = {"CMAKE_HOME_DIRECTORY": source, "CMAKE_CACHEFILE_DIR": folder}
    if any(Path(known.get(name, path)).resolve() != path.resolve() for name, path in here.items()):
        shutil.rmtree(folder)


def _cmake_options(options: Any) -> list[str]:
    result = list(CMAKE_OPTIONS)
    if not options.tree:  # else CMake asks git, and a checkout around the work folder would answer
        result += [f"-DLLAMA_BUILD_COMMIT={fetch.TREES[RELEASE].commit}", "-DLLAMA_BUILD_NUMBER=0"]
    return result + options.cmake


def _require_compiler(title: str) -> None:
    if os.name != "nt" and not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise StepFailed(
            title, "found no C++ compiler: install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)"
        )


def _program(name: str) -> str:
    """CMake or Ninja: of this environment, else of the system."""
    own = Path(sys.executable).parent / (name + (".exe" if os.name == "nt" else ""))
    found = str(own) if own.is_file() else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name} is not installed: pip install cmake ninja")
    return found


def run_logged(
    command: list[str], out: Any, title: str, log: Path, watch: Callable[[int, int], None] | None = None
) -> int:
    """Run a build command, its output going to `out`, the opened `log`; return how many of ninja's steps it took."""
    out.write(f"$ {' '.join(command)}\n".encode())
    out.flush()
    done, errors = 0, []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ, NINJA_STATUS="[%f/%t] "),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            step = re.match(rb"\[(\d+)/(\d+)\]", line)
            if step and watch:
                done = int(step[1])
                watch(done, int(step[2]))
            elif re.search(rb"\berror:|CMake Error|No such file", line):
                errors.append(line.decode(errors="replace").strip())
    except BaseException:
        process.terminate()
        raise
    finally:
        status = process.wait()
        out.flush()
    if status != 0:
        raise StepFailed(title, (errors or [f"{command[0]} ended with status {status}"])[0], log)
    return done


def programs_hash(folder: Path, programs: Sequence[str]) -> str:
    """A hash over the libraries in `folder` and the named programs: results measured with others don't count."""
    digest = hashlib.sha256()
    named = (path for path in folder.iterdir() if path.name.startswith(("lib", "ggml")) or path.suffix == ".dll" or path.stem in programs)
    for path in sorted({path.resolve() for path in named if path.is_file()}):  # a library has several names
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def prose(tree: Path, characters: int = 120_000) -> str:
    """The first `characters` of running text in the tree's own documents, in a fixed order.

    Code, tables, lists and headings are left out: they are easy to predict and would flatter every cache.
    """
    paths = [*tree.glob("README.md"), *sorted(tree.glob("docs/**/*.md")), *sorted(tree.glob("tools/*/README.md"))]
    paragraphs: list[str] = []
    for path in paths:
        text = re.sub(
            r"^```.*?^```", "", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE | re.DOTALL
        )
        for paragraph in re.split(r"\n\s*\n", text):
            joined = " ".join(paragraph.split())
            if len(joined) >= 120 and re.match(r"[A-Z]", joined) and not re.search(r"[|<>{}]|https?:|\]\(", joined):
                paragraphs.append(joined)
    return "\n\n".join(dict.fromkeys(paragraphs))[:characters]
