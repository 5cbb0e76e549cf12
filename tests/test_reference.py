# SPDX-License-Identifier: MIT
"""The numpy reference: its constants against csrc, its layouts against ggmlq-types.def, its foreign types against gguf,
its quality against the format, and the compiled back end against it, bit for bit."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tolerances

import pyggmlq
from pyggmlq import _cpu, reference
from pyggmlq._types import cache_types, foreign_types, query_types

ROOT = Path(__file__).resolve().parent.parent
CACHE_TYPES = [info.name for info in cache_types()]


def same(a, b):
    """Equal floats; NaN equals NaN, -0 equals 0."""
    return np.array_equal(a, b, equal_nan=True)


def c_table(name):
    """The numbers of a macro of ggmlq-tables.h."""
    text = (ROOT / "csrc" / "ggmlq-tables.h").read_text(encoding="utf-8")
    body = re.search(rf"#define {name} ((?:.*\\\n)*.*)\n", text)[1]
    return np.array([float(v) for v in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?(?=f?\b)", body)], np.float32)


def test_tables_of_csrc_equal_the_reference():
    assert np.array_equal(c_table("GGMLQ_LEVELS_INIT"), reference.LEVELS)
    assert np.array_equal(c_table("GGMLQ_BOUNDARIES_INIT"), reference.BOUNDARIES)
    assert np.array_equal(c_table("GGMLQ_LEVEL_SIGMA"), [reference.LEVEL_SIGMA])
    assert np.array_equal(c_table("GGMLQ_TQ3_0_SIGNS_INIT"), reference.TQ3_0.SIGNS)
    pairs = c_table("GGMLQ_PLANAR3_COS_SIN_INIT").reshape(64, 2)
    assert np.array_equal(pairs, np.stack([reference.Planar3.C, reference.Planar3.S], axis=1))
    mask = int(re.search(r"GGMLQ_TQ3_0_SIGNS 0x(\w{8})u", (ROOT / "csrc/ggmlq-tables.h").read_text())[1], 16)
    assert [-1 if mask >> j & 1 else 1 for j in range(32)] == list(reference.TQ3_0.SIGNS)


def test_levels_are_those_of_the_format():
    assert list(reference.LEVELS) == [-123, -77, -43, -14, 14, 43, 77, 123]
    assert list(reference.BOUNDARIES) == [-100, -60, -28.5, 0, 28.5, 60, 100]
    first = np.stack([reference.Planar3.C, reference.Planar3.S], axis=1)[:2]
    assert np.allclose(first, [[-0.9095053397, -0.4156922383], [0.1535578452, 0.9881396603]], rtol=1e-7, atol=0)


@pytest.mark.parametrize("tool", ["gen_tables.py", "gen_vectors.py"])
def test_generated_files_are_up_to_date(tool):
    done = subprocess.run([sys.executable, ROOT / "tools" / tool, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_block_sizes_are_those_of_the_type_list():
    for info in cache_types() + foreign_types():
        codec = reference.CODECS[info.name]
        assert (codec.block_length, codec.dtype.itemsize) == (info.block_length, info.block_bytes), info.name
    for info in cache_types():
        query = next(q for q in query_types() if q.name == info.name + "_q8")
        assert (query.block_length, query.block_bytes) == (info.block_length, 4 + info.block_length)


def test_type_list_of_python_equals_that_of_c():
    for info in cache_types() + query_types() + foreign_types():
        c = _cpu.lib.ggmlq_type_info_get(info.id)
        assert (_cpu.ffi.string(c.name).decode(), c.block_length, c.block_bytes, _cpu.ffi.string(c.description).decode()) == (
            info.name,
            info.block_length,
            info.block_bytes,
            info.description,
        )
    assert _cpu.lib.ggmlq_type_info_get(-1) == _cpu.ffi.NULL


def test_plane_order_is_that_of_the_format():
    """Every field alone, through the text's own formula."""
    for j in range(32):
        two, one = np.zeros(32, np.uint8), np.zeros(32, np.uint8)
        two[j], one[j] = 3, 1
        q, s = reference.pack_planes(two, one)
        b, k = j % 8, j // 8
        w, c = b // 4, 4 * (b % 4) + k
        p, n = 2 * w + (c & 1), c >> 1
        assert (int.from_bytes(q.tobytes(), "little"), int.from_bytes(s.tobytes(), "little")) == (
            3 << (8 * b + 2 * k),
            1 << (4 * n + p),
        )
        assert all(np.array_equal(*pair) for pair in zip(reference.unpack_planes(q, s), (two, one)))


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_foreign_types_decode_as_in_gguf(name):
    kind = gguf.GGMLQuantizationType[name.upper()]
    x = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    rows = gguf.quants.quantize(x, kind)
    codec = reference.CODECS[name]
    decoded = codec.decode_blocks(rows.reshape(-1).view(codec.dtype)).reshape(x.shape)
    assert np.array_equal(decoded, gguf.quants.dequantize(rows, kind))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", CACHE_TYPES)
def test_quality_on_normal_data(name, backend):
    x = np.random.default_rng(1).standard_normal((20_000, 512), np.float32)
    if backend == "reference":  # bit-exact with cpu elsewhere; a tenth is enough to see a broken one, within its noise
        x = x[:2000]
    rows = pyggmlq.quantize(x, name, backend)
    assert rows.shape[1] == {"tq3_0": 224, "planar3": 200}[name]
    y = pyggmlq.dequantize(rows, name, backend=backend).astype(np.float64)
    mse = ((x - y) ** 2).sum() / (x.astype(np.float64) ** 2).sum()
    cosine = ((x * y).sum(1) / np.sqrt((x.astype(np.float64) ** 2).sum(1) * (y**2).sum(1))).mean()
    print(f"{name} {backend}: relative MSE {mse:.5f}, cosine {cosine:.5f}")
    worst_mse, least_cosine = tolerances.QUALITY[name]
    assert mse <= worst_mse and cosine >= least_cosine
    assert mse >= 0.9 * worst_mse  # far better than the format can be: then the test measures something else


def adversarial(kind, rng):
    """float32 (500, 512)."""
    shape = (500, 512)
    bits = rng.integers(0, 2**32, shape, np.uint32)
    if kind == "normal":
        return rng.standard_normal(shape, np.float32)
    if kind == "every magnitude":
        return np.ldexp(rng.standard_normal(shape, np.float32), rng.integers(-150, 126, (500, 1)))
    if kind == "heavy tails":
        return (rng.standard_normal(shape) ** 9).astype(np.float32)
    if kind == "small integers":
        return rng.integers(-3, 4, shape).astype(np.float32)
    if kind == "mostly zeros":
        return (rng.standard_normal(shape) * (rng.random(shape) < 0.02)).astype(np.float32)
    if kind == "subnormal":
        return (bits & 0x807FFFFF).view(np.float32)
    if kind == "finite bits":
        return np.where(bits & 0x7F800000 == 0x7F800000, 0, bits).astype(np.uint32).view(np.float32)
    if kind == "any bits":
        return bits.view(np.float32)
    if kind == "subnormal beside 8 to 16":  # normalizing these must round once, not twice
        x = (rng.integers(-20, 21, shape) * 2.0**-149 * (rng.random(shape) < 0.1)).astype(np.float32)
        x[:, ::128] = rng.uniform(8, 16, (500, 4))
        return x
    raise AssertionError(kind)


KINDS = [
    "normal", "every magnitude", "heavy tails", "small integers", "mostly zeros", "subnormal", "finite bits", "any bits",
    "subnormal beside 8 to 16",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CACHE_TYPES)
def test_compiled_back_end_equals_the_reference(name, kind):
    codec = reference.CODECS[name]
    x = adversarial(kind, np.random.default_rng(KINDS.index(kind)))
    rows = pyggmlq.quantize(x, name, "reference")
    assert np.array_equal(pyggmlq.quantize(x, name, "cpu"), rows)
    assert same(pyggmlq.dequantize(rows, name, backend="cpu"), pyggmlq.dequantize(rows, name, backend="reference"))
    assert same(pyggmlq.rotate(x, name, "cpu"), pyggmlq.rotate(x, name, "reference"))
    assert same(pyggmlq.unrotate(x, name, "cpu"), pyggmlq.unrotate(x, name, "reference"))

    with np.errstate(all="ignore"):
        d, q = codec.encode_query_blocks(x.reshape(-1, codec.block_length))
    query = _cpu.encode_queries(x, name).reshape(len(d), -1)
    assert same(query[:, :4].copy().view(np.float32)[:, 0], d)
    assert np.array_equal(query[:, 4:].view(np.int8), q)


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_any_bytes_decode_as_in_the_reference(name):
    codec = reference.CODECS[name]
    rows = np.random.default_rng(7).integers(0, 256, (500, 4 * codec.dtype.itemsize), np.uint8)
    assert same(pyggmlq.dequantize(rows, name, backend="cpu"), pyggmlq.dequantize(rows, name, backend="reference"))


@pytest.mark.parametrize("n", [128, 1024, 1152, 4096])
@pytest.mark.parametrize("name", CACHE_TYPES)
def test_dot_equals_the_reference(name, n):
    rng = np.random.default_rng(n)
    codec = reference.CODECS[name]
    x = rng.standard_normal((40, n), np.float32)
    rows = pyggmlq.quantize(rng.standard_normal((40, n), np.float32), name)
    blocks = rows.reshape(-1).view(codec.dtype)
    d, q = codec.encode_query_blocks(x.reshape(-1, codec.block_length))
    terms = (codec.decode_blocks_rotated(blocks).astype(np.float64) * q).sum(axis=1) * d
    bound = tolerances.dot(terms.reshape(40, -1))

    dots = pyggmlq.vec_dot(rows, x, name)
    assert (np.abs(dots - terms.reshape(40, -1).sum(axis=1)) <= bound).all()
    assert (np.abs(dots - pyggmlq.vec_dot(rows, x, name, "reference")) <= bound).all()
    assert np.array_equal(np.diag(pyggmlq.mul_mat_vec(rows, x, name)), dots)
    assert np.array_equal(np.diag(pyggmlq.mul_mat_vec(rows, x, name, "reference")), pyggmlq.vec_dot(rows, x, name, "reference"))


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_dot_is_the_product_of_decoded_row_and_query(name):
    rng = np.random.default_rng(9)
    codec = reference.CODECS[name]
    x = rng.standard_normal((40, 512), np.float32)
    rows = pyggmlq.quantize(rng.standard_normal((40, 512), np.float32), name)
    exact = (pyggmlq.dequantize(rows, name).astype(np.float64) * x).sum(axis=1)
    rotated = codec.decode_blocks_rotated(rows.reshape(-1).view(codec.dtype)).reshape(40, -1, codec.block_length)
    d, _ = codec.encode_query_blocks(x.reshape(-1, codec.block_length))
    bound = tolerances.query_rounding(d.reshape(40, -1), rotated)
    assert (np.abs(pyggmlq.vec_dot(rows, x, name) - exact) <= bound).all()
    assert (bound < 2 * np.sqrt(512)).all()  # the spread of the products: a bound beyond it would prove nothing
