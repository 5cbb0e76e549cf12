# SPDX-License-Identifier: MIT
"""What `pyggmlq bench cpu` measures. The only list of cases."""
from __future__ import annotations

from dataclasses import dataclass

from .._types import cache_types, type_info

REFERENCES = ("f16", "q8_0", "q4_0")
"""Types of unmodified llama.cpp that every case is also measured with."""


@dataclass(frozen=True)
class Case:
    """One operation in one shape. `shape` has the names that ggml_bench.cpp reads."""

    what: str
    """attention, encode, decode (rows to floats) or dot (one query with many rows)."""
    shape: tuple[tuple[str, int], ...]
    quick: bool = False

    def __getitem__(self, name: str) -> int:
        return dict(self.shape)[name]

    @property
    def name(self) -> str:
        """As in reports; `pyggmlq compare` finds equal cases by it."""
        if self.what != "attention":
            return f"{self.what} width={self['width']} rows={self['rows']}"
        kind = "decode" if self["queries"] == 1 else "prefill"
        return f"attention {kind} " + " ".join(f"{name}={value}" for name, value in self.shape)

    @property
    def unit(self) -> str:
        """What `count` counts."""
        return "pair" if self.what == "attention" else "value"

    @property
    def count(self) -> int:
        """Pairs of query head and cached token (those that the mask hides included), or values."""
        if self.what == "attention":
            return self["heads_kv"] * self["gqa"] * self["queries"] * self["kv"]
        return self["width"] * self["rows"]

    @property
    def row(self) -> int:
        """Values of a row of K or V that must consist of whole blocks."""
        return self["head"] if self.what == "attention" else self["width"]

    @property
    def is_parallel(self) -> bool:
        """Whether there is more than one thread's worth to measure: the codec runs on the caller's thread."""
        return self.what == "attention"

    def cache_bytes(self, type_k: str, type_v: str) -> int:
        """Bytes of encoded rows that one call reads (encode: writes), each counted once."""
        if self.what == "attention":
            values = self["head"] * self["heads_kv"] * self["kv"]
            return _bytes(type_k, values) + _bytes(type_v, values)
        return _bytes(type_k, self.count)

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of our types that fit."""
        if self.what != "attention":
            return [(info.name, info.name) for info in cache_types()]
        pairs = [(info.name, info.name) for info in cache_types()] + [("q8_0", cache_types()[0].name)]
        return [pair for pair in pairs if all(self.fits(name) for name in pair)]

    def fits(self, type_name: str) -> bool:
        """Whether a row is whole blocks of the type."""
        return self.row % type_info(type_name).block_length == 0


def _bytes(type_name: str, values: int) -> int:
    info = type_info(type_name)
    return values // info.block_length * info.block_bytes


def _attention(head: int, heads_kv: int, gqa: int, kv: int, queries: int = 1, quick: bool = False) -> Case:
    shape = (("head", head), ("heads_kv", heads_kv), ("gqa", gqa), ("kv", kv), ("queries", queries))
    return Case("attention", shape, quick)


def _codec(what: str, width: int, rows: int, quick: bool = False) -> Case:
    return Case(what, (("width", width), ("rows", rows)), quick)


CASES = (
    _codec("encode", 1024, 128, quick=True),  # one K row of 8 heads of 128; 128 of them, as in prefill
    _codec("decode", 1024, 256, quick=True),
    _codec("dot", 128, 8192, quick=True),
    _attention(128, 8, 4, 4096, quick=True),
    _attention(128, 8, 4, 32768),
    _attention(128, 8, 4, 2048, queries=64, quick=True),
    _attention(128, 8, 4, 2048, queries=512),
    _attention(128, 8, 4, 8192, queries=64),
    _attention(128, 8, 4, 8192, queries=512),
    _attention(64, 3, 3, 4096),
    _attention(64, 8, 8, 4096),
    _attention(256, 4, 4, 4096),
    _attention(512, 1, 16, 4096),
)
