# SPDX-License-Identifier: MIT
"""Writes the C source of the native module pyggmlq._ggmlq: build_cffi.py csrc/ggmlq.h OUTPUT.c

Run by CMakeLists.txt. The declarations are the text of ggmlq.h between its two cffi markers, so they cannot drift.
"""
from __future__ import annotations

import sys
from pathlib import Path

import cffi


def declarations(header: str) -> str:
    """The part of ggmlq.h that cffi reads."""
    _, begin, rest = header.partition("/* cffi: begin */")
    text, end, _ = rest.partition("/* cffi: end */")
    if not begin or not end:
        raise SystemExit("ggmlq.h: found no text between 'cffi: begin' and 'cffi: end', wanted the C declarations")
    return text.replace("GGMLQ_API ", "").replace("GGMLQ_CPU_API ", "")


def main(header: str, output: str) -> None:
    ffi = cffi.FFI()
    ffi.cdef(declarations(Path(header).read_text(encoding="utf-8")))
    ffi.set_source("pyggmlq._ggmlq", '#include "ggmlq.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
