# SPDX-License-Identifier: MIT
"""The golden vectors, against every back end and against the C functions themselves."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import pyggmlq
from pyggmlq import _cpu, reference

ROOT = Path(__file__).resolve().parent.parent
FILES = {name: json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text()) for name in ("tq3_0", "planar3")}
REFUSE = json.loads((ROOT / "tests" / "vectors" / "refuse.json").read_text())["cases"]
BACKENDS = ["reference", "cpu", pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("hip", marks=pytest.mark.hip),
            pytest.param("metal", marks=pytest.mark.metal)]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gen_vectors = load_tool("gen_vectors")


def floats(words):
    return np.array([int(word, 16) for word in words.split()], np.uint32).view(np.float32)


def entries(kind):
    return [pytest.param(name, v, id=f"{name}: {v['name']}") for name, file in FILES.items() for v in file[kind]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, vector", entries("encode"))
def test_encode(name, vector, backend):
    x = gen_vectors.make_input(vector["input"])
    assert pyggmlq.quantize(x, name, backend).tobytes().hex() == vector["row"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, vector", entries("encode") + entries("decode"))
def test_decode(name, vector, backend):
    row = np.frombuffer(bytes.fromhex(vector["row"]), np.uint8)
    found, wanted = pyggmlq.dequantize(row, name, backend=backend), floats(vector["decoded"])
    assert np.array_equal(found, wanted, equal_nan=True)
    if np.isfinite(wanted).all():
        pyggmlq.dequantize(row, name, backend=backend, check=True)
    else:
        with pytest.raises(ValueError, match="NaN or infinite scale"):
            pyggmlq.dequantize(row, name, backend=backend, check=True)


@pytest.mark.parametrize("name, vector", entries("encode"))
def test_query(name, vector):
    x = gen_vectors.make_input(vector["input"])
    query = _cpu.encode_queries(x, name).reshape(-1, 4 + reference.CODECS[name].block_length)
    for found, wanted in zip(query, vector["query"].split()):
        d, _, q = wanted.partition(":")
        assert np.array_equal(found[:4].view(np.float32), floats(d), equal_nan=True)
        assert found[4:].tobytes().hex() == q


def vector_input(name, title):
    return gen_vectors.make_input(next(v for v in FILES[name]["encode"] if v["name"] == title)["input"])


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", FILES)
def test_boundary_ties_are_ties(name, number, monkeypatch):
    """An encoder that put them in the lower cell would give other bytes."""
    x = vector_input(name, f"tie on another boundary, {number}")
    upper = pyggmlq.quantize(x, name, "reference")

    def assign_lower(y, step):
        edges = (reference.BOUNDARIES * step[:, None])[:, None, :]
        return np.where(edges == 0, y[:, :, None] >= edges, y[:, :, None] > edges).sum(axis=-1).astype(np.uint8)

    monkeypatch.setattr(reference, "assign_levels", assign_lower)
    assert not np.array_equal(pyggmlq.quantize(x, name, "reference"), upper)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", FILES)
def test_scale_ties_are_ties(name, number, monkeypatch):
    """The unrounded scale lies exactly between two halves."""
    steps = []
    search = reference.search_levels
    monkeypatch.setattr(reference, "search_levels", lambda y: steps.append(search(y)) or steps[-1])
    pyggmlq.quantize(vector_input(name, f"tie in the rounding of the scale, {number}"), name, "reference")
    assert (steps[0][1].view(np.uint32) & 0x1FFF == 0x1000).all()


@pytest.mark.parametrize("case", REFUSE, ids=lambda c: f"type {c['type']}, n {c['n']}")
def test_c_refuses(case):
    """With the stated error, and without a write."""
    lib, ffi = _cpu.lib, _cpu.ffi
    error = getattr(lib, case["error"])
    floats, row, query = np.full(1024, 7, np.float32), np.full(4096, 7, np.uint8), np.full(1024, 7, np.float32)
    pointers = [ffi.cast(t, a.ctypes.data) for t, a in (("float *", floats), ("void *", row), ("void *", query))]
    f, r, q = pointers
    kind, n = case["type"], case["n"]
    result, index = ffi.new("float *", 7), ffi.new("int64_t *", 0)
    assert lib.ggmlq_encode_row(kind, f, r, n) == error
    assert lib.ggmlq_decode_row(kind, r, f, n) == error
    assert lib.ggmlq_decode_row_rotated(kind, r, f, n) == error
    assert lib.ggmlq_rotate_row(kind, f, f, n) == error
    assert lib.ggmlq_unrotate_row(kind, f, f, n) == error
    assert lib.ggmlq_validate_row(kind, r, n, ffi.NULL) == error
    assert lib.ggmlq_encode_query_row(kind, f, q, n) == error
    assert lib.ggmlq_dot_row(kind, r, q, n, result) == error
    assert lib.ggmlq_mul_mat_vec(kind, r, 100, 1, q, 1, n, result) == error
    assert lib.ggmlq_set_rows(kind, r, 100, 1, f, index, 1, n) == error
    assert lib.ggmlq_get_rows(kind, r, 100, 1, f, index, 1, n) == error
    assert (floats == 7).all() and (row == 7).all() and (query == 7).all() and result[0] == 7


@pytest.mark.parametrize("case", [c for c in REFUSE if c["error"] == "GGMLQ_ERROR_LENGTH" and c["n"] > 0], ids=str)
def test_python_refuses(case):
    info = next(info for info in pyggmlq.types() if info.id == case["type"])
    with pytest.raises(ValueError, match=f"found rows of {case['n']} values, wanted a multiple of {info.block_length}"):
        pyggmlq.quantize(np.zeros(case["n"], np.float32), info.name)
