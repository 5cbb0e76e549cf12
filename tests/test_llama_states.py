# SPDX-License-Identifier: MIT
"""Saved states in the patched llama.cpp 0.3.36 with real models: restored into caches of other types, damaged, restored by
llama-server; and `pyggmlq convert-state` beside it. docs/STATES.md says what is promised."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest

from pyggmlq import states

from llama_build import run
from state_files import damaged, places
from test_llama_cpp import CACHE, PROMPT, gemma, llama_server, patched_tree, programs, smollm2  # noqa: F401  (fixtures)

pytestmark = pytest.mark.llama

ROOT = Path(__file__).parents[1]
PREFIX, MORE = 192, 32  # tokens that are cached, tokens that follow
HEADS = {"smollm2": states.HeadSizes(64, 64), "gemma": states.HeadSizes(256, 256)}


@pytest.fixture(scope="session")
def probe(programs, tmp_path_factory) -> Path:  # noqa: F811
    """state_probe.cpp, linked with the patched libllama."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    assert compiler, "found no C++ compiler"
    tree, binary = CACHE / "llama" / "0.3.36-patched", tmp_path_factory.mktemp("probe") / "state_probe"
    run([compiler, "-std=c++17", "-O1", f"-I{tree / 'include'}", f"-I{tree / 'ggml' / 'include'}", ROOT / "tests" / "state_probe.cpp",
         f"-L{programs}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{programs}", "-o", binary])  # fmt: skip
    return binary


class Probe:
    def __init__(self, process: subprocess.Popen, log: Path, folder: Path) -> None:
        self.process, self.log_file, self.folder = process, log, folder

    def ask(self, *words) -> str:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, f"it died at {words}: {self.log()[-3000:]}"
        return answer

    def do(self, *words) -> None:
        assert self.ask(*words) == "ok", self.log()[-3000:]

    def logits(self, start: int = PREFIX) -> np.ndarray:
        """Log probabilities of the tokens that follow."""
        path = self.folder / "logits"
        self.do("logits", start, MORE, 0, path)
        x = np.fromfile(path, np.float32).reshape(MORE, -1).astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@pytest.fixture
def start(probe, tmp_path, request):
    """start("smollm2", "f16", "tq3_0"): a context of that model with these types for K and V, as a context manager. Its keys aren't centered
    unless `env` says so."""
    text = tmp_path / "text"
    text.write_text((ROOT / "README.md").read_text(encoding="utf-8")[:6000], encoding="utf-8")
    count = iter(range(100))

    @contextlib.contextmanager
    def started(model: str, k: str, v: str, attention: str = "on", n_ctx: int = 512, env: dict | None = None, more: tuple = ()) -> Iterator[Probe]:
        log = tmp_path / f"log-{next(count)}"
        with log.open("wb") as err:
            process = subprocess.Popen([str(word) for word in (probe, request.getfixturevalue(model), k, v, attention, text, n_ctx, *more)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=err, text=True, env={**os.environ, "GGMLQ_KV_CENTER": "off", **(env or {})})  # fmt: skip
        try:
            yield Probe(process, log, tmp_path)
            process.stdin.close()
            assert process.wait(timeout=60) == 0, log.read_text(errors="replace")[-3000:]
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    started.probe = probe
    return started


def kld(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of every token."""
    return (np.exp(p) * (p - q)).sum(axis=1)


def error_of_mean(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / np.sqrt(len(x)))


def native(start, model: str, kind: str, path: Path, types: tuple[str, str], **options) -> np.ndarray:
    """A session that runs with these types from the start: its state after the prefix, and what follows."""
    with start(model, *types, **options) as p:
        p.do("prefix", PREFIX, 0)
        p.do("save", kind, path, PREFIX, 0)
        return p.logits()


# --- what a conversion costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, source, target, kind, env", [
    ("smollm2", ("f16", "f16"), ("tq3_0", "tq3_0"), "session", {}),
    ("smollm2", ("tq3_0", "tq3_0"), ("f16", "q8_0"), "sequence", {}),
    ("smollm2", ("f32", "q8_0"), ("q4_0", "tq3_0"), "sequence", {}),
    ("smollm2", ("f16", "f16"), ("tq3_0", "iq4_nl"), "session", {"LLAMA_ATTN_ROT_DISABLE": "1"}),
    ("gemma", ("f16", "f16"), ("planar3", "planar3"), "session", {}),
    ("gemma", ("planar3", "planar3"), ("f16", "tq3_0"), "session", {}),
    ("gemma", ("q8_0", "f16"), ("tq3_0", "planar3"), "sequence", {}),
])  # fmt: skip
def test_a_converted_state_goes_on_as_one_of_that_type(start, model, source, target, kind, env, tmp_path):
    """Not worse than a session with the target type plus what the source had lost; a missing rotation costs nats."""
    reference = native(start, model, kind, tmp_path / "reference", ("f16", "f16"))
    lost = kld(reference, native(start, model, kind, tmp_path / "state", source, env=env))
    own = kld(reference, native(start, model, kind, tmp_path / "own", target, env=env))
    with start(model, *target, env=env) as p:
        assert p.ask("load", kind, tmp_path / "state", 0) == f"restored {PREFIX}"
        found = kld(reference, p.logits())
        for which, a, b in zip("KV", source, target):
            if a != b:
                assert f"the saved {which} cache is {a}, this context's is {b}: converting" in p.log()
    assert found.mean() < own.mean() + lost.mean() + 3 * (error_of_mean(found) + error_of_mean(own) + error_of_mean(lost)) + 1e-3


@pytest.mark.parametrize("model, name", [("smollm2", "tq3_0"), ("gemma", "tq3_0"), ("gemma", "planar3")])
def test_there_and_back_is_no_worse_than_a_session_of_that_type(start, model, name, tmp_path):
    """f16 -> type -> f16, offline, against a session that ran with the type from the start and then goes on in f16. Its rows are
    rounded once as well, but deeper layers computed theirs from attention over rounded rows: it may lose more."""
    reference = native(start, model, "session", tmp_path / "f16", ("f16", "f16"))
    native(start, model, "session", tmp_path / "own", (name, name))
    states.convert_state(tmp_path / "f16", tmp_path / "there", name, name, HEADS[model])
    states.convert_state(tmp_path / "there", tmp_path / "back", "f16", "f16", HEADS[model])
    assert (tmp_path / "back").stat().st_size == (tmp_path / "f16").stat().st_size
    assert (tmp_path / "there").stat().st_size == (tmp_path / "own").stat().st_size
    found = {}
    with start(model, "f16", "f16") as p:
        for which in ("back", "own"):
            assert p.ask("load", "session", tmp_path / which, 0) == f"restored {PREFIX}"
            found[which] = kld(reference, p.logits())
        difference = found["back"] - found["own"]
    print(f"{model} {name}: KLD there and back {found['back'].mean():.4f}, from the start {found['own'].mean():.4f}, "
          f"difference {difference.mean():.4f}±{error_of_mean(difference):.4f}")  # fmt: skip
    assert difference.mean() < 3 * error_of_mean(difference) + 1e-3
    assert found["back"].mean() > 1e-3, "a delta of nothing is an alarm"


@pytest.mark.parametrize("model, source, target", [("smollm2", "f16", "tq3_0"), ("smollm2", "tq3_0", "q8_0"), ("gemma", "f16", "planar3"), ("gemma", "planar3", "tq3_0")])
def test_offline_and_restored_are_the_same_bytes(start, model, source, target, tmp_path):
    """What `pyggmlq convert-state` writes is what llama.cpp saves after it has restored the original."""
    native(start, model, "session", tmp_path / "state", (source, source))
    states.convert_state(tmp_path / "state", tmp_path / "offline", target, target, HEADS[model])
    with start(model, target, target) as p:
        assert p.ask("load", "session", tmp_path / "state", 0) == f"restored {PREFIX}"
        p.do("save", "session", tmp_path / "restored", PREFIX, 0)
    assert (tmp_path / "offline").read_bytes() == (tmp_path / "restored").read_bytes()


@pytest.mark.parametrize("name", ["tq3_0", "q4_0"])
def test_rows_of_the_first_layer_are_those_of_a_native_cache(start, name, tmp_path):
    """No attention comes before them, so f16 rows that are turned (q4_0) or not (tq3_0) and encoded must give almost the bytes that
    the graph stores itself: all but values that the f16 rounding moved across a boundary."""
    native(start, "smollm2", "session", tmp_path / "f16", ("f16", "f16"))
    native(start, "smollm2", "session", tmp_path / "own", (name, name))
    states.convert_state(tmp_path / "f16", tmp_path / "there", name, name, HEADS["smollm2"])
    a, b = (np.frombuffer((tmp_path / name).read_bytes(), np.uint8) for name in ("own", "there"))
    _, parts = states._scan(open(tmp_path / "there", "rb"), b.size, None)
    layers = [part for part in parts if isinstance(part, states._Rows)]
    for part in (layers[0], layers[30]):
        assert part.which == ("K" if part is layers[0] else "V")
        same = a[part.offset : part.offset + part.size] == b[part.offset : part.offset + part.size]
        assert same.mean() > 0.97


def test_keys_that_move_are_as_good_as_before(start):
    """K-shift decodes tq3_0 keys, turns them by RoPE alone, and encodes them again: they are rounded twice. As if they were in
    another space, they would be noise."""
    found = {}
    for kind in ("f16", "tq3_0"):
        with start("smollm2", kind, kind) as p:
            p.do("prefix", PREFIX, 0)
            p.do("drop", 8, 64)
            found[kind] = p.logits(PREFIX - 64)
    moved = kld(found["f16"], found["tq3_0"]).mean()
    assert 1e-3 < moved < 0.6, moved


def test_sequences_in_memory_go_the_same_way(start):
    with start("smollm2", "tq3_0", "tq3_0") as p:
        p.do("prefix", PREFIX, 0)
        p.do("keep")
        before = p.logits()
        p.do("back")
        p.do("reload", "memory", 0)
        assert np.array_equal(before, p.logits())


# --- what is refused ----------------------------------------------------------------------------------------------------


def load_damaged(p, kind: str, original: bytes, path: Path, times: int) -> collections.Counter:
    """Lets a fresh context load so many damaged files, each written to `path`: how many it refused, with everything as it was, and restored."""
    interesting, rng, outcomes = places(original), random.Random(6), collections.Counter()
    p.do("prefix", 20, 1)
    p.do("prefix", 6, 0)
    p.do("keep")
    for i in range(times):
        path.write_bytes(damaged(original, interesting, rng))
        answer = p.ask("load", kind, path, 0)
        outcomes[answer.split()[0]] += 1
        assert answer == "refused same" or answer.startswith("restored "), f"file {i}: {answer}"
        if answer.startswith("restored "):
            if i % 10 == 0:
                p.ask("logits", 21, 1, 0, os.devnull)  # whatever it says, it lives
            p.do("back")
    return outcomes


@pytest.mark.parametrize("source, target", [("f16", "tq3_0"), ("tq3_0", "tq3_0"), ("q8_0", "f16")])
@pytest.mark.parametrize("kind", ["session", "sequence"])
def test_ten_thousand_damaged_files(start, kind, source, target, tmp_path):
    """Restored whole, or refused with every cell and every row of both sequences as they were; never a crash."""
    with start("smollm2", source, source, n_ctx=256) as p:
        p.do("prefix", 4, 0)
        p.do("save", kind, tmp_path / "state", 4, 0)
    original = (tmp_path / "state").read_bytes()
    shared = Path("/dev/shm")
    path = (shared if shared.is_dir() else tmp_path) / f"pyggmlq-state-{os.getpid()}"
    try:
        with start("smollm2", target, target, n_ctx=256) as p:
            outcomes = load_damaged(p, kind, original, path, 10_000)
    finally:
        path.unlink(missing_ok=True)
    assert min(outcomes["refused"], outcomes["restored"]) > 500, outcomes


@pytest.mark.parametrize("kind", ["session", "sequence"])
def test_every_boundary_is_a_place_to_be_cut_off(start, kind, tmp_path):
    """Two caches one after the other (sliding windows): a file that ends between them is the worst case."""
    with start("gemma", "f16", "f16") as p:
        p.do("prefix", 8, 0)
        p.do("save", kind, tmp_path / "state", 8, 0)
    original = (tmp_path / "state").read_bytes()
    with start("gemma", "planar3", "tq3_0") as p:
        p.do("prefix", 30, 0)
        _, parts = states._scan(open(tmp_path / "state", "rb"), len(original), None)
        cuts = {part.offset for part in parts} | {part.offset + part.size - 1 for part in parts}
        for cut in sorted(cuts):
            (tmp_path / "cut").write_bytes(original[:cut])
            assert p.ask("load", kind, tmp_path / "cut", 0) == "refused same", cut
        (tmp_path / "cut").write_bytes(original + b"\0")
        assert p.ask("load", kind, tmp_path / "cut", 0) == "refused same"
        assert "found 1 bytes behind the end of the state, wanted none; nothing was restored, the context is as it was" in p.log()
        assert p.ask("load", kind, tmp_path / "state", 0) == "restored 8"


def test_a_state_of_another_model(start, tmp_path):
    native(start, "smollm2", "sequence", tmp_path / "state", ("f16", "f16"))
    with start("gemma", "tq3_0", "tq3_0") as p:
        p.do("prefix", 8, 0)
        assert p.ask("load", "sequence", tmp_path / "state", 0) == "refused same"


def test_a_transposed_cache_stays_transposed(start, tmp_path):
    native(start, "smollm2", "session", tmp_path / "off", ("f16", "f16"), attention="off")
    native(start, "smollm2", "session", tmp_path / "on", ("f16", "f16"))
    with start("smollm2", "tq3_0", "tq3_0") as p:
        assert p.ask("load", "session", tmp_path / "off", 0) == "refused same"
        assert "the saved V cache is transposed, this context's isn't: restore it with flash attention off, as it was saved" in p.log()
    with start("smollm2", "tq3_0", "f32", attention="off") as p:
        assert p.ask("load", "session", tmp_path / "on", 0) == "refused same"
        assert "the saved V cache isn't transposed, this context's is: restore it with flash attention on, as it was saved" in p.log()
        assert p.ask("load", "session", tmp_path / "off", 0) == f"restored {PREFIX}"
        p.logits()


# --- the server ---------------------------------------------------------------------------------------------------------


def test_server_restores_slots_of_other_types(programs, smollm2, tmp_path):  # noqa: F811
    ask = {"prompt": PROMPT, "n_predict": 24, "temperature": 0, "cache_prompt": True, "id_slot": 0}
    with llama_server(programs, smollm2, tmp_path, "f16", "f16") as request:
        first = request("/completion", ask)
        saved = request("/slots/0?action=save", {"filename": "slot.bin"})
    states.convert_state(tmp_path / "slot.bin", tmp_path / "offline.bin", "tq3_0", "tq3_0", HEADS["smollm2"])
    with llama_server(programs, smollm2, tmp_path, "tq3_0", "tq3_0", "--kv-center", "off") as request:
        answers = []
        for name in ("slot.bin", "offline.bin"):
            assert request("/slots/0?action=restore", {"filename": name})["n_restored"] == saved["n_saved"]
            answers.append(request("/completion", ask))
            assert answers[-1]["timings"]["prompt_n"] < first["timings"]["prompt_n"], "the restored tokens were computed again"
    assert answers[0]["content"] == answers[1]["content"] and len(answers[0]["content"].split()) > 5
    log = (tmp_path / "server-tq3_0-tq3_0.log").read_text(errors="replace")
    assert "the saved K cache is f16, this context's is tq3_0: converting" in log
