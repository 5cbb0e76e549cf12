# SPDX-License-Identifier: MIT
"""The patched llama.cpp 0.3.36 with its CUDA back end: upstream's own tests on our types, then its programs with real models.

Marked `cuda` and `llama`: needs a GPU and nvcc; the first run compiles for a quarter of an hour on few cores.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_build import build, run
from test_llama_cpp import ANSI, OURS, PROMPT, complete, gemma, llama_server, patched_tree, smollm2  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.cuda, pytest.mark.llama]

TARGETS = ("test-backend-ops", "llama-completion", "llama-perplexity", "llama-server")
# One pair of upstream's own kernels: ours must not need the others.
FLAGS = ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DGGML_CUDA_FA_QUANTS=f16-f16")
PAIRS = [(ours, other) for ours in OURS for other in OURS] + [
    pair for ours in OURS for other in ("f16", "q8_0", "q4_0") for pair in ((ours, other), (other, ours))
]  # fmt: skip


@pytest.fixture(scope="session")
def gpu_programs(patched_tree):  # noqa: F811
    return build(patched_tree, TARGETS, FLAGS, "-cuda-build")


@pytest.mark.parametrize("operation, least", [("SET_ROWS", 20), ("GET_ROWS", 8), ("CPY", 12), ("CONT", 6), ("CONCAT", 16), ("MUL_MAT", 30),
                                              ("FLASH_ATTN_EXT", 500)])
def test_backend_ops(gpu_programs, operation, least):
    """Every case of ours runs on the GPU and gives what the CPU gives."""
    command = [gpu_programs / "test-backend-ops", "test", "-b", "CUDA0", "-o", operation, "-p", "|".join(OURS)]
    output = ANSI.sub("", run(command).stdout)
    results = re.findall(r"^ *" + operation + r"\((.*)\): (.*)$", output, re.MULTILINE)
    for name in OURS:
        ran = [case for case, result in results if name in case and result == "OK"]
        assert len(ran) >= least, f"only {len(ran)} cases of {operation} ran with {name}:\n{output[-3000:]}"
    assert not [line for line in results if "FAIL" in line[1]]


@pytest.mark.parametrize("k, v", PAIRS)
def test_pairs_answer(gpu_programs, gemma, k, v):  # noqa: F811
    text, log, status = complete(gpu_programs, gemma, k, v, "-fa", "on", "-ngl", "99")
    assert status == 0 and len(text.split()) > 5, log[-2000:]


@pytest.mark.parametrize("extra", [("-fa", "off", "-ngl", "99"), ("-fa", "on", "-ngl", "99", "-nkvo"), ("-fa", "on", "-ngl", "9")])
@pytest.mark.parametrize("k", OURS)
def test_elsewhere_and_without_flash_attention(gpu_programs, gemma, k, extra):  # noqa: F811
    text, log, status = complete(gpu_programs, gemma, k, "f16", *extra)
    assert status == 0 and len(text.split()) > 5, log[-2000:]


@pytest.mark.parametrize("k, v", [("tq3_0", "tq3_0"), ("planar3", "planar3")])
def test_completion_across_a_context_shift(gpu_programs, gemma, k, v):  # noqa: F811
    text, log, status = complete(gpu_programs, gemma, k, v, "-fa", "on", "-ngl", "99", "--context-shift", "--ignore-eos", n_predict=300, n_ctx=256)
    assert status == 0 and len(text.split()) > 100, log[-2000:]


@pytest.mark.parametrize("model, k, v", [("smollm2", "tq3_0", "tq3_0"), ("smollm2", "q8_0", "tq3_0"), ("gemma", "planar3", "planar3")])
def test_perplexity_is_that_of_the_cpu(gpu_programs, patched_tree, request, model, k, v):  # noqa: F811
    def perplexity(device: str) -> float:
        output = run([gpu_programs / "llama-perplexity", "-m", request.getfixturevalue(model), "-f", patched_tree / "README.md", "-c", "512",
                      "--chunks", "8", "-fa", "on", "-ctk", k, "-ctv", v, "-ngl", "99", "-dev", device]).stdout
        return float(re.search(r"Final estimate: PPL = ([\d.]+)", output)[1])

    assert perplexity("CUDA0") == pytest.approx(perplexity("none"), rel=0.01)


def test_server_with_four_slots(gpu_programs, smollm2, tmp_path):  # noqa: F811
    with llama_server(gpu_programs, smollm2, tmp_path, "tq3_0", "tq3_0", "-np", "4", "-c", "4096", "-ngl", "99") as request:
        def ask(i: int) -> str:
            return request("/completion", {"prompt": PROMPT + " it" * i, "n_predict": 48, "temperature": 0})["content"]

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(8)))
    assert all(len(answer.split()) > 5 for answer in answers)
