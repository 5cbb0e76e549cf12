# SPDX-License-Identifier: MIT
"""The quickstart with stand-ins for llama.cpp's programs: resuming, failing, judging, and what the reader sees."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from pyggmlq import _tree, llama, quickstart
from pyggmlq.quickstart import Case, Row

from stand_ins import StandIns, needs_scripts

ROOT = Path(__file__).resolve().parent.parent

PAIRS = [
    Case("f16", "f16"),
    Case("q8_0", "q8_0"),
    Case("q4_0", "q4_0"),
    Case("tq3_0", "f16"),
    Case("planar3", "planar3"),
    Case("f16", "planar3"),
]


class Machine:
    """A work folder whose tree and build are there already, and a model."""

    def __init__(self, folder: Path) -> None:
        self.work, self.bin, self.model = folder / "work", folder / "bin", folder / "demo.gguf"
        self.model.write_bytes(b"GGUF")
        self.text = folder / "text.txt"
        self.text.write_text("words")
        programs = StandIns(self.bin, quickstart.TARGETS)
        self.rules, self.calls = programs.rules, programs.calls

    def run(self, *arguments: str) -> int:
        return quickstart.main(
            [
                "--model",
                str(self.model),
                "--text",
                str(self.text),
                "--work-dir",
                str(self.work),
                "--threads",
                "1",
                "--invoked-as",
                "tools/quickstart --model demo.gguf",
                *arguments,
            ]
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    result = Machine(tmp_path)
    monkeypatch.setattr(quickstart, "cases", lambda: PAIRS)
    monkeypatch.setattr(quickstart, "prepare_tree", lambda options, steps: tmp_path)
    monkeypatch.setattr(quickstart, "build", lambda *_: result.bin)
    monkeypatch.setattr(
        quickstart.patch, "status", lambda tree: quickstart.patch.Status("patched", {"commit": "0123abc"})
    )
    return result


# A whole run ---------------------------------------------------------------------------------------------------------


@needs_scripts
def test_a_run_measures_every_pair_and_a_second_run_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]):
    assert machine.run() == 0
    out = capsys.readouterr().out
    assert len(machine.calls()) == 3 * len(PAIRS) + 1
    assert all(f"\n{pair} " in out for pair in PAIRS) and "Keys of tq3_0 and planar3 are centered" in " ".join(out.split())
    assert not list(machine.work.glob("*.logits")), "the reference's distributions are large and must go"

    assert machine.run() == 0
    assert machine.calls() == []
    assert capsys.readouterr().out.split("cache K/V")[1] == out.split("cache K/V")[1]


@needs_scripts
def test_a_failed_step_is_named_and_the_next_run_goes_on_there(machine: Machine, capsys: pytest.CaptureFixture[str]):
    machine.rules(fail=["llama-bench", "q4_0"])
    assert machine.run() == 1
    before = machine.calls()
    assert before[-1] == "llama-bench q4_0 q4_0"
    error = capsys.readouterr().err
    assert "failed at: demo, q4_0/q4_0: speed" in error
    assert "reason    llama-bench ended with status 1 (something broke)" in error
    log = Path(next(line for line in error.splitlines() if line.startswith("  log")).split()[1])
    assert "something broke" in log.read_text()
    assert error.rstrip().endswith("continue  tools/quickstart --model demo.gguf")
    assert not list(machine.work.glob("*.logits"))

    machine.rules()
    assert machine.run() == 0
    after = machine.calls()
    assert after[0] == "llama-bench q4_0 q4_0"
    assert set(after) & set(before) <= {"llama-bench q4_0 q4_0", "llama-perplexity f16 f16 base"}


@needs_scripts
def test_an_interrupted_step_is_named(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    bench = llama.Tools.bench

    def interrupted(self: llama.Tools, name: str, model: Path, k: str, v: str, **how: int) -> llama.Speed:
        if k == "q8_0":
            raise KeyboardInterrupt
        return bench(self, name, model, k, v, **how)

    with monkeypatch.context() as context:
        context.setattr(llama.Tools, "bench", interrupted)
        assert machine.run() == 130
    error = capsys.readouterr().err
    assert "interrupted at: demo, q8_0/q8_0: speed" in error and "continue  tools/quickstart --model demo.gguf" in error
    assert not list(machine.work.glob("*.logits"))
    machine.calls()
    assert machine.run() == 0
    assert machine.calls()[0] == "llama-bench q8_0 q8_0"


@needs_scripts
@pytest.mark.parametrize("change", ["text", "program", "quick"])
def test_a_changed_input_is_measured_again(machine: Machine, change: str):
    assert machine.run() == 0
    machine.calls()
    if change == "text":
        machine.text.write_text("other words")
    if change == "program":
        with (machine.bin / "llama-bench").open("a") as file:
            file.write("# another build\n")
    assert machine.run(*(["--quick"] if change == "quick" else [])) == 0
    again = {line.split()[0] for line in machine.calls()}
    assert again == ({"llama-perplexity"} if change == "text" else set(quickstart.TARGETS))


@needs_scripts
def test_a_refused_pair_shows_the_sentence_once_and_is_no_failure(machine: Machine, capsys: pytest.CaptureFixture[str]):
    machine.rules(refuse=["planar3"])
    assert machine.run() == 0
    out = capsys.readouterr().out
    assert (
        out.count(
            "K cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0"
        )
        == 1
    )
    assert out.count("V cache type planar3 needs a head size") == 1
    assert not any("llama-bench planar3" in line for line in machine.calls())


@needs_scripts
def test_an_unquantized_cache_is_an_alarm(machine: Machine, capsys: pytest.CaptureFixture[str]):
    machine.rules(unquantized=["tq3_0"])
    assert machine.run() == 1
    out = capsys.readouterr().out
    assert "ALARM demo, tq3_0/f16: perplexity and KLD equal f16's in every digit, so nothing was quantized" in out
    assert "ALARM demo, q8_0/q8_0" not in out


@needs_scripts
def test_json_holds_every_figure(machine: Machine, tmp_path: Path):
    assert machine.run("--json", str(tmp_path / "out" / "figures.json")) == 0
    data = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert data["llama.cpp"] == "0123abc" and data["alarms"] == []
    row = next(row for row in data["rows"] if row["case"] == {"k": "tq3_0", "v": "f16"})
    assert (row["bits_k"], row["bits_v"]) == (3.5, 16)
    assert row["memory"]["mib_k"] == 35.0 and row["speed"]["samples"] == [49.0, 51.0] and "cpu_share" in row["speed"]
    assert row["divergence"]["kld"] == pytest.approx(0.03125) and row["centered"] == 2


def test_every_type_is_measured_on_both_sides_and_alone():
    pairs = [str(case) for case in quickstart.cases()]
    assert pairs[:3] == ["f16/f16", "q8_0/q8_0", "q4_0/q4_0"]
    for name in ("tq3_0", "planar3"):
        assert {f"{name}/{name}", f"{name}/f16", f"f16/{name}", f"q8_0/{name}"} < set(pairs)


# Judging and rendering -----------------------------------------------------------------------------------------------


def make_row(
    k: str, v: str, mib_k: float, mib_v: float, ppl: float = 10.0, kld: float = 0.0, model: str = "demo"
) -> Row:
    memory = llama.KvMemory(k, v, mib_k, mib_v)
    return Row(
        model,
        Case(k, v),
        memory,
        llama.Speed(50.0, 1.0, (49.0, 51.0)),
        llama.Divergence(ppl, 0.5, kld, 0.001, kld, kld, 90.0, 1.0, ppl / 10, 0.01, kld, kld),
        memory,
        "text",
    )


REFERENCE = make_row("f16", "f16", 16.0, 16.0)


def test_plausible_rows_raise_no_alarm():
    assert quickstart.alarms([REFERENCE, make_row("tq3_0", "planar3", 3.5, 3.13, 10.5, 0.1)]) == []


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (
            make_row("tq3_0", "f16", 16.0, 16.0, 10.5, 0.1),
            "K takes 16.00 MiB, but 3.5 bits per value would be 3.50 MiB",
        ),
        (
            make_row("f16", "planar3", 16.0, 3.5, 10.5, 0.1),
            "V takes 3.50 MiB, but 3.125 bits per value would be 3.12 MiB",
        ),
        (make_row("tq3_0", "f16", 3.5, 16.0), "nothing was quantized"),
        (make_row("tq3_0", "f16", 3.5, 16.0, float("nan"), 0.1), "perplexity is nan"),
        (make_row("tq3_0", "f16", 3.5, 16.0, float("inf"), 0.1), "perplexity is inf"),
        (
            replace(
                make_row("tq3_0", "f16", 3.5, 16.0, 10.5, 0.1), measured_as=llama.KvMemory("f16", "f16", 16.0, 16.0)
            ),
            "perplexity was run with K f16 and V f16",
        ),
    ],
)
def test_implausible_rows(row: Row, wanted: str):
    found = quickstart.alarms([REFERENCE, row])
    assert len(found) == 1 and wanted in found[0]


def test_each_model_is_judged_by_its_own_reference():
    other = make_row("f16", "f16", 100.0, 100.0, model="other")
    assert quickstart.alarms([REFERENCE, other, make_row("tq3_0", "f16", 21.88, 100.0, 11.0, 0.1, "other")]) == []


def test_the_table():
    sentence = "K cache type planar3 needs a head size that is a multiple of 128"
    rows = [
        REFERENCE,
        make_row("tq3_0", "f16", 3.5, 16.0, 10.5, 0.1),
        Row("demo", Case("planar3", "planar3"), refused=sentence),
        Row("demo", Case("planar3", "f16"), refused=sentence),
    ]
    assert quickstart.render(rows) == [
        "cache K/V        bits K/V      MiB K + V     tok/s    PPL     KLD to f16  same top",
        "─" * 82,
        "demo",
        "f16/f16             16/16  16.00 + 16.00  50.0±1.0  10.00      reference    90.0 %",
        "tq3_0/f16          3.5/16   3.50 + 16.00  50.0±1.0  10.50  0.1000±0.0010    90.0 %",
        f"planar3/planar3  {sentence}",
        "─" * 82,
    ]


def test_advice_names_the_milder_pair():
    rows = [REFERENCE, make_row("tq3_0", "tq3_0", 3.5, 3.5, 15.0, 0.4), make_row("q8_0", "tq3_0", 8.5, 3.5, 10.1, 0.02)]
    assert quickstart.advice(rows) == [
        "demo pays for tq3_0 in K: perplexity +50.0% against f16; with -ctk q8_0 -ctv tq3_0 it is +1.0%."
    ]
    rows[1] = make_row("tq3_0", "tq3_0", 3.5, 3.5, 10.5, 0.1)
    assert quickstart.advice(rows) == []


@pytest.mark.parametrize(
    ("speed", "cpu_only", "wanted"),
    [
        (llama.Speed(50.0, 20.0, (30.0, 70.0), 1.0), True, True),
        (llama.Speed(50.0, 1.0, (49.0, 51.0), 0.5), True, True),
        (llama.Speed(50.0, 1.0, (49.0, 51.0), 0.5), False, False),
        (llama.Speed(50.0, 1.0, (49.0, 51.0), 0.95), True, False),
    ],
)
def test_advice_on_disturbed_speeds(speed: llama.Speed, cpu_only: bool, wanted: bool):
    said = quickstart.advice([replace(REFERENCE, speed=speed)], cpu_only)
    assert ["disturbed by other programs" in sentence for sentence in said] == [True] * wanted


@needs_scripts
def test_distributions_of_a_killed_run_are_not_used(machine: Machine):
    machine.work.mkdir()
    (machine.work / "demo.logits").write_text("of another text")
    assert machine.run() == 0
    assert "llama-perplexity f16 f16 base" in machine.calls()


# Text and build ------------------------------------------------------------------------------------------------------


def test_prose_leaves_out_what_is_not_running_text(tmp_path: Path):
    sentence = (
        "This paragraph is long enough to count as prose, because it has well over a hundred and twenty characters, all in words. "
        * 2
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "# Title\n\n" + sentence + "\n\n```\n" + sentence + "code\n\n```\n\n| a | " + sentence + " |\n\n- " + sentence
    )
    (tmp_path / "docs" / "a.md").write_text(sentence + "\n\n" + sentence.replace("This", "That"))
    assert quickstart.prose(tmp_path) == "\n\n".join([sentence.strip(), sentence.replace("This", "That").strip()])


def test_progress_without_a_terminal_prints_about_ten_lines():
    out = StringIO()
    progress = quickstart.Progress(out)
    for done in range(1, 156):
        progress.update("not shown")
        progress.fraction("building", done, 155)
    lines = out.getvalue().splitlines()
    assert 9 <= len(lines) <= 12 and lines[-1] == "building [155/155] 100 %"


@pytest.mark.parametrize("moved", [(), ("CMAKE_HOME_DIRECTORY",), ("CMAKE_CACHEFILE_DIR",)])
def test_a_build_of_another_place_is_made_anew(moved: tuple[str, ...], tmp_path: Path):
    """As in a moved checkout, where CMake would refuse it."""
    source, folder = tmp_path / "source", tmp_path / "build"
    folder.mkdir()
    (folder / "CMakeCache.txt").write_text("".join(
        f"{name}:INTERNAL={tmp_path / 'elsewhere' if name in moved else path}\n" for name, path in {"CMAKE_CACHEFILE_DIR": folder, "CMAKE_HOME_DIRECTORY": source}.items()
    ))
    _tree.discard_moved_build(folder, source)
    assert folder.exists() == (not moved)


@needs_scripts
def test_a_failed_build_shows_the_first_error(tmp_path: Path):
    log = tmp_path / "build.log"
    script = "print('[1/2] a'); print('x.cpp:3:1: error: no such thing'); print('FAILED: x.o'); raise SystemExit(1)"
    with (
        log.open("wb") as out,
        pytest.raises(quickstart.StepFailed, match="^x.cpp:3:1: error: no such thing$") as caught,
    ):
        _tree.run_logged([sys.executable, "-c", script], out, "building", log)
    assert caught.value.log == log


# The bootstrap -------------------------------------------------------------------------------------------------------


def quickstart_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "quickstart"), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not (ROOT / "tools" / "quickstart").exists(), reason="only in a checkout")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tree", "/does/not/exist"], "/does/not/exist is not a folder"),
        (["--model", __file__], "is not a GGUF file"),
        (["--threads", "0"], "wanted a number from 1 up, found '0'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_usage_errors_come_before_anything_is_made(arguments: list[str], message: str, tmp_path: Path):
    done = quickstart_script("--work-dir", str(tmp_path / "work"), *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.skipif(not (ROOT / "tools" / "quickstart").exists(), reason="only in a checkout")
def test_help_needs_no_environment(tmp_path: Path):
    done = quickstart_script("--help")
    assert done.returncode == 0 and "exit status: 0" in done.stdout
