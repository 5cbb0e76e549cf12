# SPDX-License-Identifier: MIT
"""csrc/cuda as HIP: compiles without a warning for an AMD GPU where the tools are (tools/hip_resources says which), and no kernel keeps
anything in scratch memory."""
from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_loader = importlib.machinery.SourceFileLoader("hip_resources", str(ROOT / "tools" / "hip_resources"))
hip_resources = importlib.util.module_from_spec(importlib.util.spec_from_loader("hip_resources", _loader))
_loader.exec_module(hip_resources)
TOOLS = hip_resources.find_tools()
TENSOR_CORES = ("ggmlq-cuda-attend-decode.cuh", "ggmlq-cuda-attend-term.cuh", "ggmlq-cuda-attend-wide.cuh")  # kernels that HIP doesn't have


@pytest.mark.skipif(isinstance(TOOLS, str), reason=str(TOOLS))
@pytest.mark.parametrize("architecture", ["gfx90a", "gfx1100"])  # waves of 64, waves of 32
def test_no_kernel_spills(architecture):
    found = hip_resources.compile_for(architecture, TOOLS)
    names = {name.partition("<")[0] for name in found}
    assert names >= {"encode_rows", "round_key", "round_keys", "decode_rows", "rotate_rows", "ggmlq_encode_queries", "multiply", "attend", "combine", "pack_kernel",
                     "gather_visible", "score_rows"}
    for kernel, used in found.items():
        assert used["ScratchSize"] == 0 and used["VGPRs Spill"] == 0, (kernel, used)
        assert 0 < used["VGPRs"] <= 256 and used["LDS Size"] <= 65536, (kernel, used)


def test_the_table_of_the_docs_has_every_kernel():
    """Numbers may be older than the kernels; a kernel may not be missing."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "csrc" / "cuda").glob("*.cu*") if path.name not in TENSOR_CORES]
    kernels = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\(", "".join(sources))
    assert len(kernels) == "".join(sources).count("__global__") > 10
    table = (ROOT / "docs" / "HIP.md").read_text(encoding="utf-8").partition("\n## Resources\n")[2]
    assert {name for name in re.findall(r"^\| `(\w+)", table, re.MULTILINE)} == set(kernels)


def test_a_spill_would_be_seen():
    where = "x.cu:1:1: remark: "
    report = "".join(f"{where}{line} [-Rpass-analysis=kernel-resource-usage]\n" for line in (
        "Function Name: _ZL6attendILi16ELi2EEv4work", "    SGPRs: 107", "    VGPRs: 256", "    ScratchSize [bytes/lane]: 532",
        "    Dynamic Stack: False", "    Occupancy [waves/SIMD]: 2", "    VGPRs Spill: 132", "    LDS Size [bytes/block]: 44032",
    ))  # fmt: skip
    assert hip_resources.resources(report) == {
        "attend<16, 2>": {"SGPRs": 107, "VGPRs": 256, "ScratchSize": 532, "Occupancy": 2, "VGPRs Spill": 132, "LDS Size": 44032},
    }


def test_what_only_one_vendor_has_is_guarded():
    """Votes, shuffles with a mask and assembly: in ggmlq-cuda-deps.cuh, and in the tensor-core kernels, which HIP doesn't compile."""
    for path in sorted((ROOT / "csrc" / "cuda").glob("*")):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        if path.name in ("ggmlq-cuda-deps.cuh", *TENSOR_CORES):
            continue
        assert not re.search(r"\basm\b|_sync\(|__ballot|__activemask|__shfl|__dp4a|__byte_perm|__reduce_|\bw?mma\b", text), path.name
    for includer in (ROOT / "csrc" / "cuda").glob("*"):
        text = includer.read_text(encoding="utf-8")
        included = [name for name in TENSOR_CORES if f'#include "{name}"' in text]
        if included and includer.name not in TENSOR_CORES:
            before = text.partition(f'#include "{included[0]}"')[0]
            assert before.rstrip().endswith("#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA)"), includer.name
