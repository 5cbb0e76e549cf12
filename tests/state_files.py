# SPDX-License-Identifier: MIT
"""Saved states for tests: small ones made here, and damaged copies of any."""

from __future__ import annotations

import random
import struct
from typing import Sequence

import numpy as np

from pyggmlq import _centered, _hadamard, center, states

HEADER = {"session": (states.SESSION, 10), "sequence": (states.SEQUENCE, 3)}
IDS = {info.name: info for info in states.row_types()}


def encode(x: np.ndarray, name: str) -> bytes:
    return states._encode(x, IDS[name]).tobytes()


def decode(data: bytes, name: str, n_rows: int) -> np.ndarray:
    return states._decode(np.frombuffer(data, np.uint8).reshape(n_rows, -1), IDS[name])


def cache(
    k: Sequence[np.ndarray], v: Sequence[np.ndarray], type_k: str, type_v: str, extra: bytes = b"", transposed: bool = False, sequences: int = 1,
    centering: tuple[bytes, bytes] = (b"", b""), positions: Sequence[int] | None = None,
) -> bytes:  # fmt: skip
    """One cache of one stream: k[layer] and v[layer] are float32 (cells, values); centering as `centered` gives it."""
    cells = len(k[0])
    out = [centering[0], struct.pack("<II", 1, cells)]
    for pos in range(cells) if positions is None else positions:
        out += [struct.pack("<iI", pos, sequences), extra, struct.pack(f"<{sequences}i", *range(sequences))]
    out += [centering[1], struct.pack("<II", transposed, len(k))]
    for rows in k:
        out += [struct.pack("<iQ", IDS[type_k].id, len(encode(rows, type_k)) // cells), encode(rows, type_k)]
    for rows in v:
        if transposed:
            out += [struct.pack("<iII", IDS[type_v].id, IDS[type_v].block_bytes, rows.shape[1]), encode(rows.T.copy(), type_v)]
        else:
            out += [struct.pack("<iQ", IDS[type_v].id, len(encode(rows, type_v)) // cells), encode(rows, type_v)]
    return b"".join(out)


def centered(k: Sequence[np.ndarray], calibrations: Sequence[center.Calibration], positions: np.ndarray, rotates: bool, base: float = 100.0):
    """Keys (cells, values) after RoPE as they are stored centered, and what a state holds of that: (before the streams, behind the cells)."""
    n_rot, neox, magnitude = calibrations[0].n_rot, calibrations[0].neox, 1.25
    frequencies = base ** (-np.arange(n_rot // 2) / (n_rot // 2))
    angles = positions[:, None] * frequencies
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    rows, parts = [], []
    section = struct.pack("<IIIf", 1, n_rot, neox, magnitude) + center.turns(frequencies).astype("<u8").tobytes() + struct.pack("<I", len(k))
    for il, (x, calibration) in enumerate(zip(k, calibrations)):
        keys = x.reshape(len(x), *calibration.mean.shape).transpose(1, 0, 2)
        parts.append(np.arange(len(x)) % 3 != 1)
        rows.append(center.center(calibration, keys, cos, sin, parts[-1]).transpose(1, 0, 2).reshape(len(x), -1).astype(np.float32))
        mean, scale = (y.astype("<f4").tobytes() for y in (calibration.mean, calibration.scale))
        section += struct.pack("<IIII", 2 * il, 0, *calibration.mean.shape[::-1]) + mean + scale + scale  # in place of squares of queries
    if rotates:
        rows = [_hadamard.hadamard(x, _hadamard.largest_block(calibrations[0].mean.shape[1])) for x in rows]
    head = struct.pack("<IIII", _centered.MARK, _centered.VERSION, rotates, len(section)) + section + struct.pack("<Q", _centered.checksum(section))
    return rows, (head, np.array(parts, np.uint8).tobytes())


def state(kind: str, *caches: bytes, tokens: int = 5, version: int | None = None, name: bytes = b"llama") -> bytes:
    magic, newest = HEADER[kind]
    start = struct.pack("<III", magic, version or newest, tokens) + struct.pack(f"<{tokens}i", *range(tokens))
    return start + (struct.pack("<I", len(name)) + name if kind == "session" else b"") + b"".join(caches)


def places(data: bytes) -> list[int]:
    """Offsets of what a damaged file is most interesting at: the start, the cells and the headers of rows."""
    import io

    _, parts = states._scan(io.BytesIO(data), len(data), None)
    found = [at for part in parts if isinstance(part, states._Bytes) for at in range(part.offset, part.offset + part.size)]
    for part in parts:
        if isinstance(part, states._Centered):
            found += [*range(part.offset, part.offset + 40), *range(part.offset + part.size - 12, part.offset + part.size)]
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
