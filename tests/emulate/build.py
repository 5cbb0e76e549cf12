# SPDX-License-Identifier: MIT
"""Compiles csrc/cuda for the emulator (emulate.cpp).

    python tests/emulate/build.py FOLDER [compiler flags]     # FOLDER/check_emulated: tests/cuda/check_cuda.cu; FOLDER/ggmlq-hip.so
    python tests/emulate/build.py --decode FOLDER [..]        # FOLDER/bench_emulated: tests/cuda/bench_attend.cu

The sources stay as they are but for what no C++ compiler knows: their launches, kernel<<<grid, block, 0, stream>>>(arguments), and, of the decode attention, PTX.
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


STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def end_of_brackets(text, at):
    """Of what begins behind an opening bracket; strings are passed over."""
    depth = 1
    while depth:
        if text[at] == '"':
            at = STRING.match(text, at).end()
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return at


def translate(source):
    """kernel<<<grid, block, 0, stream>>>(arguments) -> emulated_launch(grid, block, stream, [&] { kernel(arguments); })"""
    result, at = "", 0
    for launch in LAUNCH.finditer(source):
        kernel, configuration = launch[1], split_arguments(launch[2])
        configuration += ["0", " NULL"][len(configuration) - 2 :]
        if len(configuration) != 4 or configuration[2].strip() != "0":
            raise ValueError(f"{kernel}: found <<<{launch[2]}>>>, wanted a grid, a block, 0 and a stream")
        end = end_of_brackets(source, launch.end())
        arguments = source[launch.end() : end - 1]
        result += source[at : launch.start()]
        result += f"emulated_launch(dim3({configuration[0]}), dim3({configuration[1]}),{configuration[3]}, [&] {{ {kernel}({arguments}); }})"
        at = end
    return result + source[at:]


# Inline PTX -> the function of cuda/cuda_runtime.h that does the same, with the outputs and then the inputs as its arguments. "": nothing is done.
PTX = {
    "": "",
    "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;": "emulated_copy_async({})",
    "cp.async.cg.shared.global [%0], [%1], 16;": "emulated_copy_async({}, 16)",
    "cp.async.commit_group;": "emulated_copy_commit()",
    "cp.async.wait_group %0;": "emulated_copy_wait({})",
    "cp.async.wait_all;": "emulated_copy_wait(-1)",
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};": "emulated_mma_s8({})",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};": "emulated_mma_f16({})",
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};": "emulated_mma_f16_8({})",
    # Turing's: two products each
    "{ .reg .b32 x, y; mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {x, y}, {%2}, {%4}, {%6, %7}; mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%3}, {%5}, {x, y}; }":
        "emulated_mma_s8_8({})",
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%8}, {%0,%1,%2,%3}; "
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%6,%7}, {%9}, {%0,%1,%2,%3};": "emulated_mma_f16({})",
    "st.shared.v4.b32 [%0], {%1, %2, %3, %4};": "emulated_store_shared({})",
    "movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;": "emulated_move_matrix({})",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];": "emulated_load_matrices({}, false)",
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];": "emulated_load_matrices({}, true)",
    "bar.sync %0, %1;": "emulated_named_barrier({})",
    "atom.acq_rel.gpu.global.add.u64 %0, [%1], %2;": "emulated_count({})",
    "ex2.approx.ftz.f32 %0, %1;": "emulated_exp2({})",
    "rcp.approx.ftz.f32 %0, %1;": "emulated_reciprocal({})",
    "prmt.b32 %0, %1, %2, %3;": "emulated_permute({})",
    "lop3.b32 %0, %1, %2, %3, 0xe4;": "emulated_choose({})",
    "fma.rn.f32 %0, %1, 0f00000000, %0;": "emulated_no_sum({})",
    **{f"{name}.rn.f32 %0, {values};": f"emulated_{name}({{}})"
       for name, values in [("mul", "%1, %2"), ("add", "%1, %2"), ("sub", "%1, %2"), ("div", "%1, %2"), ("sqrt", "%1"), ("fma", "%1, %2, %3")]},
    "fma.rn.sat.f32 %0, %1, %2, %3;": "emulated_fma_saturated({})",
    **{f"mov.u32 %0, %%{register};": f"emulated_set({{}}, {value})"
       for register, value in [("tid.x", "threadIdx.x"), *((f"ctaid.{axis}", f"blockIdx.{axis}") for axis in "xyz")]},
    "{ .reg .pred p; .reg .f32 i; setp.gt.f32 p, %1, %3; sub.sat.f32 i, %1, %2; @p sub.sat.f32 i, %1, %4; fma.rn.f32 %0, i, %6, %5; @p fma.rn.f32 %0, i, %8, %7; }":
        "emulated_pick({})",
}  # fmt: skip


def translate_ptx(source):
    """asm("name %0, %1;" : "=r"(d) : "r"(a)); -> function(d, a);"""
    result, at = "", 0
    for found in re.finditer(r"\basm\b(?: volatile)?\(", source):
        end = end_of_brackets(source, found.end())
        statement = source[found.end() : end - 1]
        strings = []
        bare = STRING.sub(lambda string: (strings.append(string[0][1:-1]), f"\0{len(strings) - 1}\0")[1], statement)
        instruction, *operands = bare.split(":")
        instruction = re.sub(r"\0(\d+)\0", lambda number: strings[int(number[1])], instruction)
        instruction = " ".join(instruction.replace("\\n", " ").replace("\\t", " ").split())
        values = [re.sub(r"\0\d+\0", "", operand).strip() for part in operands[:2] for operand in split_arguments(part) if operand.strip()]
        # What isn't in the list may be code that is left out here; if it isn't, the compiler doesn't know the name.
        call = PTX.get(instruction, f"emulator_has_no(\"{instruction}\")").format(", ".join(values))
        result += source[at : found.start()] + (call or "(void) 0")
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


def compile_translated(source, result, flags):
    """A .cu file -> an object file."""
    unit = result.with_suffix(".cpp")
    unit.write_text(f'#line 1 "{source}"\n' + translate(source.read_text(encoding="utf-8")), encoding="utf-8")
    run(compilers()[0], *flags, "-c", unit, "-o", result)
    return result


def compile_unit(source, result, csrc, flags):
    """The same, of what HIP has too."""
    return compile_translated(source, result, [*FLAGS, f"-I{csrc}", f"-I{csrc / 'cuda'}", *flags])


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


def build_decode(folder, flags=(), csrc=ROOT / "csrc", lists=None, others=None):
    """bench_emulated in that folder: tests/cuda/bench_attend.cu with all instances of the decode attention, inline PTX being calls of functions. `csrc` may be a copy with an error in it.
    Of ggmlq-cuda-attend-decode-<list>.cu only `lists` are compiled, if they are given; all other objects are taken from the folder `others` of an earlier build."""
    folder, (cxx, cc) = Path(folder), compilers()
    translated = folder / "cuda"
    translated.mkdir(parents=True, exist_ok=True)
    for source in (csrc / "cuda").iterdir():
        text = translate_ptx(source.read_text(encoding="utf-8"))
        text = re.sub(r"extern __shared__ .*?(\w+)\[\];", r"uint8_t * const \1 = emulated_dynamic_shared;", text)
        text = re.sub(r"^#pragma unroll.*", "", text, flags=re.MULTILINE)  # minutes of compilation
        (translated / source.name).write_text(text, encoding="utf-8")
    every = [
        "-std=c++17", "-O2", "-g1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-missing-field-initializers", "-Wno-sign-compare",
        "-Wno-unused-parameter", *flags, f"-I{HERE / 'cuda'}", f"-I{HERE}", f"-I{translated}", f"-I{csrc}",
    ]  # fmt: skip

    def unit(source):
        if lists is not None and source.stem.removeprefix("ggmlq-cuda-attend-decode-") not in lists:
            return Path(others) / f"{source.stem}.o"
        return compile_translated(source, folder / f"{source.stem}.o", every)

    instances = sorted(translated.glob("ggmlq-cuda-attend-decode-*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(unit, [ROOT / "tests" / "cuda" / "bench_attend.cu", HERE / "cuda" / "launch.cpp", HERE / "emulate.cpp", *instances]))
    run(cc, "-std=c11", "-O2", f"-I{ROOT / 'csrc'}", "-c", ROOT / "csrc" / "ggmlq-codec.c", "-o", folder / "codec.o")
    objects.sort(key=lambda path: path.parent != folder)  # of functions in several objects the first one's is taken
    run(cxx, *objects, folder / "codec.o", *flags, "-pthread", "-lm", "-o", folder / "bench_emulated")
    return folder / "bench_emulated"


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
    if sys.argv[1] == "--decode":
        build_decode(sys.argv[2], sys.argv[3:])
    else:
        build(sys.argv[1], sys.argv[2:])
