# SPDX-License-Identifier: MIT
"""Compiles csrc/metal for the emulator.

    python tests/emulate/build_metal.py FOLDER [compiler flags]    # check_emulated: tests/cuda/check_cuda.cu; check_indexed; ggmlq-metal.so

The kernels are those that Metal gets: the same flattened text. Address spaces are macros (metal/metal_stdlib), attributes are checked against
the list below and left out.
"""
from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build

sys.path.insert(0, str(build.ROOT / "pyggmlq"))
import _metal_source

# Attributes that csrc/metal uses, all in the Metal Shading Language Specification.
ATTRIBUTES = (
    r"kernel, max_total_threads_per_threadgroup\(\w+\)", r"buffer\(\d+\)", r"threadgroup\(\d\)", r"function_constant\(\w+\)",
    r"thread_position_in_grid", r"threadgroup_position_in_grid", r"thread_index_in_threadgroup", r"simdgroup_index_in_threadgroup",
    r"thread_index_in_simdgroup",
)  # fmt: skip
# -Weverything but for what is no error here.
STRICT = [
    "-Weverything", "-Werror", "-Wno-c++98-compat", "-Wno-c++98-compat-pedantic",
    "-Wno-unknown-warning-option",  # of older compilers
    "-Wno-unknown-pragmas",         # METAL fp is Metal's
    "-Wno-unsafe-buffer-usage",     # Metal has pointers, not containers
    "-Wno-old-style-cast",          # ggmlq-values.h is C as well
    "-Wno-float-equal",             # comparisons with 0 and infinity are meant
]  # fmt: skip


def kernels(csrc=build.ROOT / "csrc"):
    """The flattened .metal text, without attributes; ValueError if one isn't known."""

    def attribute(match):
        if not any(re.fullmatch(known, match[1]) for known in ATTRIBUTES):
            raise ValueError(f"the attribute [[{match[1]}]] isn't on the list of tests/emulate/build_metal.py")
        return ""

    return re.sub(r" *\[\[(.*?)\]\]", attribute, _metal_source.flatten(csrc / "metal" / "ggmlq-metal.metal"))


def include(csrc, folder):
    here = build.HERE
    return [f"-I{folder}", f"-I{here / 'metal'}", f"-I{here}", f"-I{csrc}", f"-I{csrc / 'cuda'}", f"-I{csrc / 'metal'}", f"-I{build.ROOT / 'tests' / 'hip'}"]


def compile_kernels(folder, csrc=build.ROOT / "csrc", flags=()):
    """run.o in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ggmlq-metal-kernels.inc").write_text(kernels(csrc), encoding="utf-8")
    usual = [flag for flag in build.FLAGS if not flag.startswith("-I")]
    build.run(build.compilers()[0], *usual, *include(csrc, folder), *flags, "-c", build.HERE / "metal" / "run.cpp", "-o", folder / "run.o")
    return folder / "run.o"


def build_all(folder, csrc=build.ROOT / "csrc", flags=()):
    """(check_emulated, check_indexed, ggmlq-metal.so) in that folder."""
    folder, (cxx, cc) = Path(folder), build.compilers()
    folder.mkdir(parents=True, exist_ok=True)
    root = build.ROOT / "csrc"
    c = [cc, "-std=c11", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", *include(root, folder), *flags, "-DPYGGMLQ_CUDA_LIBRARY"]
    usual = [*build.FLAGS, *include(root, folder), *flags]
    check = build.ROOT / "tests" / "cuda" / "check_cuda.cu"
    jobs = [
        lambda: compile_kernels(folder, csrc, flags),
        lambda: build.compile_unit(check, folder / "check.o", root, [*flags, "-DGGMLQ_CHECK_METAL"]),
        # Memory and devices are those of the HIP emulator: a Mac's are in ggmlq-metal-device.mm.
        lambda: build.compile_unit(root / "cuda" / "ggmlq-cuda-memory.cu", folder / "memory.o", root, flags),
        lambda: build.run(cxx, *usual, "-c", build.HERE / "emulate.cpp", "-o", folder / "emulate.o"),
        lambda: build.run(cxx, *usual, "-c", build.HERE / "metal" / "check_indexed.cpp", "-o", folder / "indexed.o"),
        lambda: build.run(*c, "-c", root / "ggmlq-codec.c", "-o", folder / "codec.o"),
        lambda: build.run(*c, "-c", root / "metal" / "ggmlq-metal-plan.c", "-o", folder / "plan.o"),
        lambda: build.run(*c, "-c", root / "metal" / "ggmlq-metal-api.c", "-o", folder / "api.o"),
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: job(), jobs))
    return link(folder, folder, flags)


def link(folder, others, flags=()):
    """The programs of `folder`, whose run.o is its own and whose other objects are of `others`."""
    cxx = build.compilers()[0]
    common = [folder / "run.o", *(others / f"{name}.o" for name in ("emulate", "plan", "api", "memory", "codec")), *flags, "-lm"]
    build.run(cxx, others / "check.o", *common, "-o", folder / "check_emulated")
    build.run(cxx, others / "indexed.o", *common, "-o", folder / "check_indexed")
    build.run(cxx, "-shared", *common, "-o", folder / "ggmlq-metal.so")
    return folder / "check_emulated", folder / "check_indexed", folder / "ggmlq-metal.so"


def build_ops(folder, tree, others, units=None):
    """check_ops in that folder: the C++ of a patched tree's ggml-metal as it is, over the emulated kernels of the folder `others`. `units`: the
    files that are compiled, None: all; objects of the rest are there already."""
    folder, (cxx, cc) = Path(folder), build.compilers()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ggml-version.h").write_text('#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n', encoding="utf-8")  # CMake makes it
    source = tree / "ggml" / "src"
    metal = source / "ggml-metal"
    common = ["-ffunction-sections", "-fdata-sections", *(f"-I{path}" for path in (folder, metal, source, tree / "ggml" / "include"))]
    ours = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    theirs = [path for name in ("device", "ops", "common", "fusion", "tuning") if (path := metal / f"ggml-metal-{name}.cpp").is_file()]
    jobs = [
        (metal / "ggml-metal-ggmlq.cpp", [cxx, "-std=c++17", *ours]),
        (build.HERE / "metal" / "check_ops.cpp", [cxx, "-std=c++17", "-w", f"-I{build.HERE / 'metal'}", f"-I{build.ROOT / 'csrc' / 'metal'}"]),
        *((path, [cxx, "-std=c++17", "-w", "-include", "memory"]) for path in [*theirs, source / "ggml-threading.cpp"]),
        *((source / name, [cc, "-w", '-DGGML_VERSION="0"', '-DGGML_COMMIT="0"']) for name in ("ggml.c", "ggml-quants.c", "ggml-ggmlq.c")),
        *((path, [cc, "-std=c11", *ours]) for path in (source / "ggmlq-codec.c", metal / "ggmlq-metal-plan.c")),
    ]
    with ThreadPoolExecutor(2) as pool:
        wanted = [(path, start) for path, start in jobs if units is None or path.name in units]
        list(pool.map(lambda job: build.run(*job[1], *common, "-c", job[0], "-o", folder / f"{job[0].name}.o"), wanted))
    objects = [*(folder / f"{path.name}.o" for path, _ in jobs), *(others / f"{name}.o" for name in ("run", "emulate"))]
    build.run(cxx, "-Wl,--gc-sections", *objects, "-lm", "-o", folder / "check_ops")  # what nobody calls has no stand-in
    return folder / "check_ops"


if __name__ == "__main__":
    build_all(sys.argv[1], flags=sys.argv[2:])
