# SPDX-License-Identifier: MIT
"""Where the C sources and the hooks lie: inside an installed package, or at the top of a checkout."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds ``csrc/`` and ``ggml_patch/``."""
    for candidate in (_PACKAGE / "_sources", _PACKAGE.parent):
        if (candidate / "csrc" / "ggmlq-types.def").is_file():
            return candidate
    raise FileNotFoundError(
        f"pyggmlq's C sources were found neither in {_PACKAGE / '_sources'} nor in {_PACKAGE.parent / 'csrc'}. "
        "The installation is incomplete: reinstall pyggmlq."
    )


def version() -> str:
    """pyggmlq's version; a checkout's pyproject.toml wins over an older installation of the same name."""
    pyproject = _PACKAGE.parent / "pyproject.toml"
    if (_PACKAGE.parent / "csrc").is_dir() and pyproject.is_file():
        found = re.search(r'^version\s*=\s*"([^"]+)"', pyproject.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found.group(1)
    try:
        return importlib.metadata.version("pyggmlq")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
