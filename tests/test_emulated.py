# SPDX-License-Identifier: MIT
"""The kernels of csrc/cuda on a CPU (tests/emulate): every function of ggmlq-cuda.h against ggmlq-codec.c, with waves of 32 and 64
lanes and in three orders of threads, and the back end "hip" of the package on top of the same library. No GPU takes part."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import device_arrays
import fake_cuda
import numpy as np
import pytest
import test_api
import test_attention

import pyggmlq
from pyggmlq import patch

sys.path.insert(0, str(Path(__file__).parent / "emulate"))
import build

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or build.compilers() is None, reason="the emulator needs Linux and a C++ compiler"
)
GROUPS = ["encoder", "decoder", "rotation", "set_rows", "rounded", "get_rows", "copy", "mul_mat", "center", "f16", "attention", "selected", "indexer", "errors"]


def check(program, group, wave=32, order="forward", one_of=1):
    """(exit code, output)"""
    done = subprocess.run(
        [program, "--quick", group, str(one_of)], capture_output=True, text=True,
        env={**os.environ, "GGMLQ_EMULATE_WAVE": str(wave), "GGMLQ_EMULATE_ORDER": order},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """(check_cuda, the library)"""
    return build.build(tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize("wave, order", [(32, "forward"), (64, "backward"), (64, "shuffled")])
def test_every_kernel(programs, wave, order):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for group, (code, output) in zip(GROUPS, pool.map(lambda group: check(programs[0], group, wave, order), GROUPS)):
            assert code == 0 and re.search(rf"^ok   {group} +[1-9]\d+ checks", output, re.MULTILINE), output


def test_the_groups_are_all_that_there_are():
    text = (build.ROOT / "tests" / "cuda" / "check_cuda.cu").read_text(encoding="utf-8")
    assert re.findall(r'^    group\("(\w+)",', text, re.MULTILINE) == GROUPS


def test_every_kernel_is_emulated():
    """All files of csrc/cuda but the instances of the tensor-core kernel, which HIP doesn't have: those are emulated in test_emulated_decode.py."""
    files = {path.stem.removeprefix("ggmlq-cuda-") for path in (build.ROOT / "csrc" / "cuda").glob("*.cu")}
    left_out = {name for name in files if re.match("attend-decode-", name)}
    assert files - left_out == set(build.KERNELS)
    for name in left_out:
        text = (build.ROOT / "csrc" / "cuda" / f"ggmlq-cuda-{name}.cu").read_text(encoding="utf-8")
        assert re.search(r'#include "ggmlq-cuda-attend-(decode\.inc|wide\.cuh)"', text) and "__global__" not in text


def test_launches_are_translated():
    assert build.translate("  attend<16, 2><<<dim3(a, f(b, c)), T, 0, (S) s>>>(w, g(1));\n") == (
        "  emulated_launch(dim3(dim3(a, f(b, c))), dim3( T), (S) s, [&] { attend<16, 2>(w, g(1)); });\n"
    )
    assert build.translate("k<<<1, 2>>>(x);") == "emulated_launch(dim3(1), dim3( 2), NULL, [&] { k(x); });"
    with pytest.raises(ValueError, match="wanted a grid"):
        build.translate("k<<<1>>>(x)")


@pytest.mark.trees
def test_the_adapter_of_a_patched_tree(programs, llama_tree, tmp_path):
    """What ggml-cuda's adapter makes of centered keys for upstream's f16 kernels, whose part is played by what they promise, of the nodes that center new
    tokens, and how it stores them, after RoPE, and turns the output of attention; and it would see an error."""
    tree = tmp_path / "tree"
    shutil.copytree(llama_tree("0.3.36"), tree, symlinks=True)
    patch.patch(tree)
    program = build.build_adapter(tmp_path / "adapter", tree, programs[0].parent)
    for wave in ("32", "64"):
        done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, "GGMLQ_EMULATE_WAVE": wave})
        assert done.stdout == "ok\n", done.stdout + done.stderr
    adapter = tree / "ggml" / "src" / "ggml-cuda" / "ggml-cuda-ggmlq.cu"
    text = adapter.read_text(encoding="utf-8")
    for right, wrong, seen in (
        ("rows.wanted[0] = of_k || p->n_pairs > 0;", "rows.wanted[0] = of_k;", "the result is another"),
        ("rows.wanted[1] = of_v && f16.v_is_made;", "rows.wanted[1] = false;", "the result is another"), ("f16.v.data = f16.k.data;", "f16.v.data = (char *) f16.k.data + 2;", "the result is another"),
        ("rows.turned = ggml_get_op_params_i32(op, GGMLQ_GGML_ATTEND_MEAN_TURNED_AT);", "rows.turned = 0;", "the result is another"),
        ("ggml_get_op_params_f32(op, GGMLQ_GGML_ATTEND_MEAN_FACTOR_AT)", "1.0f", "the result is another"), ("m->rounded = s;", "m->rounded = -1;", "the result is another, stored with others"),
        ("if (!in_place && share_memory(out[o], in[k]))", "if (false)", "turned queries lie where V is read: they are done together"),
        ("if (!in_place && share_memory(m.out[o], m.in[k]))", "if (false)", "keys move by one token: another result"),
        ("if (uses != ggml_node_get_use_count(graph, i) ||", "if (", "scaled keys are read elsewhere: another result"),
        ("use_count(graph, keys) != 1", "false", "centered keys are read before RoPE: another result"),
        ("if (share_memory(out[o], in[k]) && !in_place)", "if (false)", "queries lie where V is read: they are done together"),
        ("node->src[0] : node->src[1];", "node->src[0] : node->src[0];", "after RoPE, heads of 128, nothing"),
        ("if (source && share_memory(turned, source))", "if (false)", "the result lies where queries are read: they are done together"),
    ):  # fmt: skip
        assert text.count(right) == 1, right
        adapter.write_text(text.replace(right, wrong), encoding="utf-8")
        done = subprocess.run([build.build_adapter(tmp_path / "adapter", tree, programs[0].parent, again=True)], capture_output=True, text=True)
        assert done.returncode == 1 and seen in done.stdout, (right, done.stdout + done.stderr)


# --- it would see an error ------------------------------------------------------------------------------------------------

# What: the file, the right code and the wrong one, the unit that is compiled anew, the group that must fail.
PLANTED = {
    "lane index": ("cuda/ggmlq-cuda-codec.cuh", "ggmlq_flip_quad(v[h], 16*h + 4*t);", "ggmlq_flip_quad(v[h], 16*h + 4*(t ^ 1));", "rows", "rotation"),
    "half of a wave": ("cuda/ggmlq-cuda-deps.cuh", "__shfl_xor(value, mask, 32)", "__shfl_xor(value, mask ^ 32, 64)", "rows", "encoder"),
    "table entry": ("ggmlq-tables.h", "TQ3_0_FIELD_LEVELS_INIT { -123, -43, 14,", "TQ3_0_FIELD_LEVELS_INIT { -123, -43, 15,", "rows", "decoder"),
    "another start": ("cuda/ggmlq-cuda-codec.cuh", "2 : error1 < error0 ? 1 : 0;", "2 : error1 > error0 ? 1 : 0;", "rows", "set_rows"),
    "feedback to itself": ("cuda/ggmlq-cuda-round.cu", "lane > k + i ?", "lane >= k + i ?", "round", "rounded"),
    "other value of a pair": ("cuda/ggmlq-cuda-f16.cu", "word < half ? word + half", "word <= half ? word + half", "f16", "f16"),
    "transform": ("cuda/ggmlq-cuda-f16.cu", "PLANE*mask < turned; mask *= 2", "PLANE*mask < turned/2; mask *= 2", "f16", "f16"),
    "cosines of a block of threads": ("cuda/ggmlq-cuda-f16.cu", "    __syncthreads();\n    const uint32_t at", "    const uint32_t at", "f16", "f16"),
    "missing barrier": (
        "cuda/ggmlq-cuda-attend-plain.cu", "                    __syncthreads();\n                }\n            }\n        }\n\n        const int64_t row0",
        "                }\n            }\n        }\n\n        const int64_t row0", "attend-plain", "attention",
    ),
    "missing barrier of the term": (
        "cuda/ggmlq-cuda-attend-plain.cu", "term_query[r][2*pair] = v;\n                    }\n                    __syncthreads();",
        "term_query[r][2*pair] = v;\n                    }", "attend-plain", "attention",
    ),
    "positions of a sequence": (
        "cuda/ggmlq-cuda-attend-plain.cu", "p.positions + seq_kv*p.positions_stride", "p.positions", "attend-plain", "attention",
    ),
    "negative positions": ("cuda/ggmlq-cuda-codec.cuh", "(uint64_t) (int64_t) position*turn", "(uint64_t) (uint32_t) position*turn", "attend-plain", "attention"),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_error_is_seen(programs, tmp_path, what):
    name, right, wrong, unit, group = PLANTED[what]
    csrc = tmp_path / "csrc"
    shutil.copytree(build.ROOT / "csrc", csrc)
    text = (csrc / name).read_text(encoding="utf-8")
    assert right in text
    (csrc / name).write_text(text.replace(right, wrong), encoding="utf-8")
    program, _ = build.build(tmp_path, csrc=csrc, units=[unit], others=programs[0].parent)
    results = []
    for order in ("forward", "backward"):
        results.append(check(program, group, 64, order, 6 if group == "attention" else 1))
        if results[-1][0] == 1 and f"FAIL {group}" in results[-1][1]:
            return
    raise AssertionError(results)


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return build.build_faults(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("fault, orders, wanted", [
    ("nothing", ["forward", "backward", "shuffled"], "ok"),
    ("barrier missing: read after write", ["forward", "backward"], "wrong"),
    ("barrier missing: write after read", ["forward", "backward"], "wrong"),
    ("barrier missing: across waves", ["backward"], "wrong"),
    ("shared memory unwritten", ["forward"], "wrong"),
    ("barrier in a branch", ["forward", "backward"], "threads at the barrier of line"),
    ("two barriers for one", ["forward", "backward"], "threads at the barriers of lines"),
    ("shuffle in a branch", ["forward", "backward"], "lanes that are elsewhere"),
])  # fmt: skip
def test_the_emulator_sees(faults, fault, orders, wanted):
    """In at least one of the orders; "nothing" in none."""
    found = []
    for order in orders:
        for wave in ("32", "64"):
            done = subprocess.run(
                [faults, fault], capture_output=True, text=True, env={**os.environ, "GGMLQ_EMULATE_WAVE": wave, "GGMLQ_EMULATE_ORDER": order},
            )  # fmt: skip
            found.append(wanted in done.stdout + done.stderr)
    assert all(found) if fault == "nothing" else any(found)


# --- sanitizers -----------------------------------------------------------------------------------------------------------


def test_under_the_sanitizers(tmp_path):
    """Device memory and shared arrays have guarded ends there. Not optimized: a compiler takes minutes for such kernels otherwise."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=alignment"]
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    if subprocess.run([build.compilers()[0], *flags, empty, "-o", tmp_path / "empty"], capture_output=True).returncode:
        pytest.skip(f"{build.compilers()[0]} has no sanitizers here")
    program, _ = build.build(tmp_path, ["-O0", *flags])
    for group in ("decoder", "copy", "attention"):
        code, output = check(program, group, 64, one_of=12)
        assert code == 0, output


# --- the package on top -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["host", "device"])
def hip(request, programs, monkeypatch):
    """Backend "hip" runs the emulated library, on numpy arrays or on what is taken for a device's memory."""
    ffi = fake_cuda.interface()
    with fake_cuda.installed(ffi.dlopen(str(programs[1])), platform="hip"):
        if request.param == "device":
            device_arrays.use(monkeypatch, backend="hip")
        yield


def test_the_device_has_a_name(programs):
    with fake_cuda.installed(fake_cuda.interface().dlopen(str(programs[1])), platform="hip"):
        assert [b.device for b in pyggmlq.backends() if b.name == "hip"] == ["emulator (waves of 32)"]


@pytest.mark.parametrize("test", [
    test_api.test_views_give_what_copies_give, test_api.test_out_is_written_and_returned, test_api.test_vec_dot_broadcasts,
    test_api.test_mul_mat_vec, test_api.test_a_wrong_index_writes_nothing, test_api.test_check_says_where,
    test_attention.test_what_is_masked_has_no_influence, test_attention.test_strided_views, test_attention.test_nothing_to_do,
])  # fmt: skip
def test_the_tests_of_the_other_back_ends(hip, test):
    test("hip")


@pytest.mark.parametrize("name, row_bytes", [("tq3_0", 112), ("planar3", 100)])
def test_shapes(hip, name, row_bytes):
    test_api.test_shapes(name, row_bytes, "hip")


def test_rows_by_index(hip):
    test_api.test_rows_by_index("i4", "hip")


@pytest.mark.parametrize("name", ["tq3_0", "planar3"])
def test_the_same_bytes(hip, name):
    x = np.random.default_rng(3).standard_normal((5, 384), np.float32)
    rows = pyggmlq.quantize(x, name)
    assert np.array_equal(pyggmlq.quantize(x, name, backend="hip"), rows)
    assert np.array_equal(pyggmlq.dequantize(rows[::2], name, backend="hip"), pyggmlq.dequantize(rows[::2], name))
    assert np.array_equal(pyggmlq.rotate(x, name, "hip"), pyggmlq.rotate(x, name))
    assert np.array_equal(pyggmlq.unrotate(x, name, "hip"), pyggmlq.unrotate(x, name))
    q = x[None, :, :128].reshape(1, 5, 1, 128)
    cache = pyggmlq.quantize(np.random.default_rng(4).standard_normal((1, 1, 70, 128), np.float32), name)
    options = dict(type_k=name, type_v=name)
    found, wanted = pyggmlq.flash_attn(q, cache, cache, backend="hip", **options), pyggmlq.flash_attn(q, cache, cache, backend="reference", **options)
    assert np.allclose(found, wanted, rtol=0, atol=1e-5)
    term = test_attention.term_of(6, q, cache, 50)
    found, wanted = (pyggmlq.flash_attn(q, cache, cache, term=term, backend=backend, **options) for backend in ("hip", "reference"))
    assert np.allclose(found, wanted, rtol=0, atol=1e-5)
