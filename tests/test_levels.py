# SPDX-License-Identifier: MIT
"""CPU levels: how one is chosen and forced, that the forced one is the one that runs, and that all of them agree.

The kernels are compared by tests/levels/check_levels.c, a program without Python, so that the same comparison runs on this
processor, on emulated old ones, and on Arm. What a compiler or an emulator is missing for is skipped with the reason.
"""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tolerances

import pyggmlq
from pyggmlq import _cpu

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PROGRAM = [ROOT / "tests" / "levels" / "check_levels.c", CSRC / "ggmlq-codec.c"]
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
X86 = platform.machine().lower() in ("x86_64", "amd64")

# As in CMakeLists.txt.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512vbmi"]
DOTPROD = ["-march=armv8.2-a+dotprod"]
X86_FLAGS = {"ggmlq-cpu-avx2.c": AVX2, "ggmlq-cpu-avx512.c": AVX512}
ARM_FLAGS = {"ggmlq-cpu-neon-dotprod.c": DOTPROD}

LEVELS = [level.name for level in pyggmlq.cpu_levels() if level.usable]
each_level = pytest.mark.parametrize("level", LEVELS)
each_type = pytest.mark.parametrize("name", [info.name for info in pyggmlq.types()])


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def require_tool(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} isn't installed")
    return name


# --- choosing -------------------------------------------------------------------------------------------------------------


def test_levels_are_listed_best_first():
    found = pyggmlq.cpu_levels()
    assert [level.name for level in found] == ["avx512", "avx2", "neon_dotprod", "neon", "portable"]
    assert found[-1].usable
    assert all(bool(level.reason) != level.usable for level in found)


def test_the_best_usable_level_is_active_unless_one_is_forced():
    wanted = os.environ.get("GGMLQ_CPU") or LEVELS[0]
    (cpu,) = [backend for backend in pyggmlq.backends() if backend.name == "cpu"]
    assert cpu.level == _cpu.active_level() == wanted


@each_level
def test_a_forced_level_is_the_one_that_runs(level):
    """In every kernel: the counters are in the level's own object file."""
    x = np.random.default_rng(1).standard_normal((8, 128), np.float32)
    rows = pyggmlq.quantize(x)
    kernels = [
        lambda: pyggmlq.quantize(x), lambda: pyggmlq.dequantize(rows), lambda: pyggmlq.rotate(x), lambda: pyggmlq.unrotate(x),
        lambda: _cpu.encode_queries(x, "tq3_0"), lambda: pyggmlq.vec_dot(rows, x), lambda: pyggmlq.mul_mat_vec(rows, x),
        lambda: pyggmlq.set_rows(rows, [0], x[:1]), lambda: pyggmlq.get_rows(rows, [0]),
        lambda: pyggmlq.flash_attn(x[None], rows[None], rows[None], type_k="tq3_0", type_v="tq3_0"),
    ]  # fmt: skip
    before_all = _cpu.active_level()
    with pyggmlq.cpu_level(level):
        assert _cpu.active_level() == level
        for kernel in kernels:
            before = _cpu.level_calls()
            kernel()
            ran = {name for name, calls in _cpu.level_calls().items() if calls != before[name]}
            assert ran == {level}
    assert _cpu.active_level() == before_all


def test_the_level_before_comes_back_after_an_error():
    before = _cpu.active_level()
    with pytest.raises(KeyError):
        with pyggmlq.cpu_level("portable"):
            raise KeyError
    assert _cpu.active_level() == before


@pytest.mark.parametrize("name", ["sse9", "", "AVX2", "neon" if X86 else "avx2"])
def test_a_level_that_cannot_run_is_refused_with_every_reason(name):
    with pytest.raises(ValueError, match="wanted one of: ") as error:
        with pyggmlq.cpu_level(name):
            pass
    for level in pyggmlq.cpu_levels():
        assert level.name in str(error.value) and level.reason in str(error.value)


@pytest.mark.parametrize("name, active", [("portable", "portable"), ("", None), ("sse9", None)])
def test_the_environment_forces_a_level(name, active):
    script = "import pyggmlq; b = {b.name: b for b in pyggmlq.backends()}['cpu']; print(b.usable, b.level, b.reason)"
    found = run(sys.executable, "-c", script, env={**os.environ, "GGMLQ_CPU": name}, cwd=ROOT / "tests")
    if name == "sse9":
        assert found.startswith("False") and "GGMLQ_CPU: found 'sse9', wanted one of: " in found and "portable" in found
    else:
        assert found.split()[:2] == ["True", active or LEVELS[0]]


# --- agreement ------------------------------------------------------------------------------------------------------------


@each_level
@each_type
def test_codec_gives_the_bytes_of_the_reference(level, name):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3000, 128), np.float32) * rng.choice(np.float32([1e-30, 0.1, 1, 1e20]), (3000, 1))
    x[:200] = np.round(2 * x[:200])  # ties and equal values
    rows = pyggmlq.quantize(x, name, backend="reference")
    with pyggmlq.cpu_level(level):
        assert np.array_equal(pyggmlq.quantize(x, name), rows)
        assert np.array_equal(pyggmlq.dequantize(rows, name), pyggmlq.dequantize(rows, name, backend="reference"))
        assert np.array_equal(pyggmlq.rotate(x, name), pyggmlq.rotate(x, name, backend="reference"))


@each_level
def test_the_same_input_gives_the_same_output(level):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((8, 3, 128), np.float32)
    k, v = (pyggmlq.quantize(rng.standard_normal((2, 1500, 128), np.float32), "planar3") for _ in range(2))
    with pyggmlq.cpu_level(level):
        for n_threads in (1, 2, 5):
            first, *others = (
                pyggmlq.flash_attn(q, k, v, type_k="planar3", type_v="planar3", n_threads=n_threads) for _ in range(5)
            )
            assert all(np.array_equal(first, other) for other in others)


@each_level
@pytest.mark.parametrize("n_threads", [2, 3, 8])
@pytest.mark.parametrize("hide", [False, True])
def test_splitting_the_tokens_over_threads_only_rounds(level, n_threads, hide):
    """One KV head: the range of tokens is cut, also where a whole part is hidden, and with sinks."""
    rng = np.random.default_rng(4)
    q = 3 * rng.standard_normal((4, 1, 128), np.float32)
    k, v = (rng.standard_normal((1, 2100, 128), np.float32) for _ in range(2))
    rows = [pyggmlq.quantize(x, "tq3_0") for x in (k, v)]
    mask = np.zeros((1, 2100), np.float16)
    mask[:, 200:1900] = -np.inf if hide else 0
    sinks = np.linspace(-1, 1, 4, dtype=np.float32)
    options = dict(type_k="tq3_0", type_v="tq3_0", mask=mask, sinks=sinks)
    with pyggmlq.cpu_level(level):
        one = pyggmlq.flash_attn(q, *rows, **options)
        many = pyggmlq.flash_attn(q, *rows, n_threads=n_threads, **options)
    decoded = [pyggmlq.dequantize(r, "tq3_0")[0] for r in rows]
    bound = 2 * tolerances.attention(q[:, 0], *decoded, 128**-0.5, 0, 2100)
    assert np.linalg.norm(many - one, axis=-1).max() <= bound
    assert not np.array_equal(many, one)  # it was split: the sums are taken in another order


@each_level
def test_the_other_tests_pass_at_every_level(level):
    """The tests of the codec and of attention, in a process with the level forced by the environment."""
    if level == LEVELS[0] or os.environ.get("GGMLQ_CPU"):
        pytest.skip("the active level: the other files test it themselves")
    files = ["test_attention.py", "test_vectors.py", "test_codec_properties.py", "test_api.py"]
    run(
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not cuda", *[ROOT / "tests" / name for name in files],
        env={**os.environ, "GGMLQ_CPU": level}, cwd=ROOT / "tests",
    )  # fmt: skip


# --- the program ----------------------------------------------------------------------------------------------------------


def sources():
    return sorted((CSRC / "cpu").glob("*.c"))


def build(cc, path, *flags):
    """One set of flags for every file, as in llama.cpp."""
    run(cc, *WARNINGS, "-O2", "-DGGMLQ_COUNT_CALLS", *flags, f"-I{CSRC}", *PROGRAM, *sources(), "-lm", "-o", path)
    return path


def build_with_flags_per_level(cc, folder, flags_of):
    """A static program with each level's flags for its file alone, as in CMakeLists.txt."""
    objects = []
    for source in PROGRAM + sources():
        flags = flags_of.get(source.name, [])
        objects.append(folder / (source.stem + ".o"))
        run(cc, *WARNINGS, "-O2", "-DGGMLQ_COUNT_CALLS", *flags, f"-I{CSRC}", "-c", source, "-o", objects[-1])
    run(cc, "-static", *objects, "-lm", "-o", folder / "check_levels")
    return folder / "check_levels"


def checked(output):
    """The levels that the program compared."""
    *lines, last = output.splitlines()
    assert last == "ok", output
    return [line.split(":")[0] for line in lines if line.endswith(": checked")]


@pytest.mark.parametrize("flags", [["-std=c11"], ["-O3", "-std=gnu11", "CONTRACT"], ["-O1", "-fno-inline"]], ids=" ".join)
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_levels_agree_whatever_the_flags(cc, flags, tmp_path):
    """Also in the GNU dialect, where GCC contracts products and sums unless a file says no. Clang's plain "fast" disregards
    every pragma, its manual says."""
    require_tool(cc)
    contract = "-ffp-contract=fast" if cc == "gcc" else "-ffp-contract=on"
    native = "-march=native" if X86 else "-mcpu=native"
    flags = [contract if flag == "CONTRACT" else flag for flag in flags]
    assert checked(run(build(cc, tmp_path / "check", native, *flags))) == LEVELS


@pytest.mark.skipif(not X86, reason="emulates processors of the same family")
@pytest.mark.parametrize("cpu, wanted", [("Nehalem", ["portable"]), ("Haswell", ["avx2", "portable"])])
def test_old_processors_meet_no_instruction_they_lack(cpu, wanted, tmp_path):
    require_tool("qemu-x86_64")
    program = build_with_flags_per_level(require_tool("gcc"), tmp_path, X86_FLAGS)
    assert checked(run("qemu-x86_64", "-cpu", cpu, program)) == wanted


@pytest.mark.parametrize("flags, wanted", [([], ["neon", "portable"]), (DOTPROD, ["neon_dotprod", "neon", "portable"])], ids=["base", "dotprod"])
def test_neon_agrees_with_portable(flags, wanted, tmp_path):
    cc = require_tool("aarch64-linux-gnu-gcc")
    program = build(cc, tmp_path / "check", "-static", *flags)
    assert checked(run(require_tool("qemu-aarch64"), program)) == wanted


@pytest.mark.parametrize("cpu, wanted", [("cortex-a53", ["neon", "portable"]), ("max", ["neon_dotprod", "neon", "portable"])])
def test_arm_processors_meet_no_instruction_they_lack(cpu, wanted, tmp_path):
    require_tool("qemu-aarch64")
    program = build_with_flags_per_level(require_tool("aarch64-linux-gnu-gcc"), tmp_path, ARM_FLAGS)
    assert checked(run("qemu-aarch64", "-cpu", cpu, program)) == wanted


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_levels_under_the_sanitizers(cc, tmp_path):
    require_tool(cc)
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    flags = ["-O1", "-fno-inline", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if subprocess.run([cc, *flags, tmp_path / "empty.c", "-o", tmp_path / "empty"], capture_output=True).returncode:
        pytest.skip(f"{cc} has no address and undefined-behaviour sanitizer here")
    native = "-march=native" if X86 else "-mcpu=native"
    assert checked(run(build(cc, tmp_path / "check", native, *flags))) == LEVELS
