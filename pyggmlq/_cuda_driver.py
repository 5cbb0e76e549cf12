# SPDX-License-Identifier: MIT
"""The GPU library (csrc/cuda, compiled for CUDA or for HIP), devices and their memory.

Importing this module raises ImportError with one sentence that says why the GPU can't be used here; nothing else depends on it.
The library is loaded, not linked, so that a package built with it works on a machine without a driver.
"""
from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from . import _gpu

_found = _gpu.find()
if _found is None:
    raise ImportError(_gpu.PLATFORMS["cuda"].not_built)
PLATFORM, _binding = _found  # the binding was generated beside the library, from the headers that it was compiled with

ffi = _binding.ffi
LIBRARY = Path(_binding.__file__).with_name(f"ggmlq-{PLATFORM.backend}.{'dll' if sys.platform == 'win32' else 'so'}")

# The legacy default stream, which waits for other streams of its device and they for it, but for those that opted out.
STREAM = ffi.NULL


class CudaError(RuntimeError):
    """The driver refused: out of memory, an illegal access, a device that was lost."""


def text(error):
    """One phrase for an error code of csrc/cuda."""
    return ffi.string(lib.ggmlq_cuda_memory_error_text(error)).decode()


def check(what, error):
    """`what` was attempted; `error` is what the function of ggmlq-cuda-memory.h gave."""
    if error < 0:
        raise CudaError(f"{PLATFORM.title}: {what} failed: {text(error)}")


def _version(number):
    major, minor = PLATFORM.version_parts
    return f"{number // major}.{number % major // minor}"


def _load():
    try:
        return ffi.dlopen(str(LIBRARY))
    except OSError as error:
        raise ImportError(f"The {PLATFORM.title} library can't be loaded: {error}.") from error


def _why_unusable():
    """One sentence, or "" if the current device can run the kernels."""
    driver, runtime, count = ffi.new("int *"), ffi.new("int *"), ffi.new("int *")
    lib.ggmlq_cuda_versions(driver, runtime)
    error = lib.ggmlq_cuda_device_count(count)
    if driver[0] == 0:
        return f"Found no {PLATFORM.driver}: {text(error) if error else 'its version is unknown'}."
    if error or count[0] == 0:
        reason = text(error) if error else "it lists no device"
        return (
            f"The {PLATFORM.driver} can't be used: {reason} (it serves {PLATFORM.title} up to {_version(driver[0])}, "
            f"this installation was built with {_version(runtime[0])})."
        )
    error = lib.ggmlq_cuda_device_probe()
    if error:
        return (
            f"The {PLATFORM.title} library holds no code for {describe_device()}: {text(error)}. Reinstall on this machine with "
            f"-C cmake.define.PYGGMLQ_{PLATFORM.backend.upper()}=ON."
        )
    return ""


def current_device():
    device = ffi.new("int *")
    check("asking for the current device", lib.ggmlq_cuda_device_get(device))
    return device[0]


def describe_device(device=None):
    """Name and architecture: "NVIDIA H100 80GB HBM3 (compute capability 9.0)", "AMD Instinct MI210 (gfx90a:sramecc+:xnack-)"."""
    info = ffi.new("struct ggmlq_cuda_device *")
    check("asking for a device's name", lib.ggmlq_cuda_device_info(current_device() if device is None else device, info))
    name = ffi.string(info.name).decode()
    return f"{name} (compute capability {info.major}.{info.minor})" if PLATFORM.backend == "cuda" else name


def pointer_device(address):
    """Number of the device that can read this address; None: none, or not known to the driver."""
    device = ffi.new("int *")
    error = lib.ggmlq_cuda_pointer_device(ffi.cast("void *", address), device)
    return None if error or device[0] < 0 else device[0]


@contextlib.contextmanager
def on_device(device):
    """Makes it the current device of this thread, then the one before."""
    before = current_device()
    if device != before:
        check(f"choosing device {device}", lib.ggmlq_cuda_device_set(device))
    try:
        yield
    finally:
        if device != before:
            lib.ggmlq_cuda_device_set(before)


def wait(stream=STREAM):
    """Until the stream has done what was queued; what failed on the device is reported here."""
    check("running a kernel", lib.ggmlq_cuda_synchronize(stream))


class Memory:
    """A piece of the current device's memory, which the last reference to this object frees."""

    def __init__(self, n_bytes):
        pointer = ffi.new("void **")
        self.address, self.device = 0, current_device()
        check(f"allocating {n_bytes} bytes", lib.ggmlq_cuda_allocate(pointer, n_bytes))
        self.address = int(ffi.cast("uintptr_t", pointer[0]))

    def __del__(self):
        if getattr(self, "address", 0):
            lib.ggmlq_cuda_release(ffi.cast("void *", self.address))
            self.address = 0


lib = _load()
_reason = _why_unusable()
if _reason:
    raise ImportError(_reason)
