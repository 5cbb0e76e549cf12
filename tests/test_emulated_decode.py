# SPDX-License-Identifier: MIT
"""Attention by tensor cores (csrc/cuda/ggmlq-cuda-attend-decode*) on a CPU: every instance of the kernel, its products, matrices and asynchronous copies being
functions (tests/emulate/cuda). tests/cuda/bench_attend.cu compares with double precision, as it does on a GPU."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "emulate"))
import build

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or build.compilers() is None, reason="the emulator needs Linux and a C++ compiler"
)
EVERY = 24


def check(program, order, *which):
    done = subprocess.run([program, "check", *map(str, which)], capture_output=True, text=True, env={**os.environ, "GGMLQ_EMULATE_ORDER": order})
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build.build_decode(tmp_path_factory.mktemp("decode"))


@pytest.mark.parametrize("order, first", [("forward", 5), ("backward", 13), ("shuffled", 21)])
def test_attention(program, order, first):
    """An eighth of the shapes of `bench_attend check`, other ones in each order. All of them (a quarter of an hour): build_decode, then `bench_emulated check`."""
    code, output = check(program, order, first, 10000, EVERY)
    assert code == 0 and re.search(r"^0 of (\d+) failed", output, re.MULTILINE) and len(re.findall("^ok", output, re.MULTILINE)) >= 20, output[-3000:]
    assert re.search(r"kv +(301|333|530) .*splits +1 ", output) and re.search(r"kv +(301|333|530) .*splits +[2-7] ", output)  # few tokens: in one range, and in several


# What: the file, the right code and the wrong one, the list of instances that is compiled anew, shapes of which some must fail. (Warps need several tiles where something isn't waited for: what
# isn't finite is computed once more, and by then it is there.)
PLANTED = {
    "a copy that isn't waited for": ("attend-decode.cuh", "ggmlq_copy_async_wait<STAGES - 2>();", "", "tq3_0", (197, 198)),
    "weights not transposed": ("attend-decode.cuh", "weights[m][n].x = ggmlq_transpose_halves(", "weights[m][n].x = (", "tq3_0", (0, 40, 8)),
    "a warp of several doesn't wait": ("attend-decode.cuh", "                    ggmlq_barrier(1 + group, 32*slices);\n", "", "tq3_0", (195, 196)),
    "the next query's mask": ("attend-decode.cuh", "parts.x << 16*(query % 2) : 0", "parts.x << 16*(1 - query % 2) : 0", "wide", (241, 247, 2)),
    "hidden tokens not hidden": (
        "attend-decode.cuh", "if (__builtin_expect(__any_sync(0xffffffffu, ggmlq_hides(mask_now.w[0]) || ggmlq_hides(mask_now.w[1])), 0)) {", "if (false) {", "wide", (241, 247, 2),
    ),
    "a term's position": ("attend-term.cuh", "window.position[i] - (uint32_t) (32*i + lane)", "window.position[i] - (uint32_t) (32*i + lane + 1)", "term-tq3_0", (447, 457)),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_error_is_seen(program, tmp_path, what):
    name, right, wrong, instances, shapes = PLANTED[what]
    shutil.copytree(build.ROOT / "csrc", tmp_path / "csrc")
    path = tmp_path / "csrc" / "cuda" / f"ggmlq-cuda-{name}"
    text = path.read_text(encoding="utf-8")
    assert right in text
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    found = build.build_decode(tmp_path / "built", csrc=tmp_path / "csrc", lists=[instances], others=program.parent)
    results = [check(found, order, *shapes) for order in ("forward", "backward")]
    assert any(code for code, _ in results), results[0][1]


def test_instructions_are_translated():
    assert build.translate_ptx('  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(f(b, c)), "r"(s));') == "  emulated_permute((d), (a), (f(b, c)), (s));"
    assert build.translate_ptx('asm volatile("" : "+r"(x));') == "(void) 0;"
    assert build.translate_ptx('asm("bfi.b32 %0, %1;" : "=r"(d) : "r"(a));') == 'emulator_has_no("bfi.b32 %0, %1;");'
