# SPDX-License-Identifier: MIT
"""What the commands that run a model have in common: which programs, which model, which text, and where it was computed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _gguf_file, _tree, fetch, llama
from .._files import write_atomically
from .._pairs import OURS, Case
from .._steps import Steps
from . import LabError


@dataclass(frozen=True)
class Programs:
    """How to come by llama.cpp's programs and how to run them; names as on the command line."""

    threads: int
    work_dir: Path
    tree: Path | None
    programs: Path | None
    """A folder with the programs of a patched llama.cpp: nothing is fetched, patched or built then."""
    cmake: list[str]
    extra: tuple[str, ...]
    """Further arguments of llama.cpp."""


CENTERS = ("off", "auto", "all")
"""Words of `--kv-center`, which takes files, too."""


@dataclass(frozen=True)
class Setting:
    """What llama.cpp does to the rows of a cache beside their types; as `attn_rot` and `--kv-center` have it."""

    attn_rot: str = "on"
    kv_center: str = "off"
    """Of a file its name and the beginning of its SHA-256."""
    center_file: Path | None = None

    def __str__(self) -> str:
        return "".join([", attn_rot off" if self.attn_rot == "off" else "", "" if self.kv_center == "off" else f", kv-center {self.kv_center}"])

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell llama.cpp's programs so, whatever the user's own say."""
        return {"GGMLQ_KV_CENTER": str(self.center_file or self.kv_center), "LLAMA_ATTN_ROT_DISABLE": "1" if self.attn_rot == "off" else "0"}

    def facts(self) -> dict[str, str]:
        """For records, and for what a kept result depends on: not where a file lies."""
        return {"attn_rot": self.attn_rot, "kv_center": self.kv_center}

    def ignored(self, log: str) -> str | None:
        """Why keys weren't centered though they should have been, by a program's `log`; None if they were, or shouldn't be."""
        if self.kv_center == "off" or llama.parse_centering(log) is not None:
            return None
        return (llama.parse_not_centered(log) or "keys are not centered: this llama.cpp can't do it") + " (--kv-center off measures them as they are)"


@dataclass(frozen=True)
class Grid(Programs):
    """Models, contexts and pairs of cache types to measure, each with each."""

    models: tuple[str, ...]
    """Paths of GGUF files, or names of `fetch.MODELS`."""
    text: Path | None
    pairs: tuple[Case, ...]
    contexts: tuple[int, ...]
    rotations: tuple[str, ...]
    """Of `attn_rot`: "on", "off"."""
    centers: tuple[str, ...]
    """Of `--kv-center`: "off"; "auto" for keys of our types, which leaves others as they are; "all" for those of any quantized type; a path, as "auto"."""

    def settings(self) -> Iterator[tuple[Case, Setting]]:
        """The f16 reference, asked for or not; then every pair with every setting that can make a difference to it."""
        yield Case("f16", "f16"), Setting()
        if "all" in self.centers and Case("f16", "f16") in self.pairs:  # what the arithmetic of centering does by itself
            yield Case("f16", "f16"), Setting(kv_center="all")
        quantized = [case for case in self.pairs if not case.is_reference]
        left = [center for center in self.centers if center not in ("off", "all")][:1] if "off" not in self.centers else []  # where others are measured
        for center in self.centers:
            file = None if center in CENTERS else Path(center)
            name = f"{file.name} {fetch.sha256(file)[:12]}" if file else center
            for rotation in self.rotations:
                for case in quantized:
                    if center in ("off", "all") or case.k in OURS:
                        yield case, Setting(rotation, name, file)
                    elif center in left:
                        yield case, Setting(rotation, "off")


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    title: str
    path: Path
    header: dict[str, Any]
    """Metadata of the GGUF file."""
    sha256: str

    @property
    def facts(self) -> dict[str, Any]:
        """As records have them; nothing of where the file lies."""
        return {
            "title": self.title, "file": self.path.name, "bytes": self.path.stat().st_size, "sha256": self.sha256,
            "name": self.header.get("general.name"), "architecture": self.header.get("general.architecture"), "n_vocab": self.n_vocab,
        }  # fmt: skip

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.header["tokenizer.ggml.tokens"]


def folder_and_tree(options: Programs, steps: Steps, targets: Sequence[str]) -> tuple[Path, Path | None]:
    """The folder of the programs, built if need be, and the tree that they are from, if it is known."""
    if options.programs:
        return options.programs, None
    tree = _tree.prepare_tree(options, steps)
    return _tree.build(tree, options, steps, targets), tree


def subject(name: str, options: Programs, steps: Steps) -> Subject:
    """A model by path or by its name in `fetch.MODELS`; `LabError` if no text can be given to it."""
    title, path = Path(name).stem, Path(name)
    if name in fetch.MODELS:
        title = fetch.MODELS[name].title
        with steps.named(f"fetching {title}"):
            path = fetch.fetch_model(name, options.work_dir / "models", steps.progress.update)
    with steps.named(f"reading {path}"):
        header = _gguf_file.metadata(path)
        state = path.stat()
    if not header.get("tokenizer.ggml.tokens", 0):
        raise LabError(f"{path} has no vocabulary, so it is no model that text can be given to")
    architecture = header.get("general.architecture")
    missing = [key for key in (f"{architecture}.block_count", f"{architecture}.context_length") if key not in header]
    if missing or not (_gguf_file.tensor_count(path) or header.get("split.count", 1) > 1):
        raise LabError(f"{path} is no whole model: found no {missing[0] if missing else 'tensor'} in it")
    where = {"path": str(path.resolve()), "size": state.st_size, "modified_ns": state.st_mtime_ns}
    return Subject(title, path, header, steps.kept(f"{title}: hash of the file", where, lambda: fetch.sha256(path)))


def text_file(given: Path | None, tree: Path | None, options: Programs, steps: Steps) -> Path:
    """The text that was given, else prose of the tree's own documents."""
    if given:
        return given
    if tree is None:
        raise LabError("--programs leaves no tree whose documents could be the text: give one with --text FILE")
    path = options.work_dir / "text.txt"
    with steps.named("collecting text"):
        write_atomically(path, _tree.prose(tree))
    return path


def text_facts(path: Path) -> dict[str, Any]:
    """As records have them."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": fetch.sha256(path)}


def version(folder: Path, program: str) -> dict[str, Any]:
    """Commit and compiler, as `program` in `folder` tells them; None for what it doesn't tell."""
    done = subprocess.run([str(llama.Tools(folder, folder, 1).program(program)), "--version"], capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    commit, compiler = re.search(r"version: .*?\b([0-9a-f]{7,40})\)", said), re.search(r"built with (.+)", said)
    return {"commit": commit[1] if commit else None, "compiler": compiler[1].strip() if compiler else None}


def unloadable(error: llama.ToolError, path: Path) -> LabError | None:
    """What a user is told if a program failed because it couldn't load the model."""
    said = error.log.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"error loading model: (?:error loading model \w+: )?(.+)", said)
    return LabError(f"{path} can't be loaded by llama.cpp: {found[1].strip()}") if found else None


def too_short(error: llama.ToolError) -> int | None:
    """How many tokens the text had, if a program failed because they were too few."""
    said = error.log.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"tokenizes to only (\d+) tokens|^error: the text has (\d+) tokens", said, re.MULTILINE)
    return int(found[1] or found[2]) if found else None
