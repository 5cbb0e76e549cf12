# SPDX-License-Identifier: MIT
"""The back ends `"cuda"` and `"hip"` of pyggmlq/api.py: csrc/cuda through cffi. Arguments come checked.

numpy arrays are copied to the device and back, device arrays are used where they lie. Every function returns when the device
has finished, so results need no further care and temporary memory is free again. Importing this module raises ImportError
where the GPU can't be used.
"""
from __future__ import annotations

from collections import Counter

import numpy as np

from ._attend_params import attend_params
from ._cuda_array import CudaArray
from ._cuda_array import find_not_finite as _find_not_finite
from ._cuda_driver import PLATFORM, STREAM, check, describe_device, ffi, lib, on_device, wait
from ._types import type_info
from .center import Term

__all__ = ["describe_device"]

F32 = lib.GGMLQ_CUDA_F32

# How often each attention kernel was chosen; tests see by it which one ran.
kernel_calls: Counter[str] = Counter()


def _run(error):
    """Every argument was checked before: but for what the driver says, an error here is a bug of this package."""
    if error == lib.GGMLQ_ERROR_DEVICE:
        check("launching a kernel", error)
    if error != lib.GGMLQ_OK:
        raise RuntimeError(f"the {PLATFORM.title} back end refused checked arguments: " + ffi.string(lib.ggmlq_cuda_error_text(error)).decode())


class _Call:
    """One call: its device, the copies of host arrays, its workspace. `with` waits for the device at the end."""

    def __init__(self, *arrays):
        devices = sorted({array.device for array in arrays if isinstance(array, CudaArray) and array.size})
        if len(devices) > 1:
            raise ValueError(f"arrays: found some on device {devices[0]} and some on device {devices[1]}, wanted all on one device")
        self._switch = on_device(devices[0]) if devices else None
        self._results, self._kept = [], []

    def __enter__(self):
        if self._switch is not None:
            self._switch.__enter__()
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                wait()
                for on_host, array in self._results:
                    array.download(on_host)
        finally:
            self._kept.clear()
            if self._switch is not None:
                self._switch.__exit__(kind, error, traceback)

    def read(self, array):
        """The array on the device."""
        return array if isinstance(array, CudaArray) else self.keep(CudaArray.upload(array))

    def keep(self, array):
        """The same array, which lives until the device is done: a view holds an address alone."""
        self._kept.append(array)
        return array

    def write(self, array):
        """A C-contiguous array on the device whose contents are in `array` after the call."""
        if isinstance(array, CudaArray):
            return array
        new = CudaArray.empty(array.shape, array.dtype)
        self._results.append((array, new))
        return new

    def workspace(self, n_bytes):
        _run(min(n_bytes, 0))
        return self.keep(CudaArray.empty((n_bytes,), np.uint8)).pointer()


def view(array, type_id, n, lead=None):
    """struct ggmlq_cuda_view of rows of n values; `lead` are the axes before, (length, stride) each, outermost first."""
    lead = list(zip(array.shape[:-1], array.strides[:-1])) if lead is None else lead
    axes = [(1, 0)] * (3 - len(lead)) + lead
    result = ffi.new("struct ggmlq_cuda_view *")
    result.data, result.type = array.pointer(), type_id
    result.ne = [n, *(length for length, _ in reversed(axes))]
    row_bytes = array.shape[-1] * array.itemsize if array.ndim else array.itemsize
    result.nb = [array.itemsize, *(stride if length > 1 else row_bytes for length, stride in reversed(axes))]
    return result


def _rows(call, array):
    """The same on the device, in at most four axes and nowhere repeated by a stride of 0."""
    array = call.read(array)
    repeated = any(stride == 0 and length > 1 for length, stride in zip(array.shape, array.strides))
    return call.keep(array.copy()) if repeated or array.ndim > 4 else array


def _flat(array, n, type_id=F32):
    """A view of a C-contiguous array as rows of n values."""
    row_bytes = array.shape[-1] * array.itemsize
    return view(array, type_id, n, [(array.size // array.shape[-1], row_bytes)])


def quantize(x, type, out):
    if out.size == 0:
        return
    with _Call(x, out) as call:
        n = x.shape[-1]
        _run(lib.ggmlq_cuda_copy(_flat(call.write(out), n, type_info(type).id), _flat(call.read(x), n), STREAM))


def dequantize(b, type, out):
    if out.size == 0:
        return
    with _Call(b, out) as call:
        n, b = out.shape[-1], _rows(call, b)
        source = view(b, type_info(type).id, n) if b.ndim <= 4 else _flat(b, n, type_info(type).id)
        _run(lib.ggmlq_cuda_copy(_flat(call.write(out), n), source, STREAM))


def find_not_finite(b, type):
    """Flat index of the first block whose scale is NaN or infinite, or None."""
    info = type_info(type)
    with _Call(b) as call:
        b = call.read(b)
        b = b if b.flags.c_contiguous else call.keep(b.copy())
        offset = {"tq3_0": info.block_bytes - 2, "planar3": 0}[type]  # docs/FORMAT.md
        return _find_not_finite(b, b.address + offset, 2, info.block_bytes, b.size // info.block_bytes)


def _rotation(function, x, type, out):
    if out.size == 0:
        return
    with _Call(x, out) as call:
        n = x.shape[-1]
        _run(function(type_info(type).id, _flat(call.write(out), n), _flat(call.read(x), n), STREAM))


def rotate(x, type, out):
    _rotation(lib.ggmlq_cuda_rotate, x, type, out)


def unrotate(y, type, out):
    _rotation(lib.ggmlq_cuda_unrotate, y, type, out)


def _mul_mat(call, type, out, rows, x):
    workspace = call.workspace(lib.ggmlq_cuda_mul_mat_workspace_bytes(type_info(type).id, x))
    _run(lib.ggmlq_cuda_mul_mat(out, rows, x, workspace, STREAM))


def vec_dot(b, x, type, out):
    """One row and one query each: a matrix of one row for every product."""
    if out.size == 0:
        return
    with _Call(b, x, out) as call:
        n, result, shape = x.shape[-1], call.write(out), out.shape
        if n == 0:
            _fill_with_zeros(result)
            return
        b, x = call.read(b), call.read(x)
        b = b if b.shape[:-1] == shape and b.flags.c_contiguous else call.keep(b.broadcast_copy(shape + b.shape[-1:]))
        x = x if x.shape[:-1] == shape else call.keep(x.broadcast_copy(shape + x.shape[-1:]))
        for first in range(0, out.size, _MAX_BATCH):
            count = min(_MAX_BATCH, out.size - first)

            def part(array, row_bytes, type_id, n):
                batch = view(array, type_id, n, [(count, row_bytes), (1, row_bytes)])
                batch.data = ffi.cast("void *", array.address + first * row_bytes)
                return batch

            _mul_mat(
                call, type, part(result, 4, F32, 1), part(b, b.shape[-1], type_info(type).id, n), part(x, 4 * n, F32, n)
            )  # fmt: skip


_MAX_BATCH = 32768  # matrices of one launch


def mul_mat_vec(b, x, type, out):
    if out.size == 0:
        return
    with _Call(b, x, out) as call:
        n, result = x.shape[-1], call.write(out)
        if n == 0:
            _fill_with_zeros(result)
            return
        b, x = _rows(call, b), call.read(x)
        _mul_mat(call, type, view(result, F32, b.shape[0]), view(b, type_info(type).id, n), view(x, F32, n))


def _fill_with_zeros(array):
    check("filling with zeros", lib.ggmlq_cuda_fill(array.pointer(), 0, array.nbytes, STREAM))


def set_rows(rows, indices, x, type):
    if x.size == 0:
        return
    # Of equal indices the last wins: the others become -1, which the kernel skips. It would write them all at once.
    written, from_end = np.unique(indices[::-1], return_index=True)
    once = np.full_like(indices, -1)
    once[len(indices) - 1 - from_end] = written
    with _Call(rows, x) as call:
        n, device_rows, device_indices = x.shape[-1], call.read(rows), call.read(once)
        _run(lib.ggmlq_cuda_set_rows(
            view(device_rows, type_info(type).id, n), view(call.read(x), F32, n),
            view(device_indices, 0, len(once), []), device_indices.itemsize, STREAM,
        ))  # fmt: skip
        if device_rows is not rows:
            rows[written] = device_rows.numpy()[written]


def get_rows(rows, indices, type, out):
    if out.size == 0:
        return
    with _Call(rows, out) as call:
        n, device_indices = out.shape[-1], call.read(indices)
        _run(lib.ggmlq_cuda_get_rows(
            view(call.write(out), F32, n), view(_rows(call, rows), type_info(type).id, n),
            view(device_indices, 0, len(indices), []), device_indices.itemsize, STREAM,
        ))  # fmt: skip


def flash_attn(q, k, v, type_k, type_v, mask, sinks, scale, max_bias, logit_softcap, n_threads, out, term=None):
    if out.size == 0:
        return
    of_term = () if term is None else (term.w, term.turns, term.positions, term.part)
    with _Call(*(array for array in (q, k, v, mask, sinks, out, *of_term) if array is not None)) as call:
        p = attend_params(
            ffi, CudaArray.pointer, call.read(q), call.read(k), call.read(v), type_k, type_v, None if mask is None else call.read(mask),
            None if sinks is None else call.read(sinks), scale, max_bias, logit_softcap, call.write(out),
            None if term is None else Term(*(a if a is None or isinstance(a, bool) else call.read(a) for a in term)),
        )  # fmt: skip
        error = lib.ggmlq_cuda_attend_check(p)
        if error:
            raise ValueError(
                f"k and v: found {type_k} and {type_v} rows of {p.head_size_k} and {p.head_size_v} values, wanted a pair that the "
                f"{PLATFORM.title} kernels read: {ffi.string(lib.ggmlq_cuda_error_text(error)).decode()} (docs/CUDA.md)"
            )
        kernel_calls[attend_kernel(p)] += 1
        _run(lib.ggmlq_cuda_attend(p, call.workspace(lib.ggmlq_cuda_attend_workspace_bytes(p)), STREAM))


def attend_kernel(p):
    """Name of the kernel that runs these parameters."""
    return ffi.string(lib.ggmlq_cuda_attend_kernel(p)).decode()
