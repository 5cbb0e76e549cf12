# SPDX-License-Identifier: MIT
"""The back end `"cpu"` of pyggmlq/api.py: csrc through cffi. Arguments come checked; only pointers are made here.

The interpreter lock is released during every call.
"""
from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from ._attend_params import attend_params
from ._ggmlq import ffi, lib
from ._types import type_info


def _pointer(array, ctype="void *"):
    """A C pointer to the array's first element; the caller keeps the array alive."""
    return ffi.cast(ctype, array.ctypes.data)


def _run(error):
    """Every argument was checked before: an error here is a bug of this package."""
    if error != lib.GGMLQ_OK:
        raise RuntimeError("the compiled back end refused checked arguments: " + ffi.string(lib.ggmlq_error_text(error)).decode())


def levels():
    """(name, reason why not usable or "", what it needs) of every CPU level, best first."""
    return [
        tuple(ffi.string(f(i)).decode() for f in (lib.ggmlq_cpu_level_name, lib.ggmlq_cpu_level_reason, lib.ggmlq_cpu_level_needs))
        for i in range(lib.ggmlq_cpu_level_count())
    ]


def active_level():
    """Name of the level that runs, or None: the environment variable GGMLQ_CPU names none that can."""
    name = lib.ggmlq_cpu_level_active()
    return None if name == ffi.NULL else ffi.string(name).decode()


def select_level(name):
    """Makes the level active; None: the best usable one. The name was checked."""
    _run(lib.ggmlq_cpu_level_select(ffi.NULL if name is None else name.encode()))


def level_calls():
    """{level: how often one of its kernels was entered}; tests see by it which level ran."""
    return {name: lib.ggmlq_cpu_level_calls(i) for i, (name, _, _) in enumerate(levels())}


def describe_levels():
    """Every level, with the reason where it is out."""
    return ", ".join(f"{name} ({reason})" if reason else name for name, reason, _ in levels())


if active_level() is None:
    raise ImportError(f"GGMLQ_CPU: found {os.environ.get('GGMLQ_CPU')!r}, wanted one of: {describe_levels()}")


def quantize(x, type, out):
    _run(lib.ggmlq_cpu_encode_row(type_info(type).id, _pointer(x, "float *"), _pointer(out), x.size))


def dequantize(b, type, out):
    b = np.ascontiguousarray(b)
    _run(lib.ggmlq_cpu_decode_row(type_info(type).id, _pointer(b), _pointer(out, "float *"), out.size))


def find_not_finite(b, type):
    """Flat index of the first block whose scale is NaN or infinite, or None."""
    b, info, block = np.ascontiguousarray(b), type_info(type), ffi.new("int64_t *")
    error = lib.ggmlq_validate_row(info.id, _pointer(b), b.size // info.block_bytes * info.block_length, block)
    if error == lib.GGMLQ_ERROR_NOT_FINITE:
        return block[0]
    _run(error)
    return None


def rotate(x, type, out):
    _run(lib.ggmlq_cpu_rotate_row(type_info(type).id, _pointer(x, "float *"), _pointer(out, "float *"), x.size))


def unrotate(y, type, out):
    _run(lib.ggmlq_cpu_unrotate_row(type_info(type).id, _pointer(y, "float *"), _pointer(out, "float *"), y.size))


def encode_queries(x, type):
    """float32 (..., n) -> the rotated 8-bit query type of csrc, uint8 (..., query_bytes)."""
    query_type = lib.ggmlq_type_info_get(type_info(type).id).query_type
    query = np.empty(x.shape[:-1] + (lib.ggmlq_row_bytes(query_type, x.shape[-1]),), np.uint8)
    _run(lib.ggmlq_cpu_encode_query_row(type_info(type).id, _pointer(x, "float *"), _pointer(query), x.size))
    return query


def vec_dot(b, x, type, out):
    queries = encode_queries(x, type)
    b = np.broadcast_to(b, out.shape + b.shape[-1:])
    queries = np.broadcast_to(queries, out.shape + queries.shape[-1:])
    for i, result in zip(np.ndindex(out.shape), out.reshape(-1, 1)):
        _run(lib.ggmlq_dot_row(
            type_info(type).id, _pointer(b[i]), _pointer(queries[i]), x.shape[-1], _pointer(result, "float *"),
        ))  # fmt: skip


def mul_mat_vec(b, x, type, out):
    queries = encode_queries(x, type)
    _run(lib.ggmlq_mul_mat_vec(
        type_info(type).id, _pointer(b), b.strides[0], b.shape[0],
        _pointer(queries), x.shape[0], x.shape[1], _pointer(out, "float *"),
    ))  # fmt: skip


def set_rows(rows, indices, x, type):
    _run(lib.ggmlq_cpu_set_rows(
        type_info(type).id, _pointer(rows), rows.strides[0], rows.shape[0],
        _pointer(x, "float *"), _pointer(indices, "int64_t *"), indices.size, x.shape[-1],
    ))  # fmt: skip


def get_rows(rows, indices, type, out):
    _run(lib.ggmlq_cpu_get_rows(
        type_info(type).id, _pointer(rows), rows.strides[0], rows.shape[0],
        _pointer(out, "float *"), _pointer(indices, "int64_t *"), indices.size, out.shape[-1],
    ))  # fmt: skip


def flash_attn(q, k, v, type_k, type_v, mask, sinks, scale, max_bias, logit_softcap, n_threads, out, term=None):
    p = attend_params(ffi, _pointer, q, k, v, type_k, type_v, mask, sinks, scale, max_bias, logit_softcap, out, term)
    workspace_bytes = lib.ggmlq_attend_workspace_bytes(p, n_threads)
    _run(min(workspace_bytes, 0))
    workspace = np.empty(workspace_bytes // 4, np.float32)
    finished = itertools.count(1)

    def work(part):
        if not workspace_bytes:
            return lib.ggmlq_attend(p, part, n_threads)
        error = lib.ggmlq_attend_part(p, _pointer(workspace), part, n_threads)
        if next(finished) < n_threads:  # the last one combines, which is little work: cheaper than a barrier
            return error
        return error or min(lib.ggmlq_attend_combine(p, _pointer(workspace), i, n_threads) for i in range(n_threads))

    others = [_pool(n_threads).submit(work, part) for part in range(1, n_threads)]
    errors = [work(0), *(other.result() for other in others)]
    _run(min(errors))


@lru_cache(maxsize=1)
def _pool(n_threads):
    """Starting threads takes longer than many a call: they are kept. Never waits for a thread of its own, so calls may share it."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="pyggmlq")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has the pool but not its threads
