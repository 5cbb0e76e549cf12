# SPDX-License-Identifier: MIT
"""DeepSeek-V4 in the patched llama.cpp 0.3.36: models of random weights (tools/make_random_deepseek4.py) whose contexts are longer
than the window, so that raw, CSA, HCA and indexer caches are all in use. docs/DEEPSEEK.md says what is promised.

Marked `llama`; what is marked `cuda` too needs a GPU and nvcc, and compiles for a quarter of an hour on few cores."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

import pyggmlq
from pyggmlq._pairs import Case
from pyggmlq.lab import fit

from llama_build import run
from test_llama_cpp import ANSI, OURS, gemma, patched_tree, programs, smollm2  # noqa: F401  (fixtures)
from test_llama_cuda import gpu_programs  # noqa: F401
from test_llama_states import Probe, probe  # noqa: F401

pytestmark = pytest.mark.llama

ROOT = Path(__file__).parents[1]
PREFIX, MORE = 512, 64  # tokens that are cached, four windows of them; tokens that follow
SHAPES = {
    # Floats and all experts: what an error in the cache does isn't mixed with flips of 8-bit activations and of the routing.
    "selecting": ("--top-k", "64", "--type", "f16", "--experts", "2"),
    "wide": ("--ratios", "4", "--indexer-head-size", "64"),
    "odd": ("--ratios", "0,4", "--head-size", "192"),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models("selecting"): the file of that shape."""
    folder = tmp_path_factory.mktemp("ds4")

    def get(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            run([sys.executable, ROOT / "tools" / "make_random_deepseek4.py", path, *SHAPES[name]])
        return path

    return get


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A token for each byte, and none for blanks, which the tokenizer would double."""
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_bytes(re.sub(rb"[^!-~]", b"", (ROOT / "docs" / "FORMAT.md").read_bytes())[: PREFIX + 2 * MORE])
    return path


@pytest.fixture
def start(probe, models, text, tmp_path):  # noqa: F811
    """start("selecting", "tq3_0"): a context of that model with that type, ended with the test."""
    running = []

    def started(model: str, kind: str, env: dict | None = None, n_ctx: int = 1024) -> Probe:
        log = tmp_path / f"log-{len(running)}"
        with log.open("wb") as err:
            process = subprocess.Popen([str(word) for word in (probe, models(model), kind, kind, "on", text, n_ctx)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=err, text=True, env={**os.environ, **(env or {})})  # fmt: skip
        running.append(process)
        return Probe(process, log, tmp_path)

    yield started
    for process in running:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def following(p: Probe) -> np.ndarray:
    """Log probabilities after each of the tokens that follow the prefix."""
    path = p.folder / "logits"
    p.do("logits", PREFIX, MORE, 0, path)
    x = np.fromfile(path, np.float32).reshape(MORE, -1).astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def difference(x: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square, relative to how far the logits of a token lie apart."""
    centered = [y - y.mean(axis=1, keepdims=True) for y in (x, reference)]
    return float(np.sqrt(((centered[0] - centered[1]) ** 2).mean() / (centered[1] ** 2).mean()))


def row_error(kind: str) -> float:
    """What a row of normal values loses, likewise."""
    x = np.random.default_rng(0).standard_normal((200, 512)).astype(np.float32)
    if kind in OURS:
        y = pyggmlq.dequantize(pyggmlq.quantize(x, kind), kind)
    else:
        other = gguf.GGMLQuantizationType[kind.upper()]
        y = gguf.quants.dequantize(gguf.quants.quantize(x, other), other)
    return float(np.sqrt(((x - y) ** 2).mean() / (x**2).mean()))


def test_logits_differ_from_f16_by_what_the_rows_lose(start, text):
    """Measured 0.8 to 1.2 times that; a row that isn't there, or of another token, costs more than half of everything."""
    found = {}
    for kind in ("f16", "q4_0", *OURS):
        p = start("selecting", kind)
        p.do("prefix", PREFIX, 0)
        found[kind] = following(p)
    for kind in found:
        if kind != "f16":
            assert 0.5 * row_error(kind) < difference(found[kind], found["f16"]) < 2 * row_error(kind), kind
    token = np.array([byte + 3 for byte in text.read_bytes()])[PREFIX : PREFIX + MORE]  # <unk> <s> </s>, then bytes; <s> comes first
    surprise = {kind: -x[np.arange(MORE), token].mean() for kind, x in found.items()}
    for kind in OURS:
        spread = np.std((found[kind] - found["f16"])[np.arange(MORE), token]) / np.sqrt(MORE)
        assert abs(surprise[kind] - surprise["f16"]) < 4 * spread + 0.02, surprise


def test_without_attn_rot(start):
    """Every quantized type loses more than twice as much, upstream's too: they are compared with each other."""
    found = {}
    for kind in ("f16", "q4_0", *OURS):
        p = start("selecting", kind, {"LLAMA_ATTN_ROT_DISABLE": "1"})
        p.do("prefix", PREFIX, 0)
        found[kind] = following(p)
        assert "attn_rot_k = 1" in p.log(), "the indexer's keys are always rotated"
    amplified = {kind: difference(x, found["f16"]) / row_error(kind) for kind, x in found.items() if kind != "f16"}
    assert all(0.5 < amplified[kind] / amplified["q4_0"] < 2 and difference(found[kind], found["f16"]) < 0.6 for kind in OURS), amplified


@pytest.mark.parametrize("kind, how", [("f16", "sequence"), ("planar3", "session"), ("planar3", "sequence"), ("tq3_0", "session")])
def test_a_restored_session_goes_on(start, kind, how, tmp_path):
    """Restored rows of the window lie in other cells, so sums are rounded differently: half a percent for our types and for q8_0,
    a fortieth of what the type itself loses. Upstream's own order of sums happens not to change with one sequence of f16."""
    p = start("selecting", kind)
    p.do("prefix", PREFIX, 0)
    p.do("save", how, tmp_path / "state", PREFIX, 0)
    wanted = following(p)
    p = start("selecting", kind)
    assert p.ask("load", how, tmp_path / "state", 0) == f"restored {PREFIX}"
    found = following(p)
    assert difference(found, wanted) < 0.02 and (found.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.85
    p = start("selecting", kind)
    assert p.ask("load", how, tmp_path / "state", 0) == f"restored {PREFIX}"
    assert np.array_equal(following(p), found)


@pytest.mark.parametrize("how", ["session", "sequence"])
def test_a_state_of_another_type_is_refused(start, how, tmp_path):
    p = start("selecting", "f16")
    p.do("prefix", PREFIX, 0)
    p.do("save", how, tmp_path / "state", PREFIX, 0)
    p = start("selecting", "planar3")
    p.do("prefix", 100, 0)
    assert p.ask("load", how, tmp_path / "state", 0) == "refused same"
    assert "the saved state has a compressed cache of type f16, this context one of type planar3" in p.log()


@pytest.mark.parametrize("model, k, v, wanted", [
    ("selecting", "planar3", "tq3_0", "does not support different K (planar3) and V (tq3_0) cache types"),
    ("odd", "planar3", "planar3", "K cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 192: use tq3_0"),
    ("wide", "planar3", "planar3", "indexer cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(probe, models, text, model, k, v, wanted):  # noqa: F811
    done = subprocess.run([probe, models(model), k, v, "on", text, "512"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and wanted in done.stderr


def test_what_fits_the_smaller_block_runs(start):
    for model in ("odd", "wide"):
        start(model, "tq3_0").do("prefix", PREFIX, 0)


def test_sizes_are_those_that_are_allocated(start, models):
    """As llama.cpp logs them, here for two sequences: 200 and 224 bytes a row of 512, 50 and 56 a key of the indexer."""
    path, n_ctx = models("selecting"), 32768
    model = fit.read(path)
    compressed = dataclasses.replace(model, layers=tuple(layer for layer in model.layers if layer.ratio > 1))
    for kind, row, key in (("f16", 1024, 256), ("q8_0", 544, 136), ("tq3_0", 224, 56), ("planar3", 200, 50)):
        p = start("selecting", kind, n_ctx=n_ctx)
        p.do("clear")
        log = p.log().rsplit("creating DSV4 raw", 1)[-1]
        *_, raw, csa, hca, indexer = [float(size) for size in re.findall(rf"K \({kind}\): +([\d.]+) MiB", log)]
        states = [float(size) for size in re.findall(r"layers = \d+, size = +([\d.]+) MiB", log)]
        mib = 2 / fit.MIB
        assert raw == pytest.approx(4 * n_ctx * row * mib, abs=0.01), "this program keeps the whole context (swa_full)"
        assert csa == pytest.approx(2 * n_ctx // 4 * row * mib, abs=0.01)
        assert hca == pytest.approx(n_ctx // 128 * row * mib, abs=0.01)
        assert indexer == pytest.approx(2 * n_ctx // 4 * key * mib, abs=0.01)
        bytes_k, bytes_v, bytes_state = compressed.cache_bytes(Case(kind, kind), n_ctx)
        assert csa + hca + indexer == pytest.approx(bytes_k * mib, abs=0.02) and bytes_v == 0 and sum(states) == pytest.approx(bytes_state * mib, abs=0.02)


# --- operations, against upstream's own code on the decoded rows --------------------------------------------------------------------

OPERATIONS = [("LIGHTNING_INDEXER", "|".join(OURS), 54), ("FLASH_ATTN_EXT", r"(tq3_0|planar3).*n_kv_max=(64|100|200|640)", 100)]


def backend_ops(folder: Path, backend: str, operation: str, cases: str, least: int) -> None:
    output = ANSI.sub("", run([folder / "test-backend-ops", "test", "-b", backend, "-o", operation, "-p", cases]).stdout)
    results = re.findall(r"^ *" + operation + r"\(.*\): (.*)$", output, re.MULTILINE)
    assert results.count("OK") >= least and not [line for line in results if "FAIL" in line], output[-3000:]


@pytest.mark.parametrize("operation, cases, least", OPERATIONS)
def test_operations(programs, operation, cases, least):  # noqa: F811
    backend_ops(programs, "CPU", operation, cases, least)


@pytest.mark.cuda
@pytest.mark.parametrize("operation, cases, least", OPERATIONS)
def test_operations_on_the_gpu(gpu_programs, operation, cases, least):  # noqa: F811
    backend_ops(gpu_programs, "CUDA0", operation, cases, least)
