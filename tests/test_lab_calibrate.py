# SPDX-License-Identifier: MIT
"""`pyggmlq calibrate` with a stand-in for llama-ggmlq-lab; test_llama_center.py has the real one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyggmlq.cli import app

from stand_ins import needs_scripts
from test_lab_kld import write_model

PROGRAM = """#!{python} -IS
import json, sys
from pathlib import Path
me, a = Path(sys.argv[0]), sys.argv[1:]
rules = json.loads((me.parent / "rules.json").read_text())
assert a[0] == "calibrate" and a[3] == "2048" and a[a.index("-c") + 1] == "512"
if "file" in rules:
    Path(a[1]).write_text(rules["file"])
print(rules["say"], file=sys.stderr)
sys.exit(rules.get("status", 0))
"""


EMPTY = "GGUF\x03" + "\0" * 19  # version, tensors, keys


@pytest.fixture
def calibrate(tmp_path: Path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "llama-ggmlq-lab").write_text(PROGRAM.format(python=sys.executable))
    (folder / "llama-ggmlq-lab").chmod(0o755)
    write_model(tmp_path / "demo.gguf")
    (tmp_path / "text").write_text("words")

    def run(**rules):
        (folder / "rules.json").write_text(json.dumps(rules))
        done = CliRunner().invoke(app, ["calibrate", *map(str, (tmp_path / "demo.gguf", "--text", tmp_path / "text", "-o", tmp_path / "out" / "kv.gguf",
                                                                "--tokens", 2048, "--programs", folder, "--work-dir", tmp_path / "work"))])  # fmt: skip
        return done.exit_code, " ".join(done.output.split())

    return run


@needs_scripts
def test_a_calibration_appears_whole(calibrate, tmp_path):
    (tmp_path / "out").mkdir()
    code, said = calibrate(file=EMPTY, say="x: wrote the calibration of 29 layers on 2000 tokens; not 3 (its RoPE has several axes)")
    assert code == 0 and "kv.gguf: 29 layers on 2000 tokens" in said and "note: not 3 (its RoPE has several axes)" in said
    assert "the text gave only 2000 of 2048 tokens" in said
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("kv.gguf", EMPTY)]
    for say in ("x: keys are not centered: found no layer that can be; not 0 (why)", "error: no calibration was written"):
        assert calibrate(file="half", say=say, status=1)[0] == 1
        assert (tmp_path / "out" / "kv.gguf").read_text() == EMPTY
    code, said = calibrate(file="half", say="x: wrote the calibration of 29 layers on 2000 tokens")
    assert code == 1 and "wrote what can't be read" in said and (tmp_path / "out" / "kv.gguf").read_text() == EMPTY


@needs_scripts
@pytest.mark.parametrize("say, sentence", [
    ("x: keys are not centered: the model has an encoder\nerror: no calibration was written", "demo.gguf can't be calibrated: the model has an encoder"),
    ("error: no calibration was written", "this llama.cpp doesn't center keys: wanted a tree from 2026-10 on, patched by this pyggmlq"),
    ("error loading model: no such tensor", "demo.gguf can't be loaded by llama.cpp: no such tensor"),
])  # fmt: skip
def test_what_was_in_the_way_is_said(calibrate, tmp_path, say, sentence):
    (tmp_path / "out").mkdir()
    code, said = calibrate(say=say, status=1)
    assert code == 1 and sentence in said, said
    assert not list((tmp_path / "out").iterdir())
