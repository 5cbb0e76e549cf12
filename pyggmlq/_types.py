# SPDX-License-Identifier: MIT
"""The types that pyggmlq knows, read from ``csrc/ggmlq-types.def``: no id or size is repeated in Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from . import _sources

_ENTRY = re.compile(
    r"^GGMLQ_(?P<group>TYPE|QUERY_TYPE|FOREIGN_TYPE)\s*\(\s*(?P<upper>\w+)\s*,\s*(?P<name>\w+)\s*,\s*(?P<id>\d+)\s*,"
    r"\s*(?P<block_length>\d+)\s*,\s*(?P<block_bytes>\d+)\s*,\s*\"(?P<description>[^\"]*)\"\s*\)",
    re.MULTILINE,
)
_UNTURNED = re.compile(r"^GGMLQ_UNTURNED_TYPE\s*\(\s*\w+\s*,\s*(\w+)\s*\)", re.MULTILINE)


@dataclass(frozen=True)
class TypeInfo:
    """One type of ``ggmlq-types.def``: a row is a sequence of blocks of ``block_length`` values."""

    name: str
    id: int
    block_length: int
    block_bytes: int
    description: str

    @property
    def bits_per_value(self) -> float:
        """Bits that one stored value takes, scales included."""
        return 8 * self.block_bytes / self.block_length


def _text() -> str:
    return (_sources.root() / "csrc" / "ggmlq-types.def").read_text(encoding="utf-8")


@lru_cache(maxsize=None)
def _groups() -> dict[str, tuple[TypeInfo, ...]]:
    groups: dict[str, list[TypeInfo]] = {"TYPE": [], "QUERY_TYPE": [], "FOREIGN_TYPE": []}
    for entry in _ENTRY.finditer(_text()):
        groups[entry["group"]].append(
            TypeInfo(
                entry["name"],
                int(entry["id"]),
                int(entry["block_length"]),
                int(entry["block_bytes"]),
                entry["description"],
            )
        )
    return {group: tuple(infos) for group, infos in groups.items()}


def cache_types() -> tuple[TypeInfo, ...]:
    """The KV-cache types of this project."""
    return _groups()["TYPE"]


def query_types() -> tuple[TypeInfo, ...]:
    """Private types of rotated 8-bit queries; they never reach a file."""
    return _groups()["QUERY_TYPE"]


def foreign_types() -> tuple[TypeInfo, ...]:
    """ggml's own types that attention also reads."""
    return _groups()["FOREIGN_TYPE"]


@lru_cache(maxsize=None)
def _unturned() -> frozenset[str]:
    return frozenset(_UNTURNED.findall(_text()))


def wants_attn_rot(name: str, block_length: int) -> bool:
    """Whether llama.cpp's own rotation (attn_rot) is for rows of a type that are K or V, not both: `ggmlq_llama_wants_attn_rot`."""
    return block_length > 1 and name not in _unturned()


def type_info(name: str) -> TypeInfo:
    """The type called ``name``, of any of the three kinds; ValueError if there is none."""
    if not isinstance(name, str):
        raise TypeError(f"A type name is a str, found {type(name).__name__}.")
    known = cache_types() + query_types() + foreign_types()
    for info in known:
        if info.name == name:
            return info
    raise ValueError(f"Unknown type {name!r}; known are {', '.join(info.name for info in known)}.")
