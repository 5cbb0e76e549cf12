# SPDX-License-Identifier: MIT
"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO, Iterator


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by the text, as UTF-8, or by the bytes, at once. Its folder exists."""
    temporary = path.with_name(path.name + ".new")
    if isinstance(content, str):
        temporary.write_text(content, encoding="utf-8")
    else:
        temporary.write_bytes(content)
    os.replace(temporary, path)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when everything is written and flushed, and otherwise leaves nothing behind."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "xb") as out:
        try:
            yield out
            out.flush()
            os.fsync(out.fileno())
        except BaseException:
            out.close()
            partial.unlink()
            raise
    try:
        os.replace(partial, path)
    except OSError:
        partial.unlink()
        raise
