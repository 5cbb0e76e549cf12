# SPDX-License-Identifier: MIT
"""Writes what Python needs to call the compiled code; run by CMakeLists.txt.

    build_cffi.py OUTPUT.c  HEADER...   C source of the native module pyggmlq._ggmlq
    build_cffi.py OUTPUT.py HEADER...   the module pyggmlq.OUTPUT: the declarations of a library that is loaded at run time

The declarations are the texts of the headers between their two cffi markers, so they cannot drift.
"""
from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi


def declarations(name: str, header: str) -> str:
    """The part of a header that cffi reads."""
    _, begin, rest = header.partition("/* cffi: begin */")
    text, end, _ = rest.partition("/* cffi: end */")
    if not begin or not end:
        raise SystemExit(f"{name}: found no text between 'cffi: begin' and 'cffi: end', wanted the C declarations")
    return re.sub(r"\bGGMLQ_(CPU_|CUDA_)?API ", "", text)


def main(output: str, *headers: str) -> None:
    ffi = cffi.FFI()
    for header in map(Path, headers):
        ffi.cdef(declarations(header.name, header.read_text(encoding="utf-8")))
    if output.endswith(".py"):
        ffi.set_source(f"pyggmlq.{Path(output).stem}", None)
        ffi.emit_python_code(output)
    else:
        ffi.set_source("pyggmlq._ggmlq", "".join(f'#include "{Path(header).name}"\n' for header in headers))
        ffi.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
