# SPDX-License-Identifier: MIT
"""The quality lab: what a cache type costs on a model, on data, and in memory. docs/LAB.md says how to read it."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["LabError", "require"]


class LabError(RuntimeError):
    """Something that the user gave can't be used; the message is one sentence that says what was found and wanted."""


def require(name: str) -> ModuleType:
    """The module `name` of the extra `lab`; `LabError` with the command that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise LabError(f"the package {package} is not installed: pip install 'pyggmlq[lab]'") from None
