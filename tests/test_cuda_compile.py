# SPDX-License-Identifier: MIT
"""csrc/cuda compiles where nvcc is, GPU or not: without a warning, as llama.cpp does it, and without registers spilled to memory in a loop."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHITECTURE = "sm_90"

# Bytes of stores. With 32 columns (the fourth argument, in eights) the decode kernels use all registers that a thread can have; with fewer, and all others, none is spilled.
ALLOWED_SPILLS = {"ELi4ELi8ELi16ELi2ELi1ELi": 72}

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="found no nvcc, neither on the path nor in /usr/local/cuda/bin")


def compile_one(source, folder, architecture=ARCHITECTURE):
    """(exit code, output). The flags are llama.cpp's, and the report of resources."""
    command = [
        NVCC, "-std=c++17", "-O3", "-use_fast_math", "-extended-lambda", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings",
        "-Xcompiler", "-Wall,-Wextra,-Werror", f"-I{ROOT / 'csrc'}", f"-I{CUDA}", "-c", source, "-o", folder / f"{source.stem}.o",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{file name: (exit code, output)}"""
    folder = tmp_path_factory.mktemp("cuda")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip([s.name for s in SOURCES], pool.map(lambda source: compile_one(source, folder), SOURCES)))


def kernels(report):
    """{mangled name of a kernel: (stack bytes, bytes of spill stores, registers)} of what ptxas -v prints."""
    found = {}
    for entry in re.split(r"ptxas info\s*: Compiling entry function ", report)[1:]:
        name = re.match(r"'([^']+)' for 'sm_\d+'", entry)[1]
        stack, stores = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, \d+ bytes spill loads", entry).groups())
        found[name] = (stack, stores, int(re.search(r"Used (\d+) registers", entry)[1]))
    return found


@needs_nvcc
def test_decode_kernels_for_turing_are_not_empty(tmp_path):
    code, output = compile_one(CUDA / "ggmlq-cuda-attend-decode-wide.cu", tmp_path, "sm_75")
    assert code == 0, output
    assert min(registers for name, (_, _, registers) in kernels(output).items() if "combine" not in name) > 60


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles_without_a_warning(compiled, source):
    code, output = compiled[source.name]
    assert code == 0, output


@needs_nvcc
@pytest.mark.parametrize("program", sorted((ROOT / "tests" / "cuda").glob("*.cu")), ids=lambda program: program.stem)
def test_programs_compile(program, tmp_path):
    """Checks and benchmarks; for docs' commands to build them."""
    code, output = compile_one(program, tmp_path)
    assert code == 0, output


@needs_nvcc
def test_no_kernel_spills(compiled):
    found = {name: usage for _, output in compiled.values() for name, usage in kernels(output).items()}
    assert len(found) >= 10
    allowed = {name: max([limit for part, limit in ALLOWED_SPILLS.items() if part in name], default=0) for name in found}
    spilled = {name: usage for name, usage in found.items() if usage[1] > allowed[name]}
    assert not spilled
    assert all(0 < registers <= 255 for _, _, registers in found.values())


def test_a_spill_would_be_seen():
    report = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6attendi' for 'sm_90'
ptxas info    : Function properties for _Z6attendi
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 392 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4packi' for 'sm_90'
ptxas info    : Function properties for _Z4packi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers
"""
    assert kernels(report) == {"_Z6attendi": (24, 20, 255), "_Z4packi": (0, 0, 18)}


@pytest.mark.parametrize("choice, wanted", [
    ("AUTO", None),
    ("OFF", None),
    ("ON", r"PYGGMLQ_CUDA=ON: found no CUDA compiler that works[^.]+, wanted nvcc of CUDA 12\.0 or\s+newer\."),
])  # fmt: skip
def test_asking_for_cuda_where_its_compiler_fails(choice, wanted, tmp_path):
    """ON: one clear error. AUTO and OFF: the package without it; not optimized, which is quicker."""
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 'GPU 0: none'\n")
    nvidia_smi.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "dist", f"-Ccmake.define.PYGGMLQ_CUDA={choice}", "-Ccmake.build-type=Debug",
         f"-Cbuild-dir={tmp_path / 'build'}", ROOT],
        capture_output=True, text=True, env={**os.environ, "CUDACXX": str(broken), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    output = done.stdout + done.stderr
    if wanted is None:
        assert done.returncode == 0 and len(list((tmp_path / "dist").glob("*.whl"))) == 1, output
    else:
        assert done.returncode != 0 and re.search(wanted, re.sub(r"\s*\n\s*", " ", output)), output
