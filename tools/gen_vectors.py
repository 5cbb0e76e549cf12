#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the golden vectors tests/vectors/*.json with the numpy reference; the compiled back ends must equal them.

    python tools/gen_vectors.py            write the files
    python tools/gen_vectors.py --check    exit 1, with a diff, if a committed file differs

The committed files freeze the format: a difference is a change of the format, not a reason to regenerate.
Needs numpy and the checkout, nothing compiled.
"""
from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pyggmlq import reference  # noqa: E402
from pyggmlq._types import cache_types  # noqa: E402

VECTORS = ROOT / "tests" / "vectors"

COMMENT = [
    "Golden vectors of the block format docs/FORMAT.md, version 1. Written by tools/gen_vectors.py.",
    "A float32 is written as the 8 hex digits of its bits. Inputs are formulas: n values made as follows.",
    "lcg: z = seed (32 bits). Every draw sets z = (z*1664525 + 1013904223) mod 2^32 and gives (z >> 16) - 2^15.",
    "     A value is the sum of `draws` draws times 2^-exponent, exact in float32.",
    "pattern: these float32 words, repeated.   set: afterwards, value at this index is this word.",
    "row: the encoded bytes.   decoded: the float32 values that row decodes to; any NaN equals any NaN, -0 equals 0.",
    "query: the input as an 8-bit query: per block the float32 word of d, a colon, then the int8 values as hex bytes.",
    "Entries of `decode` have no input: foreign bytes that a decoder must take.",
]

ONE, MAX, TINY, INF, NAN = "3f800000", "7f7fffff", "00000001", "7f800000", "7fc00000"


def lcg(n, seed, draws=12, exponent=16, **fixed):
    return {"n": n, "lcg": {"seed": seed, "draws": draws, "exponent": exponent}, **fixed}


def pattern(n, *words, **fixed):
    return {"n": n, "pattern": list(words), **fixed}


def negative(word):
    return f"{int(word, 16) | 0x80000000:08x}"


def make_input(spec):
    """The formula of COMMENT."""
    values = np.zeros(spec["n"], np.float32)
    if "lcg" in spec:
        z = spec["lcg"]["seed"]
        for i in range(spec["n"]):
            total = 0
            for _ in range(spec["lcg"]["draws"]):
                z = (z * 1664525 + 1013904223) % 2**32
                total += (z >> 16) - 2**15
            values[i] = np.ldexp(np.float32(total), -spec["lcg"]["exponent"])
    words = values.view(np.uint32)
    if "pattern" in spec:
        repeated = [int(word, 16) for word in spec["pattern"]] * spec["n"]
        words[:] = repeated[: spec["n"]]
    for i, word in spec.get("set", {}).items():
        words[int(i)] = int(word, 16)
    return values


def inputs(name, length):
    """(name, input) of one type; `length` is its block length."""
    signs = ["bf800000" if s < 0 else ONE for s in reference.TQ3_0.SIGNS]
    # Found by search: with these seeds a value lies exactly on a boundary other than 0, which decides a level, and the
    # scale lies exactly between two halves. tests/test_vectors.py checks that they still do.
    boundary, halfway = {"tq3_0": ((229805, 474672), (4037, 28573)), "planar3": ((135645, 173684), (17403, 30431))}[name]
    yield "zeros", pattern(length, "00000000")
    yield "zeros with both signs", pattern(length, "00000000", "80000000")
    yield "bell", lcg(2 * length, 1)
    yield "bell, another", lcg(2 * length, 2, exponent=14)
    yield "uniform", lcg(2 * length, 3, draws=1, exponent=15)
    yield "outliers", lcg(2 * length, 4, set={"3": "44000000", str(length + 9): "c4800000"})
    yield "spike", pattern(2 * length, "00000000", set={"5": ONE, str(2 * length - 1): "c0a00000"})
    yield "constant", pattern(length, ONE)
    yield "alternating", pattern(length, ONE, negative(ONE))
    yield "tie on boundary 0: tq3_0 rotates this to a single value", pattern(length, *signs)
    yield "tie on boundary 0: pairs of zeros", pattern(length, ONE, ONE, "00000000", "00000000")
    for i, seed in enumerate(boundary):
        yield f"tie on another boundary, {i + 1}", lcg(length, seed, draws=1)
    for i, seed in enumerate(halfway):
        yield f"tie in the rounding of the scale, {i + 1}", lcg(length, seed, draws=1)
    yield "subnormal scale", lcg(length, 5, exponent=36)
    yield "smallest scale", lcg(length, 6, exponent={"tq3_0": 41, "planar3": 44}[name])
    yield "scale below fp16", lcg(length, 7, exponent=60)
    yield "scale next to the largest", {"tq3_0": lcg(length, 78, exponent=0), "planar3": lcg(length, 8, exponent=3)}[name]
    yield "scale saturates", lcg(length, 8, exponent=-8)
    yield "largest floats", pattern(2 * length, MAX, negative(MAX), MAX)
    yield "one largest float", pattern(length, "00000000", set={"7": negative(MAX)})
    yield "smallest floats", pattern(length, TINY, negative(TINY), "00000003", "00000000")
    yield "subnormal floats", lcg(length, 9, exponent=146)
    # -9 * 2^-149 over 2^4 must become -2^-149, not 0, when the block is normalized: two roundings would lose it.
    yield "huge beside tiny", pattern(length, "00000000", set={"0": "41200000", "9": "80000009", "22": "00000009"})
    yield "widest range", lcg(length, 10, set={"1": MAX, "2": TINY, "3": "00800000", "6": negative(TINY)})
    yield "NaN in the first block", lcg(2 * length, 11, set={"4": NAN})
    yield "infinity in the second block", lcg(2 * length, 12, set={str(length + 1): INF})
    yield "negative infinity, NaN with payload", lcg(3 * length, 13, set={"0": negative(INF), str(3 * length - 1): "ff800123"})


def foreign_rows(info):
    """(name, row) that no encoder writes, or none of ours."""
    codec = reference.CODECS[info.name]
    fields = [(37 * i + 11) % 256 for i in range(info.block_bytes)]
    for name, half in (
        ("one", 0x3C00), ("negative", 0xBC00), ("zero", 0x0000), ("negative zero", 0x8000), ("smallest", 0x0001),
        ("largest subnormal", 0x03FF), ("smallest normal", 0x0400), ("largest", 0x7BFF), ("infinity", 0x7C00),
        ("negative infinity", 0xFC00), ("NaN", 0x7E00), ("signalling NaN", 0xFC01),
    ):  # fmt: skip
        block = np.array(fields, np.uint8).view(codec.dtype)
        block[codec.scale] = np.array([half], "<u2").view("<f2")
        yield f"scale: {name}", block.tobytes()


def words(values):
    canonical = np.where(np.isnan(values), np.float32(np.nan), values).astype(np.float32)
    return " ".join(f"{w:08x}" for w in canonical.view(np.uint32))


def vectors(info):
    codec = reference.CODECS[info.name]
    encode, decode = [], []
    with np.errstate(all="ignore"):
        for name, spec in inputs(info.name, info.block_length):
            x = make_input(spec).reshape(-1, info.block_length)
            blocks = codec.encode_blocks(x)
            d, q = codec.encode_query_blocks(x)
            encode.append({
                "name": name,
                "input": spec,
                "row": blocks.tobytes().hex(),
                "decoded": words(codec.decode_blocks(blocks).reshape(-1)),
                "query": " ".join(f"{words(di)}:{qi.tobytes().hex()}" for di, qi in zip(d[:, None], q)),
            })  # fmt: skip
        for name, row in foreign_rows(info):
            blocks = np.frombuffer(row, codec.dtype)
            decode.append({"name": name, "row": row.hex(), "decoded": words(codec.decode_blocks(blocks).reshape(-1))})
    return {"_comment": COMMENT, "type": info.name, "encode": encode, "decode": decode}


def refusals():
    """Lengths and types that every entry point must refuse, and the error of csrc/ggmlq.h that says so."""
    cases = []
    for info in cache_types():
        length = info.block_length
        for n in (-length, -1, 1, length // 2, length - 1, length + 1, 2 * length - 1, 3 * length + length // 2):
            cases.append({"type": info.id, "n": n, "error": "GGMLQ_ERROR_LENGTH"})
    known = {info.id for info in cache_types()}
    for type_id in [-1, 0, 1, 2, 8, *(i + d for i in sorted(known) for d in (-1, 1)), 2**31 - 1]:
        if type_id not in known:
            cases.append({"type": type_id, "n": 128, "error": "GGMLQ_ERROR_TYPE"})
    comment = ["(type id, n) that encode, decode, rotate, unrotate, validate, query and dot must refuse, writing nothing."]
    return {"_comment": comment, "cases": cases}


def render(document):
    """JSON with one key of a vector per line: small diffs, readable by eye."""
    lines = [json.dumps(document["_comment"], indent=2)]
    for key, value in document.items():
        if key == "_comment":
            continue
        if isinstance(value, list):
            entries = []
            for entry in value:
                items = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items()]
                entries.append("{" + (", " if sum(map(len, items)) < 100 else ",\n   ").join(items) + "}")
            lines.append(f'"{key}": [\n  ' + ",\n  ".join(entries) + "\n ]")
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    return '{\n "_comment": ' + ",\n ".join(lines) + "\n}\n"


def main(arguments):
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    documents = {info.name: vectors(info) for info in cache_types()}
    documents["refuse"] = refusals()
    differs = False
    for name, document in documents.items():
        path, text = VECTORS / f"{name}.json", render(document)
        if not arguments:
            path.write_bytes(text.encode())
            continue
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        differs |= found != text
        sys.stdout.writelines(difflib.unified_diff(found.splitlines(True), text.splitlines(True), path.name, "reference"))
    return int(differs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
