# SPDX-License-Identifier: MIT
"""The kernels of csrc/metal on a CPU (tests/emulate/metal): every function of ggmlq-cuda.h as Metal has it against ggmlq-codec.c, in three orders
of threads; that they use documented Metal only; and that what llama.cpp's side asks for is there. Nothing runs on a GPU."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_cuda
import numpy as np
import pytest
import test_api
import test_attention

import pyggmlq
from pyggmlq import _metal_source, patch
from pyggmlq._sources import root

sys.path.insert(0, str(Path(__file__).parent / "emulate"))
import build
import build_metal

CSRC = build.ROOT / "csrc"
SHADER = CSRC / "metal" / "ggmlq-metal.metal"
GROUPS = ["encoder", "decoder", "rotation", "set_rows", "rounded", "get_rows", "copy", "mul_mat", "attention", "selected", "indexer", "errors"]
emulated = pytest.mark.skipif(not sys.platform.startswith("linux") or build.compilers() is None, reason="the emulator needs Linux and a C++ compiler")


def check(program, group, order="forward", one_of=1):
    """(exit code, output)"""
    done = subprocess.run(
        [program, "--quick", group, str(one_of)], capture_output=True, text=True,
        env={**os.environ, "GGMLQ_EMULATE_WAVE": "32", "GGMLQ_EMULATE_ORDER": order},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """(check_cuda, check_indexed, the library)"""
    return build_metal.build_all(tmp_path_factory.mktemp("metal"))


# --- run ------------------------------------------------------------------------------------------------------------------


@emulated
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_every_kernel(programs, order):
    """All that --quick has in one order; in the others of attention every fifth case, and what exchanges most."""
    groups = GROUPS if order == "forward" else ["encoder", "rotation", "rounded", "attention", "selected", "indexer"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for group, (code, output) in zip(groups, pool.map(lambda group: check(programs[0], group, order, 1 if order == "forward" else 5), groups)):
            assert code == 0 and re.search(rf"^ok   {group} +[1-9]\d+ checks", output, re.MULTILINE), output


@emulated
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_gathers_copies_fills_and_positional_rows(programs, order):
    done = subprocess.run([programs[1]], capture_output=True, text=True, env={**os.environ, "GGMLQ_EMULATE_ORDER": order})
    assert done.stdout == "ok\n", done.stdout + done.stderr


def test_the_groups_are_all_that_there_are():
    text = (build.ROOT / "tests" / "cuda" / "check_cuda.cu").read_text(encoding="utf-8")
    text = re.sub(r"^#ifndef GGMLQ_CHECK_METAL\n.*?^#endif\n", "", text, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r'^    group\("(\w+)",', text, re.MULTILINE) == GROUPS


def test_every_kernel_is_emulated():
    kernels = set(re.findall(r"^void (kernel_\w+)\(", SHADER.read_text(encoding="utf-8"), re.MULTILINE))
    text = (build.HERE / "metal" / "run.cpp").read_text(encoding="utf-8")
    assert kernels and {name for name in kernels if f"{name}(copy.args" in text} == kernels


@emulated
def test_the_types_and_the_device_of_the_python_module(programs):
    """The back end "metal" of the package on the emulated library: the same bytes as the CPU's."""
    ffi = fake_cuda.interface()
    with fake_cuda.installed(ffi.dlopen(str(programs[2])), platform="metal"):
        assert [b.usable for b in pyggmlq.backends() if b.name == "metal"] == [True]
        x = np.random.default_rng(3).standard_normal((5, 384), np.float32)
        for name in ("tq3_0", "planar3"):
            rows = pyggmlq.quantize(x, name)
            assert np.array_equal(pyggmlq.quantize(x, name, backend="metal"), rows)
            assert np.array_equal(pyggmlq.dequantize(rows[::2], name, backend="metal"), pyggmlq.dequantize(rows[::2], name))
            assert np.array_equal(pyggmlq.rotate(x, name, "metal"), pyggmlq.rotate(x, name))
        test_api.test_views_give_what_copies_give("metal")
        test_api.test_mul_mat_vec("metal")
        test_api.test_a_wrong_index_writes_nothing("metal")
        test_attention.test_what_is_masked_has_no_influence("metal")
        q, k, v = test_attention.case(7, "tq3_0", "planar3", seqs=(4, 2))
        options = dict(type_k="tq3_0", type_v="planar3", term=test_attention.term_of(7, q, k, 50, neox=True))
        found, wanted = (pyggmlq.flash_attn(q, k, v, backend=backend, **options) for backend in ("metal", "reference"))
        assert np.allclose(found, wanted, rtol=0, atol=1e-5)


# --- it would see an error ------------------------------------------------------------------------------------------------

# What: the file, the right code and the wrong one, the group that must fail; "positional": of check_indexed.
PLANTED = {
    "lane index": ("metal/ggmlq-metal.metal", "GGMLQ_TQ3_0_SIGNS >> (8*k + l) << 31", "GGMLQ_TQ3_0_SIGNS >> (8*k + (l ^ 1)) << 31", "rotation"),
    "table entry": ("ggmlq-tables.h", "PLANAR3_FIELD_LEVELS_INIT { -123, -77,", "PLANAR3_FIELD_LEVELS_INIT { -123, -76,", "decoder"),
    "missing barrier": (
        "metal/ggmlq-metal.metal", "    threadgroup_barrier(mem_flags::mem_threadgroup);\n\n    const uint32_t first_row", "    const uint32_t first_row", "mul_mat",
    ),
    "lane index of a merged part": (
        "metal/ggmlq-metal.metal", "x[k] += share*part[split*step + GGMLQ_PLANE*plane + 8*k + l];", "x[k] += share*part[split*step + GGMLQ_PLANE*plane + 8*k + (l ^ 1)];", "attention",
    ),
    "missing barrier of the selection": (
        "metal/ggmlq-metal.metal", "            threadgroup_barrier(mem_flags::mem_threadgroup);\n            at = 0;", "            at = 0;", "selected",
    ),
    "missing barrier of the indexer": (
        "metal/ggmlq-metal.metal", "        threadgroup_barrier(mem_flags::mem_threadgroup);\n\n        for (uint32_t i = 0; i < rounds", "        for (uint32_t i = 0; i < rounds", "indexer",
    ),
    "the second value of a pair": ("metal/ggmlq-metal.metal", "!= 0 ? pair + pairs : 2*pair + 1", "!= 0 ? pair + pairs : 2*pair", "attention"),
    "the sign of a position": ("metal/ggmlq-metal.metal", "- (position < 0 ? turns_low : 0)", "", "positional"),
    "the factor of another sequence": ("metal/ggmlq-metal.metal", "part + 2*place.i1 + place.i3*args.part_nb", "part + 2*place.i1", "positional"),
    "what a value's rounding does to itself": ("metal/ggmlq-metal.metal", "x = lane > i ? x - move*moves[i] : x;", "x = lane >= i ? x - move*moves[i] : x;", "rounded"),
    "missing barrier of rounding": (
        "metal/ggmlq-metal.metal", "    simdgroup_barrier(mem_flags::mem_threadgroup);\n\n    float step = 0.0f;", "    float step = 0.0f;", "rounded",
    ),
    "missing barrier of a simdgroup": (
        "metal/ggmlq-metal.metal", "        simdgroup_barrier(mem_flags::mem_threadgroup);\n\n        float shrink", "        float shrink", "attention",
    ),
}  # fmt: skip


@emulated
@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_error_is_seen(programs, tmp_path, what):
    name, right, wrong, group = PLANTED[what]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    text = (csrc / name).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (csrc / name).write_text(text.replace(right, wrong), encoding="utf-8")
    build_metal.compile_kernels(tmp_path, csrc)
    program, indexed, _ = build_metal.link(tmp_path, programs[0].parent)
    if group == "positional":
        done = subprocess.run([indexed], capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout.startswith("wrong: positional, type"), done.stdout
        return
    results = []
    for order in ("backward", "forward"):
        results.append(check(program, group, order, 6))
        if results[-1][0] == 1 and f"FAIL {group}" in results[-1][1]:
            return
    raise AssertionError(results)


# --- Metal, and only what is documented -----------------------------------------------------------------------------------

# Names with a meaning in Metal that csrc/metal uses, by subject of the Metal Shading Language Specification. What the sources define
# themselves, keywords of C++14 and Metal's address spaces are not listed.
DOCUMENTED = {
    "scalar types": "bool int uint ushort float int8_t uint8_t uint16_t int32_t uint32_t int64_t",
    "vector types": "uint3 x y z",
    "type conversions": "as_type",
    "address spaces": "device constant threadgroup thread",
    "functions": "kernel",
    "common functions": "min max",
    "integer functions": "clz mulhi",
    "math functions": "precise sqrt exp tanh pow sinpi cospi",
    "constants": "INFINITY",
    "synchronization": "threadgroup_barrier simdgroup_barrier mem_flags mem_threadgroup",
    "simd-group functions": "simd_shuffle simd_shuffle_xor",
    "preprocessor": "__METAL_VERSION__",
}
CXX14 = (
    "alignas auto break case const constexpr continue default do else enum false for goto if inline namespace return sizeof static static_cast reinterpret_cast "
    "struct switch template true typedef using void while metal"
)


def names_in(text):
    """Identifiers of the code: without comments, strings, attributes, preprocessor lines but for the bodies of macros."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    text = re.sub(r'"[^"\n]*"', " ", text)
    text = re.sub(r"\[\[.*?\]\]", " ", text)
    text = re.sub(r"^#(include|ifndef|ifdef|endif|undef|pragma)[^\n]*", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\b0[xX][0-9a-fA-F]+[uU]?\b|\b\d[\d.]*(?:e[+-]?\d+)?[fu]?\b|#+\w*", " ", text)
    return set(re.findall(r"\b[A-Za-z_]\w*\b", text))


def test_the_kernels_use_documented_metal_only():
    text = SHADER.read_text(encoding="utf-8")
    known = set(" ".join(DOCUMENTED.values()).split()) | set(CXX14.split())
    local = set(re.findall(  # what the text declares: members, parameters, variables, all with a type before them
        r"\b(?:bool|int|uint|ushort|uint3|float|u?int(?:8|16|32|64)_t|ggmlq_\w+)\b(?:\s*[*&]+\s*|\s+(?:const\s+)?)(\w+)", text))
    local |= set(re.findall(r"[,;({]\s*(\w+)\s*(?:=|\[\w+\])", text)) | set(re.findall(r",\s*(\w+)(?=[,;)])", text))
    assert not local & known - {"x", "y", "z", "thread", "metal", "true", "false"}, "a name of ours hides one of Metal's"
    args = set(re.findall(r"\b(\w+)(?:\[\d\])?[,;]", (CSRC / "metal" / "ggmlq-metal-args.h").read_text(encoding="utf-8")))
    ours = {name for name in names_in(text) if re.match(r"(kernel_)?ggmlq_|GGMLQ_", name)}
    macros = {"NAME", "name", "id", "block_length", "block_bytes", "description", "define", "defined", "endif", "type", "n"}
    unknown = names_in(text) - known - local - args - ours - macros
    assert not unknown, f"on no list of {Path(__file__).name}: {sorted(unknown)}"


def test_an_undocumented_name_would_be_seen():
    assert {"simd_frobnicate", "as_type"} <= names_in("float f = simd_frobnicate(as_type<float>(1u)); /* hidden */ [[attribute]]")
    assert "hidden" not in names_in("/* hidden */") and "attribute" not in names_in("[[attribute]]")


def test_the_stand_in_has_no_more_than_is_listed():
    """Or a kernel could use what the emulator has and Metal hasn't."""
    text = (build.HERE / "metal" / "metal_stdlib").read_text(encoding="utf-8")
    functions = set(re.findall(r"^static inline \w+ +(\w+)\(|^template .* static inline To (\w+)\(", text, re.MULTILINE))
    defined = {a or b for a, b in functions} | set(re.findall(r"^#define (\w+)", text, re.MULTILINE))
    assert defined and defined <= set(" ".join(DOCUMENTED.values()).split())


@emulated
def test_the_strictest_warnings(tmp_path):
    clang = next((name for name in ("clang++-19", "clang++") if shutil.which(name)), None)
    if clang is None:
        pytest.skip("needs clang++")
    (tmp_path / "ggmlq-metal-kernels.inc").write_text(build_metal.kernels(), encoding="utf-8")
    build.run(clang, "-std=c++17", *build_metal.STRICT, *build_metal.include(CSRC, tmp_path), "-fsyntax-only", build.HERE / "metal" / "strict.cpp")
    (tmp_path / "ggmlq-metal-kernels.inc").write_text(build_metal.kernels().replace("const int  e =", "const uint32_t e ="), encoding="utf-8")
    with pytest.raises(RuntimeError, match="-Wsign-conversion|-Wshorten"):
        build.run(clang, "-std=c++17", *build_metal.STRICT, *build_metal.include(CSRC, tmp_path), "-fsyntax-only", build.HERE / "metal" / "strict.cpp")


def test_the_encoder_is_compiled_with_plain_arithmetic():
    text = SHADER.read_text(encoding="utf-8")
    assert text.index("#pragma METAL fp math_mode(safe)") < text.index("#pragma METAL fp contract(off)") < text.index("#include \"ggmlq-tables.h\"")
    assert not re.search(r"\bfast::|[^:\w](exp|pow|tanh|sqrt|sinpi|cospi)\(", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))


# --- the launcher -----------------------------------------------------------------------------------------------------------


def test_the_launcher_compiles_against_declarations(tmp_path):
    """ggmlq-metal-device.mm: syntax and types, with the declarations of Apple's that it uses (tests/emulate/apple) in place of the frameworks."""
    if shutil.which("clang++") is None:
        pytest.skip("needs clang++")
    (tmp_path / "ggmlq-metal-source.inc").write_text(_metal_source.as_c_string(_metal_source.flatten(SHADER)), encoding="utf-8")
    build.run(
        "clang++", "-x", "objective-c++", "-std=c++17", "-fobjc-arc", "-fobjc-runtime=macosx-12.0", "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
        f"-I{build.HERE / 'apple'}", *build_metal.include(CSRC, tmp_path), CSRC / "metal" / "ggmlq-metal-device.mm",
    )  # fmt: skip


def test_the_launcher_has_every_function_of_the_interface():
    text = "".join((CSRC / "metal" / name).read_text(encoding="utf-8") for name in ("ggmlq-metal-device.mm", "ggmlq-metal-api.c"))
    for header in ("ggmlq-cuda.h", "ggmlq-cuda-sparse.h", "ggmlq-cuda-memory.h"):
        for name in re.findall(r"^GGMLQ_CUDA_API .*?(\w+) *\(", (CSRC / "cuda" / header).read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^(?!.*;$).*\b{name} *\(.*\{{|^\w.*\b{name} *\([^;{{]*\{{", text, re.MULTILINE), name


def test_elsewhere_one_sentence_says_so():
    if sys.platform != "darwin":
        assert [b.reason for b in pyggmlq.backends() if b.name == "metal"] == ["Metal is Apple's: this back end can be built on macOS only."]


# --- pasted -----------------------------------------------------------------------------------------------------------------


def unquoted(literals):
    """The text that a C compiler makes of lines of string literals."""
    lines = re.findall(r'^"(.*)"$', literals, re.MULTILINE)
    return "".join(line.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\") for line in lines)


def test_the_pasted_text_is_its_sources():
    (copy,) = [copy for copy in patch.load_spec().copies if copy.pasted]
    flat = unquoted(copy.content(root()).decode())
    assert flat == _metal_source.flatten(SHADER)
    assert not re.search(r'^#include "', flat, re.MULTILINE) and "\\" in flat
    for name in ("ggmlq-tables.h", "ggmlq-values.h", "ggmlq-types.def", "metal/ggmlq-metal-args.h"):
        assert (CSRC / name).read_text(encoding="utf-8") in flat
    rest = flat
    for line in SHADER.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.startswith('#include "'):
            before, found, rest = rest.partition(line)
            assert found, line


def test_a_missing_include_is_named(tmp_path):
    (tmp_path / "a.metal").write_text('#include "b.h"\n')
    with pytest.raises(FileNotFoundError, match="a.metal includes b.h, which is neither beside it nor in"):
        _metal_source.flatten(tmp_path / "a.metal")


# --- llama.cpp's side -------------------------------------------------------------------------------------------------------


def names_that_are_asked_for(folder, tmp_path):
    """What ggmlq-metal-plan.c can put into a launch, from the compiled function; `folder` holds it."""
    program = tmp_path / "names.c"
    program.write_text(
        '#include "ggmlq-metal-plan.h"\n#include <stdio.h>\n'
        "int main(void) { for (const char * const * name = ggmlq_metal_kernels(); *name; ++name) { puts(*name); } return 0; }\n"
    )
    codec = (folder.parent if (folder.parent / "ggmlq-codec.c").exists() else folder.parents[1]) / "ggmlq-codec.c"
    include = [f"-I{path}" for path in (folder, folder.parent, CSRC / "cuda")]
    build.run(build.compilers()[1], "-std=c11", *include, program, folder / "ggmlq-metal-plan.c", codec, "-lm", "-o", tmp_path / "names")
    names = subprocess.run([tmp_path / "names"], capture_output=True, text=True, check=True).stdout.split()
    plan = (folder / "ggmlq-metal-plan.c").read_text(encoding="utf-8")
    macros = dict(re.findall(r'^#define (\w+) +"(kernel_\w+)"', plan, re.MULTILINE))
    started = set(re.findall(r"start\([^,]+, (\w+)", plan)) | set(re.findall(r"encoding \? (\w+) : (\w+), 3", plan)[0]) - {"encoding"}
    assert {macros[name] for name in started if name in macros} == set(macros.values()) == set(names)
    return set(names)


@emulated
def test_every_kernel_that_is_asked_for_exists(tmp_path):
    defined = set(re.findall(r"^void (kernel_\w+)\(", _metal_source.flatten(SHADER), re.MULTILINE))
    assert names_that_are_asked_for(CSRC / "metal", tmp_path) == defined


WRONG_LAUNCHES = {
    "a barrier between parts and their merging": ("result.add(a.combine, { parts, sinks, out }, true)", "result.add(a.combine, { parts, sinks, out })"),
    "a barrier before upstream's attention": ("s.after      = true;", "s.after      = false;"),
    "the place of V": ("v_is_k ? k_at : v_at", "k_at"),
    "the heads that upstream does": ("first_head_of_upstream = s.first_head;", "first_head_of_upstream = 0;"),
    "w of those heads": ("{ w, first*w->nb[2] }", "{ w, 0 }"),
}


@emulated
@pytest.mark.trees
@pytest.mark.parametrize("version", ["0.3.36", "0.3.28"])
def test_in_a_patched_tree(version, programs, llama_tree, tmp_path):
    """Every kernel that the Metal back end with our hooks can ask for is there, and its C++ does operations right."""
    tree = tmp_path / "tree"
    shutil.copytree(llama_tree(version), tree, symlinks=True)
    patch.patch(tree)
    metal = tree / "ggml" / "src" / "ggml-metal"
    pasted = unquoted((metal / "ggmlq-metal-source.inc").read_text(encoding="utf-8"))
    defined = set(re.findall(r"^void (kernel_\w+)\(", pasted, re.MULTILINE))
    assert names_that_are_asked_for(metal, tmp_path) == defined
    # None of upstream's kernels has one of these names, and its own libraries are as they were.
    theirs = "".join(path.read_text(encoding="utf-8") for path in metal.rglob("*.metal"))
    assert "ggmlq" not in theirs
    # Every f16 kernel that attention is handed to.
    plan = (metal / "ggmlq-metal-plan.c").read_text(encoding="utf-8")
    sizes = re.findall(r"\{ (\d+), (\d+) \}", re.search(r"sizes\[\]\[2\] = \{(.*?)\};", plan, re.DOTALL)[1])
    assert len(sizes) == 10 and {f"kernel_flash_attn_ext_f16_dk{k}_dv{v}" for k, v in sizes} <= set(re.findall(r'host_name\("(\w+)"', theirs))
    assert re.search(r'snprintf\(base, 256, "kernel_%s_%s_dk%d_dv%d",\s*"flash_attn_ext"', (metal / "ggml-metal-device.cpp").read_text(encoding="utf-8"))
    # Operations through it, with our kernels emulated: the right launches, barriers, places in memory, results.
    program = build_metal.build_ops(tmp_path / "ops", tree, programs[0].parent)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stdout + done.stderr
    # It would see an error.
    for what, (right, wrong) in WRONG_LAUNCHES.items() if version == "0.3.36" else ():
        text = (metal / "ggml-metal-ggmlq.cpp").read_text(encoding="utf-8")
        assert text.count(right) == 1, what
        (metal / "ggml-metal-ggmlq.cpp").write_text(text.replace(right, wrong), encoding="utf-8")
        done = subprocess.run([build_metal.build_ops(tmp_path / "ops", tree, programs[0].parent, ["ggml-metal-ggmlq.cpp"])], capture_output=True, text=True)
        assert done.returncode and done.stdout.startswith("wrong: K "), (what, done.stdout)
        (metal / "ggml-metal-ggmlq.cpp").write_text(text, encoding="utf-8")
