# SPDX-License-Identifier: MIT
"""Pairs of cache types, and what can't be right in a measurement of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import llama
from ._types import cache_types, foreign_types, type_info, wants_attn_rot

OURS = tuple(info.name for info in cache_types())
"""Names of the cache types of this package."""


@dataclass(frozen=True)
class Case:
    """A pair of cache types."""

    k: str
    v: str

    def __str__(self) -> str:
        return f"{self.k}/{self.v}"

    @property
    def is_reference(self) -> bool:
        """Whether nothing is quantized."""
        return self.k == self.v == "f16"

    @property
    def wants_attn_rot(self) -> bool:
        """Whether llama.cpp's own rotation is for one of the sides, or both."""
        return any(wants_attn_rot(name, block_size(name)[0]) for name in (self.k, self.v))


def block_size(name: str) -> tuple[int, int]:
    """(values, bytes) of a block of the cache type `name`; ValueError for a type that no cache can have.

    The sizes of ggml's types that this package doesn't read itself come from the package gguf.
    """
    known = [info.name for info in cache_types() + foreign_types()]
    if name in known:
        info = type_info(name)
        return info.block_length, info.block_bytes
    if name not in _GGML_ONLY:
        raise ValueError(f"cache type: found {name!r}, wanted one of {', '.join([*known, *_GGML_ONLY])}")
    from .lab import require

    gguf = require("gguf")
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]


def bits_per_value(name: str) -> float:
    """Bits that a value of the cache type `name` takes, scales included; ValueError as `block_size`."""
    length, size = block_size(name)
    return 8 * size / length


_GGML_ONLY = ("bf16", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""Cache types that llama.cpp takes besides those of ggmlq-types.def."""


def memory_alarms(case: Case, memory: llama.KvMemory, reference: llama.KvMemory) -> Iterator[str]:
    """Sides of the cache whose size isn't what the f16 cache's and the types' bits say."""
    sides = (("K", case.k, memory.mib_k, reference.mib_k), ("V", case.v, memory.mib_v, reference.mib_v))
    for side, name, mib, mib_f16 in sides:
        bits = bits_per_value(name)
        wanted = mib_f16 * bits / bits_per_value("f16")
        if abs(mib - wanted) > 0.01 * memory.caches + 0.001 * wanted:  # each cache's size was rounded to 0.01 MiB
            yield f"{side} takes {mib:.2f} MiB, but {bits:g} bits per value would be {wanted:.2f} MiB"


def divergence_alarms(case: Case, here: llama.Divergence, reference: llama.Divergence) -> Iterator[str]:
    """No number at all, or f16's numbers in every digit."""
    if not (here.ppl < float("inf") and here.kld < float("inf")):  # also when it is not a number
        yield f"perplexity is {here.ppl} and KLD {here.kld}"
    elif not case.is_reference and (here.ppl, here.kld, here.kld_max) == (reference.ppl, reference.kld, reference.kld_max):
        yield "perplexity and KLD equal f16's in every digit, so nothing was quantized"
