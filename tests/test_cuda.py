# SPDX-License-Identifier: MIT
"""The CUDA kernels on a GPU, against the C code, the CPU back end and float64: `pytest -m cuda --require cuda`.

test_api.py, test_vectors.py, test_codec_properties.py and test_attention.py run on the GPU too, with arrays of the host; what
happens around the kernels is tested without a GPU by test_cuda_interface.py.
"""
from __future__ import annotations

import importlib.util
import re
import warnings

import device_arrays
import numpy as np
import pytest
import test_api
import test_attention
import tolerances
from fake_cuda import ROOT

import pyggmlq
from pyggmlq import CudaArray, reference
from pyggmlq._types import cache_types, type_info

pytestmark = pytest.mark.cuda

CACHE_TYPES = [info.name for info in cache_types()]
each_type = pytest.mark.parametrize("name", CACHE_TYPES)
F32, F16, BF16 = 0, 1, 30


@pytest.fixture
def cuda():
    from pyggmlq import _cuda

    return _cuda


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def block_length(name):
    return type_info(name).block_length


def view(array, type_id, ne, nb, offset=0):
    """struct ggmlq_cuda_view: ne in values, nb in bytes, both fastest first, as in ggml."""
    from pyggmlq import _cuda

    result = _cuda.ffi.new("struct ggmlq_cuda_view *")
    result.data, result.type = _cuda.ffi.cast("void *", array.address + offset), type_id
    result.ne = list(ne) + [1] * (4 - len(ne))
    result.nb = list(nb) + [nb[-1] * ne[-1]] * (4 - len(nb))
    return result


def done(cuda, error):
    assert error == 0, cuda.ffi.string(cuda.lib.ggmlq_cuda_error_text(error))
    cuda.wait()


# --- codec -----------------------------------------------------------------------------------------------------------------


def adversarial(name, n_blocks, seed):
    """Blocks of every kind: bell, uniform, sparse, with outliers, of few distinct values (ties), of every magnitude, constant, huge
    beside tiny, subnormal."""
    rng, n = np.random.default_rng(seed), block_length(name)
    kinds = [
        rng.standard_normal((n_blocks, n)),
        rng.uniform(-1, 1, (n_blocks, n)),
        rng.standard_normal((n_blocks, n)) * (rng.random((n_blocks, n)) < 0.1),
        rng.standard_normal((n_blocks, n)) * np.where(rng.random((n_blocks, n)) < 0.03, 50, 1),
        np.round(2 * rng.standard_normal((n_blocks, n))) / 2,
        rng.integers(-1, 2, (n_blocks, n)),
        rng.standard_normal((n_blocks, n)) * 2.0 ** rng.integers(-60, 60, (n_blocks, 1)),
        rng.standard_normal((n_blocks, n)) * 2.0 ** rng.integers(-60, 60, (n_blocks, n)),
        np.broadcast_to(rng.standard_normal((n_blocks, 1)), (n_blocks, n)),
        rng.standard_normal((n_blocks, n)) * 2.0**-146,
        rng.standard_normal((n_blocks, n)) * 2.0**125,
        rng.standard_normal((n_blocks, n)) * 2.0 ** rng.integers(-42, -20, (n_blocks, 1)),
    ]
    return np.concatenate([kind.astype(np.float32) for kind in kinds])


def count_ties(x, found, wanted, name):
    """How many blocks differ. Each must be as good an encoding as the one it differs from, but for float rounding."""
    n = block_length(name)
    found, wanted = (rows.reshape(-1, type_info(name).block_bytes) for rows in (found, wanted))
    differs = np.flatnonzero((found != wanted).any(axis=1))
    for i in differs:
        ours, theirs = (
            np.linalg.norm(pyggmlq.dequantize(rows[i], name).astype(np.float64) - x.reshape(-1, n)[i]) for rows in (found, wanted)
        )
        assert ours <= 1.01 * theirs, (name, i, ours, theirs)
    if len(differs):
        warnings.warn(f"{name}: {len(differs)} of {len(found)} blocks differ", stacklevel=2)
    return len(differs)


@each_type
def test_encode(name):
    """A million random blocks of tq3_0 and a quarter of that of planar3, and every adversarial kind."""
    x = normal(250_000, 128)
    ties = count_ties(x, pyggmlq.quantize(x, name, "cuda"), pyggmlq.quantize(x, name), name)
    assert ties <= tolerances.ENCODER_TIES * x.size / block_length(name) / 1e6
    x = adversarial(name, 2000, seed=1)
    assert count_ties(x, pyggmlq.quantize(x, name, "cuda"), pyggmlq.quantize(x, name), name) <= 2


@each_type
def test_decode_gives_the_same_bits(name):
    """Also of bytes that no encoder wrote."""
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 256, (50_000, 128 // block_length(name) * type_info(name).block_bytes), dtype=np.uint8)
    wanted = pyggmlq.dequantize(rows, name)
    found = pyggmlq.dequantize(rows, name, backend="cuda")
    assert np.isnan(wanted).any() and np.array_equal(found, wanted, equal_nan=True)


@each_type
def test_rotations_give_the_same_bits(name):
    x = np.concatenate([normal(5000, 128), adversarial(name, 50, seed=3).reshape(-1, 128)])
    x = x[np.abs(x).max(axis=1) < 2.0**120]
    y = pyggmlq.rotate(x, name)
    assert np.array_equal(pyggmlq.rotate(x, name, "cuda"), y)
    assert np.array_equal(pyggmlq.unrotate(y, name, "cuda"), pyggmlq.unrotate(y, name))


@each_type
@pytest.mark.parametrize("n_rows", [1, 3, 31, 257])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 12])
def test_shapes_of_rows(name, n_rows, blocks):
    x = normal(n_rows, blocks * block_length(name), seed=blocks)
    rows = pyggmlq.quantize(x, name, "cuda")
    assert count_ties(x, rows, pyggmlq.quantize(x, name), name) <= 1
    assert np.array_equal(pyggmlq.dequantize(rows, name, backend="cuda"), pyggmlq.dequantize(rows, name))
    assert np.array_equal(pyggmlq.rotate(x, name, "cuda"), pyggmlq.rotate(x, name))


def to_bf16(x):
    """Rounded to nearest even, as the upper halves of the words."""
    words = x.view(np.uint32).astype(np.uint64)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)


@each_type
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("type_id", [F32, F16, BF16])
def test_converting_rows(cuda, name, type_id, rotated):
    """To floats of every width, from strided rows to strided values of another shape."""
    info, n = type_info(name), 2 * block_length(name)
    rows = pyggmlq.quantize(normal(3, 5, n, seed=4), name)
    row_bytes = rows.shape[-1]
    wide = np.full((3, 5, row_bytes + 3), 99, np.uint8)
    wide[..., :row_bytes] = rows
    source = CudaArray.upload(wide)
    item, dtype = {F32: (4, np.float32), F16: (2, np.float16), BF16: (2, np.uint16)}[type_id]
    target = CudaArray.upload(np.full((15, n + 8), 7, dtype))
    call = cuda.lib.ggmlq_cuda_decode_rotated if rotated else cuda.lib.ggmlq_cuda_copy
    stride = row_bytes + 3
    done(cuda, call(
        view(target, type_id, (n, 15), (item, (n + 8) * item)),
        view(source, info.id, (n, 5, 3), (info.block_bytes, stride, 5 * stride)), cuda.STREAM,
    ))  # fmt: skip
    codec = reference.CODECS[name]
    decode = codec.decode_blocks_rotated if rotated else codec.decode_blocks
    wanted = decode(rows.reshape(-1).view(codec.dtype)).reshape(15, n)
    wanted = to_bf16(wanted) if type_id == BF16 else wanted.astype(dtype)
    found = target.numpy()
    assert np.array_equal(found[:, :n], wanted) and (found[:, n:] == 7).all()


@each_type
@pytest.mark.parametrize("type_id", [F32, F16])
def test_encoding_strided_values(cuda, name, type_id):
    """A permuted source, as a K-shift copies it, into rows that lie apart."""
    info, n = type_info(name), block_length(name)
    dtype = {F32: np.float32, F16: np.float16}[type_id]
    x = normal(4, 6, n, seed=5).astype(dtype)  # [a][b][n], read as [b][a][n]
    source = CudaArray.upload(x)
    row_bytes, item = info.block_bytes, x.itemsize
    target = CudaArray.upload(np.full((24, row_bytes + 1), 7, np.uint8))
    done(cuda, cuda.lib.ggmlq_cuda_copy(
        view(target, info.id, (n, 24), (row_bytes, row_bytes + 1)),
        view(source, type_id, (n, 4, 6), (item, 6 * n * item, n * item)), cuda.STREAM,
    ))  # fmt: skip
    found = target.numpy()
    wanted = x.swapaxes(0, 1).reshape(24, n).astype(np.float32)
    assert count_ties(wanted, found[:, :-1].copy(), pyggmlq.quantize(wanted, name), name) <= 1
    assert (found[:, -1] == 7).all()


@each_type
@pytest.mark.parametrize("index_bytes", [4, 8])
@pytest.mark.parametrize("type_id", [F32, F16])
def test_rows_by_index_in_four_axes(cuda, name, type_id, index_bytes):
    """ggml's SET_ROWS and GET_ROWS: indices repeat along axis 2, an index out of range is skipped, bytes between rows survive."""
    info, n = type_info(name), 2 * block_length(name)
    dtype = {F32: np.float32, F16: np.float16}[type_id]
    row_bytes, n_rows, heads, seqs, count = 2 * info.block_bytes, 9, 4, 3, 5
    stride = row_bytes + 5
    rng = np.random.default_rng(6)
    x = rng.standard_normal((seqs, heads, count, n), np.float32).astype(dtype)
    index = np.stack([np.stack([rng.permutation(n_rows)[:count] for _ in range(2)]) for _ in range(seqs)]).astype(f"i{index_bytes}")
    index[0, 0, 1], index[1, 1, 2] = -1, n_rows
    before = rng.integers(0, 256, (seqs, heads, n_rows, stride), dtype=np.uint8)
    rows, source, indices = CudaArray.upload(before), CudaArray.upload(x), CudaArray.upload(index)
    rows_view = view(rows, info.id, (n, n_rows, heads, seqs), (info.block_bytes, stride, n_rows * stride, heads * n_rows * stride))

    def index_view(array):
        lengths, i = array.shape[::-1], array.itemsize
        return view(array, 0, lengths, (i, lengths[0] * i, lengths[0] * lengths[1] * i))

    done(cuda, cuda.lib.ggmlq_cuda_set_rows(
        rows_view, view(source, type_id, (n, count, heads, seqs), (x.itemsize, *(x.strides[axis] for axis in (2, 1, 0)))),
        index_view(indices), index_bytes, cuda.STREAM,
    ))  # fmt: skip
    wanted = before.copy()
    for s, h, i in np.ndindex(seqs, heads, count):
        if 0 <= index[s, h % 2, i] < n_rows:
            wanted[s, h, index[s, h % 2, i], :row_bytes] = pyggmlq.quantize(x[s, h, i].astype(np.float32), name)
    found = rows.numpy()
    assert count_ties(np.zeros((1, block_length(name))), found[..., :row_bytes].copy(), wanted[..., :row_bytes].copy(), name) == 0
    assert np.array_equal(found, wanted)

    full = np.clip(np.ascontiguousarray(np.tile(index, (1, 2, 1))), 0, n_rows - 1)
    target, indices = CudaArray.upload(np.full((seqs, heads, count, n), 7, dtype)), CudaArray.upload(full)
    done(cuda, cuda.lib.ggmlq_cuda_get_rows(
        view(target, type_id, (n, count, heads, seqs), (x.itemsize, *(x.strides[axis] for axis in (2, 1, 0)))), rows_view,
        index_view(indices), index_bytes, cuda.STREAM,
    ))  # fmt: skip
    taken = np.take_along_axis(wanted[..., :row_bytes], full[..., None].astype(np.int64), axis=2)
    with np.errstate(over="ignore"):
        assert np.array_equal(target.numpy(), pyggmlq.dequantize(taken, name).astype(dtype), equal_nan=True)


@each_type
def test_rows_beyond_two_gigabytes(name):
    """Offsets of 64 bits. The memory is as it was found but for three rows."""
    info, stride, n_rows = type_info(name), 2**20 + 2, 2200
    n = 2 * block_length(name)
    memory = CudaArray.empty((n_rows * stride,), np.uint8)
    rows = CudaArray((n_rows, 2 * info.block_bytes), np.uint8, (stride, 1), memory.address, memory.device, True, memory)
    x, index = normal(3, n, seed=7), [2199, 0, 2050]
    pyggmlq.set_rows(rows, index, x, name, backend="cuda")
    wanted = pyggmlq.quantize(x, name)
    assert np.array_equal(pyggmlq.get_rows(rows, index, name, backend="cuda").numpy(), pyggmlq.dequantize(wanted, name))
    last = CudaArray((2 * info.block_bytes,), np.uint8, (1,), memory.address + 2199 * stride, memory.device, True, memory)
    assert np.array_equal(last.numpy(), wanted[0])
    found = pyggmlq.mul_mat_vec(rows, CudaArray.upload(x), name, backend="cuda").numpy()
    assert np.allclose(found[:, index], pyggmlq.mul_mat_vec(wanted, x, name), rtol=1e-5, atol=1e-4)


def test_refusals(cuda):
    """In the library itself, with the stated error; nothing is launched."""
    lib, a = cuda.lib, CudaArray.upload(np.zeros(4096, np.float32))
    tq3_0, planar3 = (type_info(name).id for name in ("tq3_0", "planar3"))
    v = lambda type_id, *ne: view(a, type_id, ne, (4 if type_id == F32 else 2,))  # noqa: E731
    assert lib.ggmlq_cuda_copy(v(tq3_0, 64), v(planar3, 64), cuda.STREAM) == lib.GGMLQ_ERROR_TYPE
    assert lib.ggmlq_cuda_copy(v(tq3_0, 64), v(BF16, 64), cuda.STREAM) == lib.GGMLQ_ERROR_TYPE
    assert lib.ggmlq_cuda_copy(v(5, 64), v(F32, 64), cuda.STREAM) == lib.GGMLQ_ERROR_TYPE
    assert lib.ggmlq_cuda_copy(v(tq3_0, 48), v(F32, 48), cuda.STREAM) == lib.GGMLQ_ERROR_LENGTH
    assert lib.ggmlq_cuda_copy(v(planar3, 64), v(F32, 64), cuda.STREAM) == lib.GGMLQ_ERROR_LENGTH
    assert lib.ggmlq_cuda_copy(v(tq3_0, 64), v(F32, 96), cuda.STREAM) == lib.GGMLQ_ERROR_SHAPE
    assert lib.ggmlq_cuda_decode_rotated(v(tq3_0, 64), v(F32, 64), cuda.STREAM) == lib.GGMLQ_ERROR_TYPE
    assert lib.ggmlq_cuda_rotate(F16, v(F32, 64), v(F32, 64), cuda.STREAM) == lib.GGMLQ_ERROR_TYPE
    assert lib.ggmlq_cuda_rotate(tq3_0, v(F32, 64), v(F32, 32), cuda.STREAM) == lib.GGMLQ_ERROR_SHAPE
    assert lib.ggmlq_cuda_set_rows(v(tq3_0, 64), v(F32, 64), v(F32, 1), 2, cuda.STREAM) == lib.GGMLQ_ERROR_TYPE
    assert lib.ggmlq_cuda_set_rows(v(tq3_0, 64), v(F32, 32), v(F32, 1), 8, cuda.STREAM) == lib.GGMLQ_ERROR_SHAPE
    assert lib.ggmlq_cuda_get_rows(v(F32, 64), v(tq3_0, 64), v(F32, 2), 8, cuda.STREAM) == lib.GGMLQ_ERROR_SHAPE
    assert lib.ggmlq_cuda_mul_mat_workspace_bytes(F16, v(F32, 64)) == lib.GGMLQ_ERROR_TYPE
    assert lib.ggmlq_cuda_mul_mat_workspace_bytes(planar3, v(F32, 64)) == lib.GGMLQ_ERROR_LENGTH
    assert lib.ggmlq_cuda_mul_mat(v(F32, 2), v(tq3_0, 64), v(F32, 64), cuda.ffi.NULL, cuda.STREAM) == lib.GGMLQ_ERROR_SHAPE
    for code in (lib.GGMLQ_ERROR_TYPE, lib.GGMLQ_ERROR_LENGTH, lib.GGMLQ_ERROR_SHAPE):
        assert cuda.ffi.string(lib.ggmlq_cuda_error_text(code)) == cuda.ffi.string(lib.ggmlq_cuda_memory_error_text(code)) != b""


def test_the_driver_has_words_for_its_errors(cuda):
    from pyggmlq._cuda_driver import CudaError

    with pytest.raises(CudaError, match="^CUDA: allocating .* bytes failed: out of memory$"):
        CudaArray.empty((2**50,), np.uint8)
    assert pyggmlq.rotate(normal(32), backend="cuda").shape == (32,)  # and goes on


# --- dot products ------------------------------------------------------------------------------------------------------------


def exact_dot(rows, x, name):
    """float64 (..., rows, queries) of the same integer products, and the bound of tolerances.dot. rows (..., n_rows, row_bytes)."""
    codec = reference.CODECS[name]
    n_blocks = x.shape[-1] // codec.block_length
    blocks = np.ascontiguousarray(rows).reshape(-1).view(codec.dtype).reshape(*rows.shape[:-1], n_blocks)
    d, q = codec.encode_query_blocks(np.ascontiguousarray(x).reshape(-1, codec.block_length))
    d = d.reshape(*x.shape[:-1], n_blocks).astype(np.float64)
    q = q.reshape(*x.shape[:-1], n_blocks, codec.block_length).astype(np.float64)
    level = reference.LEVELS[codec.read_fields(blocks)].astype(np.float64)
    unit = blocks[codec.scale].astype(np.float64) / codec.scale_unit
    terms = np.einsum("...rbi,...cbi->...crb", level * unit[..., None], q) * d[..., :, None, :]
    return terms.sum(axis=-1), tolerances.dot(terms)


@each_type
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 512, 2048])
@pytest.mark.parametrize("n_rows", [1, 31, 33, 100])
def test_mul_mat_vec(name, n_rows, columns):
    x = normal(columns, 384, seed=columns)
    rows = pyggmlq.quantize(normal(n_rows, 384, seed=n_rows), name)
    found = pyggmlq.mul_mat_vec(rows, x, name, backend="cuda")
    wanted, bound = exact_dot(rows, x, name)
    assert (np.abs(found - wanted) <= bound).all()
    # A column does not depend on its neighbours.
    assert np.array_equal(pyggmlq.mul_mat_vec(rows, x[columns // 2], name, backend="cuda"), found[columns // 2])


@each_type
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 31, 64])
def test_lengths_of_dot_products(name, blocks):
    x = normal(3, blocks * block_length(name), seed=blocks)
    rows = pyggmlq.quantize(normal(65, x.shape[1], seed=1), name)
    wanted, bound = exact_dot(rows, x, name)
    assert (np.abs(pyggmlq.mul_mat_vec(rows, x, name, backend="cuda") - wanted) <= bound).all()


@each_type
@pytest.mark.parametrize("repeats", [(1, 1), (4, 1), (3, 2), (1, 5)])
@pytest.mark.parametrize("columns", [1, 6])
def test_matrices_of_four_axes(cuda, name, columns, repeats):
    """ggml's MUL_MAT: heads and sequences of the queries share matrices; odd strides everywhere."""
    info, n, n_rows, heads, seqs = type_info(name), 2 * block_length(name), 37, 2, 3
    x = normal(seqs * repeats[1], heads * repeats[0], columns, n, seed=8)
    rows = pyggmlq.quantize(normal(seqs, heads, n_rows, n, seed=9), name)
    row_bytes = rows.shape[-1]
    wide_rows = np.full((seqs, n_rows, heads, row_bytes + 1), 255, np.uint8)  # a cache: [token][head]
    wide_rows[..., :row_bytes] = rows.swapaxes(1, 2)
    wide_x = np.full((*x.shape[:3], n + 1), np.nan, np.float32)
    wide_x[..., :n] = x
    device_rows, device_x = CudaArray.upload(wide_rows), CudaArray.upload(wide_x)
    out = CudaArray.upload(np.full((*x.shape[:3], n_rows + 3), 7, np.float32))
    strides = lambda array: array.strides  # noqa: E731
    s, xs, os_ = strides(wide_rows), strides(wide_x), out.strides
    x_view = view(device_x, F32, x.shape[::-1], xs[::-1])
    workspace = CudaArray.empty((cuda.lib.ggmlq_cuda_mul_mat_workspace_bytes(info.id, x_view),), np.uint8)
    done(cuda, cuda.lib.ggmlq_cuda_mul_mat(
        view(out, F32, (n_rows, *x.shape[2::-1]), os_[::-1]),
        view(device_rows, info.id, (n, n_rows, heads, seqs), (info.block_bytes, s[1], s[2], s[0])), x_view, workspace.pointer(), cuda.STREAM,
    ))  # fmt: skip
    found = out.numpy()
    shared = np.repeat(np.repeat(rows, repeats[0], axis=1), repeats[1], axis=0)
    wanted, bound = exact_dot(shared, x, name)
    assert (np.abs(found[..., :n_rows] - wanted) <= bound).all() and (found[..., n_rows:] == 7).all()


@each_type
def test_dot_products_of_what_is_not_finite(name):
    """NaN in a row or in a query reaches the products of just these."""
    n = 2 * block_length(name)
    rows, x = pyggmlq.quantize(normal(5, n), name), normal(4, n, seed=1)
    rows[3], x[2, 5] = 0xFF, np.inf
    found = pyggmlq.mul_mat_vec(rows, x, name, backend="cuda")
    wanted = pyggmlq.mul_mat_vec(rows, x, name)
    assert np.array_equal(np.isnan(found), np.isnan(wanted)) and np.isnan(found).sum() == 4 + 5 - 1
    x = normal(3, n) * np.float32([[1e-38], [1e30], [0]])
    found, (wanted, bound) = pyggmlq.mul_mat_vec(rows[:3], x, name, backend="cuda"), exact_dot(rows[:3], x, name)
    assert (np.abs(found - wanted) <= bound + 1e-44).all() and not found[2].any()


@each_type
def test_vec_dot(name):
    n = 3 * block_length(name)
    rows, x = pyggmlq.quantize(normal(40_000, n), name), normal(40_000, n, seed=1)  # more pairs than a grid has rows
    found, wanted = pyggmlq.vec_dot(rows, x, name, backend="cuda"), pyggmlq.vec_dot(rows[::1000], x[::1000], name)
    assert np.allclose(found[::1000], wanted, rtol=1e-5, atol=1e-4)
    assert np.array_equal(found[12345], pyggmlq.vec_dot(rows[12345], x[12345], name, backend="cuda"))


# --- attention ---------------------------------------------------------------------------------------------------------------


def oracle(q, k, v, type_k, type_v, mask=None, sinks=None, scale=None, max_bias=0.0, logit_softcap=0.0, term=None):
    """float64 softmax over decoded rows, for a bound of every row: yields (index of sequence and head, wanted, weights, k, v).
    reference.flash_attn is the same without the weights; a test compares them."""
    four = lambda a: a.reshape((1,) * (4 - a.ndim) + a.shape)  # noqa: E731
    q, k, v = four(q).astype(np.float64), reference._decode(four(k), type_k), reference._decode(four(v), type_v)
    mask = None if mask is None else four(mask).astype(np.float64)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    slopes = reference.alibi_slopes(q.shape[1], max_bias)
    for s, h in np.ndindex(q.shape[:2]):
        kk, vv = (a[s // (q.shape[0] // a.shape[0]), h // (q.shape[1] // a.shape[1])] for a in (k, v))
        score = q[s, h] @ kk.T
        if term is not None:
            w, c = term_of_row(term, s, h, q)
            score = score + w @ c.T
        score = scale * score
        if logit_softcap:
            score = logit_softcap * np.tanh(score / logit_softcap)
        if mask is not None:
            score = score + slopes[h] * mask[s % mask.shape[0], h % mask.shape[1]]
        sink = -np.inf if sinks is None else np.float64(sinks[h])
        top = np.maximum(score.max(axis=1, initial=-np.inf), sink)
        top = np.where(np.isinf(top), 0, top)[:, None]
        weights = np.exp(score - top)
        total = weights.sum(axis=1, keepdims=True) + np.exp(sink - top)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        yield (s, h), weights @ vv, weights, kk, vv


def term_of_row(term, s, h, q):
    """(w, part times positional rows) of a sequence and head in float64, pairs side by side; or None."""
    if term is None:
        return None
    w = term.w.reshape((1,) * (4 - term.w.ndim) + term.w.shape).astype(np.float64)[s, h]
    if term.neox:
        w = w.reshape(len(w), 2, -1).swapaxes(1, 2).reshape(len(w), -1)
    positions, part = (a if a is None or a.ndim == 2 else a[None] for a in (term.positions, term.part))
    seq = s // (len(q) // len(positions))
    return w, reference.positional_rows(term.turns, positions[seq], False) * (1 if part is None else part[seq, :, None].astype(np.float64))


def rotated(x, name):
    """As it is multiplied: rotated where K is one of our types."""
    return pyggmlq.rotate(np.ascontiguousarray(x, np.float32), name).astype(np.float64) if name in CACHE_TYPES else x


def agree(q, k, v, type_k, type_v, kernel=None, sharp=True, **options):
    """The result of the GPU, after comparing every row with float64 within the bound of the kernel that ran."""
    from pyggmlq import _cuda

    before = _cuda.kernel_calls.copy()
    found = pyggmlq.flash_attn(q, k, v, type_k=type_k, type_v=type_v, backend="cuda", **options)
    (ran,) = _cuda.kernel_calls - before
    assert kernel in (None, ran)
    assert found.dtype == np.float32 and found.shape[:-1] == q.shape[:-1] and np.isfinite(found).all()
    four_q, four_found = q.reshape((1,) * (4 - q.ndim) + q.shape), found.reshape((1,) * (4 - found.ndim) + found.shape)
    mask = options.get("mask")
    bias = 0 if mask is None else float(np.abs(mask[np.isfinite(mask)]).max(initial=0))
    scale = options.get("scale") or q.shape[-1] ** -0.5
    ratios = []
    for (s, h), wanted, weights, kk, vv in oracle(q, k, v, type_k, type_v, **options):
        error = np.linalg.norm(four_found[s, h] - wanted, axis=1)
        term = term_of_row(options.get("term"), s, h, q)
        bound = tolerances.attention_cuda(ran, type_k, rotated(four_q[s, h], type_k), rotated(kk, type_k), vv, weights, wanted, scale, bias, term)
        assert (error <= bound).all(), (ran, s, h, (error / np.maximum(bound, 1e-300)).max(), int((error > bound).sum()), len(error))
        ratios.append(bound / np.maximum(np.linalg.norm(wanted, axis=1), 1e-30))
    # The bound can tell a right result from a wrong one. It is 0.02 to 0.16: 8-bit queries and large scales make it wide.
    assert not sharp or np.median(np.concatenate(ratios)) < 0.2, np.median(np.concatenate(ratios))
    return found


ATTEND_TYPES = ["f16", "f32", "q8_0", "q4_0", "tq3_0", "planar3"]
case = test_attention.case
each_few_queries = pytest.mark.parametrize("n_queries", [1, 4])


def test_oracle_is_the_reference():
    q, k, v = case(20, "planar3", "tq3_0", n_heads=6, n_queries=3, seqs=(2, 1))
    options = dict(mask=test_attention.causal_mask(3, 70), sinks=np.linspace(-1, 1, 6, dtype=np.float32), max_bias=4.0, logit_softcap=3.0)
    wanted = pyggmlq.flash_attn(q, k, v, type_k="planar3", type_v="tq3_0", backend="reference", **options)
    for (s, h), found, *_ in oracle(q, k, v, "planar3", "tq3_0", **options):
        assert np.allclose(found, wanted[s, h], rtol=0, atol=1e-6)


@each_few_queries
@pytest.mark.parametrize("type_v", ATTEND_TYPES)
@pytest.mark.parametrize("type_k", ATTEND_TYPES)
def test_every_pair_of_types(type_k, type_v, n_queries):
    agree(*case(21, type_k, type_v, n_queries=n_queries, n_kv=300), type_k, type_v)


@each_few_queries
@pytest.mark.parametrize("head, head_v", [(64, 64), (96, 96), (128, 128), (192, 192), (192, 128), (256, 256), (512, 512), (576, 512), (1024, 1024)])
@pytest.mark.parametrize("name", ["f16", "tq3_0", "planar3"])
def test_head_sizes(name, head, head_v, n_queries):
    """Where they fit: planar3 rows are multiples of 128."""
    fits = [n % reference.CODECS[name].block_length == 0 for n in (head, head_v)]
    type_k, type_v = (name if fit else "tq3_0" for fit in fits)
    agree(*case(22, type_k, type_v, head=head, head_v=head_v, n_queries=n_queries, n_kv=300), type_k, type_v)


@each_type
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 32, 64])
@each_few_queries
def test_grouped_queries(name, group, n_queries):
    agree(*case(23, name, name, n_heads=2 * group, n_heads_kv=2, n_queries=n_queries, n_kv=700), name, name)


@each_type
@pytest.mark.parametrize("n_kv", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 1000, 4097])
def test_lengths_of_the_cache(name, n_kv):
    agree(*case(24, name, name, n_heads=8, n_heads_kv=2, n_queries=1, n_kv=n_kv), name, name)
    agree(*case(25, name, "f16", n_queries=3, n_kv=n_kv), name, "f16")


@each_type
@pytest.mark.parametrize("n_queries", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 64, 100, 512, 2048])
def test_batches(name, n_queries):
    n_kv = n_queries + 130
    mask = test_attention.causal_mask(n_queries, n_kv)
    agree(*case(26, name, name, n_heads=4, n_heads_kv=1, n_queries=n_queries, n_kv=n_kv), name, name, mask=mask)


@each_type
def test_a_long_cache(name):
    agree(*case(27, name, name, n_heads=8, n_heads_kv=2, n_queries=1, n_kv=70_001), name, name, sharp=False)


@pytest.mark.parametrize("seqs", [(1, 1), (2, 2), (4, 2), (3, 1), (7, 7)])
@each_few_queries
def test_sequences(seqs, n_queries):
    q, k, v = case(28, "tq3_0", "planar3", seqs=seqs, n_queries=n_queries, n_kv=150)
    agree(q, k, v, "tq3_0", "planar3")


@pytest.mark.parametrize("shape", [(), (1,), (2,), (4,), (1, 1), (2, 1), (2, 4), (1, 2)])
@each_type
def test_masks_repeat_over_heads_and_sequences(name, shape):
    q, k, v = case(29, name, name, seqs=(4, 2), n_kv=300)
    mask = np.random.default_rng(7).uniform(-4, 0, (*shape, 3, 300)).astype(np.float16)
    mask[..., 1, 5:260] = -np.inf
    found = agree(q, k, v, name, name, mask=mask)
    full = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    full = np.tile(full, (4 // full.shape[0], 4 // full.shape[1], 1, 1))
    assert np.array_equal(found, pyggmlq.flash_attn(q, k, v, type_k=name, type_v=name, mask=full, backend="cuda"))


@pytest.mark.parametrize("name", ["f16", "q8_0", "tq3_0", "planar3"])
@pytest.mark.parametrize("n_queries", [1, 3])
def test_sinks(name, n_queries):
    q, k, v = case(30, name, name, n_queries=n_queries, n_kv=300)
    plain = agree(q, k, v, name, name)
    sinks = np.array([-np.inf, -2, 3, 60], np.float32)
    found = agree(q, k, v, name, name, sinks=sinks)
    assert np.allclose(found[0], plain[0], rtol=0, atol=1e-6) and np.linalg.norm(found[3]) < 1e-6 * np.linalg.norm(plain[3])
    hidden = np.full((n_queries, 300), -np.inf, np.float16)
    assert not pyggmlq.flash_attn(q, k, v, type_k=name, type_v=name, sinks=sinks, mask=hidden, backend="cuda").any()


@pytest.mark.parametrize("name", ["q8_0", "tq3_0", "planar3"])
@each_few_queries
def test_softcap_and_scale(name, n_queries):
    q, k, v = case(31, name, name, n_queries=n_queries, n_kv=300)
    capped = agree(q, k, v, name, name, scale=0.3, logit_softcap=2.0)
    assert not np.allclose(capped, agree(q, k, v, name, name, scale=0.3), atol=1e-2)


@pytest.mark.parametrize("n_heads", [4, 6, 8, 12])
@each_few_queries
def test_alibi(n_heads, n_queries):
    q, k, v = case(32, "tq3_0", "planar3", n_heads=n_heads, n_queries=n_queries, n_kv=300)
    distance = -np.abs(np.arange(300) - np.array([[60], [10], [69], [290]])[:n_queries]).astype(np.float16)
    agree(q, k, v, "tq3_0", "planar3", mask=distance, max_bias=8.0)


@each_few_queries
def test_everything_at_once(n_queries):
    q, k, v = case(33, "planar3", "tq3_0", n_heads=12, n_heads_kv=2, n_queries=n_queries, n_kv=1100, head=256, seqs=(4, 2))
    sinks = np.linspace(-1, 1, 12, dtype=np.float32)
    mask = test_attention.causal_mask(n_queries, 1100)
    agree(q, k, v, "planar3", "tq3_0", mask=mask, sinks=sinks, scale=0.1, max_bias=4.0, logit_softcap=5.0)


@each_type
@each_few_queries
def test_hidden_and_visible_nan(name, n_queries):
    """What is masked may hold anything; what isn't shows. Enough tokens for every split."""
    q, k, v = case(34, name, name, n_heads=8, n_heads_kv=2, n_queries=n_queries, n_kv=1000)
    mask = np.zeros((n_queries, 1000), np.float16)
    mask[:, 300:] = -np.inf
    options = dict(type_k=name, type_v=name, mask=mask, backend="cuda")
    clean = pyggmlq.flash_attn(q, k, v, **options)
    k[:, 300:], v[:, 300:] = 0xFF, 0xFF
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, **options), clean) and np.isfinite(clean).all()
    v[1, 7] = 0xFF
    found = pyggmlq.flash_attn(q, k, v, **options)
    assert np.array_equal(found[:4], clean[:4]) and np.isnan(found[4:]).all()
    v[1, 7], k[0, 9] = v[1, 6], 0xFF
    found = pyggmlq.flash_attn(q, k, v, **options)
    assert np.isnan(found[:4]).all() and np.isfinite(found[4:]).all()


@pytest.mark.parametrize("pairs", [1, 15, 32, 64])
@pytest.mark.parametrize("name", ["f16", "q8_0", "tq3_0", "planar3"])
@pytest.mark.parametrize("n_queries", [1, 3, 17])
def test_the_term_that_all_heads_share(name, pairs, n_queries):
    """Of centered keys. The fast kernel takes it for keys of our types."""
    q, k, v = case(37, name, name if name in CACHE_TYPES else "tq3_0", n_heads=6, n_heads_kv=2, n_queries=n_queries, n_kv=301)
    term = test_attention.term_of(37, q, k, pairs, neox=pairs % 2 == 0, part=pairs != 32)
    fast = name in CACHE_TYPES and n_queries <= 8
    found = agree(q, k, v, name, name if name in CACHE_TYPES else "tq3_0", kernel="decode" if fast else "plain", term=term)
    assert np.abs(found - agree(q, k, v, name, name if name in CACHE_TYPES else "tq3_0")).max() > 0.01


@pytest.mark.parametrize("head", [64, 96, 192, 256, 512])
@pytest.mark.parametrize("type_v", ["tq3_0", "f16", "q8_0"])
def test_the_term_of_other_heads_and_sequences(head, type_v):
    q, k, v = case(38, "tq3_0", type_v, n_heads=10, n_heads_kv=1, n_queries=2, n_kv=700, head=head, seqs=(4, 2))
    options = dict(mask=test_attention.causal_mask(2, 700), sinks=np.linspace(-1, 1, 10, dtype=np.float32), logit_softcap=5.0)
    agree(q, k, v, "tq3_0", type_v, term=test_attention.term_of(38, q, k, head // 2), **options)


@each_few_queries
def test_a_term_where_the_token_is_hidden_has_no_influence(n_queries):
    q, k, v = case(39, "tq3_0", "tq3_0", n_queries=n_queries)
    term = test_attention.term_of(39, q, k, 64)
    mask = np.zeros((n_queries, 70), np.float16)
    mask[:, 40:] = -np.inf
    options = dict(type_k="tq3_0", type_v="tq3_0", mask=mask, backend="cuda")
    clean = pyggmlq.flash_attn(q, k, v, term=term, **options)
    term.part[40:], term.positions[40:] = np.nan, 2**31 - 1
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, term=term, **options), clean) and np.isfinite(clean).all()
    on_device = term._replace(**{name: CudaArray.upload(getattr(term, name)) for name in ("w", "turns", "positions", "part")})
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, term=on_device, **options), clean)


@pytest.mark.parametrize("name", CACHE_TYPES)
@each_few_queries
def test_layout_of_a_cache(monkeypatch, name, n_queries):
    """[token][head][row] with gaps of odd sizes, K = V views of one memory, used where they lie."""
    q, k, v = case(35, name, name, n_heads=8, n_heads_kv=2, n_queries=n_queries, n_kv=300, head=128, head_v=128)
    device_arrays.use(monkeypatch)

    def gaps(x, more):
        wide = np.full((x.shape[1], x.shape[0], x.shape[2] + more), 255, x.dtype)
        wide[..., :-more] = x.swapaxes(0, 1)
        return wide[..., :-more].swapaxes(0, 1)

    for more in (1, 2, 3, 4, 50):  # some of these fit the alignment that a kernel wants
        agree(gaps(q, 1), gaps(k, more), gaps(v, more + 1), name, name)
        agree(gaps(q, 1), *[gaps(k, more)] * 2, name, name)  # K and V are the same rows
    half = k.shape[-1] if name == "planar3" else 28
    agree(q, k, k[..., :half], name, name)


@pytest.mark.parametrize("type_k, type_v", [("tq3_0", "tq3_0"), ("planar3", "planar3"), ("q8_0", "tq3_0"), ("f16", "planar3")])
@pytest.mark.parametrize("n_queries", [1, 3, 40])
def test_the_same_input_gives_the_same_bits(cuda, type_k, type_v, n_queries):
    """Also when the workspace holds something else, and beside other work."""
    q, k, v = case(36, type_k, type_v, n_heads=16, n_heads_kv=2, n_queries=n_queries, n_kv=3000)
    device = [CudaArray.upload(a) for a in (q, k, v)]
    first = None
    for byte in (0x00, 0xFF, 0x7B, 0xFF):
        dirt = CudaArray.empty((64 << 20,), np.uint8)
        cuda.check("", cuda.lib.ggmlq_cuda_fill(dirt.pointer(), byte, dirt.nbytes, cuda.STREAM))
        cuda.wait()
        del dirt
        found = pyggmlq.flash_attn(*device, type_k=type_k, type_v=type_v, backend="cuda").numpy()
        first = found if first is None else first
        assert np.array_equal(found, first)


@each_type
def test_codec_and_dot_products_repeat(name):
    x = normal(3000, 512)
    rows = pyggmlq.quantize(x, name, "cuda")
    products = pyggmlq.mul_mat_vec(rows, x[:9], name, backend="cuda")
    for _ in range(3):
        assert np.array_equal(pyggmlq.quantize(x, name, "cuda"), rows)
        assert np.array_equal(pyggmlq.mul_mat_vec(rows, x[:9], name, backend="cuda"), products)


# A shape that each kernel of csrc/cuda/ggmlq-cuda-attend.cu takes.
KERNELS = {
    "decode": dict(n_heads=8, n_heads_kv=2, n_queries=1, n_kv=1000),
    "plain": dict(n_heads=4, n_heads_kv=4, n_queries=3, n_kv=300, head=160, head_v=96),
}


def compiled_kernels():
    """The names in the list of ggmlq-cuda-attend.cu."""
    text = (ROOT / "csrc" / "cuda" / "ggmlq-cuda-attend.cu").read_text(encoding="utf-8")
    names = re.findall(r'^ *\{ "(\w+)", +ggmlq_cuda_attend_\w+_supports,', text, re.MULTILINE)
    assert names and names[-1] == "plain"
    return [name for name in names if (ROOT / "csrc" / "cuda" / f"ggmlq-cuda-attend-{name}.cu").is_file()]


def test_every_kernel_runs(cuda):
    """Each name of the list by the shape that is meant for it. `decode` is for tensor cores of compute capability 8.0 and up."""
    for kernel in compiled_kernels():
        if kernel != "decode" or float(re.search(r"capability ([\d.]+)", cuda.describe_device())[1]) >= 8:
            agree(*case(37, "tq3_0", "tq3_0", **KERNELS[kernel]), "tq3_0", "tq3_0", kernel=kernel)


# --- arrays ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["device", "foreign"])
def arrays(request, monkeypatch):
    device_arrays.use(monkeypatch, {"device": lambda array: array, "foreign": device_arrays.Foreign}[request.param])


@pytest.mark.parametrize("test", [
    test_api.test_views_give_what_copies_give, test_api.test_out_is_written_and_returned, test_api.test_vec_dot_broadcasts,
    test_api.test_mul_mat_vec, test_api.test_a_wrong_index_writes_nothing, test_api.test_check_says_where,
    test_attention.test_what_is_masked_has_no_influence, test_attention.test_strided_views, test_attention.test_nothing_to_do,
])  # fmt: skip
def test_the_tests_of_the_other_back_ends_on_device_arrays(arrays, test):
    test("cuda")


def test_rows_by_index_on_device_arrays(arrays):
    test_api.test_rows_by_index("i4", "cuda")


def test_arrays_of_other_libraries(cuda):
    """cupy and torch, where they are installed: in without a copy, and out."""
    x = normal(5, 128)
    wanted = pyggmlq.quantize(x)
    if importlib.util.find_spec("cupy"):
        import cupy

        found = pyggmlq.quantize(cupy.asarray(x), backend="cuda")
        assert np.array_equal(cupy.asnumpy(cupy.asarray(found)), wanted)
        out = cupy.empty_like(cupy.asarray(x))
        assert pyggmlq.dequantize(found, backend="cuda", out=out) is out
        assert np.array_equal(out.get(), pyggmlq.dequantize(wanted))
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:  # its work is waited for, since the interface names the stream
            big = cupy.asarray(normal(2000, 128))
            for _ in range(50):
                big = big * 1
            found = pyggmlq.quantize(big[::2], backend="cuda").numpy()
        assert np.array_equal(found, pyggmlq.quantize(normal(2000, 128)[::2]))
    if importlib.util.find_spec("torch"):
        import torch

        tensor = torch.from_numpy(x).to("cuda")
        found = pyggmlq.quantize(tensor, backend="cuda")
        back = torch.as_tensor(found, device="cuda")
        assert back.data_ptr() == found.address and np.array_equal(back.cpu().numpy(), wanted)
        assert np.array_equal(pyggmlq.rotate(tensor.t().contiguous().t(), backend="cuda").numpy(), pyggmlq.rotate(x))
        q = tensor.reshape(1, 5, 128)
        rows = back.reshape(1, 5, -1)
        out = torch.empty_like(q)
        assert pyggmlq.flash_attn(q, rows, rows, type_k="tq3_0", type_v="tq3_0", backend="cuda", out=out) is out
        assert np.allclose(out.cpu().numpy(), pyggmlq.flash_attn(x[None], wanted[None], wanted[None], type_k="tq3_0", type_v="tq3_0"), atol=2e-2)
