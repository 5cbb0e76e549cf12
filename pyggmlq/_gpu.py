# SPDX-License-Identifier: MIT
"""Which GPU library this installation has: csrc/cuda compiled for CUDA or for HIP, or csrc/metal, which has the same functions. One, or none.

All three back ends are the same modules (_cuda.py and what it imports); names and words that differ are here.
"""
from __future__ import annotations

import importlib
import sys
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
        if self.backend == "metal" and sys.platform != "darwin":
            return "Metal is Apple's: this back end can be built on macOS only."
        return (
            f"This installation was built without {self.title}: reinstall from the sources with "
            f"-C cmake.define.PYGGMLQ_{self.backend.upper()}=ON, which needs {self.compiler}."
        )


PLATFORMS = {
    platform.backend: platform
    for platform in (
        Platform("cuda", "CUDA", "NVIDIA driver", "nvcc", (1000, 10)),
        Platform("hip", "HIP", "AMD driver", "ROCm", (10_000_000, 100_000)),
        Platform("metal", "Metal", "Metal device", "Xcode's command line tools", (1000, 10)),
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
