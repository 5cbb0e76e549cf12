# SPDX-License-Identifier: MIT
"""A CUDA library made of numpy and the CPU back end, with host memory for a device's: what pyggmlq does around the kernels can be
tested without a GPU. It knows the interface (the headers of csrc/cuda) and nothing of the kernels."""
from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import types
from pathlib import Path

import cffi
import numpy as np

import pyggmlq
from pyggmlq._types import cache_types, foreign_types
from pyggmlq.center import Term

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("_ggmlq_cuda", "_ggmlq_hip", "_ggmlq_metal", "_cuda_driver", "_cuda")


def load_build_cffi():
    spec = importlib.util.spec_from_file_location("build_cffi", ROOT / "tools" / "build_cffi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.lru_cache(maxsize=None)
def interface():
    """A cffi.FFI with the declarations of the three headers."""
    ffi, build_cffi = cffi.FFI(), load_build_cffi()
    for header in ("ggmlq.h", "cuda/ggmlq-cuda.h", "cuda/ggmlq-cuda-memory.h"):
        ffi.cdef(build_cffi.declarations(header, (ROOT / "csrc" / header).read_text(encoding="utf-8")))
    return ffi


def strided(address, shape, strides, dtype):
    """The memory at that address, unchecked."""
    itemsize = np.dtype(dtype).itemsize
    first = np.frombuffer(cffi.FFI().buffer(cffi.FFI().cast("char *", int(address)), itemsize), dtype)
    return np.lib.stride_tricks.as_strided(first, tuple(shape), tuple(strides))


TYPES = {info.id: info for info in cache_types() + foreign_types()}
FLOATS = {0: np.float32, 1: np.float16}


class FakeLibrary:
    """`devices`: how many there are. `says`: {function: code} of calls that fail. `waited`: streams that were waited for."""

    def __init__(self, ffi, devices=1, driver=13000, says=None):
        self.ffi, self.devices, self.driver, self.says = ffi, devices, driver, says or {}
        self.constants = ffi.dlopen(None)
        self.current, self.memory, self.waited = 0, {}, []
        self.devices_of = {}

    def __getattr__(self, name):
        return getattr(self.constants, name)

    def address(self, pointer):
        return int(self.ffi.cast("uintptr_t", pointer))

    # --- ggmlq-cuda-memory.h

    def ggmlq_cuda_memory_error_text(self, error):
        self.text = self.ffi.new("char []", f"fake error {error}".encode())
        return self.text

    ggmlq_cuda_error_text = ggmlq_cuda_memory_error_text

    def ggmlq_cuda_versions(self, driver, runtime):
        driver[0], runtime[0] = self.driver, 13000
        return 0

    def ggmlq_cuda_device_count(self, count):
        count[0] = self.devices
        return self.says.get("device_count", 0)

    def ggmlq_cuda_device_get(self, device):
        device[0] = self.current
        return 0

    def ggmlq_cuda_device_set(self, device):
        self.current = device
        return 0

    def ggmlq_cuda_device_info(self, device, info):
        info.name, info.major, info.minor = f"Fake {device}".encode(), 9, 0
        return 0

    def ggmlq_cuda_device_probe(self):
        return self.says.get("device_probe", 0)

    def ggmlq_cuda_pointer_device(self, pointer, device):
        address = self.address(pointer)
        device[0] = next((self.devices_of[a] for a, m in self.memory.items() if a <= address < a + m.nbytes), -1)
        return 0

    def ggmlq_cuda_allocate(self, pointer, n_bytes):
        if "allocate" in self.says:
            return self.says["allocate"]
        memory = np.full(n_bytes // 256 * 256 + 256, 0xCD, np.uint8)
        self.memory[memory.ctypes.data], self.devices_of[memory.ctypes.data] = memory, self.current
        pointer[0] = self.ffi.cast("void *", memory.ctypes.data)
        return 0

    def ggmlq_cuda_release(self, pointer):
        del self.memory[self.address(pointer)]
        return 0

    def ggmlq_cuda_upload(self, to, source, n_bytes, stream):
        self.ffi.memmove(to, source, n_bytes)
        return 0

    ggmlq_cuda_download = ggmlq_cuda_upload

    def ggmlq_cuda_fill(self, device, byte, n_bytes, stream):
        self.ffi.buffer(device, n_bytes)[:] = bytes([byte]) * n_bytes
        return 0

    def ggmlq_cuda_synchronize(self, stream):
        self.waited.append(self.address(stream))
        return self.says.get("synchronize", 0)

    def ggmlq_cuda_pack(self, to, source, item_bytes, n_axes, shape, strides, stream):
        dtype = f"V{item_bytes}"
        packed = strided(self.address(source), shape, strides, dtype).copy() if 0 not in shape else np.empty(0, dtype)
        self.ffi.memmove(to, packed.tobytes(), packed.nbytes)
        return 0

    def ggmlq_cuda_find_not_finite(self, data, value_bytes, stride, n, result, stream):
        values = strided(self.address(data), (n,), (stride,), {2: "<f2", 4: "<f4"}[value_bytes])
        bad = np.flatnonzero(~np.isfinite(values))
        result[0] = int(bad[0]) if bad.size else 2**64 - 1
        return 0

    # --- ggmlq-cuda.h

    def array(self, view):
        """float values (ne3, ne2, ne1, ne0), or uint8 rows."""
        ne, nb = list(view.ne)[::-1], list(view.nb)[::-1]
        if view.type in FLOATS:
            return strided(self.address(view.data), ne, nb, FLOATS[view.type])
        info = TYPES[view.type]
        ne[3], nb[3] = ne[3] // info.block_length * info.block_bytes, 1
        return strided(self.address(view.data), ne, nb, np.uint8)

    def indices(self, view, index_bytes):
        return strided(self.address(view.data), list(view.ne)[2::-1], list(view.nb)[2::-1], f"i{index_bytes}")

    def ggmlq_cuda_copy(self, dst, src, stream):
        to, source = self.array(dst), self.array(src)
        if dst.type in FLOATS:
            to[...] = pyggmlq.dequantize(source.copy(), TYPES[src.type].name).reshape(to.shape)
        else:
            to[...] = pyggmlq.quantize(source.astype(np.float32), TYPES[dst.type].name).reshape(to.shape)
        return 0

    def ggmlq_cuda_rotate(self, kind, dst, src, stream):
        self.array(dst)[...] = pyggmlq.rotate(self.array(src).copy(), TYPES[kind].name)
        return 0

    def ggmlq_cuda_unrotate(self, kind, dst, src, stream):
        self.array(dst)[...] = pyggmlq.unrotate(self.array(src).copy(), TYPES[kind].name)
        return 0

    def ggmlq_cuda_mul_mat_workspace_bytes(self, kind, x):
        return 100

    def ggmlq_cuda_mul_mat(self, out, rows, x, workspace, stream):
        to, b, q = self.array(out), self.array(rows), self.array(x)
        for i3 in range(to.shape[0]):
            for i2 in range(to.shape[1]):
                matrix = b[i3 // (q.shape[0] // b.shape[0]), i2 // (q.shape[1] // b.shape[1])]
                to[i3, i2] = pyggmlq.mul_mat_vec(matrix, q[i3, i2].copy(), TYPES[rows.type].name)
        return 0

    def ggmlq_cuda_set_rows(self, rows, values, indices, index_bytes, stream):
        to, source, index = self.array(rows), self.array(values), self.indices(indices, index_bytes)
        for i3, i2 in np.ndindex(source.shape[:2]):
            where = index[i3 % index.shape[0], i2 % index.shape[1]]
            kept = np.flatnonzero((where >= 0) & (where < to.shape[2]))
            pyggmlq.set_rows(to[i3, i2], where[kept], source[i3, i2, kept].astype(np.float32), TYPES[rows.type].name)
        return 0

    def ggmlq_cuda_get_rows(self, values, rows, indices, index_bytes, stream):
        to, source, index = self.array(values), self.array(rows), self.indices(indices, index_bytes)
        for i3, i2 in np.ndindex(to.shape[:2]):
            to[i3, i2] = pyggmlq.get_rows(source[i3, i2], index[i3, i2], TYPES[rows.type].name)
        return 0

    def ggmlq_cuda_attend_check(self, p):
        return self.says.get("attend_check", 0)

    def ggmlq_cuda_attend_kernel(self, p):
        self.kernel = self.ffi.new("char []", b"fake")
        return self.kernel

    def ggmlq_cuda_attend_workspace_bytes(self, p):
        return 0

    def ggmlq_cuda_attend(self, p, workspace, stream):
        def operand(pointer, stride, shape, kind):
            info, dtype = TYPES[kind], {0: np.float32, 1: np.float16}.get(kind, np.uint8)
            row = shape[3] // info.block_length * info.block_bytes // np.dtype(dtype).itemsize
            return strided(self.address(pointer), (*shape[:3], row), (*list(stride)[::-1], np.dtype(dtype).itemsize), dtype)

        q = operand(p.q, p.q_stride, (p.n_seqs, p.n_heads, p.n_queries, p.head_size_k), 0)
        k = operand(p.k, p.k_stride, (p.n_seqs_kv, p.n_heads_kv, p.n_kv, p.head_size_k), p.type_k)
        v = operand(p.v, p.v_stride, (p.n_seqs_kv, p.n_heads_kv, p.n_kv, p.head_size_v), p.type_v)
        out = operand(p.out, p.out_stride, (p.n_seqs, p.n_heads, p.n_queries, p.head_size_v), 0)
        mask = sinks = None
        if p.mask:
            mask = operand(p.mask, p.mask_stride, (p.mask_seqs, p.mask_heads, p.n_queries, p.n_kv), 1)
        if p.sinks:
            sinks = strided(self.address(p.sinks), (p.n_heads,), (4,), np.float32)
        term = None
        if p.n_pairs:
            def per_token(pointer, stride, dtype):
                return strided(self.address(pointer), (p.n_seqs_kv, p.n_kv), (stride, np.dtype(dtype).itemsize), dtype)

            term = Term(
                operand(p.w, p.w_stride, (p.n_seqs, p.n_heads, p.n_queries, 2 * p.n_pairs), 0),
                strided(self.address(p.turns), (p.n_pairs,), (8,), np.uint64), per_token(p.positions, p.positions_stride, np.int32),
                bool(p.pairs_are_halves), per_token(p.part, p.part_stride, np.float16) if p.part else None,
            )  # fmt: skip
        out[...] = pyggmlq.flash_attn(
            q, k, v, type_k=TYPES[p.type_k].name, type_v=TYPES[p.type_v].name, mask=mask, sinks=sinks, term=term,
            scale=p.scale, max_bias=p.max_bias, logit_softcap=p.logit_softcap,
        )  # fmt: skip
        return 0


class FakeFFI:
    def __init__(self, ffi, library):
        self._ffi, self._library = ffi, library

    def __getattr__(self, name):
        return getattr(self._ffi, name)

    def dlopen(self, path):
        if isinstance(self._library, Exception):
            raise self._library
        return self._library


def _forget():
    """The modules as they are now, taken out of the interpreter."""
    found = {}
    for name in MODULES:
        found[name] = sys.modules.pop(f"pyggmlq.{name}", None)
        if hasattr(pyggmlq, name):
            delattr(pyggmlq, name)
    return found


@contextlib.contextmanager
def installed(library=None, platform="cuda", **options):
    """`with installed() as library:` makes it the GPU library of pyggmlq; an exception instead is what loading it raises."""
    ffi = interface()
    library = FakeLibrary(ffi, **options) if library is None else library
    before = _forget()
    generated = types.ModuleType(f"pyggmlq._ggmlq_{platform}")
    generated.ffi, generated.__file__ = FakeFFI(ffi, library), "fake"
    for name in ("cuda", "hip", "metal"):
        sys.modules[f"pyggmlq._ggmlq_{name}"] = generated if name == platform else None
    try:
        yield library
    finally:
        _forget()
        for name, module in before.items():
            if module is not None:
                sys.modules[f"pyggmlq.{name}"] = module
                setattr(pyggmlq, name, module)
