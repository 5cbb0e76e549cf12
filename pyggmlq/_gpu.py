# SPDX-License-Identifier: MIT
"""Which GPU library this installation has: csrc/cuda compiled for CUDA, or the same for HIP. One of them, or none.

Both back ends are the same modules (_cuda.py and what it imports); names and words that differ are here.
"""
from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Platform:
    backend: str
    title: str
    driver: str
    compiler: str
    version_parts: tuple[int, int]
    """A version number is major * the first + minor * the second."""

    @property
    def binding(self) -> str:
        """The generated module beside the library, which bears the same name but for the underscores."""
        return f"_ggmlq_{self.backend}"

    @property
    def not_built(self) -> str:
        return (
            f"This installation was built without {self.title}: reinstall from the sources with "
            f"-C cmake.define.PYGGMLQ_{self.title}=ON, which needs {self.compiler}."
        )


PLATFORMS = {
    platform.backend: platform
    for platform in (
        Platform("cuda", "CUDA", "NVIDIA driver", "nvcc", (1000, 10)),
        Platform("hip", "HIP", "AMD driver", "ROCm", (10_000_000, 100_000)),
    )
}


def find() -> tuple[Platform, ModuleType] | None:
    """What this installation was built for, and the generated binding."""
    for platform in PLATFORMS.values():
        try:
            return platform, importlib.import_module(f"{__package__}.{platform.binding}")
        except ImportError:
            continue
    return None


def require(backend: str) -> None:
    """ImportError if the installation has no library for that back end."""
    found = find()
    if found is None or found[0].backend != backend:
        raise ImportError(PLATFORMS[backend].not_built)
