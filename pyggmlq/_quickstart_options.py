# SPDX-License-Identifier: MIT
"""Options of the quickstart. Standard library only, and imports nothing of the package: ``tools/quickstart`` loads this
file by its path to check the command line before any environment exists."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_DESCRIPTION = """\
Build llama.cpp with the 3-bit KV-cache types and compare them, on two small models, with f16, q8_0 and q4_0.

Everything made lies in the work folder. Run it again and it goes on where it stopped; delete the folder to start over.
"""

_EPILOG = """\
exit status: 0 all measured and plausible; 1 a step failed, or a result is implausible; 2 usage; 130 interrupted
"""


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parser(program: str, work: Path) -> argparse.ArgumentParser:
    """The command line; `work` is the default work folder."""
    result = argparse.ArgumentParser(
        prog=program, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--tree",
        type=_folder,
        metavar="PATH",
        help="your own llama.cpp: it is patched in place (`pyggmlq revert PATH` undoes that) and built in the work folder; "
        "default: a pinned version from the package index",
    )
    result.add_argument(
        "--model",
        type=_gguf,
        action="append",
        default=[],
        metavar="PATH",
        help="your own .gguf instead of the two small models; may be repeated",
    )
    result.add_argument(
        "--text", type=_file, metavar="PATH", help="text to measure on; default: prose of the tree's own documents"
    )
    result.add_argument(
        "--threads",
        type=_positive,
        default=available_threads(),
        metavar="N",
        help="for building and running (default: %(default)s)",
    )
    result.add_argument(
        "--quick", action="store_true", help="fewer tokens: about a third of the time, wider error bars"
    )
    result.add_argument(
        "--cmake",
        action="append",
        default=[],
        metavar="ARG",
        help="further CMake argument, e.g. --cmake=-DGGML_CUDA=ON; may be repeated",
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    result.add_argument("--work-dir", type=Path, default=work, metavar="PATH", help="default: %(default)s")
    result.add_argument("--invoked-as", default=program, help=argparse.SUPPRESS)
    return result


def _folder(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def _file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return path


def _gguf(text: str) -> Path:
    path = _file(text)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise argparse.ArgumentTypeError(f"{text} is not a GGUF file")
    return path


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a number from 1 up, found {text!r}")
    return int(text)
