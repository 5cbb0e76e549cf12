# SPDX-License-Identifier: MIT
"""Centered keys in the patched llama.cpp 0.3.36 with real models: with an f16 cache, which shows the method's own error, and with ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

import pyggmlq
from pyggmlq import states
from pyggmlq._centered import checksum
from pyggmlq._pairs import Case
from pyggmlq.cli import app
from pyggmlq.lab import fit

from llama_build import build, run
from test_llama_cpp import CACHE, PROMPT, complete, gemma, llama_server, patched_tree, programs, smollm2  # noqa: F401  (fixtures)
from test_llama_states import MORE, PREFIX, kld, load_damaged, probe, start  # noqa: F401  (fixtures)

pytestmark = pytest.mark.llama

CENTERED, PLAIN = ({"GGMLQ_KV_CENTER": mode} for mode in ("all", "off"))


PLAIN_LOGITS = {}  # many tests compare with the same contexts of plain keys


def logits(start, model, k, v, env, attention="on", actions=(), more=(), seq=0, at=PREFIX):  # noqa: F811
    """Log probabilities after the prefix and these commands, and the log."""
    asked = start.probe, model, k, v, attention, tuple(actions), more, seq, at
    if env is PLAIN and asked in PLAIN_LOGITS:
        return PLAIN_LOGITS[asked]
    with start(model, k, v, attention, env=env, more=more) as p:
        p.do("prefix", PREFIX, 0)
        for action in actions:
            p.do(*action)
        path = p.folder / "logits"
        p.do("logits", at, 32, seq, path)
        x = np.fromfile(path, np.float32).reshape(32, -1).astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        found = x - np.log(np.exp(x).sum(axis=1, keepdims=True)), p.log()
    if env is PLAIN and model != "random_model":  # which is another one in each test
        PLAIN_LOGITS[asked] = found
    return found


def exact(start, model, most=0.005, **options):  # noqa: F811
    """With an f16 cache, centered keys answer as plain ones do: within what f16 and f32 caches, with and without flash attention, differ by, since
    small models turn any other rounding of a key into a KLD of thousandths. Three bits, or a wrong row, cost ten times that."""
    plain = [logits(start, model, t, t, PLAIN, attention, **options) for t, attention in (("f16", "on"), ("f16", "off"), ("f32", "off"))]
    noise = max(kld(p[0], q[0]).mean() for p in plain for q in plain)
    assert noise < most
    for attention, (wanted, log) in zip(("on", "off"), plain):
        assert "centered" not in log
        found, log = logits(start, model, "f16", "f16", CENTERED, attention, **options)
        assert f"keys are centered: {dict(smollm2=30, gemma=18)[model]} layers" in log
        assert "rounded for" not in log and 0 < kld(wanted, found).mean() < 2 * noise


@pytest.mark.parametrize("model", ["smollm2", "gemma"])
def test_centering_is_exact(start, model):  # noqa: F811
    """Gemma has two RoPEs of distant pairs and sliding windows, SmolLM2 neighbouring pairs."""
    exact(start, model)


def test_far_positions_and_yarn(start):  # noqa: F811
    """Beside another sequence. YaRN turns pairs by angles of its own and multiplies all by 1.14; floats of angles of 100000 have steps of 0.008, in plain caches too."""
    exact(start, "smollm2", most=0.01, actions=[("prefix", 40, 1)], more=("yarn", "far"))


def test_turns_of_a_rope_give_its_rows(programs, tmp_path):  # noqa: F811
    """As the CPU back end computes them: within what its floats round angles to at each position."""
    tree, binary = CACHE / "llama" / "0.3.36-patched", tmp_path / "center_probe"
    run([os.environ.get("CXX") or "c++", "-std=c++17", "-O1", *(f"-I{tree / folder}" for folder in ("src", "include", "ggml/include")), Path(__file__).with_name("center_probe.cpp"),
         f"-L{programs}", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{programs}", "-o", binary])  # fmt: skip
    found = [line.split() for line in run([binary]).stdout.splitlines()]
    assert [name for name, *_ in found] == ["neighbours", "halves", "scaled", "yarn", "factors", "magnitude"]
    assert all(float(worst) < 1 for _, worst, _ in found), found
    assert [float(magnitude) for *_, magnitude in found] == pytest.approx([1, 1, 1, 1 + 0.1 * np.log(4), 1, 1.19], abs=1e-5)


def test_a_calibration_on_a_device(programs, tmp_path):  # noqa: F811
    """One copy for all tensors of a buffer, with the bytes that the host's memory gets. What rounding can't be prepared for is said, and is rounded by zeros."""
    tree, binary = CACHE / "llama" / "0.3.36-patched", tmp_path / "center_upload_probe"
    run([os.environ.get("CXX") or "c++", "-std=c++17", "-O1", *(f"-I{tree / folder}" for folder in ("src", "include", "ggml/include", "ggml/src")),
         Path(__file__).with_name("center_upload_probe.cpp"), f"-L{programs}", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{programs}", "-o", binary])  # fmt: skip
    output = run([binary]).stdout
    assert re.findall(r"^[\d ]+$", output, re.MULTILINE) == ["1 1 1 1", "4 4 1 1", "1 1"] and "keys are not rounded for the model's queries: " in output, output


@pytest.mark.parametrize("kept", [True, False])
def test_contexts_that_are_used_or_freed_at_once(programs, smollm2, tmp_path, kept):  # noqa: F811
    """While matrices for rounding are in the making; by a calibration that was kept in a file, or that each process makes."""
    tree, binary = CACHE / "llama" / "0.3.36-patched", tmp_path / "center_start_probe"
    run([os.environ.get("CXX") or "c++", "-std=c++17", "-O1", *(f"-I{tree / folder}" for folder in ("include", "ggml/include")),
         Path(__file__).with_name("center_start_probe.cpp"), f"-L{programs}", "-lllama", "-lggml", "-lggml-base", "-pthread", f"-Wl,-rpath,{programs}", "-o", binary])  # fmt: skip
    for _ in range(1 + kept):
        output = run([binary, smollm2], env={**os.environ, "GGMLQ_KV_CENTER_CACHE": str(tmp_path / "kept") if kept else "off"}).stdout
        assert output.splitlines()[-1] == "1 1" and "not centered" not in output, output
        assert output.count("30 rounded for") == 6, output


@pytest.mark.parametrize("model, k, v, more, env", [
    ("smollm2", "tq3_0", "tq3_0", (), {}), ("gemma", "planar3", "f16", (), {}), ("gemma", "tq3_0", "tq3_0", (), {}), ("smollm2", "tq3_0", "f16", ("yarn",), {}),
    ("smollm2", "q8_0", "f16", (), CENTERED), ("smollm2", "f16", "f16", (), CENTERED), ("smollm2", "tq3_0", "tq3_0", (), {"LLAMA_ATTN_ROT_DISABLE": "1"}),
])  # fmt: skip
def test_the_mean_adds_what_w_adds(programs, request, tmp_path, model, k, v, more, env):  # noqa: F811
    """Of every node of attention: two ways to the same term, of which a GPU takes the other one for many queries."""
    tree, binary = CACHE / "llama" / "0.3.36-patched", tmp_path / "center_mean_probe"
    run([os.environ.get("CXX") or "c++", "-std=c++17", "-O1", *(f"-I{tree / folder}" for folder in ("src", "include", "ggml/include", "ggml/src")),
         Path(__file__).with_name("center_mean_probe.cpp"), f"-L{programs}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{programs}", "-o", binary])  # fmt: skip
    nodes, difference, term = run([binary, request.getfixturevalue(model), k, v, *more], env={**os.environ, **env}).stdout.splitlines()[-1].split()
    assert int(nodes) == dict(smollm2=30, gemma=18)[model]
    assert float(difference) < 1e-5 and float(term) > 0.1


def test_keys_that_move(start):  # noqa: F811
    """K-shift changes positions and turns keys."""
    exact(start, "smollm2", actions=[("drop", 8, 64)], at=PREFIX - 64)


def test_sequences_that_are_copied(start):  # noqa: F811
    """A copied stream takes along which of its keys are centered."""
    exact(start, "smollm2", actions=[("copy",)], more=("streams",), seq=1)


@pytest.fixture(scope="session")
def random_models(patched_tree, tmp_path_factory):  # noqa: F811
    """llama.cpp's small random models of these architectures, with queries and keys (and their biases) 32 times as large: so that attention looks at keys at all."""
    folder = tmp_path_factory.mktemp("random")
    run([build(patched_tree, ("test-llama-archs",)) / "test-llama-archs", "-a", "^(falcon-h1|granitehybrid|lfm2|qwen3next|stablelm|qwen2|deepseek4|hy_v4|falcon)$", "-s", "1", "-o", folder])
    for path in folder.glob("*.gguf"):
        file = gguf.GGUFReader(path, "r+")
        for tensor in file.tensors:
            if re.search(r"attn_[qk](_norm)?\.(weight|bias)$", tensor.name):
                assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
                tensor.data[:] *= 32
        file.data.flush()
    return folder


@pytest.fixture
def random_model(random_models, request):
    return random_models / f"{request.param}.gguf"


@pytest.mark.parametrize("random_model", ["falcon-h1-dense", "granitehybrid-dense", "lfm2-dense", "qwen3next-moe", "stablelm-dense", "qwen2-dense"], indirect=True)
def test_other_architectures(start, random_model):  # noqa: F811
    """Hybrids (with norms of keys and partial RoPE among them), LayerNorm of keys with partial RoPE, K biases: with f16 keys the logits are those of f32 caches, in
    a small part of what three bits change; three bits lose much less centered, since their biases are most of such keys."""
    wanted = logits(start, "random_model", "f32", "f32", PLAIN, "off")[0]

    def difference(k, env, attention):
        found, log = logits(start, "random_model", k, "f16", env, attention)
        assert ("keys are centered: " in log) == (env is not PLAIN)
        return np.sqrt(((found - wanted) ** 2).mean())

    plain = difference("tq3_0", PLAIN, "on")
    for attention in "on", "off":
        assert difference("f16", CENTERED, attention) < plain / 10
        assert difference("tq3_0", CENTERED, attention) < plain / 3


@pytest.mark.parametrize("random_model", ["falcon-dense"], indirect=True)
def test_values_of_a_fused_product(start, random_model):  # noqa: F811
    """V is a view of one product with Q and K."""
    wanted = logits(start, "random_model", "f32", "f32", PLAIN, "off")[0]
    found, log = logits(start, "random_model", "tq3_0", "tq3_0", {"GGMLQ_KV_CENTER": "auto"})
    assert "keys are centered: " in log and spread(found, wanted) < 1.2 * spread(logits(start, "random_model", "tq3_0", "tq3_0", PLAIN)[0], wanted)


def latent_model(tmp_path_factory, architecture):
    path = tmp_path_factory.mktemp("latent") / f"{architecture}.gguf"
    tool = Path(__file__).parents[1] / "tools" / "make_random_mla.py"
    run([sys.executable, tool, path, "--architecture", architecture, "--top-k", "64", "--mean", "3"])
    return path


@pytest.fixture(scope="session")
def mla(tmp_path_factory):
    """Of random weights, latents of 512 values that are 90 % mean."""
    return latent_model(tmp_path_factory, "deepseek2")


@pytest.fixture(scope="session")
def dsa(tmp_path_factory):
    """The same with an indexer that selects 64 rows for a token."""
    return latent_model(tmp_path_factory, "deepseek32")


def spread(x, wanted):
    return np.sqrt(((x - wanted) ** 2).mean())


@pytest.mark.parametrize("model", ["mla", "dsa"])
def test_latents_of_mla(start, model):  # noqa: F811
    """Rows that are K and V at once: with f16 ones the logits are those of f32 caches, also behind a K-shift and in a copied sequence; three bits lose much
    less centered. Where keys aren't centered, graphs are as without."""
    wanted = logits(start, model, "f32", "f32", PLAIN, "off")[0]
    found = {}
    for kind, env, attention in [("f16", PLAIN, "on"), ("f16", CENTERED, "on"), ("f16", CENTERED, "off"), ("tq3_0", PLAIN, "on"), ("tq3_0", {"GGMLQ_KV_CENTER": "auto"}, "on")]:
        x, log = logits(start, model, kind, kind, env, attention)
        assert ("keys are centered: 2 layers, " in log) == (env is not PLAIN) and "rounded for" not in log
        found[kind, env is not PLAIN, attention] = spread(x, wanted), nodes(log)
    for attention in "on", "off":
        assert found["f16", True, attention][0] < found["tq3_0", False, "on"][0] / 20
    assert found["tq3_0", True, "on"][0] < found["tq3_0", False, "on"][0] / 2
    assert found["tq3_0", False, "on"][1] == found["f16", False, "on"][1] != found["tq3_0", True, "on"][1]

    for options in {"actions": [("drop", 8, 64)], "at": PREFIX - 64}, {"actions": [("copy",)], "more": ("streams",), "seq": 1}:
        wanted = logits(start, model, "f32", "f32", PLAIN, "off", **options)[0]
        assert spread(logits(start, model, "f16", "f16", CENTERED, **options)[0], wanted) < found["tq3_0", False, "on"][0] / 20


@pytest.mark.parametrize("model, k, attention", [("smollm2", "tq3_0", "on"), ("smollm2", "tq3_0", "off"), ("gemma", "tq3_0", "on"), ("gemma", "planar3", "on")])
def test_three_bits_lose_less(start, model, k, attention):  # noqa: F811
    reference = logits(start, model, "f16", "f16", PLAIN)[0]
    plain = kld(reference, logits(start, model, k, "f16", PLAIN, attention)[0]).mean()
    centered = kld(reference, logits(start, model, k, "f16", {"GGMLQ_KV_CENTER": "auto"}, attention)[0]).mean()
    assert centered < plain / 2, (centered, plain)


@pytest.mark.parametrize("k, attention, most", [("q4_0", "on", 1 / 2), ("q4_0", "off", 1 / 2), ("q8_0", "on", 1.2), ("q8_0", "off", 1.2)])
def test_keys_of_llama_cpps_types(start, k, attention, most):  # noqa: F811
    """On request (`all`). What q8_0 loses is less than what these models answer to any other rounding with."""
    reference = logits(start, "smollm2", "f16", "f16", PLAIN)[0]
    plain = kld(reference, logits(start, "smollm2", k, "f16", PLAIN, attention)[0]).mean()
    found, log = logits(start, "smollm2", k, "f16", CENTERED, attention)
    assert "keys are centered: 30 layers" in log and 0 < kld(reference, found).mean() < most * plain + 0.001 * (k == "q8_0"), plain


def test_keys_of_tq3_0_are_rotated_where_they_are_centered(start):  # noqa: F811
    """By llama.cpp's attn_rot, which is left out for this type otherwise: its switch changes nothing then."""
    off = {"LLAMA_ATTN_ROT_DISABLE": "1"}
    for env, same in (PLAIN, True), ({"GGMLQ_KV_CENTER": "auto"}, False):
        rotated, log = logits(start, "smollm2", "tq3_0", "f16", env)
        unrotated, log_off = logits(start, "smollm2", "tq3_0", "f16", {**env, **off})
        assert np.array_equal(rotated, unrotated) == same
        assert ("attn_rot_k = 1" in log, "attn_rot_k = 1" in log_off) == (not same, False)


def nodes(log):
    """Of both graphs that a context reserves."""
    return re.findall(r"graph.*: nodes = ([^,]+),", log)[-1]


def test_on_by_default_and_off_changes_nothing(start, calibrated):  # noqa: F811
    unset, log = logits(start, "smollm2", "tq3_0", "tq3_0", calibrated("", 0))  # an empty variable is as one that isn't set
    assert "keys are centered: 30 layers" in log
    auto, log = logits(start, "smollm2", "tq3_0", "tq3_0", calibrated("auto", 0))
    assert np.array_equal(unset, auto)
    off, off_log = logits(start, "smollm2", "tq3_0", "tq3_0", PLAIN)
    assert "centered" not in off_log and not np.array_equal(off, auto)
    assert nodes(off_log) == nodes(logits(start, "smollm2", "f16", "f16", PLAIN)[1]) != nodes(log)
    q4_0, log = logits(start, "smollm2", "q4_0", "q4_0", calibrated("", 0))  # only keys of our types
    assert "centered" not in log
    assert np.array_equal(q4_0, logits(start, "smollm2", "q4_0", "q4_0", PLAIN)[0])


# --- a model is calibrated once -----------------------------------------------------------------------------------------


def enlarged(file):
    """The last tensor, by its header, has more values than any memory holds: ggml ends the process that asks for it."""
    name = b"blk.29.q_squares"
    at = file.index(name) + len(name) + 4 + 8  # the second of its two sizes
    return file[:at] + (1 << 44).to_bytes(8, "little") + file[at + 8 :]


def test_a_calibration_is_kept_for_other_processes(start, calibrated, tmp_path):  # noqa: F811
    """Until the file is damaged, replaced by another one or can't be written: each is said, and keys are centered all the same, to the same bits."""
    folder = tmp_path / "kept"
    env = {**calibrated("auto", 0), "GGMLQ_KV_CENTER_CACHE": str(folder)}

    def centered(*logged, env=env, model="smollm2"):
        found, log = logits(start, model, "tq3_0", "f16", env)
        assert f"keys are centered: {dict(smollm2=30, gemma=18)[model]} layers" in log
        for sentence in logged:
            assert sentence in log, log[-3000:]
        return found, log

    fresh, log = centered("calibrating centered keys on 3")
    (file,) = folder.iterdir()
    assert f"(kept in '{file}')" in log and len(file.read_bytes()) < 200_000
    kept, log = centered(f"tokens before (kept in '{file}', ")
    assert "calibrating" not in log and np.array_equal(fresh, kept)
    good = file.read_bytes()

    centered("as a file says that was calibrated on 3", env={"GGMLQ_KV_CENTER": str(file)})
    centered("calibrating", model="gemma")
    centered("calibrating", env={**env, **calibrated("auto", 1)})
    others = set(folder.iterdir()) - {file}
    assert len(others) == 2 and file.read_bytes() == good
    for broken, sentence in ((good[:-900] + b"?" + good[-899:], "is damaged: its checksum is wrong: it is made anew"),
                             (good.replace(b"blk.7.rope", b"blk.7.ropf"), "is damaged: its checksum is wrong: it is made anew"),
                             (good[:700], "is no calibration of centered keys, or damaged: it is made anew"),
                             (enlarged(good), "is damaged: it ends too early: it is made anew"),
                             (others.pop().read_bytes(), "by another name: it is made anew")):  # fmt: skip
        file.write_bytes(broken)
        again, _ = centered(f"'{file}' ", sentence, "calibrating")
        assert np.array_equal(fresh, again) and file.read_bytes() == good

    with pytest.raises(AssertionError, match="was made for '.*' .llama, .* this model is '.*' .gemma3"), start("gemma", "tq3_0", "f16", env={"GGMLQ_KV_CENTER": str(file)}):
        pass

    # what killed processes have left is removed when a file is written; what is still being written, and what isn't ours, stays
    left = [folder / name for name in (file.name + ".5f3a.part", "0123456789abcdef.gguf.1.part", file.name + ".77.part", "film.part")]
    for path, age in zip(left, (7200, 7200, 600, 7200)):
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
    file.unlink()
    centered("calibrating")
    assert [path.exists() for path in left] == [False, False, True, True] and file.read_bytes() == good

    (tmp_path / "file").write_text("no folder")
    again, _ = centered("(not kept in a file: '", "can't be written: Not a directory", env={**env, "GGMLQ_KV_CENTER_CACHE": str(tmp_path / "file")})
    assert np.array_equal(fresh, again)
    centered("calibrating", "(not kept in a file)", env={**env, "GGMLQ_KV_CENTER_CACHE": "off"})


def test_a_calibration_that_a_full_disk_cuts_off_is_not_kept(programs, smollm2, calibrated, tmp_path):  # noqa: F811
    """Played by a limit of file sizes, a few bytes below what is wanted: they are still in C's buffer when ggml has written everything."""
    resource = pytest.importorskip("resource")

    def kept(folder, most):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        env = {**os.environ, **calibrated("auto", 0), "GGMLQ_KV_CENTER_CACHE": str(folder)}
        done = subprocess.run([programs / "llama-completion", "-m", smollm2, *"-p hi -n 1 -c 512 -no-cnv -lv 4 -ctk tq3_0 -fa on".split()], env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limit, text=True, errors="replace")  # fmt: skip
        assert done.returncode == 0 and "keys are centered: 30 layers" in done.stdout, done.stdout
        return list(folder.iterdir()), done.stdout

    (file,), _ = kept(tmp_path / "kept", resource.RLIM_INFINITY)
    files, log = kept(tmp_path / "full", file.stat().st_size - 10)
    assert files == [] and re.search(r"not kept in a file: '.*' can't be written: what was written is damaged: .*is the disk full", log), log


def test_keys_are_rounded_for_queries_at_any_position(start, calibrated, tmp_path):  # noqa: F811
    """A calibration a quarter turn further on has the mean squares of each RoPE pair of queries the other way round: the same bits."""
    folder = tmp_path / "kept"
    found, _ = logits(start, "smollm2", "tq3_0", "f16", {**calibrated("auto", 0), "GGMLQ_KV_CENTER_CACHE": str(folder)})
    (path,) = folder.iterdir()
    file = gguf.GGUFReader(path, "r+")
    sum_said = file.fields["ggmlq.checksum"].parts[-1]
    sum_said[:] = ord("0")
    data = bytes(file.data[: file.data_offset])
    for tensor in file.tensors:
        if tensor.name.endswith("q_squares"):
            assert np.abs(np.log(tensor.data[:, ::2] / tensor.data[:, 1::2])).max() > 0.5
            tensor.data[:] = tensor.data.reshape(-1, 2)[:, ::-1].reshape(tensor.data.shape)
        data += tensor.name.encode() + tensor.data.tobytes()
    sum_said[:] = np.frombuffer(f"{checksum(data):016x}".encode(), np.uint8)
    file.data.flush()
    turned, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": str(path)})
    assert "as a file says" in log and np.array_equal(found, turned)


def test_a_calibration_is_kept_for_other_contexts(start, calibrated, tmp_path):  # noqa: F811
    """Also for those of the same file loaded anew; a context too short for the text calibrates in windows, which serves until a longer one comes."""
    (tmp_path / "text-0").write_text((Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8") + "The end. " * 20, encoding="utf-8")
    with start("smollm2", "tq3_0", "f16", n_ctx=256, env={**calibrated("auto", 0), "GGMLQ_KV_CENTER_CACHE": "off"}) as p:
        for action, calibrates in (("another", 256), False), (("another", 512), True), (("another", 512), False), (("again",), False), (("another", 256), False):
            p.do("clear")  # what was printed before is in the log then
            before = len(p.log())
            p.do(*action)
            log = p.log()[before:]
            assert "keys are centered: 30 layers" in log
            assert ("calibrating centered keys" in log) == calibrates and ("(kept in this process, " in log) != calibrates
    assert p.log().count("calibrating centered keys") == 2


def test_what_measures_memory_counts_what_centering_takes(programs, gemma):  # noqa: F811
    """llama.cpp makes a context without memory first, to see what fits: to the MiB, it takes what the real one does. As `pyggmlq fit` says."""
    used = {}
    for mode in "off", "auto":
        _, log, status = complete(programs, gemma, "tq3_0", "tq3_0", "-fa", "on", "--kv-center", mode, "-lv", "5", n_predict=1, n_ctx=32768)
        assert status == 0 and ("keys are centered: 18 layers" in log) == (mode == "auto")
        measured, real = re.findall(r"\| +- Host +\| +\d+ = +\d+ \+ +(\d+) \+ +(\d+) ", log)  # MiB of the context and of graphs
        assert measured == real
        used[mode] = int(real[0])
    assert used["auto"] - used["off"] == pytest.approx(fit.read(gemma).center_bytes(Case("tq3_0", "tq3_0"), 32768) / fit.MIB, abs=1)


# --- saved states -------------------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(tmp_path):
    """Environment of keys that are centered on the first or on the second of two short texts, quickly."""
    texts = ("The harbour was empty that morning, and the fishermen mended their nets in the sun. ", "for (int i = 0; i < n; ++i) { sum += x[i]*y[i]; } ")
    for i, text in enumerate(texts):
        (tmp_path / f"text-{i}").write_text(text * 2, encoding="utf-8")
    return lambda mode, which: {"GGMLQ_KV_CENTER": mode, "GGMLQ_KV_CENTER_TEXT": str(tmp_path / f"text-{which}")}


def saved(start, model, types, env, kind, path, before=(), at=PREFIX, **options):  # noqa: F811
    """Saves a sequence; log probabilities of what follows there."""
    with start(model, *types, env=env, **options) as p:
        p.do("prefix", PREFIX, 0)
        for action in before:
            p.do(*action)
        p.do("save", kind, path, PREFIX, 0)
        return p.logits(at)


# Moved keys are turned at the next token, and llama.cpp saves them without: so there is one before a file is saved.
MOVED = (("drop", 8, 64), ("logits", PREFIX - 64, 1, 0, os.devnull))


def restored(start, model, types, env, kind, path, others=False, after=(), at=PREFIX, **options):  # noqa: F811
    """Log probabilities and log of a context that restores a file; `others`: while another sequence is in its cache."""
    with start(model, *types, env=env, **options) as p:
        if others:
            p.do("prefix", 40, 1)
        assert p.ask("load", kind, path, 0) == f"restored {PREFIX}", p.log()[-2000:]
        for action in after:
            p.do(*action)
        return p.logits(at), p.log()


@pytest.mark.parametrize("model, types, kind, options", [
    ("smollm2", ("tq3_0", "tq3_0"), "session", {}),
    ("smollm2", ("tq3_0", "f16"), "session", {"attention": "off", "more": ("streams",)}),
    ("gemma", ("planar3", "tq3_0"), "sequence", {"more": ("window",)}),
    ("mla", ("tq3_0", "tq3_0"), "session", {"more": ("streams",)}),
    ("dsa", ("tq3_0", "tq3_0"), "sequence", {}),
])  # fmt: skip
def test_a_state_goes_on_as_without_the_interruption(start, calibrated, model, types, kind, options, tmp_path):  # noqa: F811
    """The same bits, in a context with the same calibration, and in an empty one with another, which takes over the state's."""
    state = tmp_path / "state"
    wanted = saved(start, model, types, calibrated("auto", 0), kind, state, **options)
    for which in 0, 1:
        with start(model, *types, env=calibrated("auto", which), **options) as p:
            assert p.ask("load", kind, state, 0) == f"restored {PREFIX}"
            p.do("save", kind, tmp_path / "again", PREFIX, 0)
            assert (tmp_path / "again").read_bytes() == state.read_bytes()
            if "streams" in options.get("more", ()):  # a copied sequence takes along what was restored
                p.do("copy")
                p.do("logits", PREFIX, MORE, 1, tmp_path / "copied")
            assert np.array_equal(wanted, p.logits())
            assert "streams" not in options.get("more", ()) or (tmp_path / "copied").read_bytes() == (tmp_path / "logits").read_bytes()
            assert ("keys are centered by the saved calibration" in p.log()) == (which == 1) and "converting" not in p.log()


@pytest.mark.parametrize("model, most", [("gemma", 0.01), ("mla", 1e-5), ("dsa", 1e-5)])
def test_keys_of_a_state_become_centered_as_the_context_is(start, calibrated, model, most, tmp_path):  # noqa: F811
    """Plain to centered, back, and from one calibration to another beside a sequence that keeps the context from taking it over. With f16 caches all are
    exact but for f16 roundings, which such models answer to with a KLD of thousandths (`exact`); wrong keys cost nats."""
    plain, first, second = {"GGMLQ_KV_CENTER": "off"}, calibrated("all", 0), calibrated("all", 1)
    for source, target, others in (plain, first, False), (first, plain, False), (first, second, True):
        wanted = saved(start, model, ("f16", "f16"), source, "sequence", tmp_path / "state")
        found, log = restored(start, model, ("f16", "f16"), target, "sequence", tmp_path / "state", others)
        sides = ["centered by calibration" if side is not plain else "not centered" for side in (source, target)]
        assert f"the saved K cache is f16, {sides[0]}" in log and f"this context's is f16, {sides[1]}" in log
        assert 0 < kld(wanted, found).mean() < most


def test_a_state_of_another_rope(start, calibrated, tmp_path):  # noqa: F811
    """Keys stay turned as they were saved, in any llama.cpp. Centered ones are converted, since attention adds what the context's RoPE gives."""
    for env, path in (PLAIN, tmp_path / "plain"), (calibrated("all", 0), tmp_path / "centered"):
        saved(start, "smollm2", ("f16", "f16"), env, "session", path)
    wanted, _ = restored(start, "smollm2", ("f16", "f16"), PLAIN, "session", tmp_path / "plain", more=("yarn",))
    found, log = restored(start, "smollm2", ("f16", "f16"), calibrated("all", 0), "session", tmp_path / "centered", more=("yarn",))
    assert "converting" in log and "by the saved calibration" not in log
    assert kld(wanted, found).mean() < 0.01


def test_keys_that_moved_and_were_converted(start, calibrated, tmp_path):  # noqa: F811
    """The positions of a saved file are those after K-shift; keys that were converted can be shifted again."""
    wanted = saved(start, "smollm2", ("f16", "f16"), {}, "sequence", tmp_path / "state", MOVED, PREFIX - 63)
    found, _ = restored(start, "smollm2", ("f16", "f16"), calibrated("all", 0), "sequence", tmp_path / "state", at=PREFIX - 63)
    assert kld(wanted, found).mean() < 0.01
    move = ("drop", 8, 32)
    wanted, _ = restored(start, "smollm2", ("f16", "f16"), {}, "sequence", tmp_path / "state", after=(move,), at=PREFIX - 95)
    found, _ = restored(start, "smollm2", ("f16", "f16"), calibrated("all", 0), "sequence", tmp_path / "state", after=(move,), at=PREFIX - 95)
    assert kld(wanted, found).mean() < 0.01


def test_types_and_centering_change_together(start, calibrated, tmp_path):  # noqa: F811
    """f16 plain to ours, centered and rotated, is as good as a session of that type; on to f16 plain by llama.cpp and by convert-state, which agree."""
    off, auto = {"GGMLQ_KV_CENTER": "off"}, calibrated("auto", 0)
    reference = saved(start, "smollm2", ("f16", "f16"), off, "session", tmp_path / "f16")
    own = kld(reference, saved(start, "smollm2", ("tq3_0", "f16"), auto, "session", tmp_path / "own"))
    found, log = restored(start, "smollm2", ("tq3_0", "f16"), auto, "session", tmp_path / "f16")
    assert "the saved K cache is f16, not centered, this context's is tq3_0, centered by calibration" in log
    assert kld(reference, found).mean() < own.mean() + 3 * own.std() / np.sqrt(len(own))
    done = states.convert_state(tmp_path / "own", tmp_path / "offline", "f16", None)
    assert done.uncentered and (tmp_path / "offline").stat().st_size == (tmp_path / "f16").stat().st_size
    back, log = restored(start, "smollm2", ("f16", "f16"), off, "session", tmp_path / "own")
    offline, log = restored(start, "smollm2", ("f16", "f16"), off, "session", tmp_path / "offline")
    assert "converting" not in log and kld(back, offline).mean() < 0.003
    assert kld(reference, back).mean() < own.mean() + 3 * own.std() / np.sqrt(len(own))


@pytest.mark.parametrize("model", ["mla", "dsa"])
def test_types_and_centering_of_latents_change_together(start, calibrated, model, tmp_path):  # noqa: F811
    """There and back, as good as a session of that type. convert-state refuses such files, as those of plain MLA."""
    off, auto = {"GGMLQ_KV_CENTER": "off"}, calibrated("auto", 0)
    reference = saved(start, model, ("f16", "f16"), off, "session", tmp_path / "f16")
    own = spread(saved(start, model, ("tq3_0", "tq3_0"), auto, "session", tmp_path / "tq3_0"), reference)
    for source, target, env in ("f16", "tq3_0", auto), ("tq3_0", "f16", off):
        found, log = restored(start, model, (target, target), env, "session", tmp_path / source)
        assert f"the saved K cache is {source}, " in log and ": converting" in log
        assert spread(found, reference) < 1.2 * own
    with pytest.raises(states.StateError, match=r"a calibration of centered keys before \d+ of rows without values \(MLA\) in layer 0; caches of K and V are known"):
        states.convert_state(tmp_path / "tq3_0", tmp_path / "f32", "f32", None)


@pytest.mark.parametrize("kind, target, mode", [("sequence", "tq3_0", "auto"), ("session", "tq3_0", "auto"), ("sequence", "f16", "off")])
def test_damaged_states_of_centered_keys(start, calibrated, kind, target, mode, tmp_path):  # noqa: F811
    """Restored whole, or refused with everything as it was; never a crash. As test_ten_thousand_damaged_files, into another calibration."""
    with start("smollm2", "tq3_0", "tq3_0", n_ctx=256, env=calibrated("auto", 0)) as p:
        p.do("prefix", 4, 0)
        p.do("save", kind, tmp_path / "state", 4, 0)
    original = (tmp_path / "state").read_bytes()
    with start("smollm2", target, target, n_ctx=256, env=calibrated(mode, 1)) as p:
        outcomes = load_damaged(p, kind, original, tmp_path / "damaged", 600)
        assert "the calibration of the saved keys is damaged: its checksum is wrong; nothing was restored" in p.log()
    assert min(outcomes["refused"], outcomes["restored"]) > 25, outcomes


def test_a_server_keeps_its_prompts(programs, smollm2, calibrated, monkeypatch, tmp_path):  # noqa: F811
    """Slots of a server with centered keys go on in another server, whose calibration is of another text."""
    ask = {"prompt": PROMPT, "n_predict": 24, "temperature": 0, "cache_prompt": True, "id_slot": 0}
    monkeypatch.setenv(*list(calibrated("auto", 0).items())[1])
    with llama_server(programs, smollm2, tmp_path, "tq3_0", "tq3_0") as request:
        first = request("/completion", ask)
        saved = request("/slots/0?action=save", {"filename": "slot.bin"})
    monkeypatch.setenv(*list(calibrated("auto", 1).items())[1])
    with llama_server(programs, smollm2, tmp_path, "tq3_0", "tq3_0", "-lv", "4") as request:
        assert request("/slots/0?action=restore", {"filename": "slot.bin"})["n_restored"] == saved["n_saved"]
        again = request("/completion", ask)
    assert again["timings"]["prompt_n"] < first["timings"]["prompt_n"], "the restored tokens were computed again"
    assert again["content"] == first["content"] and len(first["content"].split()) > 5
    assert "keys are centered by the saved calibration" in (tmp_path / "server-tq3_0-tq3_0.log").read_text(errors="replace")


def test_a_draft_model_has_a_calibration_of_its_own(programs, smollm2, tmp_path):  # noqa: F811
    """Two contexts of one server. The draft is the model itself, so nearly all that it says is taken."""
    draft = ("--spec-type", "draft-simple", "--spec-draft-model", smollm2, "--spec-draft-type-k", "tq3_0", "--spec-draft-type-v", "f16", "-lv", "4")
    with llama_server(programs, smollm2, tmp_path, "tq3_0", "tq3_0", *draft) as request:
        timings = request("/completion", {"prompt": PROMPT, "n_predict": 48, "temperature": 0})["timings"]
    log = (tmp_path / "server-tq3_0-tq3_0.log").read_text(errors="replace")
    assert log.count("keys are centered: 30 layers") == 2 and timings["draft_n_accepted"] > timings["draft_n"] / 2 > 0, timings


# --- a calibration in a file ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def calibrate(patched_tree, programs, tmp_path_factory):  # noqa: F811
    """calibrate(model, text, out, ..): the command, with the patched tree's program."""
    folder, work = build(patched_tree, ("llama-ggmlq-lab",)), tmp_path_factory.mktemp("calibrate")
    return lambda model, text, out, *more: CliRunner().invoke(
        app, ["calibrate", *map(str, (model, "--text", text, "-o", out, "--programs", folder, "--work-dir", work, *more))])  # fmt: skip


def calibrated_errors(path):
    """By type, of every layer: what SmolLM2's file expects, and by its moments what follows from the squared error that random rows of that type have."""
    file, x = gguf.GGUFReader(path), np.random.default_rng(1).standard_normal((40000, 32)).astype(np.float32)
    moments = {tensor.name: tensor.data.reshape(3, 32, 2).astype(np.float64) for tensor in file.tensors}
    said = {name: file.fields[f"ggmlq.score_error.{name}"].contents() for name in ("q8_0", "q4_0", "tq3_0", "planar3")}
    found = {}
    for name in (name for name, values in said.items() if any(values)):
        kind = None if name == "tq3_0" else gguf.GGMLQuantizationType[name.upper()]
        back = pyggmlq.dequantize(pyggmlq.quantize(x, name), name) if kind is None else gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
        root = np.sqrt(((back - x) ** 2).sum() / (x**2).sum())
        layers = []
        for layer in range(30):
            mean, square, query = (moments[f"blk.{layer}.{what}"] for what in ("k_mean", "k_squares", "q_squares"))
            of_keys, query = (square - mean**2 if name == "tq3_0" else square).mean(2), query.mean(2)  # of pairs
            product = (query * of_keys) ** 0.5 if name == "tq3_0" else np.sqrt(query.mean(1) * of_keys.mean(1))[:, None]
            layers.append(root * np.sqrt((product.mean(1) ** 2).mean()))  # scores are divided by the root of 64, the values of a head
        found[name] = said[name], layers
    return found


def test_a_file_of_a_calibration(start, calibrate, programs, smollm2, gemma, tmp_path):  # noqa: F811
    """It is made of several windows of a text, and read instead of a calibration; one that isn't right is refused, and a half-written one there is not."""
    text, path = Path(__file__).parents[1] / "docs" / "FORMAT.md", tmp_path / "smollm2.kv.gguf"
    done = calibrate(smollm2, text, path, "--tokens", 600)
    assert done.exit_code == 0 and f"wrote {path}: 30 layers on 600 tokens" in " ".join(done.output.split()), done.output
    good = path.read_bytes()
    assert list(calibrated_errors(path)) == ["q8_0", "q4_0", "tq3_0"]  # planar3 has no heads of 64
    for name, (said, wanted) in calibrated_errors(path).items():
        assert said == pytest.approx(wanted, rel=0.01) and f"{name} {np.median(said):.3f} ({max(said):.3f})" in " ".join(done.output.split())
    reference = logits(start, "smollm2", "f16", "f16", PLAIN)[0]
    found, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": str(path)})
    assert "keys are centered: 30 layers, as a file says that was calibrated on 600 tokens" in log
    assert kld(reference, found).mean() < kld(reference, logits(start, "smollm2", "tq3_0", "f16", PLAIN)[0]).mean() / 2

    (tmp_path / "short").write_text("Too short.")
    done = calibrate(smollm2, tmp_path / "short", path)
    assert done.exit_code == 1 and "found 3 tokens to calibrate on" in " ".join(done.output.split()), done.output
    assert path.read_bytes() == good and sorted(path.name for path in tmp_path.iterdir() if "log" not in path.name and path.name != "text") == [
        "short", "smollm2.kv.gguf"]  # fmt: skip

    refused = r"keys can't be centered: '.*smollm2.kv.gguf' "
    with pytest.raises(AssertionError, match=refused + r"was made for '.*' \(llama, [0-9a-f]{16}\), this model is '.*' \(gemma3, [0-9a-f]{16}\)"):
        with start("gemma", "tq3_0", "f16", env={"GGMLQ_KV_CENTER": str(path)}):
            pass
    _, log, status = complete(programs, smollm2, "tq3_0", "f16", "-fa", "on", "--kv-center", str(path), "--rope-freq-scale", "0.5")
    assert status == 1 and re.search(refused + r"was made with another RoPE in layer 0: 64 values, base 100000, scale 1, .*; this context has .*, scale 0\.5,", log)
    # where K isn't centered it is read all the same, and not used; of which model it is doesn't matter
    for model in "smollm2", "gemma":
        with start(model, "f16", "f16", env={"GGMLQ_KV_CENTER": str(path)}) as p:
            pass
        assert f"keys of type f16 are not centered, so '{path}' isn't used" in p.log()
    damage = {"is damaged: its checksum is wrong": good[:-900] + b"?" + good[-899:], "is no calibration of centered keys, or damaged": good[:700]}
    for sentence, data in damage.items():
        path.write_bytes(data)
        for k in "tq3_0", "f16":
            with pytest.raises(AssertionError, match=refused + sentence), start("smollm2", k, "f16", env={"GGMLQ_KV_CENTER": str(path)}):
                pass
    with pytest.raises(AssertionError, match="is no calibration of centered keys, but a GGUF file of 'llama'"):
        with start("smollm2", "tq3_0", "f16", env={"GGMLQ_KV_CENTER": str(smollm2)}):
            pass


def test_a_file_of_latents(start, calibrate, mla, tmp_path):  # noqa: F811
    path = tmp_path / "mla.kv.gguf"
    done = calibrate(mla, Path(__file__).parents[1] / "docs" / "FORMAT.md", path, "--tokens", 600)
    assert done.exit_code == 0 and f"wrote {path}: 2 layers on 600 tokens" in " ".join(done.output.split()), done.output
    reference = logits(start, "mla", "f16", "f16", PLAIN)[0]
    found, log = logits(start, "mla", "tq3_0", "tq3_0", {"GGMLQ_KV_CENTER": str(path)})
    assert "keys are centered: 2 layers, as a file says that was calibrated on 600 tokens" in log
    assert spread(found, reference) < spread(logits(start, "mla", "tq3_0", "tq3_0", PLAIN)[0], reference) / 2
    file = gguf.GGUFReader(path)
    moments = {tensor.name: tensor.data.astype(np.float64) for tensor in file.tensors}
    for layer, (said, plain) in enumerate(zip(*(file.fields[f"ggmlq.score_error.{name}"].contents() for name in ("tq3_0", "q4_0")))):
        mean, square, query = (moments[f"blk.{layer}.{what}"].ravel() for what in ("k_mean", "k_squares", "q_squares"))
        variance = (square - np.where(np.arange(576) < 512, mean**2, 0)).sum()
        assert (said / plain) ** 2 == pytest.approx(2.56e-2 / 7.38e-3 * variance / square.sum(), rel=1e-3) and variance < square.sum() / 2


# --- what is said -------------------------------------------------------------------------------------------------------


def test_the_text_of_a_calibration(start, tmp_path):  # noqa: F811
    """Of a file, where one is named: fewer tokens, other means; one that can't be read leaves keys as they are."""
    (tmp_path / "prose").write_text("The harbour was empty that morning, and the fishermen mended their nets in the sun. " * 2, encoding="utf-8")
    builtin, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": "auto"})
    assert re.search("keys are centered: 30 layers, (as )?calibrated on 435 tokens", log) and ", 30 rounded for the model's queries" in log
    other, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": "auto", "GGMLQ_KV_CENTER_TEXT": str(tmp_path / "prose")})
    assert re.search("keys are centered: 30 layers, (as )?calibrated on 3", log) and not np.array_equal(builtin, other)
    plain, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": "auto", "GGMLQ_KV_CENTER_TEXT": str(tmp_path / "none")})
    assert "keys are not centered: GGMLQ_KV_CENTER_TEXT is" in log and "can't be read or is empty" in log
    assert np.array_equal(plain, logits(start, "smollm2", "tq3_0", "f16", PLAIN)[0])


@pytest.fixture
def sinks(random_models):
    """MLA with them."""
    return random_models / "hy_v4-moe.gguf"


@pytest.fixture(scope="session")
def smollm3(tmp_path_factory):
    """Of random weights: its fourth and eighth layer have no RoPE."""
    path = tmp_path_factory.mktemp("smollm3") / "random.gguf"
    shape = "--layers 9 --heads 2 --heads-kv 1 --head-size 64 --ff 128 --type f16 --architecture smollm3"
    run([sys.executable, Path(__file__).parents[1] / "tools" / "make_random_gguf.py", path, *shape.split()])
    return path


def test_layers_that_stay_as_they_are_are_named(start, smollm3):
    with start("smollm3", "tq3_0", "f16", env={"GGMLQ_KV_CENTER": "auto"}) as p:
        pass
    assert re.search(r"keys are centered: 7 layers, .*; not 3, 7 \(its keys don't come straight from RoPE\)$", p.log(), re.MULTILINE), p.log()[-2000:]


@pytest.mark.parametrize("random_model", ["deepseek4-moe"], indirect=True)
def test_what_can_not_be_centered_is_said(start, smollm2, sinks, random_model):  # noqa: F811
    with pytest.raises(AssertionError, match="GGMLQ_KV_CENTER is 'on', wanted off, auto, all or a file that `pyggmlq calibrate` has made"), start("smollm2", "tq3_0", "f16", env={"GGMLQ_KV_CENTER": "on"}):
        pass
    # ggml's attention, not ours, reads q5_0: it can't add the missing term
    log = logits(start, "smollm2", "tq3_0", "q5_0", CENTERED)[1]
    assert "keys are not centered: CPU has no attention for centered keys of type tq3_0 with values of type q5_0" in log
    for model, sentence in ("sinks", "keys are not centered: found no layer that can be; not 0 to 1 (its attention has sinks or caps scores)"), (
            "random_model", "keys are not centered: found no layer that can be: none has keys of a kind that is known here, as in recurrent models and DeepSeek-V4"):  # fmt: skip
        with start(model, "tq3_0", "tq3_0", env={"GGMLQ_KV_CENTER": "auto"}) as p:
            pass
        assert sentence in p.log()


def test_the_argument(programs, smollm2):  # noqa: F811
    """--kv-center of llama.cpp's programs is stronger than the variable; a wrong value of either is refused before the model is loaded."""
    for argument, env, centered in ("auto", "off", True), ("off", "auto", False):
        text, log, status = complete(programs, smollm2, "tq3_0", "f16", "-fa", "on", "--kv-center", argument, n_predict=2, env={"GGMLQ_KV_CENTER": env})
        assert status == 0 and ("keys are centered: 30 layers" in log) == centered, log
    _, log, status = complete(programs, smollm2, "tq3_0", "f16", "--kv-center", "on")
    assert status == 1 and """error while handling argument "--kv-center": it is 'on', wanted off, auto, all or a file that `pyggmlq calibrate` has made""" in log and "loading model" not in log
    _, log, status = complete(programs, smollm2, "tq3_0", "f16", env={"GGMLQ_KV_CENTER": "on"})
    assert status == 1 and """error while handling environment variable "GGMLQ_KV_CENTER": it is 'on', wanted off, auto, all or a file that `pyggmlq calibrate` has made""" in log
