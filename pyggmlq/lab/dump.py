# SPDX-License-Identifier: MIT
"""Rows of Q, K and V of a real model, as a patched llama.cpp's program llama-ggmlq-lab gives them, in one .safetensors file.

The program writes a file for each window of the text, which bounds its memory; an interrupted run goes on at the first
window that isn't there. In the end they become one file, tensor by tensor. docs/LAB.md lists tensors and metadata.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _tree, llama
from .._files import appearing
from .._hadamard import hadamard
from .._pairs import Case
from .._steps import Steps, slug
from ..bench import record as bench_record
from . import LabError, require, runs

TARGETS = ("llama-ggmlq-lab",)
FORMAT, WINDOW_FORMAT = "pyggmlq-kv-1", "pyggmlq-kv-window-1"
SIDES = ("q", "k", "k_cache", "v", "v_cache")
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Options(runs.Programs):
    """What to dump; names as on the command line."""

    model: str
    """Path of a GGUF file, or a name of `fetch.MODELS`."""
    text: Path
    out: Path
    case: Case
    n_ctx: int
    windows: int
    tokens: int
    """Kept of each window, spread evenly, its first among them."""
    attn_rot: str


def run(options: Options, steps: Steps) -> dict[str, Any]:
    """Write `options.out`; its metadata. `LabError` and StepFailed say what was in the way; then there is no new file."""
    subject = runs.subject(options.model, options, steps)
    path, title = subject.path, slug(subject.title)
    folder, _ = runs.folder_and_tree(options, steps, TARGETS)
    with steps.named("reading the built programs"):
        programs = _tree.programs_hash(folder, TARGETS)
    facts = {
        "model": subject.facts, "text": runs.text_facts(options.text),
        "options": {"context": options.n_ctx, "windows": options.windows, "tokens": options.tokens, "k": options.case.k, "v": options.case.v,
                    "attn_rot": options.attn_rot, "extra": list(options.extra)},
    }  # fmt: skip
    parts = options.work_dir / "dump" / f"{title}-{Steps.key('dump', {**facts, 'programs': programs})}"
    parts.mkdir(parents=True, exist_ok=True)
    watch, environment = _watch(steps, options.windows), runs.Setting(options.attn_rot).environment
    tools = llama.Tools(folder, options.work_dir / "logs", options.threads, watch, options.extra, environment)
    with steps.named(f"dumping {path.name}"):
        try:
            found = tools.dump_rows(f"{title}-dump", path, options.text, parts, options.case.k, options.case.v,
                                    n_ctx=options.n_ctx, windows=options.windows, tokens=options.tokens)  # fmt: skip
        except llama.ToolError as error:
            with contextlib.suppress(OSError):  # windows that are whole stay
                parts.rmdir()
            said = error.log.read_text(encoding="utf-8", errors="replace")
            sentence = error.refusal((options.case.k, options.case.v))
            short = runs.too_short(error)
            missing = re.search(r"^error: ((?:this model|layer \d+) .*)$", said, re.MULTILINE)
            if short is not None:
                raise LabError(f"{options.text} is too short: found {short} tokens, wanted at least {options.n_ctx} (--context)") from None
            if sentence or missing:
                raise LabError(f"{path.name} can't be dumped: {sentence or missing[1]}") from None
            raise runs.unloadable(error, path) or error from None
    windows = sorted(parts.glob("window-*.safetensors"))[:found]
    if len(windows) != found:
        raise LabError(f"found {len(windows)} of {found} windows in {parts}: the program ended early; the same command goes on there")
    metadata = {"format": FORMAT, "pyggmlq": bench_record.our_version(), **facts}
    metadata["options"]["windows"] = found
    with steps.named(f"writing {options.out}"):
        _join(windows, options.out, metadata)
    shutil.rmtree(parts)
    return metadata


def _watch(steps: Steps, windows: int) -> Callable[[Path], None]:
    def watch(log: Path) -> None:
        done = re.findall(r"^window (\d+)$", log.with_suffix(".out").read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        steps.progress.update(f"  {steps.current}: window {done[-1] if done else 0} of {windows}")

    return watch


# Files ---------------------------------------------------------------------------------------------------------------


def header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """(tensors, metadata, offset of the data) of a .safetensors file; `LabError` if it is cut off or none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (size,)
        if length > size - 8:
            raise LabError(f"{path} is cut off or no .safetensors file: found {size} bytes, wanted a header and its tensors")
        try:
            tensors = json.loads(file.read(length))
            metadata = tensors.pop("__metadata__", {})
            end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        except (ValueError, AttributeError, TypeError, KeyError):
            raise LabError(f"{path} is no .safetensors file: its header is damaged") from None
    if size != 8 + length + end:
        raise LabError(f"{path} is cut off or damaged: found {size} bytes, wanted {8 + length + end}")
    return tensors, metadata, 8 + length


def _join(windows: list[Path], out: Path, facts: dict[str, Any]) -> None:
    """One file of the windows' rows, one window after the other; it appears whole."""
    headers = [header(path) for path in windows]
    first, metadata, _ = headers[0]
    if metadata.get("format") != WINDOW_FORMAT:
        raise LabError(f"{windows[0]}: found format {metadata.get('format')!r}, wanted {WINDOW_FORMAT}: build llama-ggmlq-lab again")
    tensors: dict[str, Any] = {}
    at = 0
    for name, tensor in first.items():
        shared = name.endswith(".rope_factors")  # of the layer, not of tokens
        shapes = [other[name]["shape"] for other, _, _ in headers if name in other]
        if len(shapes) != len(headers) or any(shape[1:] != tensor["shape"][1:] for shape in shapes):
            raise LabError(f"{windows[0].parent}: found windows of different shapes ({name}): delete the folder and run again")
        shape = tensor["shape"] if shared else [sum(shape[0] for shape in shapes), *tensor["shape"][1:]]
        size = 4 * int(np.prod(shape))
        tensors[name] = {"dtype": tensor["dtype"], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    numbers = sorted(int(key[len("layer."):]) for key in metadata if re.fullmatch(r"layer\.\d+", key))
    layers = {str(number): _pairs(metadata[f"layer.{number}"]) for number in numbers}
    for number, layer in layers.items():
        layer["rope"] = _pairs(metadata[f"layer.{number}.rope"]) if f"layer.{number}.rope" in metadata else None
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in {**facts, "layers": layers}.items()}
    text = json.dumps({"__metadata__": words, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(out) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in tensors:
            for path, (other, _, start) in list(zip(windows, headers))[: 1 if name.endswith(".rope_factors") else None]:
                begin, end = other[name]["data_offsets"]
                with path.open("rb") as source:
                    source.seek(start + begin)
                    for left in range(end - begin, 0, -_CHUNK):
                        file.write(source.read(min(_CHUNK, left)))


def _pairs(text: str) -> dict[str, Any]:
    """`"scale=0.125 type_k=f16"` -> {"scale": 0.125, "type_k": "f16"}."""

    def value(word: str) -> Any:
        try:
            return int(word)
        except ValueError:
            try:
                return float(word)
            except ValueError:
                return word

    return {name: value(word) for name, word in (pair.split("=", 1) for pair in text.split())}


@dataclass(frozen=True)
class Layer:
    """Rows of one layer in the space of the model, float32 (n_tokens, n_heads, head size): llama.cpp's own rotation is undone.

    `v` and `v_cache` are None where V is a part of K (MLA).
    """

    index: int
    q: np.ndarray
    k: np.ndarray
    k_cache: np.ndarray
    v: np.ndarray | None
    v_cache: np.ndarray | None
    facts: dict[str, Any]
    """scale, softcap, window (None: all tokens), type_k, type_v, rotation_k, rotation_v, rope (None or its parameters)."""
    rope_factors: np.ndarray | None


class Dump:
    """A file of `pyggmlq dump-kv`, read layer by layer. `LabError` if it is another file or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tensors, metadata, _ = header(path)
        if metadata.get("format") != FORMAT:
            raise LabError(f"{path}: found no rows of `pyggmlq dump-kv` ({FORMAT})")
        try:
            self.layers: dict[str, dict[str, Any]] = json.loads(metadata["layers"])
            self.facts = {key: json.loads(metadata[key]) for key in ("pyggmlq", "model", "text", "options")}
            wanted = {f"layer.{number}.{side}" for number in self.layers for side in ("q", "k", "k_cache")}
        except (ValueError, KeyError):
            raise LabError(f"{path}: the metadata are damaged") from None
        missing = sorted((wanted | {"positions", "windows"}) - set(tensors))
        if missing:
            raise LabError(f"{path}: found no tensor {missing[0]}, wanted it for every layer")
        self.file = require("safetensors").safe_open(path, framework="np")
        self.names = set(tensors)
        self.positions: np.ndarray = self.file.get_tensor("positions")
        self.windows: np.ndarray = self.file.get_tensor("windows")

    def layer(self, number: str) -> Layer:
        """The rows of a layer; `LabError` for NaN and infinity."""
        facts = dict(self.layers[number])
        rows: dict[str, Any] = {}
        for side in SIDES:
            name = f"layer.{number}.{side}"
            if name not in self.names:
                rows[side] = None
                continue
            x = self.file.get_tensor(name)
            bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
            if bad.size:
                raise LabError(f"{self.path}, {name}: found NaN or infinity in {bad.size} of {len(x)} rows, wanted finite values")
            size = facts["rotation_k" if side in ("q", "k", "k_cache") else "rotation_v"]
            rows[side] = hadamard(x.reshape(-1, x.shape[-1]), size).reshape(x.shape) if size else x
        visible, seen = facts.pop("visible", 0), self.facts["options"]["context"]
        facts["window"] = visible if 0 < visible < seen else None
        factors = f"layer.{number}.rope_factors"
        return Layer(int(number), facts=facts, rope_factors=self.file.get_tensor(factors) if factors in self.names else None, **rows)


def is_dump(path: Path) -> bool:
    """Whether `path` is a file of `pyggmlq dump-kv`; `LabError` if it is a damaged .safetensors file."""
    return path.suffix == ".safetensors" and header(path)[1].get("format") == FORMAT


def without_rope(layer: Layer, positions: np.ndarray) -> np.ndarray | None:
    """K as it was before RoPE, same shape; None where this module doesn't know the kind of RoPE (YaRN, several sections)."""
    angle, pairs = rope_angles(layer, positions), rope_pairs(layer)
    if angle is None:
        return None
    angle = angle[:, None]
    a, b = layer.k[..., pairs[:, 0]], layer.k[..., pairs[:, 1]]
    out = layer.k.copy()
    out[..., pairs[:, 0]] = a * np.cos(angle) + b * np.sin(angle)
    out[..., pairs[:, 1]] = b * np.cos(angle) - a * np.sin(angle)
    return out


def rope_angles(layer: Layer, positions: np.ndarray) -> np.ndarray | None:
    """By which RoPE turns each pair of a key, float64 (n_tokens, n_pairs); None as `without_rope`."""
    rope, pairs = layer.facts["rope"], rope_pairs(layer)
    if pairs is None or rope["ext_factor"] or rope["attn_factor"] != 1:
        return None
    frequency = rope["freq_scale"] * rope["freq_base"] ** (-np.arange(len(pairs)) * 2.0 / rope["n_dims"])
    return positions[:, None] * (frequency if layer.rope_factors is None else frequency / layer.rope_factors)


def rope_pairs(layer: Layer) -> np.ndarray | None:
    """Which values of a head RoPE turns together, int (n_pairs, 2), the fastest pair first; None without RoPE or for a
    kind with several sections (M-RoPE)."""
    rope = layer.facts["rope"]
    if rope is None or rope["mode"] not in (0, 2):
        return None
    j = np.arange(rope["n_dims"] // 2)
    first, second = (2 * j, 2 * j + 1) if rope["mode"] == 0 else (j, j + len(j))
    return np.stack([first, second], axis=1) + rope["at"]
