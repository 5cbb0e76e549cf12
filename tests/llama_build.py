# SPDX-License-Identifier: MIT
"""Builds llama.cpp trees for the tests that run its programs, incrementally, under .cache/ of the checkout."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pyggmlq import fetch
from pyggmlq._tree import discard_moved_build
from pyggmlq.llama import CMAKE_OPTIONS

CACHE = Path(__file__).parents[1] / ".cache" / "llama"


@contextlib.contextmanager
def alone(folder: Path):
    """One process at a time, so that several test runs can share a tree and its build."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as file:
        fetch.lock_file(file)
        yield


def sync(source: Path, target: Path) -> None:
    """Make `target` equal to `source`, touching only files whose bytes differ, so that a build stays incremental."""
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for name in names:
            new, old = Path(folder, name), here / name
            if not old.is_file() or not filecmp.cmp(new, old, shallow=False):
                shutil.copy(new, old)
        for entry in os.scandir(here):
            if not Path(folder, entry.name).exists():
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)


_patched: dict[tuple[Path, str], Path] = {}


def patched(pristine: Path, staged: Path, version: str = "0.3.36") -> Path:
    """A tree under .cache/ that equals `pristine` patched; `staged` is a folder of the caller's that doesn't exist yet. Once in a process: many
    test files ask for the same."""
    if (pristine, version) in _patched:
        return _patched[pristine, version]
    sync(pristine, staged)
    run([sys.executable, "-I", "-m", "pyggmlq", "patch", staged])
    tree = CACHE / f"{version}-patched"
    with alone(tree):
        sync(staged, tree)
    _patched[pristine, version] = tree
    return tree


def build(tree: Path, targets: tuple[str, ...] = (), flags: tuple[str, ...] = (), suffix: str = "-build") -> Path:
    """Configure and build `targets` (all if empty) of `tree` in a folder beside it; return the folder of programs."""
    folder = tree.with_name(tree.name + suffix)
    ccache = shutil.which("ccache")
    launchers = [f"-DCMAKE_{language}_COMPILER_LAUNCHER={ccache}" for language in ("C", "CXX")] if ccache else []
    # CMake would ask git, and the checkout around .cache would answer with a commit of its own: with each of these all would be linked anew, also
    # under another process that runs it.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(CACHE.resolve())}
    commits = [f"-DLLAMA_BUILD_COMMIT={pinned.commit}" for version, pinned in fetch.TREES.items() if tree.name.startswith(version)]
    with alone(tree):
        discard_moved_build(folder, tree)
        run(["cmake", "-S", tree, "-B", folder, "-G", "Ninja", *CMAKE_OPTIONS, "-DLLAMA_CURL=OFF", "-DGGML_RPC=ON", *commits, *flags, *launchers], env=env)
        run(["cmake", "--build", folder, *(["--target", *targets] if targets else [])], env=env)
    return folder / "bin"


def run(command: list, **options) -> subprocess.CompletedProcess:
    """Run to a good end; an AssertionError holds the end of what it printed otherwise."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          text=True, errors="replace", **options)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done
