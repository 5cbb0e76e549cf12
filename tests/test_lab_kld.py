# SPDX-License-Identifier: MIT
"""`pyggmlq kld` with stand-ins for llama.cpp's programs: resuming, judging, refusing; marked `llama`: a real grid."""

from __future__ import annotations

import _thread
import functools
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from pyggmlq import _gguf_file, _tree, fetch, llama
from pyggmlq._pairs import Case, bits_per_value
from pyggmlq.cli import app
from pyggmlq.lab import LabError, kld, pipes, record, require
from pyggmlq.lab.runs import Setting

from llama_build import CACHE, build, patched, sync
from stand_ins import StandIns, needs_scripts



def write_model(path: Path, n_vocab: int = 300, n_tensors: int = 1, **more: int) -> None:
    """A GGUF file that is nearly all header."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Demo")
    for key, value in {"block_count": 1, "context_length": 1024, **more}.items():
        writer.add_uint32(f"llama.{key}", value)
    for i in range(n_tensors):
        writer.add_tensor(f"{i}", np.zeros(1, np.float32))
    if n_vocab:
        writer.add_token_list([f"<{i}>" for i in range(n_vocab)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Machine:
    """Programs, a text and a model."""

    def __init__(self, folder: Path) -> None:
        self.work, self.model, self.text, self.json = folder / "work", folder / "demo.gguf", folder / "text.txt", folder / "out" / "kld.json"
        programs = StandIns(folder / "bin", kld.TARGETS)
        self.bin, self.rules, self.calls = programs.folder, programs.rules, programs.calls
        write_model(self.model)
        self.text.write_text("words")

    def run(self, *arguments: str, pairs: str = "q8_0,tq3_0/f16,planar3", model: str | None = None):
        return CliRunner().invoke(
            app,
            ["kld", model or str(self.model), "--programs", str(self.bin), "--text", str(self.text), "--work-dir", str(self.work),
             "--json", str(self.json), "--pairs", pairs, *arguments],
        )  # fmt: skip

    def record(self) -> dict:
        return record.read(self.json)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@needs_scripts
def test_every_pair_is_measured_once_and_recorded(machine: Machine):
    done = machine.run()
    assert done.exit_code == 0, done.output
    assert machine.calls() == ["llama-perplexity f16 f16 base", "llama-perplexity f16 f16", "llama-perplexity q8_0 q8_0",
                               "llama-perplexity tq3_0 f16", "llama-perplexity planar3 planar3"]  # fmt: skip
    data = machine.record()
    row = next(row for row in data["rows"] if row["k"] == "tq3_0")
    assert (row["v"], row["n_ctx"], row["windows"], row["rotated_k"], row["rotated_v"]) == ("f16", 512, 16, True, False)
    assert (row["bits_k"], row["mib_k"], row["mib_v"]) == (3.5, 35.0, 160.0)
    assert row["kld"] == pytest.approx(0.03125) and (row["kv_center"], row["centered_layers"]) == ("auto", 2), "as llama.cpp does by default"
    assert next(row["kv_center"] for row in data["rows"] if row["k"] == "q8_0") == "off" and row["kld_median"] == 0.1 and row["kld_999"] == 0.6
    assert row["ppl_ratio"] == pytest.approx(1.003125), "of the perplexities, not of what the file of distributions was rounded to"
    assert (row["device"], row["splits"]) == ("CPU", 2)
    assert data["llama_cpp"]["commit"] == "0123abc" and data["models"][0]["name"] == "Demo"
    assert data["text"]["bytes"] == 5 and data["alarms"] == []
    assert str(machine.work.parent) not in machine.json.read_text(), "a record says nothing of where its files lay"
    assert not list(machine.work.glob("*.logits")), "distributions are large and must go"

    again = machine.run()
    assert again.exit_code == 0 and machine.calls() == []
    assert again.output.split("cache K/V")[1] == done.output.split("cache K/V")[1]


@needs_scripts
def test_a_failed_run_is_named_and_the_next_call_goes_on_there(machine: Machine):
    machine.rules(fail=["llama-perplexity", "tq3_0"])
    done = machine.run()
    assert done.exit_code == 1
    assert "error: demo, context 512, tq3_0/f16, kv-center auto: llama-perplexity ended with status 1 (something broke)" in done.output
    assert machine.calls()[-1] == "llama-perplexity tq3_0 f16"
    assert [row["k"] for row in machine.record()["rows"]] == ["f16", "q8_0"], "what was measured is there"
    machine.rules()
    assert machine.run().exit_code == 0
    assert machine.calls() == ["llama-perplexity tq3_0 f16", "llama-perplexity planar3 planar3"], "the distributions were kept"


@needs_scripts
def test_an_interrupted_grid_goes_on(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    divergence = llama.Tools.divergence

    def interrupted(self, name, model, logits, k, v, **how):
        if k == "tq3_0":
            raise KeyboardInterrupt
        return divergence(self, name, model, logits, k, v, **how)

    with monkeypatch.context() as context:
        context.setattr(llama.Tools, "divergence", interrupted)
        done = machine.run()
    assert done.exit_code == 130 and "interrupted: the same command goes on where it stopped" in done.output
    machine.calls()
    assert machine.run().exit_code == 0
    assert machine.calls()[0] == "llama-perplexity tq3_0 f16"


@needs_scripts
def test_pairs_at_once_give_the_same_record_and_no_file_of_distributions(machine: Machine):
    rotations = ("--attn-rot", "on,off")
    assert machine.run(*rotations).exit_code == 0
    one_by_one, calls = machine.record(), machine.calls()
    shutil.rmtree(machine.work)
    done = machine.run(*rotations, "--at-once", "3")
    assert done.exit_code == 0, done.output
    reference = "llama-perplexity f16 f16 base"
    assert sorted(machine.calls()) == sorted([*calls, reference, reference]), "f16 and two pairs, the third, then the three without attn_rot"
    assert [{**row, "seconds": 0} for row in machine.record()["rows"]] == [{**row, "seconds": 0} for row in one_by_one["rows"]]
    assert not list(machine.work.rglob("*.logits*"))
    assert machine.run(*rotations).exit_code == 0 and machine.calls() == [], "a row is the same however it was measured"


@needs_scripts
def test_pairs_at_once_that_fail_are_named_and_the_others_kept(machine: Machine):
    machine.rules(fail=["llama-perplexity", "tq3_0"], refuse=["planar3"])
    done = machine.run("--at-once", "9")
    assert done.exit_code == 1
    assert "error: demo, context 512, tq3_0/f16, kv-center auto: llama-perplexity ended with status 1 (something broke)" in done.output
    machine.calls()
    machine.rules(refuse=["planar3"])
    assert machine.run("--at-once", "9").exit_code == 0
    assert sorted(machine.calls()) == ["llama-perplexity f16 f16 base", "llama-perplexity tq3_0 f16"]
    assert [row["refused"] is None for row in machine.record()["rows"]] == [True, True, True, False]


@needs_scripts
@pytest.mark.parametrize(("rules", "wanted"), [
    ({"tokens": 700}, "text.txt is too short: found 700 tokens of demo, wanted at least 1024 for windows of 512"),
    ({"unloadable": "no tensor output.weight"}, "demo.gguf can't be loaded by llama.cpp: no tensor output.weight"),
])  # fmt: skip
def test_pairs_at_once_fail_as_their_reference_does(machine: Machine, rules: dict, wanted: str):
    machine.rules(**rules)
    done = machine.run("--at-once", "2")
    assert done.exit_code == 1 and wanted in done.output, done.output
    assert done.output.count("error:") == 1 and not machine.json.exists()


@pytest.mark.skipif(os.name == "nt", reason="--at-once is refused on Windows")
def test_pipes_serve_slow_and_early_readers_and_leave_nothing_open():
    data, before = os.urandom(3 << 20), sorted(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else []

    def write(descriptor, check):
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        return "written"

    def reader(pause, most):
        def read(descriptor, check):
            got = b""
            while len(got) < most and (block := os.read(descriptor, 1 << 16)):
                got += block
                time.sleep(pause)
            return got

        return read

    def broken(descriptor, check):
        raise ValueError("early")

    writer, found = pipes.run(write, [reader(0, 1 << 30), reader(0.001, 1 << 30), reader(0, 1000), broken])
    assert writer.value == "written" and [outcome.value == data for outcome in found] == [True, True, False, False]
    assert found[2].value == data[: len(found[2].value)] and str(found[3].error) == "early"
    assert not before or sorted(os.listdir("/dev/fd")) == before


@pytest.fixture
def handles_interruptions():
    """Ctrl-C raises KeyboardInterrupt: processes of pytest-xdist ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="--at-once is refused on Windows")
def test_an_interruption_ends_what_runs_side_by_side(handles_interruptions):
    def forever(descriptor, check):
        while True:
            check()
            time.sleep(0.01)

    def interrupt(descriptor, check, delay):
        time.sleep(delay)
        _thread.interrupt_main()
        forever(descriptor, check)

    before = threading.active_count()
    for i in range(25):  # wherever the main thread is
        with pytest.raises(KeyboardInterrupt):
            pipes.run(forever, [functools.partial(interrupt, delay=i * 0.0002), forever])
        assert threading.active_count() == before
    writer, found = pipes.run(forever, [lambda descriptor, check: 7])
    assert isinstance(writer.error, pipes.Stopped) and found[0].value == 7, "a writer that nobody reads is ended"


@needs_scripts
@pytest.mark.parametrize("change", ["text", "model", "program", "windows", "llama-args"])
def test_a_changed_input_is_measured_again(machine: Machine, change: str):
    assert machine.run().exit_code == 0
    n = len(machine.calls())
    more = []
    if change == "text":
        machine.text.write_text("other words")
    elif change == "model":
        write_model(machine.model, n_vocab=301)
    elif change == "program":
        with (machine.bin / "llama-perplexity").open("a") as file:
            file.write("# another build\n")
    else:
        more = {"windows": ["--windows", "8"], "llama-args": ["--llama-args", "-ngl 99"]}[change]
    assert machine.run(*more).exit_code == 0
    assert len(machine.calls()) == n


@needs_scripts
def test_programs_behind_links_are_known_by_what_they_are(tmp_path: Path):
    built, linked = tmp_path / "built", tmp_path / "linked"
    for folder in (built, linked):
        folder.mkdir()
    for name in ("libdemo.so.1", "llama-perplexity", "README"):
        (built / name).write_text(name)
        (linked / name).symlink_to(built / name)
    (linked / "libdemo.so").symlink_to("libdemo.so.1")
    assert _tree.programs_hash(linked, kld.TARGETS) == _tree.programs_hash(built, kld.TARGETS)
    before = _tree.programs_hash(linked, kld.TARGETS)
    (built / "README").write_text("other")
    assert _tree.programs_hash(linked, kld.TARGETS) == before
    (built / "libdemo.so.1").write_text("other")
    assert _tree.programs_hash(linked, kld.TARGETS) != before


@needs_scripts
def test_attn_rot_off_is_measured_beside_on(machine: Machine):
    assert machine.run("--attn-rot", "on,off").exit_code == 0
    rows = [row for row in machine.record()["rows"] if row["k"] == "q8_0"]
    assert [(row["attn_rot"], row["rotated_k"]) for row in rows] == [("on", True), ("off", False)]
    assert machine.calls().count("llama-perplexity f16 f16") == 1, "nothing of f16 is rotated"


@needs_scripts
def test_centered_keys_are_measured_beside_plain_ones(machine: Machine):
    """Those of our types; every other pair is measured without."""
    done = machine.run("--kv-center", "off,auto")
    assert done.exit_code == 0, done.output
    assert [call.split()[1:] for call in machine.calls()[2:]] == [["q8_0", "q8_0"], ["tq3_0", "f16"], ["planar3", "planar3"], ["tq3_0", "f16"], ["planar3", "planar3"]]
    rows = [row for row in machine.record()["rows"] if row["k"] == "tq3_0"]
    assert [(row["kv_center"], row["centered_layers"]) for row in rows] == [("off", None), ("auto", 2)] and rows[1]["kld"] < 0.3 * rows[0]["kld"]
    assert "tq3_0 centered/f16" in done.output and machine.record()["notes"] == []
    assert machine.run("--kv-center", "all", pairs="q8_0").exit_code == 0 and machine.record()["rows"][-1]["centered_layers"] == 2
    assert machine.run("--kv-center", "all", "--attn-rot", "on,off", pairs="f16,q8_0").exit_code == 0, "f16 keys centered: what the arithmetic alone does"
    assert [(row["k"], row["attn_rot"], row["centered_layers"]) for row in machine.record()["rows"]] == [("f16", "on", None), ("f16", "on", 2), ("q8_0", "on", 2), ("q8_0", "off", 2)]


@needs_scripts
def test_calibrations_of_files_are_measured_beside_the_automatic_one(machine: Machine, tmp_path: Path):
    """Another pair is measured once. A file is known by what it holds, wherever it lies."""
    for folder in "one", "two":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.kv.gguf").write_text("a calibration")
    done = machine.run("--kv-center", f"auto,{tmp_path / 'one' / 'mine.kv.gguf'}", pairs="q8_0,tq3_0/f16")
    name = "mine.kv.gguf 99ccd8b80969"
    assert done.exit_code == 0 and "tq3_0 centered by mine.kv.gguf/f16" in done.output and "tq3_0 centered/f16" in done.output, done.output
    assert [(row["k"], row["kv_center"], row["centered_layers"]) for row in machine.record()["rows"][1:]] == [("q8_0", "off", None), ("tq3_0", "auto", 2), ("tq3_0", name, 2)]
    machine.calls()
    done = machine.run("--kv-center", str(tmp_path / "two" / "mine.kv.gguf"), "--kept", pairs="tq3_0/f16")
    assert done.exit_code == 0 and machine.record()["rows"][-1]["kv_center"] == name and machine.calls() == []


@needs_scripts
def test_keys_that_can_not_be_centered_are_said_and_not_shown_as_such(machine: Machine):
    machine.rules(not_centered="the cache of layer 0 lies on CUDA0, which can't")
    done = machine.run(pairs="tq3_0/f16")
    sentence = "refused by llama.cpp: keys are not centered: the cache of layer 0 lies on CUDA0, which can't (--kv-center off measures them as they are)"
    assert done.exit_code == 0 and sentence in " ".join(done.output.split())
    assert [row["refused"] is None for row in machine.record()["rows"]] == [True, False]
    machine.rules(always_centers=True)
    done = machine.run(pairs="q8_0")
    assert done.exit_code == 1 and "ALARM demo, context 512, q8_0/q8_0: keys were centered all the same" in done.output


@needs_scripts
def test_what_is_asked_for_counts_not_what_the_user_has_set(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GGMLQ_KV_CENTER", "all")
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    assert machine.run(pairs="q8_0").exit_code == 0
    assert [(row["rotated_k"], row["centered_layers"]) for row in machine.record()["rows"]] == [(False, None), (True, None)]


@needs_scripts
def test_what_is_never_rotated_is_measured_once(machine: Machine):
    """Only where the patch doesn't want it so is that worth a note."""
    machine.rules(plain=["tq3_0", "q8_0"])
    done = machine.run("--attn-rot", "on,off")
    assert done.exit_code == 0 and machine.record()["notes"] == ["demo, context 512: llama.cpp rotates neither side of q8_0/q8_0"]
    calls = machine.calls()
    assert [calls.count(f"llama-perplexity {pair}") for pair in ("tq3_0 f16", "q8_0 q8_0", "planar3 planar3")] == [1, 1, 2]


@needs_scripts
def test_the_device_is_named_and_what_it_leaves_to_the_cpu(machine: Machine):
    machine.rules(gpu="Demo GPU (TM) 80GB", on_cpu=["planar3"])
    done = machine.run("--llama-args", "-ngl 99")
    assert done.exit_code == 0
    assert {row["device"] for row in machine.record()["rows"]} == {"Demo GPU (TM) 80GB"}
    assert machine.record()["notes"] == ["demo, context 512: the device has no attention for planar3/planar3, kv-center auto, which the CPU computed (26 pieces of the graph "
                                         "instead of f16's 2)"]  # fmt: skip


@needs_scripts
def test_parts_of_a_grid_become_one_record(machine: Machine):
    """Measured in several work folders, on several GPUs perhaps: `--kept` needs their `steps` in one."""
    assert "found no kept result" in machine.run("--kept").output
    machine.run(pairs="q8_0")
    first = machine.work.rename(machine.work.with_name("first"))
    machine.run(pairs="tq3_0/f16")
    for path in (first / "steps").iterdir():
        (machine.work / "steps" / path.name).write_bytes(path.read_bytes())
    machine.calls()
    logits = machine.work / "demo-0.logits"
    logits.write_text("of another run, which needs them")
    assert machine.run("--kept").exit_code == 0
    assert [(row["k"], row["v"]) for row in machine.record()["rows"]] == [("f16", "f16"), ("q8_0", "q8_0"), ("tq3_0", "f16")]
    assert machine.calls() == [] and logits.exists()


@needs_scripts
@pytest.mark.parametrize(
    ("rules", "arguments", "wanted"),
    [
        ({"unquantized": ["tq3_0"]}, [], "ALARM demo, context 512, tq3_0/f16, kv-center auto: perplexity and KLD equal f16's in every digit, so nothing was quantized"),
        ({"always_rotates": True}, ["--attn-rot", "off"], "ALARM demo, context 512, q8_0/q8_0, attn_rot off: K or V was rotated all the same"),
        ({"old": True}, ["--attn-rot", "off"], "error: this version of llama.cpp has no attn_rot: leave out --attn-rot"),
        ({"tokens": 700}, [], "text.txt is too short: found 700 tokens of demo, wanted at least 1024 for windows of 512"),
    ],
)  # fmt: skip
def test_what_can_not_be_right_ends_with_status_1(machine: Machine, rules: dict, arguments: list[str], wanted: str):
    machine.rules(**rules)
    done = machine.run(*arguments)
    assert done.exit_code == 1 and wanted in done.output, done.output
    assert not list(machine.work.glob("*.unfinished"))


@needs_scripts
def test_without_programs_a_tree_is_prepared_built_and_read(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The text is then the tree's own prose."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "README.md").write_text("This paragraph counts as running text because it is long enough, " * 4)
    asked = []
    monkeypatch.setattr(_tree, "prepare_tree", lambda options, steps: asked.append(options.tree) or tree)
    monkeypatch.setattr(_tree, "build", lambda tree, options, steps, targets: asked.append((options.cmake, targets)) or machine.bin)
    done = CliRunner().invoke(app, ["kld", str(machine.model), "--cmake=-DGGML_CUDA=ON", "--device", "CUDA0", "--pairs", "q8_0",
                                    "--work-dir", str(machine.work), "--json", str(machine.json)])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert asked == [None, (["-DGGML_CUDA=ON"], ("llama-perplexity",))]
    assert machine.record()["text"]["bytes"] == len(_tree.prose(tree))
    assert machine.record()["options"]["extra"] == ["--device", "CUDA0"]
    assert "--device CUDA0" in (machine.work / "logs" / "demo-context-512-q8-0-q8-0.log").read_text()


@needs_scripts
def test_programs_need_a_text(machine: Machine):
    done = CliRunner().invoke(app, ["kld", str(machine.model), "--programs", str(machine.bin), "--work-dir", str(machine.work)])
    assert done.exit_code == 1 and "give one with --text FILE" in done.output


@needs_scripts
def test_too_small_a_disk_is_one_sentence(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kld.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    done = machine.run()
    assert done.exit_code == 1 and "use fewer --windows or another --work-dir" in done.output
    assert machine.calls() == []


@needs_scripts
def test_a_refused_pair_is_a_note_and_no_failure(machine: Machine):
    machine.rules(refuse=["planar3"])
    done = machine.run()
    assert done.exit_code == 0
    assert done.output.count("planar3 needs a head size that is a multiple of 128") == 1

    assert "needs a head size" in machine.record()["rows"][-1]["refused"]


@needs_scripts
def test_fewer_windows_than_asked_for_are_said(machine: Machine):
    machine.rules(windows=7)
    done = machine.run()
    assert "note: demo, context 512: the text gave only 7 of 16 windows" in done.output
    assert machine.record()["rows"][0]["windows"] == 7


@needs_scripts
@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (["--pairs", "q8_0,bogus"], 2, "cache type: found 'bogus', wanted one of tq3_0, planar3,"),
        (["--context", "100"], 2, "wanted numbers from 256 up"),
        (["--attn-rot", "maybe"], 2, "wanted some of on, off"),
        (["--kv-center", "on"], 2, "wanted some of off, auto, all, and files that `pyggmlq calibrate` has made"),
        (["--tree", "."], 2, "wanted one way to get programs"),
    ],
)
def test_usage_errors(machine: Machine, arguments: list[str], status: int, wanted: str):
    done = machine.run(*arguments)
    assert done.exit_code == status
    assert wanted in " ".join(done.output.replace("│", " ").split())
    assert not machine.json.exists()


@needs_scripts
@pytest.mark.parametrize(
    ("content", "wanted"), [(b"GGUF\3\0\0", "the GGUF header is cut off or damaged"), (b"text", "is not a GGUF file")]
)
def test_a_broken_model_is_refused_before_anything_runs(machine: Machine, content: bytes, wanted: str):
    machine.model.write_bytes(content)
    done = machine.run()
    assert done.exit_code == 1 and wanted in done.output
    assert machine.calls() == [] and not machine.json.exists()


@needs_scripts
def test_what_is_no_whole_model_is_refused(machine: Machine):
    write_model(machine.model, n_vocab=0)
    assert "has no vocabulary" in machine.run().output
    write_model(machine.model, n_tensors=0)  # llama.cpp's files for tests of tokenizers
    assert "demo.gguf is no whole model: found no tensor in it" in machine.run().output
    assert machine.calls() == []
    write_model(machine.model)
    machine.rules(unloadable="missing tensor 'blk.0.attn_q.weight'")
    assert "demo.gguf can't be loaded by llama.cpp: missing tensor 'blk.0.attn_q.weight'" in " ".join(machine.run().output.split())
    assert not machine.json.exists()


def test_rows_that_agree_in_every_digit_are_an_alarm():
    def row(k: str, v: str, kld_value: float) -> kld.Row:
        sizes = [160 * bits_per_value(name) / 16 for name in (k, v)]
        found = llama.Divergence(10.0 + kld_value, 0.5, kld_value, 0.001, 0.5, kld_value, 90.0, 1.0, 1.1, 0.01, 0.1, 0.6)
        return kld.Row("demo", 512, Case(k, v), Setting(), 16, (True, True), llama.KvMemory(k, v, *sizes), found)

    rows = [row("f16", "f16", 0.0), row("f16", "planar3", 0.1), row("q8_0", "planar3", 0.1)]
    assert kld.alarms(rows) == ["demo, context 512, q8_0/planar3: equals f16/planar3 in every digit"]
    assert kld.alarms([*rows[:2], row("q8_0", "planar3", 0.11)]) == []
    assert "wanted at most 0.001" in kld.alarms([row("f16", "f16", 0.01)])[0]


def test_default_pairs_are_those_of_an_honest_table():
    pairs = [str(case) for case in kld.default_pairs()]
    assert pairs[0] == "f16/f16" and len(set(pairs)) == len(pairs) == 15
    for name in ("tq3_0", "planar3"):
        assert {f"{name}/{name}", f"{name}/f16", f"f16/{name}", f"q8_0/{name}"} < set(pairs)
    assert {"q4_0/f16", "f16/q4_0"} < set(pairs)
    assert {"q8_0/q8_0", "q5_0/q5_0", "q4_0/q4_0", "iq4_nl/iq4_nl"} < set(pairs)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LabError, match=r"matplotlib is not installed: pip install 'pyggmlq\[lab\]'"):
        require("matplotlib.figure")


def test_a_missing_package_is_named_before_anything_runs(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    done = machine.run("--pairs", ",".join(map(str, kld.default_pairs())))
    assert done.exit_code == 1 and "the package gguf is not installed: pip install 'pyggmlq[lab]'" in done.output
    assert machine.calls() == []


def test_metadata_equals_what_gguf_reads(tmp_path: Path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "demo")
    writer.add_float32("a", 0.5)
    writer.add_bool("b", True)
    writer.add_array("c", [1, 2, 3])
    writer.add_array("d", ["x", "yy"])
    writer.add_int64("e", -5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = _gguf_file.metadata(path)
    assert found == {"general.architecture": "demo", "a": 0.5, "b": True, "c": [1, 2, 3], "d": 2, "e": -5}
    for cut in range(4, path.stat().st_size - 1, 7):
        path.with_name("cut.gguf").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(_gguf_file.GgufError):
            _gguf_file.metadata(path.with_name("cut.gguf"))


# A real grid ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_text(llama_tree, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(_tree.prose(llama_tree("0.3.36")), encoding="utf-8")
    return path


def grid(tree, pairs, text, folder, *arguments):
    """{(K, V): row} of SmolLM2 with the programs of that tree."""
    path = folder / "grid.json"
    folder.mkdir(exist_ok=True)
    done = CliRunner().invoke(
        app, ["kld", str(fetch.fetch_model("smollm2-135m", CACHE.parent / "models")), "--programs", str(build(tree, kld.TARGETS)),
              "--text", str(text), "--windows", "2", "--pairs", pairs, "--work-dir", str(folder), "--json", str(path), *arguments])  # fmt: skip
    assert done.exit_code == 0, done.output
    return {(row["k"], row["v"]): {**row, "seconds": 0} for row in record.read(path)["rows"]}


@pytest.mark.llama
def test_our_types_cost_what_they_cost(llama_tree, own_text, tmp_path, tmp_path_factory):
    tree = patched(llama_tree("0.3.36"), tmp_path_factory.mktemp("patched") / "llama.cpp")
    asked = (tree, "q8_0,tq3_0,f16/tq3_0", own_text)
    rows = grid(*asked, tmp_path / "file", "--context", "256")
    assert rows == grid(*asked, tmp_path / "pipes", "--context", "256", "--at-once", "4"), "a pipe carries what the file holds"
    costs = [rows[pair]["kld"] for pair in (("q8_0", "q8_0"), ("f16", "tq3_0"), ("tq3_0", "tq3_0"))]
    assert 0 < costs[0] < costs[1] < costs[2] < 1


@pytest.mark.upstream
def test_types_of_llama_cpp_give_the_figures_of_an_unmodified_one(llama_tree, own_text, tmp_path, tmp_path_factory):
    """Patched and not, the same windows: f16, q8_0 and q4_0 must agree to the last digit."""
    pristine = CACHE / "0.3.36"
    sync(llama_tree("0.3.36"), pristine)
    trees = patched(pristine, tmp_path_factory.mktemp("patched") / "llama.cpp"), pristine
    first, second = (grid(tree, "q8_0,q4_0", own_text, tmp_path_factory.mktemp("grid")) for tree in trees)
    assert first == second
