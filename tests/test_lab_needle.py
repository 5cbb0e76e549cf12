# SPDX-License-Identifier: MIT
"""`pyggmlq needle` with a stand-in for its program: what is hidden where, what is recorded, what is refused; marked `llama`: a
real model finds what is there and guesses what is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyggmlq import fetch
from pyggmlq.cli import app
from pyggmlq.lab import LabError, needle, record

from llama_build import CACHE, build, patched
from stand_ins import needs_scripts
from test_lab_kld import write_model

# It finds what is in the passage, at a price that tq3_0 doubles.
PROGRAM = """#!{python} -IS
import json, os, re, sys
from pathlib import Path
me, a = Path(sys.argv[0]), sys.argv[1:]
rules = json.loads((me.parent / "rules.json").read_text())
k = a[a.index("-ctk") + 1]
with open(me.parent / "calls.txt", "a") as calls:
    calls.write(k + " ")
if k in ("tq3_0", "planar3") and os.environ["GGMLQ_KV_CENTER"] == "auto":
    print("0.0.0.1 I ggmlq_llama_center: keys are centered: 2 layers, calibrated on 435 tokens in 9 ms", file=sys.stderr)
if k == rules.get("refuse"):
    sys.exit(f"0.0.1.2 E init: K cache type {{k}} needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0")
cases = Path(a[1]).read_text().split("\\x1e")[:-1]
for i, case in enumerate(cases[: rules.get("answers", len(cases))]):
    context, answer = case.split("\\x1f")
    there = answer.strip() in context
    print(f"case {{i}} 5 {{(2.0 if k == 'tq3_0' else 1.0) if there else 12.0:.6f}} {{5 if there and k != 'tq3_0' else 3}} {{len(context) // 4}}")
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.bin, self.model, self.text, self.json = folder / "bin", folder / "demo.gguf", folder / "text.txt", folder / "needle.json"
        self.work = folder / "work"
        self.bin.mkdir()
        (self.bin / "llama-ggmlq-lab").write_text(PROGRAM.format(python=sys.executable))
        (self.bin / "llama-ggmlq-lab").chmod(0o755)
        write_model(self.model)
        self.text.write_text("Some words make a sentence of prose. " * 200)
        self.rules()

    def rules(self, **rules: object) -> None:
        (self.bin / "rules.json").write_text(json.dumps(rules))

    def run(self, *arguments: str):
        return CliRunner().invoke(
            app, ["needle", str(self.model), "--text", str(self.text), "--programs", str(self.bin), "--work-dir", str(self.work), "--json", str(self.json),
                  "--needles", "3", "--depths", "0,50,100", *arguments])  # fmt: skip

    def calls(self) -> list[str]:
        path = self.bin / "calls.txt"
        words = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return words


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_needle_lies_where_it_should_and_once():
    text = "".join(f"Sentence number {i} is here. " for i in range(400))
    asked = needle.questions(text, 4000, (0, 50, 100), 3)
    assert len(asked) == 3 * 4 and asked == needle.questions(text, 4000, (0, 50, 100), 3)
    for one in asked:
        question = one.context.rsplit("\n\n", 1)[1]
        sentence = f"{question}{one.answer}."
        assert one.context.count(sentence) == (0 if one.depth is None else 1)
        assert one.context.count("The secret number of") == (2 if one.depth is None else 3), "the question, another city, the needle"
        if one.depth is not None:
            at = one.context.index(sentence) / (len(one.context) - len(question) - 2)
            assert abs(at - one.depth / 100) < 0.05
    assert len({one.answer for one in asked}) == 3
    with pytest.raises(LabError, match="the text is too short: found 100 characters"):
        needle.questions("x" * 100, 4000, (0,), 3)


@needs_scripts
def test_every_pair_is_asked_once_and_recorded(machine: Machine):
    done = machine.run("--pairs", "f16,tq3_0,planar3")
    assert done.exit_code == 0, done.output
    assert machine.calls() == ["f16", "f16", "tq3_0", "planar3"], "the first counts tokens"
    rows = record.read(machine.json)["rows"]
    assert [(row["k"], row["depth"]) for row in rows] == [(k, depth) for k in ("f16", "tq3_0", "planar3") for depth in (0, 50, 100)]
    assert [(rows[i]["nll"], rows[i]["found"], rows[i]["nll_without"]) for i in (0, 3)] == [(1.0, 1.0, 12.0), (2.0, 0.0, 12.0)]
    assert 380 < rows[0]["tokens"] < 512
    assert machine.run("--pairs", "f16,tq3_0,planar3").exit_code == 0 and machine.calls() == []
    page = machine.json.with_suffix(".md")
    assert CliRunner().invoke(app, ["report", str(machine.json), "-o", str(page)]).exit_code == 0
    assert "| tq3_0 centered | tq3_0 | on | 50 % | 3 | 0 % | 2.00 | 1.00 | 12.00 |" in page.read_text(encoding="utf-8")


@needs_scripts
def test_what_is_refused_or_cut_short_is_said(machine: Machine):
    machine.rules(refuse="planar3")
    done = machine.run("--pairs", "f16,planar3")
    assert done.exit_code == 0 and "note: demo, refused by llama.cpp: K cache type planar3 needs a head size" in done.output
    assert record.read(machine.json)["rows"][-1]["nll"] is None
    machine.rules(answers=2)
    done = machine.run("--pairs", "tq3_0")
    assert done.exit_code == 1 and "llama-ggmlq-lab answered 2 of 12 questions" in " ".join(done.output.split())
    machine.text.write_text("Too short. " * 10)
    assert "text.txt is too short: found 110 characters, wanted enough for haystacks of 512 tokens" in " ".join(machine.run("--pairs", "f16").output.split())
    assert machine.run("--depths", "0,101").exit_code == 2 and machine.run("--depths", "x").exit_code == 2


@pytest.mark.llama
def test_a_real_model_finds_what_is_there(llama_tree, tmp_path, tmp_path_factory):
    tree = patched(llama_tree("0.3.36"), tmp_path_factory.mktemp("patched") / "llama.cpp")
    done = CliRunner().invoke(
        app, ["needle", str(fetch.fetch_model("smollm2-135m", CACHE.parent / "models")), "--programs", str(build(tree, needle.TARGETS)), "--text",
              str(Path(__file__).parents[1] / "README.md"), "--work-dir", str(tmp_path), "--json", str(tmp_path / "n.json"), "--context", "128",
              "--needles", "2", "--depths", "0,100", "--pairs", "f16,tq3_0"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert record.read(tmp_path / "n.json")["llama_cpp"]["commit"] == fetch.TREES["0.3.36"].commit
    for row in record.read(tmp_path / "n.json")["rows"]:
        assert row["nll"] < row["nll_without"] - 3, "what is in the text is far more likely than a guess"
