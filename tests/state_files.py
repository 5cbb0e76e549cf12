# SPDX-License-Identifier: MIT
"""Saved states for tests: small ones made here, and damaged copies of any."""

from __future__ import annotations

import random
import struct
from typing import Sequence

import numpy as np

from pyggmlq import states

HEADER = {"session": (states.SESSION, 10), "sequence": (states.SEQUENCE, 3)}
IDS = {info.name: info for info in states.row_types()}


def encode(x: np.ndarray, name: str) -> bytes:
    return states._encode(x, IDS[name]).tobytes()


def decode(data: bytes, name: str, n_rows: int) -> np.ndarray:
    return states._decode(np.frombuffer(data, np.uint8).reshape(n_rows, -1), IDS[name])


def cache(
    k: Sequence[np.ndarray], v: Sequence[np.ndarray], type_k: str, type_v: str, extra: bytes = b"", transposed: bool = False, sequences: int = 1
) -> bytes:
    """One cache of one stream: k[layer] and v[layer] are float32 (cells, values)."""
    cells = len(k[0])
    out = [struct.pack("<II", 1, cells)]
    for pos in range(cells):
        out += [struct.pack("<iI", pos, sequences), extra, struct.pack(f"<{sequences}i", *range(sequences))]
    out.append(struct.pack("<II", transposed, len(k)))
    for rows in k:
        out += [struct.pack("<iQ", IDS[type_k].id, len(encode(rows, type_k)) // cells), encode(rows, type_k)]
    for rows in v:
        if transposed:
            out += [struct.pack("<iII", IDS[type_v].id, IDS[type_v].block_bytes, rows.shape[1]), encode(rows.T.copy(), type_v)]
        else:
            out += [struct.pack("<iQ", IDS[type_v].id, len(encode(rows, type_v)) // cells), encode(rows, type_v)]
    return b"".join(out)


def state(kind: str, *caches: bytes, tokens: int = 5, version: int | None = None, name: bytes = b"llama") -> bytes:
    magic, newest = HEADER[kind]
    start = struct.pack("<III", magic, version or newest, tokens) + struct.pack(f"<{tokens}i", *range(tokens))
    return start + (struct.pack("<I", len(name)) + name if kind == "session" else b"") + b"".join(caches)


def places(data: bytes) -> list[int]:
    """Offsets of what a damaged file is most interesting at: the start, the cells and the headers of rows."""
    import io

    _, parts = states._scan(io.BytesIO(data), len(data), None)
    found = [at for part in parts if isinstance(part, states._Bytes) for at in range(part.offset, part.offset + part.size)]
    return found + [at for part in parts if isinstance(part, states._Rows) for at in range(part.header, part.offset)]


def damaged(data: bytes, interesting: list[int], rng: random.Random) -> bytes:
    """A copy with one to three bits flipped, numbers replaced, stretches cut out, doubled or exchanged, the end cut off or added to."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = min(rng.choice(interesting) if rng.random() < 0.7 else rng.randrange(len(data)), max(len(out) - 1, 0))
        length = rng.choice((1, 4, 8, 12, 100))
        what = rng.randrange(7)
        if what == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            number = rng.choice((0, 1, 2, 3, 8, 30, 90, 91, 92, 255, 1000, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, rng.getrandbits(32)))
            out[at : at + 4] = struct.pack("<I", number)
        elif what == 2:
            out[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 1 << 32, 1 << 62, (1 << 64) - 1, rng.getrandbits(64))))
        elif what == 3:
            del out[at : at + length]
        elif what == 4:
            out[at:at] = out[at : at + length]
        elif what == 5:
            del out[at:]
        else:
            out += rng.randbytes(length)
    return bytes(out)
