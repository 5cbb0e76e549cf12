# SPDX-License-Identifier: MIT
"""Compiles csrc/cuda for the emulator (emulate.cpp).

    python tests/emulate/build.py FOLDER [compiler flags]     # FOLDER/check_emulated: tests/cuda/check_cuda.cu; FOLDER/ggmlq-hip.so

The sources stay as they are but for their launches, which no C++ compiler knows: kernel<<<grid, block, 0, stream>>>(arguments).
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNELS = ["rows", "round", "f16", "dot", "attend", "attend-plain", "attend-decode", "center", "sparse", "indexer", "memory"]
FLAGS = [
    "-std=c++17", "-O2", "-g1", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE",  # fortified longjmp knows one stack only
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-D__HIP_PLATFORM_AMD__", "-DPYGGMLQ_CUDA_LIBRARY",
    f"-I{HERE}", f"-I{ROOT / 'tests' / 'hip'}",
]  # fmt: skip

# The name and its template arguments, then the configuration up to >>>( .
LAUNCH = re.compile(r"(\b[A-Za-z_]\w*(?:<[^<>;{}]*>)?)<<<(.*?)>>>\(", re.DOTALL)


def split_arguments(text):
    """At the commas outside of all brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def translate(source):
    """kernel<<<grid, block, 0, stream>>>(arguments) -> emulated_launch(grid, block, stream, [&] { kernel(arguments); })"""
    result, at = "", 0
    for launch in LAUNCH.finditer(source):
        kernel, configuration = launch[1], split_arguments(launch[2])
        if len(configuration) != 4 or configuration[2].strip() != "0":
            raise ValueError(f"{kernel}: found <<<{launch[2]}>>>, wanted a grid, a block, 0 and a stream")
        end, depth = launch.end(), 1
        while depth:
            depth += (source[end] == "(") - (source[end] == ")")
            end += 1
        arguments = source[launch.end() : end - 1]
        result += source[at : launch.start()]
        result += f"emulated_launch(dim3({configuration[0]}), dim3({configuration[1]}),{configuration[3]}, [&] {{ {kernel}({arguments}); }})"
        at = end
    return result + source[at:]


def compilers():
    """(C++, C), or None."""
    for cxx, cc in ((os.environ.get("CXX"), os.environ.get("CC")), ("clang++", "clang"), ("g++", "gcc"), ("c++", "cc")):
        if cxx and cc and shutil.which(cxx) and shutil.which(cc):
            return cxx, cc
    return None


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def compile_unit(source, result, csrc, flags):
    """A .cu file -> an object file."""
    unit = result.with_suffix(".cpp")
    unit.write_text(f'#line 1 "{source}"\n' + translate(source.read_text(encoding="utf-8")), encoding="utf-8")
    run(compilers()[0], *FLAGS, f"-I{csrc}", f"-I{csrc / 'cuda'}", *flags, "-c", unit, "-o", result)
    return result


def build(folder, flags=(), csrc=ROOT / "csrc", units=(*KERNELS, "check_cuda"), others=None):
    """(check_emulated, ggmlq-hip.so) in that folder. `csrc` may be a copy with an error in it; the C reference is always the real one.
    Objects of units that aren't listed are taken from the folder `others` of an earlier build."""
    folder, (cxx, cc) = Path(folder), compilers()
    folder.mkdir(parents=True, exist_ok=True)

    def unit(name):
        if name not in units:
            return Path(others) / f"{name}.o"
        source = ROOT / "tests" / "cuda" / "check_cuda.cu" if name == "check_cuda" else csrc / "cuda" / f"ggmlq-cuda-{name}.cu"
        return compile_unit(source, folder / f"{name}.o", csrc, flags)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        *kernels, check = pool.map(unit, [*KERNELS, "check_cuda"])
    run(cxx, *FLAGS, *flags, "-c", HERE / "emulate.cpp", "-o", folder / "emulate.o")
    run(cc, "-std=c11", "-O2", "-fPIC", f"-I{ROOT / 'csrc'}", "-c", ROOT / "csrc" / "ggmlq-codec.c", "-o", folder / "codec.o")
    common = [*kernels, folder / "emulate.o", folder / "codec.o", *flags, "-lm"]
    run(cxx, check, *common, "-o", folder / "check_emulated")
    run(cxx, "-shared", *common, "-o", folder / "ggmlq-hip.so")
    return folder / "check_emulated", folder / "ggmlq-hip.so"


def build_adapter(folder, tree, others, again=False):
    """check_adapter in that folder: ggml-cuda-ggmlq.cu of a patched tree, over the emulated kernels of the folder `others`. `again`: only that file
    has changed since the last time."""
    folder, (cxx, cc) = Path(folder), compilers()
    folder.mkdir(parents=True, exist_ok=True)
    source, here = tree / "ggml" / "src", HERE / "ggml-cuda"
    common = ["-O1", "-g0", "-w", "-ffunction-sections", "-fdata-sections",
              *(f"-I{path}" for path in (folder, here, source / "ggml-cuda", source, tree / "ggml" / "include", ROOT / "csrc", ROOT / "csrc" / "ggml"))]  # fmt: skip
    (folder / "ggml-version.h").write_text('#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n', encoding="utf-8")  # CMake makes it
    shutil.copy(source / "ggml-cuda" / "ggml-cuda-ggmlq.cu", folder / "adapter.cpp")  # beside it lie upstream's headers, which come first
    units = {
        "adapter": [cxx, "-std=c++17", folder / "adapter.cpp"], "check": [cxx, "-std=c++17", here / "check_adapter.cpp"],
        "threading": [cxx, "-std=c++17", source / "ggml-threading.cpp"],
        **{name: [cc, '-DGGML_VERSION="0"', '-DGGML_COMMIT="0"', source / f"{name}.c"] for name in ("ggml", "ggml-quants", "ggml-ggmlq", "ggmlq-codec")},
    }  # fmt: skip
    for name, (compiler, *arguments) in list(units.items())[: 1 if again else None]:
        run(compiler, *common, *arguments, "-c", "-o", folder / f"{name}.o")
    run(cxx, "-Wl,--gc-sections", *(folder / f"{name}.o" for name in units), *(others / f"{name}.o" for name in (*KERNELS, "emulate")), "-lm",
        "-o", folder / "check_adapter")  # fmt: skip
    return folder / "check_adapter"


def build_faults(folder):
    """faults.cu in that folder: kernels that are wrong."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cxx = compilers()[0]
    run(cxx, *FLAGS, "-c", HERE / "emulate.cpp", "-o", folder / "emulate.o")
    run(cxx, compile_unit(HERE / "faults.cu", folder / "faults.o", ROOT / "csrc", ()), folder / "emulate.o", "-o", folder / "faults")
    return folder / "faults"


if __name__ == "__main__":
    build(sys.argv[1], sys.argv[2:])
