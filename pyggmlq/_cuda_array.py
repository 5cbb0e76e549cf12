# SPDX-License-Identifier: MIT
"""Arrays in the memory of a GPU, NVIDIA's or AMD's: what the functions of api.py take as such, and what they return.

Needs neither a driver nor the library to be imported. `CudaArray` has the few attributes of numpy's arrays that the
checks of api.py read, so that one set of checks serves both.
"""
from __future__ import annotations

import math
import operator
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

_MAX_AXES = 16  # GGMLQ_CUDA_MAX_AXES of csrc/cuda/ggmlq-cuda-memory.h; a test compares them


def _driver():
    try:
        from . import _cuda_driver
    except ImportError as error:
        raise ValueError(f"backend 'cuda' is not usable: {error}") from error
    return _cuda_driver


class CudaArray:
    """An array in the memory of a GPU: what functions with `backend="cuda"` or `"hip"` return for device inputs.

    `CudaArray.upload(numpy_array)` makes one, `.numpy()` copies it back. Any library that knows the CUDA array interface takes
    it without a copy: `cupy.asarray(a)`, `torch.as_tensor(a, device="cuda")`. Its memory is freed with the last reference.
    Nothing is pending on it: every function of this package returns when the device is done.
    """

    __slots__ = ("shape", "dtype", "strides", "address", "device", "writeable", "_owner")

    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]
    """In bytes, as numpy's."""
    address: int
    device: int

    def __init__(self, shape, dtype, strides, address, device, writeable, owner):
        self.shape, self.dtype, self.strides = tuple(shape), np.dtype(dtype), tuple(strides)
        self.address, self.device, self.writeable, self._owner = address, device, writeable, owner

    @classmethod
    def upload(cls, array: npt.ArrayLike) -> CudaArray:
        """A copy of the numpy array on the current device."""
        host = np.ascontiguousarray(array).reshape(np.shape(array))
        new, driver = cls.empty(host.shape, host.dtype), _driver()
        if host.nbytes:
            driver.check("copying to the device", driver.lib.ggmlq_cuda_upload(
                new.pointer(), driver.ffi.cast("void *", host.ctypes.data), host.nbytes, driver.STREAM,
            ))  # fmt: skip
        return new

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: npt.DTypeLike, device: int | None = None) -> CudaArray:
        """Unwritten memory of the current device, or of that one."""
        driver, dtype = _driver(), np.dtype(dtype)
        with driver.on_device(driver.current_device() if device is None else device):
            memory = driver.Memory(math.prod(shape) * dtype.itemsize)
        return cls(shape, dtype, _contiguous_strides(shape, dtype.itemsize), memory.address, memory.device, True, memory)

    @classmethod
    def adopt(cls, what: str, array: Any) -> CudaArray:
        """The same memory, after a wait for the stream that the array's interface names. `what` is the name of the argument."""
        if isinstance(array, cls):
            return array
        driver, interface = _driver(), array.__cuda_array_interface__
        if interface.get("mask") is not None:
            raise ValueError(f"{what}: found an array with a mask, wanted one without")
        dtype, shape = np.dtype(interface["typestr"]), tuple(map(operator.index, interface["shape"]))
        address, read_only = interface["data"]
        strides = interface.get("strides")
        strides = _contiguous_strides(shape, dtype.itemsize) if strides is None else tuple(map(operator.index, strides))
        if len(shape) > _MAX_AXES:
            raise ValueError(f"{what}: found {len(shape)} axes, wanted at most {_MAX_AXES}")
        stream = interface.get("stream")
        if stream == 0:
            raise ValueError(f"{what}: found stream 0 in its CUDA array interface, wanted 1 (legacy) or 2 (per thread)")
        if 0 in shape:
            device = driver.current_device()  # there may be no memory to ask about
        else:
            device = driver.pointer_device(address)
            if device is None:
                raise ValueError(f"{what}: found memory of the host in its CUDA array interface, wanted a device's")
        if stream is not None:
            with driver.on_device(device):
                driver.wait(driver.ffi.cast("void *", stream))
        return cls(shape, dtype, strides, address or 0, device, not read_only, array)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, not self.writeable),
            "strides": None if self.flags.c_contiguous else self.strides,
            "stream": None,  # nothing is pending
        }

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def flags(self) -> SimpleNamespace:
        """Those of numpy's flags that are asked for: aligned, c_contiguous, writeable."""
        steps = [self.address, *(s for s, n in zip(self.strides, self.shape) if n > 1)]
        wanted = _contiguous_strides(self.shape, self.itemsize)
        return SimpleNamespace(
            aligned=self.size == 0 or all(step % self.itemsize == 0 for step in steps),
            c_contiguous=self.size == 0
            or all(n == 1 or s == w for n, s, w in zip(self.shape, self.strides, wanted)),
            writeable=self.writeable,
        )  # fmt: skip

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a CudaArray without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"CudaArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        raise TypeError("a CudaArray is not copied to the host by accident: wanted a call of its .numpy()")

    def numpy(self) -> np.ndarray:
        """A copy in the host's memory."""
        host = np.empty(self.shape, self.dtype)
        self.download(host)
        return host

    def download(self, host: np.ndarray) -> None:
        """Copies it into a C-contiguous numpy array of the same shape and dtype."""
        packed, driver = self if self.flags.c_contiguous else self.copy(), _driver()
        if host.nbytes:
            with driver.on_device(packed.device):
                driver.check("copying from the device", driver.lib.ggmlq_cuda_download(
                    driver.ffi.cast("void *", host.ctypes.data), packed.pointer(), host.nbytes, driver.STREAM,
                ))  # fmt: skip

    def copy(self, order: str = "C") -> CudaArray:
        """A C-contiguous copy on the same device."""
        return self.broadcast_copy(self.shape)

    def broadcast_copy(self, shape: tuple[int, ...]) -> CudaArray:
        """A C-contiguous copy, repeated to `shape` by numpy's rules of broadcasting."""
        driver, new = _driver(), CudaArray.empty(shape, self.dtype, self.device)
        strides = [0 if n == 1 else s for n, s in zip(self.shape, self.strides)]
        strides = [0] * (len(shape) - self.ndim) + strides
        with driver.on_device(self.device):
            driver.check("copying on the device", driver.lib.ggmlq_cuda_pack(
                new.pointer(), self.pointer(), self.itemsize, len(shape), list(shape), strides, driver.STREAM,
            ))  # fmt: skip
        return new

    def reshape(self, *shape: Any) -> CudaArray:
        """Another shape of the same memory: of a C-contiguous array, or with axes of length 1 added in front."""
        new = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in new:
            known = -math.prod(new)
            new = tuple(self.size // known if n == -1 and known else max(n, 0) for n in new)
        if math.prod(new) != self.size:
            raise ValueError(f"reshape: found {self.shape}, wanted as many values as in {new}")
        if self.flags.c_contiguous:
            strides = _contiguous_strides(new, self.itemsize)
        elif new == (1,) * (len(new) - self.ndim) + self.shape:
            strides = (0,) * (len(new) - self.ndim) + self.strides
        else:
            raise ValueError(f"reshape: found strides {self.strides}, wanted a C-contiguous array")
        return CudaArray(new, self.dtype, strides, self.address, self.device, self.writeable, self._owner)

    def pointer(self) -> Any:
        """The address, for cffi."""
        return _driver().ffi.cast("void *", self.address)

    def bounds(self) -> tuple[int, int]:
        """Address of the first byte and of the one behind the last."""
        low = high = self.address
        if self.size == 0:
            return low, high
        for n, stride in zip(self.shape, self.strides):
            low, high = low + min(0, (n - 1) * stride), high + max(0, (n - 1) * stride)
        return low, high + self.itemsize

    def item(self, i: int) -> Any:
        """The value at flat index i of a C-contiguous array."""
        at = self.address + i * self.itemsize
        return CudaArray((), self.dtype, (), at, self.device, False, self._owner).numpy().item()

    def find_not_finite(self) -> int | None:
        """Flat index of the first NaN or infinity of a C-contiguous float32 array, or None."""
        return find_not_finite(self, self.address, self.itemsize, self.itemsize, self.size)


def find_not_finite(array: CudaArray, address: int, value_bytes: int, stride: int, n: int) -> int | None:
    """The same for n halves or floats, `stride` bytes apart, anywhere in that array's memory."""
    driver, result = _driver(), CudaArray.empty((), np.uint64, array.device)
    with driver.on_device(array.device):
        driver.check("looking for NaN", driver.lib.ggmlq_cuda_find_not_finite(
            driver.ffi.cast("void *", address), value_bytes, stride, n,
            driver.ffi.cast("uint64_t *", result.address), driver.STREAM,
        ))  # fmt: skip
    found = int(result.numpy())
    return None if found == 2**64 - 1 else found


def may_share_memory(a: np.ndarray | CudaArray, b: np.ndarray | CudaArray) -> bool:
    if isinstance(a, CudaArray) and isinstance(b, CudaArray):
        (a_low, a_high), (b_low, b_high) = a.bounds(), b.bounds()
        return a_low < b_high and b_low < a_high
    if isinstance(a, CudaArray) or isinstance(b, CudaArray):
        return False
    return np.may_share_memory(a, b)


def _contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = []
    for n in reversed(shape):
        strides.append(itemsize)
        itemsize *= max(n, 1)
    return tuple(reversed(strides))
