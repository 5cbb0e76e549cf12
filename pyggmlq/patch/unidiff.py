# SPDX-License-Identifier: MIT
"""Unified diffs of bytes, in the form that `git apply` accepts."""

from __future__ import annotations

import difflib
from typing import Iterable

_NO_NEWLINE = b"\n\\ No newline at end of file\n"


def unified(files: Iterable[tuple[str, bytes | None, bytes | None]]) -> bytes:
    """One diff of (path, before, after); None stands for a file that isn't there."""
    return b"".join(_one(path, before, after) for path, before, after in files if before != after)


def _one(path: str, before: bytes | None, after: bytes | None) -> bytes:
    out = [f"diff --git a/{path} b/{path}\n".encode()]
    if before is None:
        out.append(b"new file mode 100644\n")
    if after is None:
        out.append(b"deleted file mode 100644\n")
    old = b"/dev/null" if before is None else f"a/{path}".encode()
    new = b"/dev/null" if after is None else f"b/{path}".encode()
    for line in difflib.diff_bytes(difflib.unified_diff, _lines(before), _lines(after), old, new, lineterm=b"\n"):
        out.append(line if line.endswith(b"\n") else line + _NO_NEWLINE)
    return b"".join(out)


def _lines(data: bytes | None) -> list[bytes]:
    lines = (data or b"").split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
