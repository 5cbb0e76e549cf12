# SPDX-License-Identifier: MIT
"""The numpy interface: argument checks, then one of the back ends.

Conventions of every function here:

- `type` is the name of a cache type, `"tq3_0"` or `"planar3"` (`types()` lists them); formats: docs/FORMAT.md.
- A row of `n` float32 values is `row_bytes = n / block_length * block_bytes` uint8. `n` is a multiple of the block length.
- `backend` is `"cpu"` (compiled), `"cuda"`, `"hip"` or `"metal"` (compiled, where built: NVIDIA's, AMD's or Apple's GPUs) or `"reference"`
  (numpy, slow, made to be read); `backends()` says which are usable.
- Inputs may be any strided views. One whose rows aren't contiguous is copied, unless it is a cache (`rows`, `k`, `v`):
  those are never copied but refused.
- `out`, where there is one, is a C-contiguous writable array of the documented shape and dtype; it is returned.
- A wrong dtype or kind of argument is a TypeError, everything else a ValueError: *what: found X, wanted Y*. Nothing has
  been written when one is raised.
- `backend="cuda"`, and `"hip"` and `"metal"` in the same way, takes numpy arrays, which it copies to the current device and back, and arrays in device memory (`CudaArray`, or
  anything else with `__cuda_array_interface__`), which it uses where they lie. They may be mixed. If one is in device memory,
  the result is a `CudaArray` on that device, where the annotations say numpy; `out` may be of either kind. docs/CUDA.md, docs/HIP.md, docs/METAL.md.
"""
from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _gpu
from ._cuda_array import CudaArray, may_share_memory
from ._types import TypeInfo, cache_types, foreign_types, type_info
from .center import Term

# What GGMLQ_ATTEND_MAX_HEAD_SIZE of csrc/ggmlq.h says; a test compares them.
MAX_HEAD_SIZE = 1024

_Array = Union[np.ndarray, CudaArray]

_MODULES = {"reference": "pyggmlq.reference", "cpu": "pyggmlq._cpu", "cuda": "pyggmlq._cuda", "hip": "pyggmlq._cuda", "metal": "pyggmlq._cuda"}


@dataclass(frozen=True)
class Backend:
    """One implementation of the functions of this module."""

    name: str
    usable: bool
    reason: str
    """Why it is not usable; empty if it is."""
    level: str = ""
    """Of "cpu": the active level of `cpu_levels()`."""
    device: str = ""
    """Of "cuda", "hip" and "metal": the current device."""


@dataclass(frozen=True)
class CpuLevel:
    """The kernels of the back end `"cpu"`, compiled for one set of instructions."""

    name: str
    usable: bool
    reason: str
    """Why it is not usable; empty if it is."""
    needs: str


def types() -> list[TypeInfo]:
    """The cache types: name, id, block length in values, bytes of a block, bits per value."""
    return list(cache_types())


def backends() -> list[Backend]:
    """Every back end that a `backend=` argument may name, and whether it works here."""
    found = []
    for name in _MODULES:
        try:
            module = _import(name)
        except ImportError as error:
            found.append(Backend(name, False, _why_not(name, error)))
        else:
            level = module.active_level() if name == "cpu" else ""
            found.append(Backend(name, True, "", level, module.describe_device() if name in _gpu.PLATFORMS else ""))
    return found


def cpu_levels() -> list[CpuLevel]:
    """Every level of the back end `"cpu"`, best first. The first usable one runs, unless the environment variable GGMLQ_CPU
    names another or `cpu_level` does."""
    return [CpuLevel(name, not reason, reason, needs) for name, reason, needs in _module("cpu").levels()]


@contextlib.contextmanager
def cpu_level(name: str) -> Iterator[None]:
    """`with cpu_level("avx2"):` runs the back end `"cpu"` at that level, in every thread; then at the one before.

    A name that is unknown or not usable here is a ValueError that lists the levels and why each is out.
    """
    module = _module("cpu")
    if name not in [level.name for level in cpu_levels() if level.usable]:
        raise ValueError(f"cpu_level: found {name!r}, wanted one of: {module.describe_levels()}")
    before = module.active_level()
    module.select_level(name)
    try:
        yield
    finally:
        module.select_level(before)


def quantize(
    x: npt.NDArray[np.float32],
    type: str = "tq3_0",
    backend: str = "cpu",
    out: npt.NDArray[np.uint8] | None = None,
    check: bool = False,
) -> npt.NDArray[np.uint8]:
    """Encode rows of values.

    x: float32 (..., n).  Returns uint8 (..., row_bytes).

    A block that holds a NaN or an infinity is stored with a NaN scale and decodes to NaN; with `check=True` such an input
    is a ValueError instead. The encoder is the search of docs/FORMAT.md, "Encoder".
    """
    info, module = _cache_type(type), _module(backend)
    x = _values("x", x, info, module)
    if check:
        _check_finite("x", x)
    target = _output(out, x.shape[:-1] + (_row_bytes(info, x.shape[-1]),), np.uint8, module, x)
    module.quantize(x, type, target)
    return target if out is None else out


def dequantize(
    b: npt.NDArray[np.uint8],
    type: str = "tq3_0",
    n: int | None = None,
    backend: str = "cpu",
    out: npt.NDArray[np.float32] | None = None,
    check: bool = False,
) -> npt.NDArray[np.float32]:
    """Decode rows.

    b: uint8 (..., row_bytes).  Returns float32 (..., n).

    `n`, if given, must be what row_bytes says. With `check=True` a block whose scale is NaN or infinite is a ValueError.
    """
    info, module = _cache_type(type), _module(backend)
    b = _encoded("b", b, info, module)
    stored = _row_values(info, b.shape[-1])
    if n is not None and _integer("n", n) != stored:
        raise ValueError(f"n: found {n}, wanted {stored}, which is what {b.shape[-1]} bytes of {type} hold")
    if check:
        block = module.find_not_finite(b, type)
        if block is not None:
            where = tuple(int(i) for i in np.unravel_index(block, b.shape[:-1] + (stored // info.block_length,)))
            raise ValueError(f"b: found a NaN or infinite scale in block {where}, wanted finite scales (check=True)")
    target = _output(out, b.shape[:-1] + (stored,), np.float32, module, b)
    module.dequantize(b, type, target)
    return target if out is None else out


def rotate(
    x: npt.NDArray[np.float32], type: str = "tq3_0", backend: str = "cpu", out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """The orthonormal rotation that `type` applies to every block before it rounds.

    x: float32 (..., n).  Returns float32 (..., n); `out=x` works in place.
    """
    info, module = _cache_type(type), _module(backend)
    in_place, x = out is x, _values("x", x, info, module)
    target = _output(out, x.shape, np.float32, module, x, in_place=in_place)
    module.rotate(x, type, target)
    return target if out is None else out


def unrotate(
    y: npt.NDArray[np.float32], type: str = "tq3_0", backend: str = "cpu", out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """The inverse of `rotate`, which is its transpose. Shapes and dtypes as there."""
    info, module = _cache_type(type), _module(backend)
    in_place, y = out is y, _values("y", y, info, module)
    target = _output(out, y.shape, np.float32, module, y, in_place=in_place)
    module.unrotate(y, type, target)
    return target if out is None else out


def vec_dot(
    b: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], type: str = "tq3_0", backend: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Dot products of encoded rows and queries, as a K cache computes them: the query is rotated and rounded to 8 bits.

    b: uint8 (..., row_bytes), x: float32 (..., n), leading axes broadcast.  Returns float32 (...).
    For a matrix of rows, `mul_mat_vec` is faster.
    """
    info, module = _cache_type(type), _module(backend)
    b, x = _encoded("b", b, info, module), _values("x", x, info, module)
    _same_length(b, x, info)
    try:
        shape = np.broadcast_shapes(b.shape[:-1], x.shape[:-1])
    except ValueError:
        raise ValueError(
            f"b and x: found leading axes {b.shape[:-1]} and {x.shape[:-1]}, wanted shapes that broadcast"
        ) from None
    out = _output(None, shape, np.float32, module, b, x)
    module.vec_dot(b, x, type, out)
    return out


def mul_mat_vec(
    b: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], type: str = "tq3_0", backend: str = "cpu"
) -> npt.NDArray[np.float32]:
    """The product of a matrix of encoded rows with one query or with several; rounding as in `vec_dot`.

    b: uint8 (rows, row_bytes), x: float32 (n,) or (m, n).  Returns float32 (rows,) or (m, rows).
    """
    info, module = _cache_type(type), _module(backend)
    b, x = _encoded("b", b, info, module), _values("x", x, info, module)
    _axes("b", b, (2,), "(rows, row_bytes)")
    _axes("x", x, (1, 2), "(n,) or (m, n)")
    _same_length(b, x, info)
    out = _output(None, x.shape[:-1] + (len(b),), np.float32, module, b, x)
    module.mul_mat_vec(b, x.reshape(-1, x.shape[-1]) if x.ndim == 1 else x, type, out.reshape(-1, len(b)) if x.ndim == 1 else out)
    return out


def set_rows(
    rows: npt.NDArray[np.uint8],
    indices: npt.ArrayLike,
    x: npt.NDArray[np.float32],
    type: str = "tq3_0",
    backend: str = "cpu",
) -> None:
    """Encode rows of values into a cache, in place: `rows[indices] = quantize(x)`, without the copy.

    rows: uint8 (n_rows, row_bytes), writable, any stride between rows.  indices: integers (...).  x: float32 (..., n).
    Where an index occurs twice, the last one wins.
    """
    info, module = _cache_type(type), _module(backend)
    rows = _cache_rows(rows, info, module, writable=True)
    x = _values("x", x, info, module)
    indices = _indices(indices, len(rows), module)
    if x.shape[:-1] != indices.shape:
        raise ValueError(f"x: found {x.shape[:-1]} rows for indices of shape {indices.shape}, wanted one per index")
    _same_length(rows, x, info, "rows")
    if may_share_memory(rows, x):
        x = x.copy()
    module.set_rows(rows, indices.reshape(-1), x.reshape(indices.size, x.shape[-1]), type)


def get_rows(
    rows: npt.NDArray[np.uint8],
    indices: npt.ArrayLike,
    type: str = "tq3_0",
    backend: str = "cpu",
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Decode rows of a cache: `dequantize(rows[indices])`, without the copy.

    rows: uint8 (n_rows, row_bytes), any stride between rows.  indices: integers (...).  Returns float32 (..., n).
    """
    info, module = _cache_type(type), _module(backend)
    rows = _cache_rows(rows, info, module, writable=False)
    indices = _indices(indices, len(rows), module)
    n = _row_values(info, rows.shape[1])
    target = _output(out, indices.shape + (n,), np.float32, module, rows)
    module.get_rows(rows, indices.reshape(-1), type, target.reshape(indices.size, n))
    return target if out is None else out


def flash_attn(
    q: npt.NDArray[np.float32],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    *,
    type_k: str,
    type_v: str,
    mask: npt.NDArray[np.float16] | None = None,
    sinks: npt.NDArray[np.float32] | None = None,
    scale: float | None = None,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
    term: Term | None = None,
    n_threads: int = 1,
    backend: str = "cpu",
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """softmax(scale * q k^T + mask) v over a cache in any pair of types.

    q: float32 ([n_seqs,] n_heads, n_queries, head_size).
    k: ([n_seqs_kv,] n_heads_kv, n_kv, row of head_size values); likewise v, whose head size may differ. The row is uint8
        row_bytes for tq3_0, planar3, q8_0 and q4_0, float16 or float32 values for f16 and f32.
        n_heads is a multiple of n_heads_kv (grouped-query attention), n_seqs of n_seqs_kv. Head sizes up to 1024.
    mask: float16 ([seqs,] [heads,] n_queries, n_kv), added to the score, -inf hides; its heads and sequences repeat.
    sinks: float32 (n_heads,), one logit per head that takes part in the softmax sum only.
    scale: default 1/sqrt(head_size).  max_bias: ALiBi, multiplies the mask by a slope per head.
    logit_softcap: score = cap * tanh(score / cap), before the mask; 0 is off.
    term: a pyggmlq.center.Term, what centered keys lack: part * <w, cosines and sines of the token's position> is added to q k^T. At most
        head_size/2 pairs. Roundings of the back ends: ggmlq.h.
    Returns float32 ([n_seqs,] n_heads, n_queries, head_size of v). A query that may look at nothing gives zeros.

    Semantics are those of ggml's FLASH_ATTN_EXT. "cpu" rounds the query to 8 bits where K is tq3_0 or planar3;
    "reference" is float64 throughout. The result does not depend on n_threads, which GPUs disregard.
    """
    module = _module(backend)
    info_k, info_v = _attend_type("type_k", type_k), _attend_type("type_v", type_v)
    q = _array("q", q, np.float32, module)
    _axes("q", q, (3, 4), "([n_seqs,] n_heads, n_queries, head_size)")
    q4 = _four_axes(_rows_contiguous(q))
    k4, head_size_k = _cache_operand("k", k, info_k, module)
    v4, head_size_v = _cache_operand("v", v, info_v, module)

    if head_size_k != q.shape[-1]:
        raise ValueError(f"k: found rows of {head_size_k} values, wanted {q.shape[-1]} as in q")
    if k4.shape[:3] != v4.shape[:3]:
        raise ValueError(f"v: found {v4.shape[:3]} (sequences, heads, tokens), wanted {k4.shape[:3]} as in k")
    for what, axis in (("sequences", 0), ("heads", 1)):
        if k4.shape[axis] == 0 or q4.shape[axis] % k4.shape[axis] != 0:
            raise ValueError(f"q: found {q4.shape[axis]} {what}, wanted a multiple of the {k4.shape[axis]} in k")
    if mask is not None:
        mask = _array("mask", mask, np.float16, module)
        _axes("mask", mask, (2, 3, 4), "([seqs,] [heads,] n_queries, n_kv)")
        mask = _four_axes(_rows_contiguous(mask))
        if mask.shape[2:] != (q4.shape[2], k4.shape[2]) or 0 in mask.shape[:2]:
            raise ValueError(f"mask: found shape {mask.shape}, wanted (seqs, heads, {q4.shape[2]}, {k4.shape[2]})")
    if sinks is not None:
        sinks = _rows_contiguous(_array("sinks", sinks, np.float32, module))
        if sinks.shape != (q4.shape[1],):
            raise ValueError(f"sinks: found shape {sinks.shape}, wanted ({q4.shape[1]},), one per query head")
    if term is not None:
        term = _term(term, q4.shape, k4.shape, module)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else _number("scale", scale)
    if _number("max_bias", max_bias) < 0 or (max_bias > 0 and mask is None):
        raise ValueError(f"max_bias: found {max_bias}, wanted 0, or a positive value together with a mask to scale")
    if _number("logit_softcap", logit_softcap) < 0:
        raise ValueError(f"logit_softcap: found {logit_softcap}, wanted 0 or a positive value")
    if _integer("n_threads", n_threads) < 1:
        raise ValueError(f"n_threads: found {n_threads}, wanted at least 1")

    target = _output(out, q.shape[:-1] + (head_size_v,), np.float32, module, q, k4, v4)
    module.flash_attn(
        q4, k4, v4, type_k, type_v, mask, sinks, scale, max_bias, logit_softcap, n_threads, _four_axes(target),
        **({} if term is None else {"term": term}),
    )  # fmt: skip
    return target if out is None else out


# ---------------------------------------------------------------------------------------------------------------------
# Checks. `what` is the name of the argument.


def _term(term, q_shape, k_shape, module):
    """The same with w in four axes: sequence, head, token, value; positions and part in two: sequence, token."""
    if not isinstance(term, Term):
        raise TypeError(f"term: found {_kind(term)}, wanted a pyggmlq.center.Term")
    if not isinstance(term.neox, (bool, np.bool_)):
        raise TypeError(f"term: neox: found {_kind(term.neox)}, wanted a bool")
    w, turns = _array("term: w", term.w, np.float32, module), _array("term: turns", term.turns, np.uint64, module)
    _axes("term: w", w, (3, 4), "([n_seqs,] n_heads, n_queries, 2*pairs)")
    _axes("term: turns", turns, (1,), "(pairs,)")
    w, turns = _four_axes(_rows_contiguous(w)), _rows_contiguous(turns)
    if not 1 <= turns.shape[0] <= q_shape[3] // 2:
        raise ValueError(f"term: turns: found {turns.shape[0]} pairs, wanted 1 to {q_shape[3] // 2}, half a head of q")
    if w.shape != (*q_shape[:3], 2 * turns.shape[0]):
        raise ValueError(f"term: w: found {w.shape}, wanted {q_shape[:3]} as in q and {2 * turns.shape[0]} values, two for each of turns")

    def per_token(name, array, dtype):
        array = _array(f"term: {name}", array, dtype, module)
        _axes(f"term: {name}", array, (1, 2), "([n_seqs_kv,] n_kv)")
        array = _rows_contiguous(array)
        array = array.reshape((1, *array.shape)) if array.ndim == 1 else array
        if array.shape != (k_shape[0], k_shape[2]):
            raise ValueError(f"term: {name}: found {array.shape} (sequences, tokens), wanted {(k_shape[0], k_shape[2])} as in k")
        return array

    positions = per_token("positions", term.positions, np.int32)
    return Term(w, turns, positions, bool(term.neox), None if term.part is None else per_token("part", term.part, np.float16))


def _module(name: str) -> ModuleType:
    if name in _MODULES:
        try:
            return _import(name)
        except ImportError as error:
            raise ValueError(f"backend {name!r} is not usable: {_why_not(name, error)}") from error
    raise ValueError(f"backend: found {name!r}, wanted one of {', '.join(_MODULES)}")


def _import(name: str) -> ModuleType:
    if name in _gpu.PLATFORMS:
        _gpu.require(name)
    return importlib.import_module(_MODULES[name])


def _why_not(name: str, error: ImportError) -> str:
    return str(error) if name in _gpu.PLATFORMS else f"The native module can't be imported: {error}."


def _named(what: str, name: str, known: tuple[TypeInfo, ...]) -> TypeInfo:
    if not isinstance(name, str):
        raise TypeError(f"{what}: found {_kind(name)}, wanted the name of a type")
    if name not in [info.name for info in known]:
        raise ValueError(f"{what}: found {name!r}, wanted one of {', '.join(info.name for info in known)}")
    return type_info(name)


def _cache_type(name: str) -> TypeInfo:
    return _named("type", name, cache_types())


def _attend_type(what: str, name: str) -> TypeInfo:
    return _named(what, name, cache_types() + foreign_types())


def _kind(value: object) -> str:
    return value.__class__.__name__


def _array(what: str, array: object, dtype: npt.DTypeLike, module: ModuleType) -> _Array:
    on_device = not isinstance(array, np.ndarray) and hasattr(array, "__cuda_array_interface__")
    if on_device and _takes_device_arrays(module):
        array = CudaArray.adopt(what, array)
    elif on_device:
        raise TypeError(f"{what}: found {_kind(array)} in device memory, which only backends 'cuda', 'hip' and 'metal' take, wanted a numpy array")
    if not isinstance(array, (np.ndarray, CudaArray)):
        raise TypeError(f"{what}: found {_kind(array)}, wanted a numpy array of {np.dtype(dtype)}")
    if array.dtype != dtype:
        raise TypeError(f"{what}: found dtype {array.dtype}, wanted {np.dtype(dtype)}")
    return array


def _takes_device_arrays(module: ModuleType) -> bool:
    return module.__name__ == _MODULES["cuda"]


def _axes(what: str, array: _Array, wanted: tuple[int, ...], shape: str) -> None:
    if array.ndim not in wanted:
        raise ValueError(f"{what}: found shape {array.shape}, wanted {shape}")


def _has_contiguous_rows(array: _Array) -> bool:
    return bool(array.flags.aligned) and (array.shape[-1] <= 1 or array.strides[-1] == array.itemsize)


def _rows_contiguous(array: _Array) -> _Array:
    return array if _has_contiguous_rows(array) else array.copy(order="C")


def _values(what: str, array: object, info: TypeInfo, module: ModuleType) -> _Array:
    """float32 (..., n), as a C-contiguous array."""
    array = _array(what, array, np.float32, module)
    if array.ndim == 0:
        raise ValueError(f"{what}: found a single value, wanted at least one axis")
    if array.shape[-1] % info.block_length:
        raise ValueError(
            f"{what}: found rows of {array.shape[-1]} values, wanted a multiple of {info.block_length} ({info.name})"
        )
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy(order="C")


def _check_finite(what: str, x: _Array) -> None:
    """x is C-contiguous."""
    if isinstance(x, CudaArray):
        first = x.find_not_finite()
    else:
        finite = np.isfinite(x)
        first = None if finite.all() else int(finite.argmin())
    if first is not None:
        where = tuple(int(i) for i in np.unravel_index(first, x.shape))
        value = x.item(first)
        raise ValueError(f"{what}: found {value} at index {where}, wanted finite values (check=True)")


def _encoded(what: str, array: object, info: TypeInfo, module: ModuleType) -> _Array:
    """uint8 (..., row_bytes) with contiguous rows."""
    array = _array(what, array, np.uint8, module)
    if array.ndim == 0:
        raise ValueError(f"{what}: found a single byte, wanted at least one axis")
    if array.shape[-1] % info.block_bytes:
        raise ValueError(
            f"{what}: found rows of {array.shape[-1]} bytes, wanted a multiple of {info.block_bytes} ({info.name})"
        )
    return _rows_contiguous(array)


def _cache_rows(rows: object, info: TypeInfo, module: ModuleType, writable: bool) -> _Array:
    """Refuses what isn't uint8 (n_rows, row_bytes) with contiguous rows, to be used where it lies."""
    rows = _array("rows", rows, np.uint8, module)
    _axes("rows", rows, (2,), "(n_rows, row_bytes)")
    if _encoded("rows", rows, info, module) is not rows:
        raise ValueError(f"rows: found strides {rows.strides}, wanted contiguous rows (last stride 1)")
    if writable and not rows.flags.writeable:
        raise ValueError("rows: found a read-only array, wanted a writable one")
    return rows


def _cache_operand(what: str, array: object, info: TypeInfo, module: ModuleType) -> tuple[_Array, int]:
    """k or v as (n_seqs_kv, n_heads_kv, n_kv, row), and the number of values in a row."""
    array = _array(what, array, {"f16": np.float16, "f32": np.float32}.get(info.name, np.uint8), module)
    _axes(what, array, (3, 4), "([n_seqs_kv,] n_heads_kv, n_kv, row)")
    if not _has_contiguous_rows(array):
        raise ValueError(f"{what}: found strides {array.strides}, wanted aligned, contiguous rows (a small last stride)")
    row_bytes = array.shape[-1] * array.itemsize
    head_size = _row_values(info, row_bytes)
    if row_bytes % info.block_bytes or not 0 < head_size <= MAX_HEAD_SIZE:
        raise ValueError(
            f"{what}: found rows of {row_bytes} bytes, wanted a multiple of {info.block_bytes} ({info.name}) "
            f"for a head size of {info.block_length} to {MAX_HEAD_SIZE}"
        )
    return _four_axes(array), head_size


def _four_axes(array: _Array) -> _Array:
    return array.reshape((1,) * (4 - array.ndim) + array.shape) if array.ndim < 4 else array


def _row_bytes(info: TypeInfo, n: int) -> int:
    return n // info.block_length * info.block_bytes


def _row_values(info: TypeInfo, n_bytes: int) -> int:
    return n_bytes // info.block_bytes * info.block_length


def _same_length(b: _Array, x: _Array, info: TypeInfo, what: str = "b") -> None:
    if b.shape[-1] != _row_bytes(info, x.shape[-1]):
        raise ValueError(
            f"{what} and x: found rows of {b.shape[-1]} bytes and {x.shape[-1]} values, "
            f"wanted {_row_bytes(info, x.shape[-1])} bytes of {info.name} for that many values"
        )


def _output(
    out: object, shape: tuple[int, ...], dtype: npt.DTypeLike, module: ModuleType, *inputs: _Array, in_place: bool = False
) -> _Array:
    """`out`, or an array of the kind of the inputs. `in_place`: it may be the only input itself."""
    if out is None:
        devices = [array.device for array in inputs if isinstance(array, CudaArray)]
        return CudaArray.empty(shape, dtype, devices[0]) if devices else np.empty(shape, dtype)
    out = _array("out", out, dtype, module)
    if out.shape != shape:
        raise ValueError(f"out: found shape {out.shape}, wanted {shape}")
    if not out.flags.c_contiguous or not out.flags.aligned:
        raise ValueError(f"out: found strides {out.strides}, wanted an aligned, C-contiguous array")
    if not out.flags.writeable:
        raise ValueError("out: found a read-only array, wanted a writable one")
    if not in_place and any(may_share_memory(out, array) for array in inputs):
        raise ValueError("out: found an array that overlaps an input, wanted one of its own")
    return out


def _indices(indices: npt.ArrayLike, n_rows: int, module: ModuleType) -> np.ndarray:
    """On the host, where each can be checked."""
    if not isinstance(indices, np.ndarray) and hasattr(indices, "__cuda_array_interface__") and _takes_device_arrays(module):
        indices = CudaArray.adopt("indices", indices).numpy()
    array = np.asarray(indices)
    if array.size == 0 and not isinstance(indices, np.ndarray):
        array = array.astype(np.int64)  # numpy makes an empty list float64
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices: found dtype {array.dtype}, wanted integers")
    wrong = array[(array < 0) | (array >= n_rows)]
    if wrong.size:
        raise ValueError(f"indices: found {wrong[0]}, wanted 0 <= index < {n_rows}")
    return np.ascontiguousarray(array, np.int64).reshape(array.shape)


def _integer(what: str, value: object) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{what}: found {_kind(value)}, wanted an integer")
    return int(value)


def _number(what: str, value: object) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{what}: found {_kind(value)}, wanted a number")
    if not math.isfinite(value):
        raise ValueError(f"{what}: found {value}, wanted a finite number")
    return float(value)
