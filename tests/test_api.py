# SPDX-License-Identifier: MIT
"""The numpy interface: what it accepts, what it refuses and in which words, and that the back ends agree on it."""
from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

import pyggmlq
from pyggmlq import _cpu, api

BACKENDS = ["reference", "cpu", pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("hip", marks=pytest.mark.hip),
            pytest.param("metal", marks=pytest.mark.metal)]
each = pytest.mark.parametrize("backend", BACKENDS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def read_only(array):
    array.flags.writeable = False
    return array


def unaligned(array):
    """The same values at an odd address."""
    raw = np.empty(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


# --- what is there -----------------------------------------------------------------------------------------------------


def test_types():
    assert [(t.name, t.id, t.block_length, t.block_bytes, t.bits_per_value) for t in pyggmlq.types()] == [
        ("tq3_0", 90, 32, 14, 3.5),
        ("planar3", 91, 128, 50, 3.125),
    ]


def test_backends():
    found = {backend.name: backend for backend in pyggmlq.backends()}
    assert list(found) == ["reference", "cpu", "cuda", "hip", "metal"]
    for backend in found.values():
        assert backend.usable == (backend.reason == ""), backend
        assert backend.usable or backend.reason.endswith("."), backend
        assert bool(backend.device) == (backend.usable and backend.name in ("cuda", "hip"))
    assert found["cpu"].usable and found["reference"].usable and not found["metal"].usable


def test_public_names_have_docstrings_and_hints():
    for name in pyggmlq.__all__:
        item = getattr(pyggmlq, name)
        assert item.__doc__, name
        if inspect.isfunction(item) and sys.version_info >= (3, 10):
            hints = typing.get_type_hints(item)
            assert set(inspect.signature(item).parameters) | {"return"} == set(hints), name


def test_both_back_ends_have_the_same_functions():
    def functions(module):
        return {
            name: list(inspect.signature(f).parameters)
            for name, f in vars(importlib.import_module(module)).items()
            if name in wanted
        }

    wanted = set(pyggmlq.__all__) - {"Backend", "CpuLevel", "CudaArray", "TypeInfo", "backends", "cpu_level", "cpu_levels", "types"} | {"find_not_finite"}
    assert set(functions("pyggmlq._cpu")) == wanted
    assert functions("pyggmlq._cpu") == functions("pyggmlq.reference")


def test_limit_is_that_of_the_header():
    assert api.MAX_HEAD_SIZE == _cpu.lib.GGMLQ_ATTEND_MAX_HEAD_SIZE


def test_every_c_error_has_a_sentence():
    texts = {_cpu.ffi.string(_cpu.lib.ggmlq_error_text(code)) for code in range(-6, 1)}
    assert len(texts) == 7  # one each, and "unknown"


def test_import_needs_no_native_module():
    """The patch engine and the reference work without it, and the message says what is missing."""
    code = """
import sys
sys.modules["pyggmlq._ggmlq"] = None
import numpy as np, pyggmlq
pyggmlq.quantize(np.zeros(32, np.float32), backend="reference")
print([b.reason for b in pyggmlq.backends() if b.name == "cpu"][0])
try:
    pyggmlq.quantize(np.zeros(32, np.float32))
except ValueError as error:
    print(error)
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 2 and all("native module can't be imported" in line for line in lines)


# --- shapes, views, outputs --------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("name, row_bytes", [("tq3_0", 112), ("planar3", 100)])
def test_shapes(name, row_bytes, backend):
    x = normal(2, 3, 256)
    b = pyggmlq.quantize(x, name, backend)
    assert (b.shape, b.dtype) == ((2, 3, row_bytes), np.uint8)
    y = pyggmlq.dequantize(b, name, n=256, backend=backend)
    assert (y.shape, y.dtype) == ((2, 3, 256), np.float32)
    assert pyggmlq.rotate(x, name, backend).shape == x.shape
    assert np.array_equal(pyggmlq.quantize(x[0, 0], name, backend), b[0, 0])
    for shape in [(0,), (0, 256), (3, 0), (2, 0, 256)]:
        empty = pyggmlq.quantize(np.zeros(shape, np.float32), name, backend)
        assert empty.shape == shape[:-1] + (row_bytes if shape[-1] else 0,)
        assert pyggmlq.dequantize(empty, name, backend=backend).shape == shape
        assert pyggmlq.rotate(np.zeros(shape, np.float32), name, backend).shape == shape


@each
def test_views_give_what_copies_give(backend):
    x = normal(4, 6, 64)
    b = pyggmlq.quantize(x, backend=backend)
    for view in (x[::2], x[:, ::-1], x.swapaxes(0, 1), np.asfortranarray(x), read_only(x.copy()), unaligned(x)):
        assert np.array_equal(pyggmlq.quantize(view, backend=backend), pyggmlq.quantize(view.copy(), backend=backend))
        assert np.array_equal(pyggmlq.rotate(view, backend=backend), pyggmlq.rotate(view.copy(), backend=backend))
    for view in (b[::2], b[:, ::-1], b.swapaxes(0, 1), np.asfortranarray(b), read_only(b.copy())):
        assert np.array_equal(pyggmlq.dequantize(view, backend=backend), pyggmlq.dequantize(view.copy(), backend=backend))


@each
def test_out_is_written_and_returned(backend):
    x = normal(3, 64)
    b, y, r = np.empty((3, 28), np.uint8), np.empty((3, 64), np.float32), np.empty((3, 64), np.float32)
    assert pyggmlq.quantize(x, backend=backend, out=b) is b
    assert np.array_equal(b, pyggmlq.quantize(x, backend=backend))
    assert pyggmlq.dequantize(b, backend=backend, out=y) is y
    assert np.array_equal(y, pyggmlq.dequantize(b, backend=backend))
    assert pyggmlq.rotate(x, backend=backend, out=r) is r
    in_place = x.copy()
    assert np.array_equal(pyggmlq.rotate(in_place, backend=backend, out=in_place), r)
    assert np.allclose(pyggmlq.unrotate(in_place, backend=backend, out=in_place), x, atol=1e-5)


@each
def test_vec_dot_broadcasts(backend):
    x, b = normal(5, 1, 64), pyggmlq.quantize(normal(4, 64, seed=1))
    found = pyggmlq.vec_dot(b, x, backend=backend)
    assert found.shape == (5, 4)
    assert np.array_equal(found, pyggmlq.mul_mat_vec(b, x[:, 0], backend=backend))
    assert np.array_equal(found[:, 2], pyggmlq.vec_dot(b[2], x[:, 0], backend=backend))
    alone = pyggmlq.vec_dot(b[2], x[3, 0], backend=backend)
    assert alone.shape == () and alone == found[3, 2]
    assert np.array_equal(pyggmlq.vec_dot(b[::2], x, backend=backend), found[:, ::2])
    assert pyggmlq.vec_dot(b[:0], x, backend=backend).shape == (5, 0)


@each
def test_mul_mat_vec(backend):
    x, b = normal(3, 64), pyggmlq.quantize(normal(8, 64, seed=1))
    full = pyggmlq.mul_mat_vec(b, x, backend=backend)
    assert full.shape == (3, 8) and full.dtype == np.float32
    assert np.array_equal(pyggmlq.mul_mat_vec(b, x[1], backend=backend), full[1])
    assert np.array_equal(pyggmlq.mul_mat_vec(b[::3], x, backend=backend), full[:, ::3])
    assert np.array_equal(pyggmlq.mul_mat_vec(b[::-1], x, backend=backend), full[:, ::-1])
    assert pyggmlq.mul_mat_vec(b[:0], x, backend=backend).shape == (3, 0)
    assert pyggmlq.mul_mat_vec(b, x[:0], backend=backend).shape == (0, 8)


@each
@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u8", ">i2"])
def test_rows_by_index(dtype, backend):
    x = normal(3, 64)
    wide = np.full((8, 40), 7, np.uint8)
    rows = wide[:, 4:32]  # a strided view: bytes beside it must survive
    pyggmlq.set_rows(rows, np.array([6, 0, 6], dtype), x, backend=backend)
    assert np.array_equal(rows[[0, 6]], pyggmlq.quantize(x[[1, 2]]))  # the last of equal indices wins
    untouched = np.ones_like(wide, bool)
    untouched[[0, 6], 4:32] = False
    assert (wide[untouched] == 7).all()

    found = pyggmlq.get_rows(rows, np.array([[6, 0], [0, 0]], dtype), backend=backend)
    assert found.shape == (2, 2, 64)
    assert np.array_equal(found, pyggmlq.dequantize(rows[[[6, 0], [0, 0]]]))
    assert np.array_equal(pyggmlq.get_rows(rows[::-1], 1, backend=backend), found[0, 0])
    pyggmlq.set_rows(rows, [], x[:0], backend=backend)
    assert pyggmlq.get_rows(rows, [], backend=backend).shape == (0, 64)


@each
def test_a_wrong_index_writes_nothing(backend):
    rows = np.full((8, 28), 7, np.uint8)
    with pytest.raises(ValueError):
        pyggmlq.set_rows(rows, [0, 1, 8], normal(3, 64), backend=backend)
    assert (rows == 7).all()


@each
def test_check_says_where(backend):
    x = normal(2, 3, 256)
    x[1, 2, 200] = np.nan
    with pytest.raises(ValueError, match=re.escape("x: found nan at index (1, 2, 200), wanted finite values (check=True)")):
        pyggmlq.quantize(x, backend=backend, check=True)
    b = pyggmlq.quantize(x, "planar3", backend=backend)
    with pytest.raises(ValueError, match=re.escape("b: found a NaN or infinite scale in block (1, 2, 1), wanted")):
        pyggmlq.dequantize(b, "planar3", backend=backend, check=True)
    assert np.array_equal(pyggmlq.dequantize(b[0], "planar3", check=True), pyggmlq.dequantize(b[0], "planar3"))


# --- what is refused ---------------------------------------------------------------------------------------------------

X, B = normal(4, 64), pyggmlq.quantize(normal(4, 64))
Q, K = normal(4, 3, 64), pyggmlq.quantize(normal(2, 9, 64))
F16 = np.zeros((2, 9, 64), np.float16)
MASK = np.zeros((3, 9), np.float16)


def attend(q=Q, k=K, v=K, type_k="tq3_0", type_v="tq3_0", **options):
    return pyggmlq.flash_attn(q, k, v, type_k=type_k, type_v=type_v, **options)


class DeviceMemory:
    __cuda_array_interface__ = {"version": 3, "shape": (32,), "typestr": "<f4", "data": (4096, False)}


REFUSED = [
    # type and back end
    (lambda: pyggmlq.quantize(X, "q8_0"), ValueError, "type: found 'q8_0', wanted one of tq3_0, planar3"),
    (lambda: pyggmlq.quantize(X, 90), TypeError, "type: found int, wanted the name of a type"),
    (lambda: pyggmlq.quantize(X, backend="gpu"), ValueError,
     "backend: found 'gpu', wanted one of reference, cpu, cuda, hip, metal"),
    (lambda: pyggmlq.quantize(X, backend="metal"), ValueError,
     "backend 'metal' is not usable: Metal is Apple's: this back end can be built on macOS only."),
    # dtypes and kinds
    (lambda: pyggmlq.quantize([0.0] * 32), TypeError, "x: found list, wanted a numpy array of float32"),
    (lambda: pyggmlq.quantize(DeviceMemory()), TypeError,
     "x: found DeviceMemory in device memory, which only backends 'cuda', 'hip' and 'metal' take, wanted a numpy array"),
    (lambda: pyggmlq.quantize(X.astype(np.float64)), TypeError, "x: found dtype float64, wanted float32"),
    (lambda: pyggmlq.quantize(X.astype(">f4")), TypeError, "x: found dtype >f4, wanted float32"),
    (lambda: pyggmlq.dequantize(B.view(np.int8)), TypeError, "b: found dtype int8, wanted uint8"),
    (lambda: pyggmlq.rotate(X.astype(np.int64)), TypeError, "x: found dtype int64, wanted float32"),
    (lambda: pyggmlq.get_rows(B, [True, False]), TypeError, "indices: found dtype bool, wanted integers"),
    (lambda: pyggmlq.get_rows(B, [0.0]), TypeError, "indices: found dtype float64, wanted integers"),
    (lambda: pyggmlq.dequantize(B, n=64.0), TypeError, "n: found float, wanted an integer"),
    # lengths and shapes
    (lambda: pyggmlq.quantize(X[:, :40]), ValueError, "x: found rows of 40 values, wanted a multiple of 32 (tq3_0)"),
    (lambda: pyggmlq.quantize(X, "planar3"), ValueError, "x: found rows of 64 values, wanted a multiple of 128 (planar3)"),
    (lambda: pyggmlq.quantize(np.zeros((), np.float32)), ValueError, "x: found a single value, wanted at least one axis"),
    (lambda: pyggmlq.unrotate(X[:, :31]), ValueError, "y: found rows of 31 values, wanted a multiple of 32 (tq3_0)"),
    (lambda: pyggmlq.dequantize(B[:, :27]), ValueError, "b: found rows of 27 bytes, wanted a multiple of 14 (tq3_0)"),
    (lambda: pyggmlq.dequantize(B, n=32), ValueError, "n: found 32, wanted 64, which is what 28 bytes of tq3_0 hold"),
    (lambda: pyggmlq.vec_dot(B, X[:, :32]), ValueError,
     "b and x: found rows of 28 bytes and 32 values, wanted 14 bytes of tq3_0 for that many values"),
    (lambda: pyggmlq.vec_dot(B, X[:3]), ValueError,
     "b and x: found leading axes (4,) and (3,), wanted shapes that broadcast"),
    (lambda: pyggmlq.mul_mat_vec(B[0], X), ValueError, "b: found shape (28,), wanted (rows, row_bytes)"),
    (lambda: pyggmlq.mul_mat_vec(B, X[None]), ValueError, "x: found shape (1, 4, 64), wanted (n,) or (m, n)"),
    (lambda: pyggmlq.set_rows(B.copy(), [0, 1], X), ValueError,
     "x: found (4,) rows for indices of shape (2,), wanted one per index"),
    (lambda: pyggmlq.set_rows(B.copy(), [0], X[:1, :32]), ValueError,
     "rows and x: found rows of 28 bytes and 32 values, wanted 14 bytes of tq3_0 for that many values"),
    (lambda: pyggmlq.get_rows(B[None], [0]), ValueError, "rows: found shape (1, 4, 28), wanted (n_rows, row_bytes)"),
    # indices
    (lambda: pyggmlq.get_rows(B, [0, 4]), ValueError, "indices: found 4, wanted 0 <= index < 4"),
    (lambda: pyggmlq.get_rows(B, [-1]), ValueError, "indices: found -1, wanted 0 <= index < 4"),
    (lambda: pyggmlq.get_rows(B, np.array([2**64 - 1], np.uint64)), ValueError,
     "indices: found 18446744073709551615, wanted 0 <= index < 4"),
    # outputs
    (lambda: pyggmlq.quantize(X, out=np.empty((4, 27), np.uint8)), ValueError, "out: found shape (4, 27), wanted (4, 28)"),
    (lambda: pyggmlq.quantize(X, out=np.empty((4, 28))), TypeError, "out: found dtype float64, wanted uint8"),
    (lambda: pyggmlq.quantize(X, out=np.empty((4, 56), np.uint8)[:, ::2]), ValueError,
     "out: found strides (56, 2), wanted an aligned, C-contiguous array"),
    (lambda: pyggmlq.dequantize(B, out=unaligned(X)), ValueError,
     "out: found strides (256, 4), wanted an aligned, C-contiguous array"),
    (lambda: pyggmlq.quantize(X, out=read_only(np.empty((4, 28), np.uint8))), ValueError,
     "out: found a read-only array, wanted a writable one"),
    (lambda: pyggmlq.quantize(X, out=X.view(np.uint8).reshape(-1)[:112].reshape(4, 28)), ValueError,
     "out: found an array that overlaps an input, wanted one of its own"),
    (lambda: pyggmlq.set_rows(read_only(B.copy()), [0], X[:1]), ValueError,
     "rows: found a read-only array, wanted a writable one"),
    (lambda: pyggmlq.set_rows(np.asfortranarray(B), [0], X[:1]), ValueError,
     "rows: found strides (1, 4), wanted contiguous rows (last stride 1)"),
    # attention
    (lambda: attend(type_k="q5_0"), ValueError,
     "type_k: found 'q5_0', wanted one of tq3_0, planar3, f32, f16, q4_0, q8_0"),
    (lambda: attend(q=Q[0]), ValueError, "q: found shape (3, 64), wanted ([n_seqs,] n_heads, n_queries, head_size)"),
    (lambda: attend(q=Q[..., :32]), ValueError, "k: found rows of 64 values, wanted 32 as in q"),
    (lambda: attend(k=F16), TypeError, "k: found dtype float16, wanted uint8"),
    (lambda: attend(v=K, type_v="f16"), TypeError, "v: found dtype uint8, wanted float16"),
    (lambda: attend(k=K[..., :27]), ValueError,
     "k: found rows of 27 bytes, wanted a multiple of 14 (tq3_0) for a head size of 32 to 1024"),
    (lambda: attend(k=np.zeros((2, 9, 33 * 14), np.uint8)), ValueError,
     "k: found rows of 462 bytes, wanted a multiple of 14 (tq3_0) for a head size of 32 to 1024"),
    (lambda: attend(type_k="planar3"), ValueError,
     "k: found rows of 28 bytes, wanted a multiple of 50 (planar3) for a head size of 128 to 1024"),
    (lambda: attend(v=K[:, :8]), ValueError, "v: found (1, 2, 8) (sequences, heads, tokens), wanted (1, 2, 9) as in k"),
    (lambda: attend(q=Q[:3]), ValueError, "q: found 3 heads, wanted a multiple of the 2 in k"),
    (lambda: attend(k=K[:0], v=K[:0]), ValueError, "q: found 4 heads, wanted a multiple of the 0 in k"),
    (lambda: attend(k=np.stack([K, K]), v=np.stack([K, K])), ValueError,
     "q: found 1 sequences, wanted a multiple of the 2 in k"),
    (lambda: attend(k=np.asfortranarray(K)), ValueError,
     "k: found strides (1, 2, 18), wanted aligned, contiguous rows (a small last stride)"),
    (lambda: attend(mask=MASK.astype(np.float32)), TypeError, "mask: found dtype float32, wanted float16"),
    (lambda: attend(mask=MASK[:2]), ValueError, "mask: found shape (1, 1, 2, 9), wanted (seqs, heads, 3, 9)"),
    (lambda: attend(mask=MASK[0]), ValueError, "mask: found shape (9,), wanted ([seqs,] [heads,] n_queries, n_kv)"),
    (lambda: attend(sinks=np.zeros(2, np.float32)), ValueError, "sinks: found shape (2,), wanted (4,), one per query head"),
    (lambda: attend(scale="1"), TypeError, "scale: found str, wanted a number"),
    (lambda: attend(scale=float("nan")), ValueError, "scale: found nan, wanted a finite number"),
    (lambda: attend(max_bias=8.0), ValueError,
     "max_bias: found 8.0, wanted 0, or a positive value together with a mask to scale"),
    (lambda: attend(logit_softcap=-1), ValueError, "logit_softcap: found -1, wanted 0 or a positive value"),
    (lambda: attend(n_threads=0), ValueError, "n_threads: found 0, wanted at least 1"),
    (lambda: attend(n_threads=True), TypeError, "n_threads: found bool, wanted an integer"),
    (lambda: attend(out=np.empty((4, 3, 32), np.float32)), ValueError, "out: found shape (4, 3, 32), wanted (4, 3, 64)"),
    (lambda: attend(out=Q), ValueError, "out: found an array that overlaps an input, wanted one of its own"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, message", REFUSED, ids=[message for _, _, message in REFUSED])
def test_refused(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and str(caught.value) == message


def test_version_is_that_of_pyproject():
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1] == pyggmlq.__version__
