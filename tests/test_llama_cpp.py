# SPDX-License-Identifier: MIT
"""The patched llama.cpp 0.3.36, built and run: upstream's own tests on our types, then its programs with real models.

Marked `llama`: the first run compiles for some minutes, later ones only what changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import pyggmlq.fetch
from pyggmlq.llama import parse_kv_memory
from pyggmlq._types import cache_types, type_info

from llama_build import build, patched, run

pytestmark = pytest.mark.llama

CACHE = Path(__file__).parents[1] / ".cache"
TARGETS = ("test-quantize-fns", "test-backend-ops", "llama-completion", "llama-server", "ggml-rpc-server")
OURS = [info.name for info in cache_types()]
PROMPT = "The history of the city begins with a small village on the bank of the river, where"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="session")
def patched_tree(llama_tree, tmp_path_factory) -> Path:
    return patched(llama_tree("0.3.36"), tmp_path_factory.mktemp("patched") / "llama.cpp")


@pytest.fixture(scope="session")
def programs(patched_tree) -> Path:
    """The folder of the programs of the patched tree."""
    return build(patched_tree, TARGETS)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M: 30 layers, 3 KV heads of 64, GQA 3."""
    return pyggmlq.fetch.fetch_model("smollm2-135m", CACHE / "models")


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M: 18 layers, 1 KV head of 256, GQA 4, sliding windows."""
    return pyggmlq.fetch.fetch_model("gemma3-270m", CACHE / "models")


def complete(programs: Path, model: Path, k: str, v: str, *extra: str, n_predict: int = 32, n_ctx: int = 512, env: dict | None = None):
    """(generated text, log, exit status) of a greedy completion of PROMPT."""
    done = subprocess.run(
        [str(programs / "llama-completion"), "-m", str(model), "-p", PROMPT, "-n", str(n_predict), "-c", str(n_ctx), "-ctk", k, "-ctv", v,
         "--temp", "0", "--seed", "1", "-no-cnv", "--no-display-prompt", "-t", "2", "-lv", "4", *(extra or ("-fa", "on"))],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, timeout=300)
    return done.stdout.strip(), done.stderr + done.stdout, done.returncode


# --- upstream's own tests -----------------------------------------------------------------------------------------------


def test_quantize_fns(programs):
    output = run([programs / "test-quantize-fns", "-v"]).stdout
    for name in OURS:
        assert f"Testing {name}\n" in output
        assert re.search(rf"{name} absolute quantization error:\s+ok", output), output
        assert re.search(rf"{name} dot product error:\s+ok", output), output


@pytest.mark.parametrize("operation", ["SET_ROWS", "CPY", "GET_ROWS", "MUL_MAT", "CONT", "FLASH_ATTN_EXT"])
def test_backend_ops(programs, operation):
    """Every case of ours passes. For attention, the CPU's generic path (decode each row, no grouping) is the reference; batches of 75
    query tokens are left out, which take half of its time, and selected rows, which test_llama_ds4.py has."""
    cases = "|".join(OURS)
    if operation == "FLASH_ATTN_EXT":
        cases = rf"nb=(1|3|32|35),.*({cases}).*n_kv_max=0"
    output = ANSI.sub("", run([programs / "test-backend-ops", "test", "-b", "CPU", "-o", operation, "-p", cases]).stdout)
    results = re.findall(r"^ *" + operation + r"\((.*)\): (.*)$", output, re.MULTILINE)
    for name in OURS:
        ran = [case for case, result in results if name in case and result == "OK"]
        assert len(ran) >= 4, f"only {len(ran)} cases of {operation} ran with {name}:\n{output[-3000:]}"
    assert not [line for line in results if "FAIL" in line[1]]


# --- a real model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(programs, gemma):
    """What an f16 cache takes."""
    return parse_kv_memory(complete(programs, gemma, "f16", "f16")[1])


@pytest.mark.parametrize("k, v", [("tq3_0", "tq3_0"), ("planar3", "planar3"), ("tq3_0", "planar3"), ("tq3_0", "f16"), ("f16", "planar3"),
                                  ("q8_0", "tq3_0"), ("planar3", "q4_0")])
def test_pairs_answer_and_take_the_memory_of_their_types(programs, gemma, plain, k, v):
    text, log, status = complete(programs, gemma, k, v)
    assert status == 0 and len(text.split()) > 5, log[-2000:]
    assert ("keys are centered: 18 layers" in log) == (k in OURS)
    memory = parse_kv_memory(log)
    assert (memory.type_k, memory.type_v) == (k, v)
    bits = {"q8_0": 8.5, "q4_0": 4.5, "f16": 16.0, **{name: type_info(name).bits_per_value for name in OURS}}
    tolerance = 0.005 * memory.caches  # printed to 0.01 MiB
    assert memory.mib_k == pytest.approx(plain.mib_k * bits[k] / 16, abs=2 * tolerance)
    assert memory.mib_v == pytest.approx(plain.mib_v * bits[v] / 16, abs=2 * tolerance)


@pytest.mark.parametrize("name", OURS)
def test_keys_alone_without_flash_attention(programs, gemma, name):
    text, log, status = complete(programs, gemma, name, "f16", "-fa", "off")
    assert status == 0 and len(text.split()) > 5, log[-2000:]


@pytest.mark.parametrize("model, k, v, rotation_off", [
    ("smollm2", "tq3_0", "tq3_0", "0"),  # not rotated anyway
    ("gemma", "planar3", "planar3", "0"),
    ("gemma", "planar3", "planar3", "1"),
    ("smollm2", "q8_0", "f16", "0"),
    ("smollm2", "q8_0", "f16", "1"),
])  # fmt: skip
def test_completion_across_a_context_shift(programs, request, model, k, v, rotation_off):
    """Upstream crashes here with any quantized K when attn_rot is off."""
    text, log, status = complete(programs, request.getfixturevalue(model), k, v, "-fa", "on", "--context-shift", "--ignore-eos",
                                 n_predict=300, n_ctx=256, env={"LLAMA_ATTN_ROT_DISABLE": rotation_off})
    assert status == 0, log[-2000:]
    assert re.search(r" eval time = .*/ +(299|300) runs", log), log[-2000:]
    unprotected = k == "planar3" and rotation_off == "1"
    assert ("use tq3_0" in log) == unprotected, "a warning is due exactly where planar3 keys have no rotation"
    assert unprotected or len(text.split()) > 100


@pytest.mark.parametrize("attention", ["on", "off", "auto"])
def test_head_size_that_does_not_fit_is_refused_in_one_sentence(programs, smollm2, attention):
    _, log, status = complete(programs, smollm2, "planar3", "f16", "-fa", attention)
    assert status == 1
    assert "K cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0" in log


def test_value_head_size_is_refused_too(programs, smollm2):
    _, log, status = complete(programs, smollm2, "f16", "planar3")
    assert status == 1
    assert "V cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0" in log


def test_prompt_cache_is_restored_also_with_another_type(programs, smollm2, tmp_path):
    session = ("-fa", "on", "--prompt-cache", str(tmp_path / "session.bin"))
    first, log, status = complete(programs, smollm2, "tq3_0", "tq3_0", *session)
    assert status == 0, log[-2000:]
    second, log, status = complete(programs, smollm2, "tq3_0", "tq3_0", *session)
    assert status == 0 and "session file" in log
    assert second == first
    text, log, status = complete(programs, smollm2, "q8_0", "tq3_0", *session)
    assert status == 0 and len(text.split()) > 5, log[-2000:]
    assert re.search("the saved K cache is tq3_0, centered by calibration [0-9a-f]{8}, this context's is q8_0, not centered: converting", log), log[-2000:]


# --- server and RPC -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(command: list, log: Path, ready):
    """A server process while the block runs; `ready()` tells when it answers."""
    with log.open("wb") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, f"{command[0]} did not answer in a minute"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextlib.contextmanager
def llama_server(programs: Path, model: Path, slots: Path, k: str, v: str, *extra: str):
    """A function (path, body or None) -> JSON of a running llama-server."""
    port = free_port()

    def request(path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        call = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=120) as answer:
            return json.load(answer)

    def ready() -> bool:
        try:
            return request("/health").get("status") == "ok"
        except (OSError, urllib.error.URLError):
            return False

    command = [programs / "llama-server", "-m", model, "--host", "127.0.0.1", "--port", port, "-c", 512, "-np", 1, "-fa", "on",
               "-ctk", k, "-ctv", v, "-t", 2, "--slot-save-path", slots, *extra]
    with serving(command, slots / f"server-{k}-{v}.log", ready):
        yield request


def test_server_slot_is_saved_and_restored(programs, smollm2, tmp_path):
    ask = {"prompt": PROMPT, "n_predict": 24, "temperature": 0, "cache_prompt": True, "id_slot": 0}
    with llama_server(programs, smollm2, tmp_path, "tq3_0", "tq3_0") as request:
        first = request("/completion", ask)
        saved = request("/slots/0?action=save", {"filename": "slot.bin"})
        assert saved["n_saved"] > 20
        again = request("/completion", ask)  # only the last token of the prompt is computed, as after a restore
    with llama_server(programs, smollm2, tmp_path, "tq3_0", "tq3_0") as request:
        restored = request("/slots/0?action=restore", {"filename": "slot.bin"})
        assert restored["n_restored"] == saved["n_saved"]
        second = request("/completion", ask)
        assert second["content"] == again["content"]
        assert second["timings"]["prompt_n"] == again["timings"]["prompt_n"] < first["timings"]["prompt_n"], "the restored tokens were computed again"
    with llama_server(programs, smollm2, tmp_path, "q8_0", "q8_0") as request:
        (tmp_path / "damaged.bin").write_bytes((tmp_path / "slot.bin").read_bytes()[:-1])
        with pytest.raises(urllib.error.HTTPError):
            request("/slots/0?action=restore", {"filename": "damaged.bin"})
        assert request("/completion", ask)["content"], "the server goes on after a refusal"
    log = (tmp_path / "server-q8_0-q8_0.log").read_text(errors="replace")
    assert "it is truncated or damaged; nothing was restored, the context is as it was" in log


def test_rpc_over_loopback_equals_local(programs, smollm2, tmp_path):
    local, log, status = complete(programs, smollm2, "tq3_0", "tq3_0", "-fa", "on", "--kv-center", "off")
    assert status == 0 and "centered" not in log
    port = free_port()

    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with serving([programs / "ggml-rpc-server", "-H", "127.0.0.1", "-p", port, "-t", 2], tmp_path / "rpc.log", ready):
        remote, log, status = complete(programs, smollm2, "tq3_0", "tq3_0", "-fa", "on", "--rpc", f"127.0.0.1:{port}", "-ngl", "99")
    assert status == 0, log[-2000:]
    assert "keys are not centered: RPC" in log and remote == local
