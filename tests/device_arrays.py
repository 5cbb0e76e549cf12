# SPDX-License-Identifier: MIT
"""numpy arrays as they are, views and all, in device memory: so that one test serves both kinds of array."""
from __future__ import annotations

import ctypes
import inspect

import numpy as np

import pyggmlq
from pyggmlq import CudaArray

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # numpy 1
    from numpy import byte_bounds

FUNCTIONS = ("quantize", "dequantize", "rotate", "unrotate", "vec_dot", "mul_mat_vec", "set_rows", "get_rows", "flash_attn")


class Foreign:
    """Another library's array: known by its interface alone."""

    def __init__(self, array, **changes):
        self.owner = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


class Mirror:
    """Device copies of the memory that arrays are views of: views of one array stay views of one memory."""

    def __init__(self):
        self.roots = {}

    def __call__(self, array):
        """The same view on the device."""
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        low, high = byte_bounds(root)
        if low not in self.roots:
            everything = np.frombuffer((ctypes.c_char * (high - low)).from_address(low), np.uint8)
            self.roots[low] = (CudaArray.upload(everything), everything, root)
        memory = self.roots[low][0]
        address = memory.address + array.__array_interface__["data"][0] - low
        return CudaArray(array.shape, array.dtype, array.strides, address, memory.device, array.flags.writeable, memory)

    def bring_back(self):
        """What was written on the device, into the numpy arrays."""
        for memory, everything, root in self.roots.values():
            if root.flags.writeable:
                everything[...] = memory.numpy()


def on_device(function, wrap=lambda array: array, backend="cuda"):
    """The function of pyggmlq with every numpy array in device memory, and its result brought back."""

    def call(*arguments, **options):
        bound = inspect.signature(function).bind(*arguments, **options)
        mirror, given, wrapped = Mirror(), dict(bound.arguments), {}
        for name, value in given.items():
            if name == "term" and value is not None:
                bound.arguments[name] = type(value)(*(wrap(mirror(x)) if isinstance(x, np.ndarray) else x for x in value))
            if isinstance(value, np.ndarray) and name != "indices":
                if id(value) not in wrapped:  # `out` may be an input
                    wrapped[id(value)] = wrap(mirror(value))
                bound.arguments[name] = wrapped[id(value)]
        bound.arguments["backend"] = backend
        result = function(*bound.args, **bound.kwargs)
        mirror.bring_back()
        if given.get("out") is not None:
            assert result is bound.arguments["out"]
            return given["out"]
        assert result is None or isinstance(result, CudaArray)
        return None if result is None else result.numpy()

    return call


def use(monkeypatch, wrap=lambda array: array, backend="cuda"):
    """Every function of pyggmlq that is asked for that backend gets its arrays on the device."""
    for name in FUNCTIONS:
        function = getattr(pyggmlq, name)

        def choose(*arguments, function=function, **options):
            bound = inspect.signature(function).bind(*arguments, **options)
            if bound.arguments.get("backend") == backend:
                return on_device(function, wrap, backend)(*arguments, **options)
            return function(*arguments, **options)

        monkeypatch.setattr(pyggmlq, name, choose)
