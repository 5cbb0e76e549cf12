# SPDX-License-Identifier: MIT
"""The patched llama.cpp with its CUDA back end: upstream's own tests on our types, then its programs with real models.

Marked `cuda` and `llama`: needs a GPU and nvcc; the first run compiles two trees for a quarter of an hour each on few cores.
The tests that are imported are those of the CPU, run with programs that put the model and its cache on the GPU by themselves.
"""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pyggmlq._tree import prose

from llama_build import build, patched, run
from test_llama_cpp import OURS, PROMPT, complete, gemma, llama_server, patched_tree, smollm2  # noqa: F401 (fixtures)
from test_llama_cpp import (  # noqa: F401
    test_completion_across_a_context_shift,
    test_prompt_cache_is_restored_also_with_another_type,
    test_rpc_over_loopback_equals_local,
    test_server_slot_is_saved_and_restored,
)
from test_llama_ds4 import (  # noqa: F401
    LONG,
    MORE,
    OPERATIONS,
    PREFIX,
    backend_ops,
    difference,
    ds4,
    ds4_models,
    ds4_text,
    following,
    row_error,
    surprise,
    test_ds4_logits_differ_from_f16_by_what_the_rows_lose,
    test_ds4_restored_goes_on_as_without_the_interruption,
    test_ds4_state_of_another_type_is_converted,
    test_rows_of_576_are_as_far_off_as_those_of_other_types,
)
from test_llama_center import CENTERED, PLAIN, logits
from test_llama_states import kld, probe, start, test_a_converted_state_goes_on_as_one_of_that_type, test_server_restores_slots_of_other_types  # noqa: F401

pytestmark = [pytest.mark.cuda, pytest.mark.llama]

TARGETS = ("test-backend-ops", "llama-completion", "llama-perplexity", "llama-server", "ggml-rpc-server")
FLAGS = ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native")  # no option for the sake of our types
PAIRS = [(ours, other) for ours in OURS for other in OURS] + [
    pair for ours in OURS for other in ("f16", "q8_0", "q4_0") for pair in ((ours, other), (other, ours))
]  # fmt: skip


@pytest.fixture(scope="session")
def programs(patched_tree):  # noqa: F811
    """Those of 0.3.36. Takes the place of the fixture that builds for the CPU, in the imported tests too."""
    return build(patched_tree, TARGETS, FLAGS, "-cuda-build")


@pytest.fixture(scope="session")
def older_programs(llama_tree, tmp_path_factory):
    tree = patched(llama_tree("0.3.28"), tmp_path_factory.mktemp("older") / "llama.cpp", "0.3.28")
    return build(tree, TARGETS[:2], FLAGS, "-cuda-build")


@pytest.fixture(params=["programs", "older_programs"])
def each_programs(request):
    return request.getfixturevalue(request.param)


# Attention in parts: with pytest-xdist (-n 8) they run side by side, since each keeps four processor cores busy, not a GPU.
ATTENTION = [f"hsk=({heads}),.*{types}" for heads in ("64|96|128", "192|256", "512|576")
             for types in (*[f"type_K={name}" for name in OURS], f"type_K=(?!{'|'.join(OURS)}).*type_V=({'|'.join(OURS)})")]  # fmt: skip
ROWS_AND_PRODUCTS = {"programs": {"SET_ROWS": 20, "SET_ROWS_PAIR": 15, "GET_ROWS": 8, "CPY": 12, "CONT": 6, "CONCAT": 16, "MUL_MAT": 30},
                     "older_programs": {"SET_ROWS": 8, "GET_ROWS": 4, "CPY": 12, "MUL_MAT": 30}}  # fmt: skip


@pytest.mark.parametrize("each_programs, operation, cases, least", [
    *[(tree, operation, name, least) for tree, operations in ROWS_AND_PRODUCTS.items() for operation, least in operations.items() for name in OURS],
    *[(tree, "FLASH_ATTN_EXT", part, 100) for tree in ROWS_AND_PRODUCTS for part in ATTENTION],
    *[("programs", *case) for case in OPERATIONS], ("programs", "CENTER", "head=", 50), ("programs", "FLASH_ATTN_EXT_CENTERED", "head=", 120),
], indirect=["each_programs"])  # fmt: skip
def test_backend_ops(each_programs, operation, cases, least):
    """Every case of ours runs on the GPU and gives what the CPU gives."""
    backend_ops(each_programs, "CUDA0", operation, cases, least)


@pytest.mark.parametrize("k, v", PAIRS)
def test_pairs_answer(each_programs, gemma, k, v):  # noqa: F811
    text, log, status = complete(each_programs, gemma, k, v, "-fa", "on", "-ngl", "99")
    assert status == 0 and len(text.split()) > 5, log[-2000:]
    assert re.search(r"CUDA0 KV buffer size", log), "the cache is not on the GPU"


@pytest.mark.parametrize("extra", [("-fa", "off", "-ngl", "99"), ("-fa", "on", "-ngl", "99", "-nkvo"), ("-fa", "on", "-ngl", "9")])
@pytest.mark.parametrize("k", OURS)
def test_elsewhere_and_without_flash_attention(each_programs, gemma, k, extra):  # noqa: F811
    text, log, status = complete(each_programs, gemma, k, "f16", *extra)
    assert status == 0 and len(text.split()) > 5, log[-2000:]


@pytest.fixture(scope="session")
def text(llama_tree, tmp_path_factory) -> Path:
    """Prose of llama.cpp's documents."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose(llama_tree("0.3.36")), encoding="utf-8")
    return path


def perplexity(programs, text, model, k, v, *extra, env=None) -> tuple[float, str]:  # noqa: F811
    """Of 16 windows, and the log."""
    output = run([programs / "llama-perplexity", "-m", model, "-f", text, "-c", "512", "--chunks", "16", "-fa", "on",
                  "-ctk", k, "-ctv", v, "-ngl", "99", "-lv", "4", "-t", str(min(8, os.cpu_count() or 1)), *extra], env={**os.environ, **(env or {})}).stdout
    return float(re.search(r"Final estimate: PPL = ([\d.]+)", output)[1]), output


@pytest.mark.parametrize("model, k, v", [("smollm2", "tq3_0", "tq3_0"), ("smollm2", "q8_0", "tq3_0"), ("gemma", "planar3", "planar3"), ("gemma", "tq3_0", "f16")])
def test_perplexity_is_that_of_the_cpu(programs, text, request, model, k, v):  # noqa: F811
    """Relative to f16's, since kernels of the weights differ too. Prefill on the GPU doesn't round queries to 8 bits, as the CPU does."""
    path = request.getfixturevalue(model)
    ratios = []
    for device in ("CUDA0", "none"):
        ours, plain = (perplexity(programs, text, path, *types, "-dev", device)[0] for types in ((k, v), ("f16", "f16")))
        ratios.append(ours / plain)
    assert ratios[0] == pytest.approx(ratios[1], rel=0.05)


@pytest.mark.parametrize("model, k, v, mode", [("smollm2", "tq3_0", "tq3_0", "layer"), ("smollm2", "q8_0", "tq3_0", "layer"), ("gemma", "planar3", "tq3_0", "layer"),
                                               ("smollm2", "tq3_0", "tq3_0", "tensor"), ("smollm2", "q8_0", "tq3_0", "tensor")])  # fmt: skip
def test_several_gpus_give_what_one_gives(programs, text, request, model, k, v, mode):  # noqa: F811
    """Two GPUs if there are, else llama.cpp's two virtual ones on the same card. CUDA has no -sm row any more, and -sm tensor can't split
    the one KV head of Gemma. -sm tensor adds up products in other parts, and a cached value that is rounded to another code redraws what the
    type loses: 1 to 3 % of the perplexity of so few tokens. Nor are keys centered with it."""
    path, center = request.getfixturevalue(model), PLAIN if mode == "tensor" else {}
    one, _ = perplexity(programs, text, path, k, v, "-dev", "CUDA0", env=center)
    two, log = perplexity(programs, text, path, k, v, "-dev", "CUDA0,CUDA1", "-sm", mode, "-ts", "1,1", env={"GGML_CUDA_DEVICES": "2", **center})
    if mode == "layer":
        assert "CUDA0 KV buffer size" in log and "CUDA1 KV buffer size" in log
    assert two == pytest.approx(one, rel=0.01 if mode == "layer" else 0.06)


@pytest.mark.parametrize("center", ["off", "auto"])
@pytest.mark.parametrize("name", OURS)
def test_joined_launches_change_nothing(programs, text, tmp_path, name, center):  # noqa: F811
    """Stores of K and V, with RoPE and llama.cpp's rotations before them, what centers keys, and attention with the rotation of its output, in one launch and
    in one each. Heads of 128, which no small model has: noise answers alike only if all of it is alike."""
    model = tmp_path / "random.gguf"
    run([sys.executable, Path(__file__).parents[1] / "tools" / "make_random_gguf.py", model, "--layers", "3", "--heads", "8", "--heads-kv", "2", "--ff", "1024"])
    env = {"GGMLQ_KV_CENTER": center}
    for batch, chunks in ("512", "4"), ("4", "1"):  # RoPE and the rotation of attention's output are joined for few tokens only
        options = ("--chunks", chunks, "-b", batch, "-ub", batch)
        joined, log = perplexity(programs, text, model, name, name, *options, env=env)
        apart, _ = perplexity(programs, text, model, name, name, *options, env={**env, "GGML_CUDA_DISABLE_FUSION": "1"})
        assert ("keys are centered: 3 layers" in log) == (center == "auto")
        assert joined == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize("unified", ["--kv-unified", "--no-kv-unified"])
def test_server_with_four_slots(programs, smollm2, tmp_path, unified):  # noqa: F811
    with llama_server(programs, smollm2, tmp_path, "tq3_0", "tq3_0", "-np", "4", "-c", "4096", "-ngl", "99", unified) as request:
        def ask(i: int) -> str:
            return request("/completion", {"prompt": PROMPT + " it" * i, "n_predict": 48, "temperature": 0})["content"]

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(8)))
    assert all(len(answer.split()) > 5 for answer in answers)


# --- centered keys --------------------------------------------------------------------------------------------------------------------

AUTO = {"GGMLQ_KV_CENTER": "auto"}


@pytest.mark.parametrize("model, options", [
    ("smollm2", {}), ("gemma", {}), ("smollm2", dict(actions=[("drop", 8, 64)], at=128)), ("smollm2", dict(actions=[("copy",)], more=("streams",), seq=1)),
], ids=["smollm2", "gemma", "keys that move", "a copied stream"])  # fmt: skip
def test_centering_is_exact(start, model, options):  # noqa: F811
    """test_llama_center.exact on the GPU. What f16 caches with and without flash attention differ by is the noise here; SmolLM2's 8-bit activations
    make it 0.015 on a GPU."""
    plain = {attention: logits(start, model, "f16", "f16", PLAIN, attention, **options)[0] for attention in ("on", "off")}
    noise = max(kld(plain["on"], plain["off"]).mean(), kld(plain["off"], plain["on"]).mean(), 0.002)
    assert noise < 0.03
    for attention in ("on", "off"):
        found, log = logits(start, model, "f16", "f16", CENTERED, attention, **options)
        assert f"keys are centered: {dict(smollm2=30, gemma=18)[model]} layers" in log and "CUDA0 KV buffer size" in log
        assert 0 < kld(plain[attention], found).mean() < 2 * noise


def divergence(programs, text, model, base, k, v, attention="on", env=None) -> tuple[float, str]:  # noqa: F811
    """Mean KLD of 4 windows against the distributions in `base`, or nan where it isn't there yet and is written; and the log."""
    output = run([programs / "llama-perplexity", "-m", model, "-f", text, "-c", "512", "--chunks", "4", "-fa", attention, "-ctk", k, "-ctv", v, "-ngl", "99", "-lv", "4",
                  "-t", str(min(8, os.cpu_count() or 1)), "--kl-divergence-base", base, *(["--kl-divergence"] if base.exists() else [])], env={**os.environ, **(env or {})}).stdout
    found = re.search(r"Mean +KLD: +([\d.]+)", output)
    return float(found[1]) if found else np.nan, output


@pytest.mark.parametrize("name, k, v, attention", [
    ("smollm2", "tq3_0", "f16", "on"), ("smollm2", "tq3_0", "f16", "off"), ("smollm2", "tq3_0", "tq3_0", "on"), ("gemma", "tq3_0", "f16", "on"), ("gemma", "planar3", "planar3", "on"),
])  # fmt: skip
def test_centered_keys_lose_what_they_do_on_the_cpu(programs, text, request, tmp_path, name, k, v, attention):  # noqa: F811
    """Against each device's own f16 cache, since the weights' products differ more than that. Where weights and activations are multiplied in 8 bits, as GPUs do,
    any other rounding of a key costs SmolLM2 0.018, also of an f16 cache with exactly centered keys (docs/CENTERING.md)."""
    model, lost = request.getfixturevalue(name), {}
    for device, env in ("GPU", {}), ("CPU", {"CUDA_VISIBLE_DEVICES": ""}):
        base = tmp_path / device
        divergence(programs, text, model, base, "f16", "f16", env={**PLAIN, **env})
        lost[device], log = divergence(programs, text, model, base, k, v, attention, {**AUTO, **env})
        assert "keys are centered" in log and ("CUDA0 KV buffer size" in log) == (device == "GPU")
        assert f", {dict(smollm2=30, gemma=18)[name]} rounded for the model's queries" in log
        assert lost[device] < divergence(programs, text, model, base, k, v, attention, {**PLAIN, **env})[0] / 1.5
        base.unlink()
    assert 0.8 * lost["CPU"] < lost["GPU"] < 1.2 * lost["CPU"] + 0.02, lost


# --- DeepSeek-V4, whole models of random weights -------------------------------------------------------------------------------------

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("kind", ["f16", *OURS])
def test_ds4_gpu_and_cpu_agree(ds4, ds4_text, kind):  # noqa: F811
    """The same program with and without a device. Where an activation is rounded differently a cached value may get another code, whose step is
    as large as what the type loses; so the difference is a part of that: on a CPU, rounding all activations to 11 bits or not makes 0.2 of the row error
    (planar3 0.039, tq3_0 0.033). With f16 what remains is the rounding of products, there 0.003."""
    found = []
    for env in ({}, ON_CPU):
        p = ds4("selecting", kind, env)
        p.do("prefix", PREFIX, 0)
        found.append(following(p))
        assert ("CUDA0 KV buffer size" in p.log()) == (env == {}), "the cache is not where it should be"
    assert difference(*found) < (0.5 * row_error(kind) if kind in OURS else 0.05)
    more = surprise(found[0], ds4_text) - surprise(found[1], ds4_text)
    assert abs(more.mean()) < 4 * more.std() / np.sqrt(MORE) + 0.02


@pytest.mark.parametrize("model, kind, limit", [("selecting", "f16", 0.05), ("selecting", "planar3", 0.18), ("mla", "tq3_0", 0.16), ("dsa", "tq3_0", 0.45)])
def test_gpu_and_cpu_agree_token_by_token(ds4, model, kind, limit):  # noqa: F811
    """Behind so many tokens that the rows which a token sees are gathered, but for MLA, which sees all: docs/DEEPSEEK.md. A limit is at most what the type loses, and
    at least twice what rounding activations to 11 bits does on a CPU (0.016, 0.078, 0.026, 0.224). Logits that have nothing to do with each other differ by 1.4."""
    found = []
    for env in ({}, ON_CPU):
        p = ds4(model, kind, env, n_ctx=LONG + MORE)
        p.do("prefix", LONG, 0)
        found.append(np.concatenate([following(p, LONG + i, 1) for i in range(8)]))
    assert difference(*found) < limit
