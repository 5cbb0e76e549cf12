# SPDX-License-Identifier: MIT
"""docs/EMBEDDING.md and examples/embed: the commands as they stand there, strict C99 and C++, no allocation.
Needs a C compiler; runs with every one of gcc and clang that is there."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "embed" / "embed.c"
COMPILERS = [(c, cxx) for c, cxx in (("gcc", "g++"), ("clang", "clang++")) if shutil.which(c) and shutil.which(cxx)]
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]

each_compiler = pytest.mark.parametrize(
    "cc, cxx",
    COMPILERS or [pytest.param(None, None, marks=pytest.mark.skip(reason="found neither gcc nor clang"))],
)


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module", params=COMPILERS or [None], ids=lambda pair: pair and pair[0])
def built(request, tmp_path_factory):
    """(C compiler, C++ compiler, folder): what the commands of the document leave behind, and what they print."""
    if request.param is None:
        pytest.skip("found neither gcc nor clang")
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "EMBEDDING.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("csrc", "examples"):
        (checkout / name).symlink_to(ROOT / name)
    output = run(["sh", "-e", "-c", commands], cwd=checkout, env={**os.environ, "CC": request.param[0]})
    return (*request.param, checkout / "build" / "embed", output)


def test_the_commands_of_the_document_run(built):
    output = built[3]
    assert "1024 rows of 512 values, 200 bytes each instead of 1024" in output
    assert "a row of 500 values: the length is negative or not a multiple of the type's block length" in output
    assert "row 1024 of 1024: a row index is out of range" in output
    assert float(re.search(r"relative mean squared error (\S+)", output)[1]) < 0.0322
    assert (built[2] / "rows.bin").stat().st_size == 1024 * 200


@pytest.mark.parametrize("language", ["c99", "c11", "c++11", "c++17"])
def test_the_example_is_strict_c_and_cxx(built, language, tmp_path):
    cc, cxx, folder, output = built
    compiler = [cxx, "-x", "c++"] if "++" in language else [cc]
    objects = [path for path in folder.glob("*.o")]
    run([*compiler, f"-std={language}", *STRICT, "-O2", f"-I{ROOT / 'csrc'}", "-c", EXAMPLE, "-o", tmp_path / "embed.o"])
    run([cxx if "++" in language else cc, tmp_path / "embed.o", *objects, "-lm", "-lpthread", "-o", tmp_path / "embed"])
    assert run([tmp_path / "embed", tmp_path / "rows.bin"]) == output


def test_the_library_allocates_nothing(built):
    if not shutil.which("nm"):
        pytest.skip("found no nm")
    lines = run(["nm", *built[2].glob("*.o")]).splitlines()
    wanted = {line.split()[-1].lstrip("_") for line in lines if re.match(r"\s+U ", line)}
    assert "memcpy" in wanted or "memset" in wanted
    assert not wanted & {"malloc", "calloc", "realloc", "free", "aligned_alloc", "posix_memalign", "mmap"}


def test_the_example_allocates_nothing():
    assert not re.search(r"\b(malloc|calloc|realloc|alloca|free|new|delete)\b", re.sub(r"/\*.*?\*/", "", EXAMPLE.read_text(), flags=re.DOTALL))


@each_compiler
def test_threads_race_for_nothing(cc, cxx, tmp_path):
    """Under the thread sanitizer, where there is one."""
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    flags = ["-fsanitize=thread", "-g1", "-O1"]
    for command in ([cc, *flags, probe, "-o", tmp_path / "probe"], [tmp_path / "probe"]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"{cc} has no thread sanitizer here")
    sources = [ROOT / "csrc" / "ggmlq-codec.c", *sorted((ROOT / "csrc" / "cpu").glob("*.c"))]
    run([cc, "-std=c11", *flags, f"-I{ROOT / 'csrc'}", *sources, EXAMPLE, "-lm", "-lpthread", "-o", tmp_path / "embed"])
    run([tmp_path / "embed", tmp_path / "rows.bin"])
