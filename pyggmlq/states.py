# SPDX-License-Identifier: MIT
"""Saved states of llama.cpp (prompt caches, session files, slots of llama-server): the cache rows in them, converted to
another cache type. docs/STATES.md has the format and what rotation has to do with it."""

from __future__ import annotations

import importlib
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

import numpy as np

from . import _centered, _gguf_file, api
from ._files import appearing
from ._hadamard import hadamard, largest_block
from ._types import TypeInfo, cache_types, foreign_types, wants_attn_rot

__all__ = ["Conversion", "HeadSizes", "StateError", "convert_state", "model_head_sizes", "row_types"]

SESSION, SEQUENCE = 0x6767736E, 0x67677371
_VERSIONS = {(SESSION, 9): 8, (SEQUENCE, 2): 8, (SESSION, 10): 12, (SEQUENCE, 3): 12}
"""(magic, version) -> bytes that a cell has more where a model wants them (M-RoPE, n-gram embeddings)."""
_MAX_SEQUENCES, _MAX_LAYERS, _MAX_NAME = 256, 65536, 256
_BATCH_BYTES = 4 << 20

Progress = Callable[[int, int], None]
"""Receives the bytes of the source that are done, and all of them."""


class StateError(ValueError):
    """The file is no saved state, is damaged, or can't be converted; the message is one sentence."""


@dataclass(frozen=True)
class HeadSizes:
    """Values of a K and of a V head; None: not known."""

    k: int | None = None
    v: int | None = None
    architecture: str | None = None


@dataclass(frozen=True)
class Conversion:
    """What `convert_state` did: names of types as found and as written, cached tokens, bytes before and after."""

    kind: str
    cells: int
    from_k: tuple[str, ...]
    from_v: tuple[str, ...]
    to_k: tuple[str, ...]
    to_v: tuple[str, ...]
    rotated: bool
    uncentered: bool
    """Whether keys were stored centered (docs/CENTERING.md), and aren't any more."""
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _Bytes:
    """A stretch of the file that stays as it is."""

    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class _Centered:
    """A stretch that only centered keys have: their calibration, or what belongs to the cells of a stream."""

    offset: int
    size: int
    centering: _centered.Centering


@dataclass(frozen=True, eq=False)
class _CentersOf:
    """How the keys of one layer in one stream are centered: layers[at]; the file has which of its cells are at `offset`."""

    centering: _centered.Centering
    at: int
    positions: np.ndarray  # int32, of the cells
    offset: int


@dataclass(frozen=True)
class _Rows:
    """The rows of one layer, behind their header."""

    which: str  # "K" or "V"
    type_id: int
    row_bytes: int  # of a value, if transposed
    n_rows: int  # cells
    n_transposed: int | None  # values of a row, if the file has them one after the other, each for all cells
    header: int
    offset: int
    centers: _CentersOf | None = None

    @property
    def size(self) -> int:
        return self.row_bytes * self.n_rows * (self.n_transposed or 1)


def row_types() -> tuple[TypeInfo, ...]:
    """The types that rows can be converted from and to."""
    return foreign_types() + cache_types()


def convert_state(
    source: Path,
    target: Path,
    type_k: str | None = None,
    type_v: str | None = None,
    head_sizes: HeadSizes = HeadSizes(),
    rotation: bool = True,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Write `source` to `target` with its K rows as `type_k` and its V rows as `type_v`; None leaves them as they are.

    Centered keys that get another type are no longer centered, so that any llama.cpp can restore the file; those whose type stays remain so.
    `target` appears whole, or not at all, or stays what it was; it may be `source`. `rotation=False` is for states of a
    llama.cpp that doesn't rotate quantized caches (before 2026, or LLAMA_ATTN_ROT_DISABLE).
    """
    wanted = {"K": _row_type("type_k", type_k), "V": _row_type("type_v", type_v)}
    with open(source, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        kind, parts = _scan(file, size, head_sizes.architecture)
        left = {part.centers.centering for part in parts if isinstance(part, _Rows) and part.centers and _changes(part, wanted)}
        parts = [part for part in parts if not (isinstance(part, _Centered) and part.centering in left)]
        plans = [_plan(part, wanted, left, head_sizes, rotation) if isinstance(part, _Rows) else part for part in parts]
        with appearing(target) as out:
            for plan in plans:
                written = plan.write(file, out) if isinstance(plan, _Plan) else _copy(file, out, plan.offset, plan.size)
                for done in written:
                    progress(done, size)
            bytes_after = out.tell()
    rows = [part for part in parts if isinstance(part, _Rows)]
    plans_of_rows = [plan for plan in plans if isinstance(plan, _Plan)]

    def names(which: str, ids: list[int]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_name(type_id) for type_id, row in zip(ids, rows) if row.which == which))

    before, after = [row.type_id for row in rows], [plan.target_id for plan in plans_of_rows]
    return Conversion(
        kind, max((row.n_rows for row in rows), default=0), names("K", before), names("V", before), names("K", after),
        names("V", after), any(plan.turn or plan.turn_before for plan in plans_of_rows), bool(left), size, bytes_after,
    )  # fmt: skip


def model_head_sizes(path: Path) -> HeadSizes:
    """Head sizes and architecture of a GGUF model."""
    try:
        value = _gguf_file.metadata(path).get
    except _gguf_file.GgufError as problem:
        raise StateError(str(problem)) from None
    name = value("general.architecture")
    if not isinstance(name, str):
        raise StateError(f"{path}: found no general.architecture, wanted a GGUF model")
    embedding, heads = value(f"{name}.embedding_length"), value(f"{name}.attention.head_count")
    derived = embedding // heads if isinstance(embedding, int) and isinstance(heads, int) and heads > 0 else None
    sizes = []
    for key in ("key_length", "value_length"):
        size, windowed = (value(f"{name}.attention.{key}{suffix}") for suffix in ("", "_swa"))
        if windowed not in (None, size):
            raise StateError(f"{path}: found head sizes that differ between layers ({size}, {windowed}), wanted one")
        sizes.append(size or derived)
    return HeadSizes(sizes[0], sizes[1], name)


# ---------------------------------------------------------------------------------------------------------------------
# Reading. All of a file but its rows is read and checked before anything is written.


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.at = file, size, 0

    def take(self, size: int) -> bytes:
        self.skip(size)
        self.file.seek(self.at - size)
        data = self.file.read(size)
        if len(data) != size:
            raise StateError(f"found the end of the file at {self.at - size + len(data)}, wanted {self.size} bytes: it changed")
        return data

    def skip(self, size: int) -> None:
        if size > self.size - self.at:
            raise StateError(f"found {self.size - self.at} bytes at {self.at}, wanted {size}: truncated or damaged")
        self.at += size

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))


def _scan(file: BinaryIO, size: int, architecture: str | None) -> tuple[str, list[_Bytes | _Rows | _Centered]]:
    """Kind of the file, and its parts in order.

    Whether cells have more than position and sequences is written nowhere, so both ways to read the file are tried: the
    one that comes out at its last byte is it.
    """
    reader = _Reader(file, size)
    magic, version, n_tokens = reader.numbers("III")
    if (magic, version) not in _VERSIONS:
        known = ", ".join(f"{m:08x} version {v}" for m, v in _VERSIONS)
        raise StateError(f"found magic {magic:08x} version {version}, wanted a saved state: {known}")
    reader.skip(4 * n_tokens)
    if magic == SESSION:
        (length,) = reader.numbers("I")
        if not 0 < length <= _MAX_NAME:
            raise StateError(f"found an architecture's name of {length} bytes, wanted 1 to {_MAX_NAME}")
        name = reader.take(length).decode("ascii", "replace")
        if architecture not in (None, name):
            raise StateError(f"found a state of architecture {name!r}, wanted {architecture!r} as the model")
    start, problems = reader.at, []
    for extra in (0, _VERSIONS[magic, version]):
        reader.at = start
        rows: list[_Rows | _Centered] = []
        try:
            rows += _scan_cache(reader, magic == SESSION, extra)
            while reader.at < size:
                rows += _scan_cache(reader, magic == SESSION, extra)
        except StateError as problem:
            problems.append((reader.at, str(problem)))
        else:
            return "session" if magic == SESSION else "sequence", _with_gaps(rows, size)
    raise StateError(max(problems)[1] + "; caches of K and V are known, no recurrent layers, and none without values (MLA)")


def _scan_cache(reader: _Reader, whole: bool, extra: int) -> Iterator[_Rows | _Centered]:
    (n_streams,) = reader.numbers("I")
    centering = None
    if n_streams == _centered.MARK:
        start = reader.at - 4
        centering = _scan_centering(reader)
        yield _Centered(start, reader.at - start, centering)
        (n_streams,) = reader.numbers("I")
    if not 1 <= n_streams <= _MAX_SEQUENCES:
        raise StateError(f"found {n_streams} streams before {reader.at}, wanted 1 to {_MAX_SEQUENCES}")
    for _ in range(n_streams):
        (n_cells,) = reader.numbers("I")
        if n_cells == 0:
            continue
        if n_cells > (reader.size - reader.at) // 12:
            raise StateError(f"found {n_cells} cells before {reader.at}, more than fit into the file")
        positions = np.empty(n_cells, np.int32)
        for i in range(n_cells):
            pos, n_sequences = reader.numbers("iI")
            positions[i] = pos
            if pos < 0 or not 1 <= n_sequences <= (_MAX_SEQUENCES if whole else 1):
                raise StateError(f"found a cell at position {pos} in {n_sequences} sequences before {reader.at}, wanted no such cell")
            reader.skip(extra + 4 * n_sequences)
        cells_at = reader.at
        if centering:
            reader.skip(n_cells * centering.cell_bytes())
            yield _Centered(cells_at, reader.at - cells_at, centering)
        transposed, n_layers = reader.numbers("II")
        if transposed > 1 or not 1 <= n_layers <= _MAX_LAYERS:
            raise StateError(f"found {n_layers} layers, transposed {transposed}, before {reader.at}, wanted layers, transposed 0 or 1")
        for i in range(n_layers):
            rows = _scan_rows(reader, "K", n_cells, False)
            if centering:
                known = i if len(centering.layers) == n_layers else -1
                rows = replace(rows, centers=_CentersOf(centering, known, positions, cells_at + i * n_cells))
            yield rows
        for _ in range(n_layers):
            yield _scan_rows(reader, "V", n_cells, transposed == 1)


def _scan_centering(reader: _Reader) -> _centered.Centering:
    version, rotates, size = reader.numbers("III")
    if version != _centered.VERSION or rotates > 1:
        raise StateError(
            f"found keys that are centered in a way (version {version}) that isn't known, wanted version {_centered.VERSION}: let the prompt be computed again"
        )
    data = reader.take(size)
    (checksum,) = reader.numbers("Q")
    if checksum != _centered.checksum(data):
        raise StateError(f"found a calibration of centered keys before {reader.at} with a wrong checksum: damaged")
    try:
        return _centered.parse(data, rotates == 1)
    except _centered.Damaged as problem:
        raise StateError(f"found a calibration of centered keys before {reader.at} {problem}: damaged") from None
    except _centered.Unknown as problem:
        raise StateError(f"found a calibration of centered keys before {reader.at} {problem}") from None


def _scan_rows(reader: _Reader, which: str, n_cells: int, transposed: bool) -> _Rows:
    header = reader.at
    type_id, row_bytes, *more = reader.numbers("iII" if transposed else "iQ")
    info = _known(type_id)
    if row_bytes == 0 or (info and (row_bytes != info.block_bytes if transposed else row_bytes % info.block_bytes)):
        unit = f"{info.block_bytes} ({info.name})" if info else "something"
        raise StateError(f"found {which} rows of {row_bytes} bytes at {header}, wanted a multiple of {unit}")
    rows = _Rows(which, type_id, row_bytes, n_cells, more[0] if transposed else None, header, reader.at)
    if rows.n_transposed == 0:
        raise StateError(f"found {which} rows of no values at {header}")
    reader.skip(rows.size)
    return rows


def _with_gaps(rows: list[_Rows | _Centered], size: int) -> list[_Bytes | _Rows | _Centered]:
    parts: list[_Bytes | _Rows | _Centered] = []
    at = 0
    for row in rows:
        start = row.header if isinstance(row, _Rows) else row.offset
        if start > at:
            parts.append(_Bytes(at, start - at))
        parts.append(row)
        at = row.offset + row.size
    return parts if at == size else [*parts, _Bytes(at, size - at)]


# ---------------------------------------------------------------------------------------------------------------------
# Converting.


@dataclass(frozen=True)
class _Plan:
    rows: _Rows
    source: TypeInfo | None  # None: as it is
    target: TypeInfo | None
    n: int  # values of a row (cells, if transposed)
    turn: int  # size of the Walsh-Hadamard blocks that a row is turned by; 0: none
    turn_before: int = 0  # the same, before its keys are what they were before they were centered

    @property
    def target_id(self) -> int:
        return self.target.id if self.target else self.rows.type_id

    def write(self, file: BinaryIO, out: BinaryIO) -> Iterator[int]:
        rows = self.rows
        if self.source is None or self.target is None:
            yield from _copy(file, out, rows.header, rows.offset - rows.header + rows.size)
            return
        row_bytes, count = rows.row_bytes, rows.n_rows
        if rows.n_transposed is None:
            out.write(struct.pack("<iQ", self.target.id, _row_bytes(self.target, self.n)))
        else:
            out.write(struct.pack("<iII", self.target.id, self.target.block_bytes, rows.n_transposed))
            row_bytes, count = row_bytes * self.n, rows.n_transposed
        batch = max(1, _BATCH_BYTES // max(row_bytes, 4 * self.n))
        centers, part = rows.centers, np.empty(0, np.uint8)
        if centers:
            file.seek(centers.offset)
            part = np.frombuffer(file.read(rows.n_rows), np.uint8)
        file.seek(rows.offset)
        for first in range(0, count, batch):
            n_rows = min(batch, count - first)
            data = file.read(n_rows * row_bytes)
            if len(data) != n_rows * row_bytes:
                raise StateError("found the end of the file before its last row: it changed")
            with np.errstate(all="ignore"):  # what isn't finite, or becomes so as f16, is passed on
                x = _decode(np.frombuffer(data, np.uint8).reshape(n_rows, row_bytes), self.source)
                if centers:
                    of_batch = slice(first, first + n_rows)
                    x = hadamard(x, self.turn_before) if self.turn_before else x
                    x = centers.centering.before(x, centers.at, centers.positions[of_batch], part[of_batch])
                y = _encode(hadamard(x, self.turn) if self.turn else x, self.target)
            out.write(y.tobytes())
            yield rows.offset + (first + n_rows) * row_bytes


def _changes(rows: _Rows, wanted: dict[str, TypeInfo | None]) -> bool:
    target = wanted[rows.which]
    return target is not None and target.id != rows.type_id


def _plan(
    rows: _Rows, wanted: dict[str, TypeInfo | None], left: set[_centered.Centering], head_sizes: HeadSizes, rotation: bool
) -> _Plan:
    target = wanted[rows.which]
    if target is None or not (_changes(rows, wanted) or (rows.centers and rows.centers.centering in left)):
        return _Plan(rows, None, None, 0, 0)
    source = _known(rows.type_id)
    if source is None:
        known = ", ".join(info.name for info in row_types())
        raise StateError(f"found {rows.which} rows of the type with id {rows.type_id}, wanted one of {known}")
    if rows.n_transposed is not None:
        if _quantized(source) or _quantized(target):
            raise StateError(
                f"found a transposed V cache, wanted one that was saved with flash attention on: rows of {target.name} can't be transposed"
            )
        return _Plan(rows, source, target, rows.n_rows, 0)
    n = rows.row_bytes // source.block_bytes * source.block_length
    if n % target.block_length:
        raise StateError(f"found {rows.which} rows of {n} values, wanted a multiple of {target.block_length} ({target.name})")
    if rows.centers:
        return _plan_centered(rows, rows.centers, source, target, n, head_sizes, rotation)
    turns = rotation and wants_attn_rot(source.name, source.block_length) != wants_attn_rot(target.name, target.block_length)
    return _Plan(rows, source, target, n, _rotation(rows.which, n, head_sizes) if turns else 0)


def _plan_centered(
    rows: _Rows, centers: _CentersOf, source: TypeInfo, target: TypeInfo, n: int, head_sizes: HeadSizes, rotation: bool
) -> _Plan:
    centering = centers.centering
    if centers.at < 0:
        raise StateError("found layers that aren't centered beside others that are, wanted all or none: let llama.cpp restore this state")
    n_heads, head_size = centering.layers[centers.at].mean.shape
    if n_heads * head_size != n or head_sizes.k not in (None, head_size):
        raise StateError(f"found K rows of {n} values, wanted {n_heads} heads of {head_sizes.k or head_size}, as they were centered")
    size = _rotation("K", n, HeadSizes(k=head_size))
    return _Plan(
        rows, source, target, n, size if rotation and wants_attn_rot(target.name, target.block_length) else 0, size if centering.rotates else 0
    )


def _rotation(which: str, n: int, head_sizes: HeadSizes) -> int:
    """llama.cpp's rule, `llama_kv_cache` (attn_rot)."""
    head_size = head_sizes.k if which == "K" else head_sizes.v
    if head_size is None:
        raise StateError(
            f"found no head size of {which}, wanted one: llama.cpp rotates quantized caches by heads, and the file doesn't have it"
        )
    if head_size < 1 or n % head_size:
        raise StateError(f"found {which} rows of {n} values, wanted a multiple of the head size, {head_size}")
    if head_size % 64:
        return 0
    return largest_block(head_size) if which == "K" else 64


def _decode(data: np.ndarray, info: TypeInfo) -> np.ndarray:
    if info in cache_types():
        return api.dequantize(data, info.name)
    if info.name in _FLOATS:
        return data.view(_FLOATS[info.name]).astype(np.float32)
    gguf = _gguf()
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(info.id))


def _encode(x: np.ndarray, info: TypeInfo) -> np.ndarray:
    if info in cache_types():
        return api.quantize(x, info.name)
    if info.name in _FLOATS:
        return x.astype(_FLOATS[info.name])
    gguf = _gguf()
    return gguf.quants.quantize(x, gguf.GGMLQuantizationType(info.id))


_FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}


def _quantized(info: TypeInfo) -> bool:
    return info.name not in _FLOATS


def _row_bytes(info: TypeInfo, n: int) -> int:
    return n // info.block_length * info.block_bytes


def _known(type_id: int) -> TypeInfo | None:
    return next((info for info in row_types() if info.id == type_id), None)


def _name(type_id: int) -> str:
    info = _known(type_id)
    return info.name if info else f"type {type_id}"


def _row_type(what: str, name: str | None) -> TypeInfo | None:
    if name is None:
        return None
    for info in row_types():
        if info.name == name:
            return info
    raise ValueError(f"{what}: found {name!r}, wanted one of {', '.join(info.name for info in row_types())}")


def _gguf() -> Any:
    """The package for ggml's own types and for models; only they need it."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise StateError("found no package gguf, wanted it for this conversion: pip install 'pyggmlq[states]'") from None


# ---------------------------------------------------------------------------------------------------------------------
# Writing.


def _copy(file: BinaryIO, out: BinaryIO, offset: int, size: int) -> Iterator[int]:
    file.seek(offset)
    end = offset + size
    while offset < end:
        data = file.read(min(_BATCH_BYTES, end - offset))
        if not data:
            raise StateError(f"found the end of the file at {offset}, wanted {end} bytes: it changed")
        out.write(data)
        offset += len(data)
        yield offset
