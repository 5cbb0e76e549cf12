# SPDX-License-Identifier: MIT
"""csrc as source: what it may contain, the standards and warnings it compiles under, bytes that no compiler flag changes,
and a fuzz run under the sanitizers. Needs a C compiler; runs with every one of gcc and clang that is there."""
from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pyggmlq import reference
from pyggmlq._types import cache_types

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SOURCES = [CSRC / "ggmlq-codec.c", *sorted((CSRC / "cpu").glob("*.c"))]
COMPILERS = [(c, cxx) for c, cxx in (("gcc", "g++"), ("clang", "clang++")) if shutil.which(c) and shutil.which(cxx)]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]

each_compiler = pytest.mark.parametrize(
    "cc, cxx",
    COMPILERS or [pytest.param(None, None, marks=pytest.mark.skip(reason="found neither gcc nor clang"))],
)


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


# --- what the sources may contain ---------------------------------------------------------------------------------------


def kernel_sources():
    """Everything outside csrc/ggml, which alone may know ggml."""
    found = [p for p in sorted(CSRC.rglob("*")) if p.is_file() and CSRC / "ggml" not in p.parents]
    assert len(found) >= 6
    return found


def code(path):
    """The file without comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_kernels_know_no_ggml():
    for path in kernel_sources():
        assert not re.search(r"\bggml_|\bGGML_TYPE|ggml\.h|ggml-impl\.h", code(path)), path.name


def test_kernels_allocate_nothing():
    kept = "static thread_local cudaError_t last_error = "  # what the driver said, until it is asked for
    assert sum(kept in code(path) for path in kernel_sources()) == 1
    for path in kernel_sources():
        if path.suffix == ".mm":  # Metal's run time: it keeps pipelines, and buffers by address
            continue
        assert not re.search(r"\b(malloc|calloc|realloc|alloca|free|new|delete|thread_local|_Thread_local)\b", code(path).replace(kept, "")), path.name


def test_only_the_deps_header_includes_the_system():
    for path in kernel_sources():
        if path.name not in ("ggmlq-deps.h", "ggmlq-cuda-deps.cuh") and path.parent in (CSRC, CSRC / "cpu", CSRC / "cuda"):
            assert not re.search(r"#\s*include\s*<", code(path)), path.name


def test_text_is_ascii_with_unix_newlines():
    """The files are copied byte for byte into trees with their own habits."""
    for path in sorted(CSRC.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            assert data.isascii() and b"\r" not in data and b"\t" not in data and data.endswith(b"\n"), path.name


# --- how they compile ---------------------------------------------------------------------------------------------------


@each_compiler
def test_headers_are_c11_and_cxx17(cc, cxx, tmp_path):
    for header in ("ggmlq.h", "ggmlq-block.h", "ggmlq-tables.h", "ggmlq-deps.h", "metal/ggmlq-metal-plan.h"):
        unit = tmp_path / "unit.c"
        unit.write_text(f'#include "{header}"\n#include "{header}"\nint main(void) {{ return 0; }}\n')
        run(cc, "-std=c11", *WARNINGS, "-fsyntax-only", f"-I{CSRC}", f"-I{CSRC / 'cuda'}", unit)
        run(cxx, "-std=c++17", "-x", "c++", *WARNINGS, "-fsyntax-only", f"-I{CSRC}", f"-I{CSRC / 'cuda'}", unit)


NATIVE = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"  # every level that there is
BUILDS = {
    "plain": ["-O3", "-std=c11", "-ffp-contract=off"],
    "gnu": ["-O2", "-std=gnu11"],
    "contract": ["-O3", "-std=gnu11", NATIVE, "CONTRACT"],
    "no inlining": ["-O2", "-std=gnu11", NATIVE, "CONTRACT", "-fno-inline"],
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """library(cc, build): compiled without a warning, once."""
    folder, made = tmp_path_factory.mktemp("libraries"), {}

    def get(cc, build):
        path = folder / f"{cc}-{build}.so"
        if path not in made:
            # Clang's plain "fast" disregards every pragma, its manual says; nothing in a source file can answer that.
            contract = "-ffp-contract=fast" if cc == "gcc" else "-ffp-contract=on"
            flags = [contract if flag == "CONTRACT" else flag for flag in BUILDS[build]]
            run(cc, "-shared", "-fPIC", *flags, *WARNINGS, f"-I{CSRC}", *SOURCES, "-lm", "-o", path)
            made[path] = ctypes.CDLL(str(path))
        return made[path]

    return get


@each_compiler
@pytest.mark.parametrize("build", BUILDS)
def test_sources_compile_without_a_warning(library, cc, cxx, build):
    library(cc, build)


@each_compiler
def test_no_flag_changes_a_byte(library, cc, cxx):
    """Encoder, decoder, rotations and query are written with every rounding named, so contraction to fused operations
    and wider vectors must not matter, also in the GNU dialect, where GCC contracts unless it is told not to."""
    macros = run(cc, NATIVE, "-dM", "-E", "-", input="")
    if not re.search(r"__FMA__|__ARM_FEATURE_FMA|__aarch64__", macros):
        pytest.skip("this processor has no fused multiply-add, so nothing could differ")

    plain, *others = (library(cc, build) for build in BUILDS)
    x = np.random.default_rng(17).standard_normal((2000, 512), np.float32)

    def outputs(of, info):
        def call(function, array, dtype, bytes_per_block):
            out = np.zeros(array.size // per_block(array) * bytes_per_block, np.uint8)
            f = getattr(of, function)
            f.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
            assert f(info.id, array.ctypes.data, out.ctypes.data, x.size) == 0
            return out.view(dtype)

        def per_block(array):
            return info.block_length if array.dtype == np.float32 else info.block_bytes

        row = call("ggmlq_encode_row", x, np.uint8, info.block_bytes)
        yield "encode", row
        yield "decode", call("ggmlq_decode_row", row, np.float32, 4 * info.block_length)
        yield "rotate", call("ggmlq_rotate_row", x, np.float32, 4 * info.block_length)
        yield "unrotate", call("ggmlq_unrotate_row", x, np.float32, 4 * info.block_length)
        yield "query", call("ggmlq_encode_query_row", x, np.uint8, 4 + info.block_length)

    for info in cache_types():
        wanted = dict(outputs(plain, info))
        blocks = reference.CODECS[info.name].encode_blocks(x.reshape(-1, info.block_length))
        assert np.array_equal(wanted["encode"], blocks.view(np.uint8))
        for build, other in zip(list(BUILDS)[1:], others):
            for what, found in outputs(other, info):
                assert np.array_equal(found, wanted[what]), f"{info.name} {what} differs: {build}"


# --- sanitizers -----------------------------------------------------------------------------------------------------------


def sanitizers_work(cc, folder):
    """Whether an empty program with the sanitizers links and runs here; their libraries are often a separate package."""
    unit = folder / "empty.c"
    unit.write_text("int main(void) { return 0; }\n")
    command = [cc, "-fsanitize=address,undefined", str(unit), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True).returncode == 0 and subprocess.run([folder / "empty"]).returncode == 0


@each_compiler
def test_fuzz_under_the_sanitizers(cc, cxx, tmp_path):
    if not sanitizers_work(cc, tmp_path):
        pytest.skip(f"{cc} has no address and undefined-behaviour sanitizer here")
    binary = tmp_path / "fuzz_codec"
    run(
        cc, "-std=c11", "-O1", "-fno-inline", "-g1", NATIVE, *WARNINGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{CSRC}",
        *SOURCES, ROOT / "tests" / "fuzz" / "fuzz_codec.c", "-lm", "-o", binary,
    )  # fmt: skip
    assert run(binary, 3000) == "3000 inputs\n"
