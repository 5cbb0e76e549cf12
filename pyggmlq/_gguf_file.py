# SPDX-License-Identifier: MIT
"""The metadata of a GGUF file. The package gguf has a reader, too, but it takes 5 to 20 seconds for a large vocabulary."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["GgufError", "metadata", "tensor_count"]


class GgufError(ValueError):
    """The file is no GGUF file, or a damaged one; the message is one sentence."""


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def metadata(path: Path) -> dict[str, Any]:
    """Keys and values of the file's header, arrays as lists. `GgufError` if it is no complete GGUF file of version 2 or 3.

    Of arrays of strings, which are vocabularies, only the length is kept, as an int.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise GgufError(f"{path} is not a GGUF file")
            version, _, n_keys = _numbers(file, "IQQ")
            if version not in (2, 3):
                raise GgufError(f"{path}: found GGUF version {version}, wanted 2 or 3 (little-endian)")
            return {_string(file): _value(file, *_numbers(file, "I")) for _ in range(n_keys)}
    except (struct.error, UnicodeDecodeError, KeyError, OverflowError, MemoryError):
        raise GgufError(f"{path}: the GGUF header is cut off or damaged") from None


def tensor_count(path: Path) -> int:
    """How many tensors the header of the file, which `metadata` could read, announces."""
    with path.open("rb") as file:
        return _numbers(file, "4sIQ")[2]


def _numbers(file: BinaryIO, kinds: str) -> tuple[Any, ...]:
    form = struct.Struct("<" + kinds)
    return form.unpack(file.read(form.size))


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "Q")
    return _numbers(file, f"{length}s")[0].decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _numbers(file, _SCALARS[kind])[0]
    kind, length = _numbers(file, "IQ")
    if kind == _STRING:
        for _ in range(length):
            (skipped,) = _numbers(file, "Q")
            file.seek(skipped, 1)
        return length
    return list(_numbers(file, f"{length}{_SCALARS[kind]}"))
