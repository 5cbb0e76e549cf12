# SPDX-License-Identifier: MIT
"""A llama.cpp tree in miniature, and a `ggml_patch` for it: small enough to break in every way."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TREE = {
    "ggml/CMakeLists.txt": (
        "set(GGML_VERSION_MAJOR 0)\nset(GGML_VERSION_MINOR 25)\nset(GGML_VERSION_PATCH 3)\n"
    ),
    "ggml/include/ggml.h": (
        "#pragma once\n"
        "enum ggml_type {\n"
        "    GGML_TYPE_F32 = 0,\n"
        "    GGML_TYPE_Q4_0 = 2,\n"
        "    GGML_TYPE_COUNT = 43,\n"
        "};\n"
    ),
    "ggml/src/CMakeLists.txt": "add_library(base\n    ggml.c\n    ggml-quants.c)\n",
    "ggml/src/ggml-cpu/ops.cpp": (
        '#include "ops.h"\n'
        "void add(int type) {\n"
        "    switch (type) {\n"
        "        case GGML_TYPE_Q4_0:\n"
        "            break;\n"
        "    }\n"
        "}\n"
        "void get_rows(int type) {\n"
        "    switch (type) {\n"
        "        case GGML_TYPE_Q4_0:\n"
        "            break;\n"
        "    }\n"
        "}\n"
        "void attend(int type) {\n"
        "    compute(type);\n"
        "}\n"
    ),
    "src/llama.cpp": "int llama() {\n    return rotate(rot);\n}\n",
    "common/arg.cpp": "const types = {\n    GGML_TYPE_F32,\n};\n",
    "README.md": "not touched\n",
}

HOOKS = {
    "core.toml": r"""
[[hook]]
id = "core-ids"
why = "Gives the types their ids."
file = "ggml/include/ggml.h"
anchor = '^(?P<indent>[ \t]*)GGML_TYPE_COUNT = \d+,\n'
place = "replace"
each = "type+query"
text = "@indent@GGML_TYPE_@NAME@ = @id@,\n"
tail = "@indent@GGML_TYPE_COUNT = @id_end@,\n"

[[hook]]
id = "core-build"
why = "Compiles the codec."
file = "ggml/src/CMakeLists.txt"
anchor = '^(?P<indent>[ \t]*)ggml\.c\n'
place = "after"
text = "@indent@ggmlq.c\n"
""",
    "cpu.toml": r"""
[[hook]]
id = "cpu-switches"
why = "Lets the operations accept the types."
file = "ggml/src/ggml-cpu/ops.cpp"
anchor = '^(?P<indent>[ \t]*)case GGML_TYPE_Q4_0:\n'
count = 2
place = "before"
each = "type"
text = "@indent@case GGML_TYPE_@NAME@:\n"

[[hook]]
id = "cpu-attend"
why = "Takes over attention."
file = "ggml/src/ggml-cpu/ops.cpp"
within = { from = '^void attend\(', to = '^\}' }
anchor = '\{\n'
place = "after"
text = "    if (ggmlq_attend(type)) { return; }\n"
""",
    "llama.toml": r"""
[[hook]]
id = "llama-rotation"
why = "There may be no rotation."
file = ["src/llama-new.cpp", "src/llama.cpp"]
when = { contains = '\brot\b' }
absent = "ok: this tree does not rotate"
anchor = '^(?P<indent>[ \t]*)return rotate\((?P<arg>\w+)\);\n'
place = "replace"
text = "@indent@return @arg@ ? rotate(@arg@) : 0;\n"

[[hook]]
id = "llama-bench"
why = "The benchmark has a list of its own."
file = "tools/bench.cpp"
absent = "ok: this tree has no benchmark"
anchor = '^x\n'
place = "after"
text = "y\n"
""",
    "copies.toml": r"""
[[copy]]
why = "The codec."
to = "ggml/src"
files = ["csrc/ggmlq.h", "csrc/ggmlq.c"]

[[copy]]
why = "In a folder that the tree lacks."
to = "ggml/src/ggml-cpu/extra/deep"
files = ["csrc/cpu.c"]
""",
}

CSRC = {"ggmlq.h": b"#pragma once\n", "ggmlq.c": b"int ggmlq;\n", "cpu.c": b"int cpu;\r\nint no_newline;"}


def make_sources(folder: Path) -> Path:
    for name, text in HOOKS.items():
        write(folder / "ggml_patch" / name, text.encode())
    for name, data in CSRC.items():
        write(folder / "csrc" / name, data)
    shutil.copy(ROOT / "csrc" / "ggmlq-types.def", folder / "csrc")
    return folder


def make_tree(folder: Path, git: bool = False) -> Path:
    for name, text in TREE.items():
        write(folder / name, text.encode())
    os.chmod(folder / "src/llama.cpp", 0o755)
    if git:
        run_git(folder, "init", "-q")
        run_git(folder, "add", "-A")
        run_git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "as released")
    return folder


def run_git(folder: Path, *arguments: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(
        ["git", "-c", "core.autocrlf=false", "-C", str(folder), *arguments], input=stdin, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def snapshot(folder: Path, ignore: tuple[str, ...] = (".git",)) -> dict[str, tuple[str, int]]:
    """Hash and mode of every file, and every folder: two trees with equal snapshots are equal."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in ignore:
            continue
        mode = path.lstat().st_mode & 0o7777
        found[name] = ("folder", mode) if path.is_dir() else (hashlib.sha256(path.read_bytes()).hexdigest(), mode)
    return found
