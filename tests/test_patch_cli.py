# SPDX-License-Identifier: MIT
"""The command line of the patch engine: exact console output, JSON, exit codes.

The expected output lies in patch_cases/console; UPDATE_SNAPSHOTS=1 writes it anew, for review as a diff.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patch_minitree import make_sources, make_tree, run_git, snapshot, write
from pyggmlq import _sources
from pyggmlq.cli import app

SNAPSHOTS = Path(__file__).parent / "patch_cases" / "console"


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    sources = make_sources(tmp_path / "sources")
    monkeypatch.setattr(_sources, "root", lambda: sources)
    monkeypatch.setattr(_sources, "version", lambda: "1.2.3")
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return make_tree(tmp_path / "tree")


def run(*arguments, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def shows(name: str, output: str, tree: Path) -> None:
    """Compares console output with its snapshot."""
    text = re.sub(r"\b[0-9a-f]{8}\b", "FINGERPRINT", output.replace(str(tree.resolve()), "TREE"))
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        write(path, text.encode())
    assert text == path.read_bytes().decode()


def test_console_of_a_round_trip(tree):
    shows("check", run("check", tree).output, tree)
    shows("status-unpatched", run("status", tree).output, tree)
    shows("revert-unpatched", run("revert", tree).output, tree)
    shows("patch", run("patch", tree).output, tree)
    shows("patch-again", run("patch", tree).output, tree)
    shows("status-patched", run("status", tree).output, tree)
    shows("revert", run("revert", tree).output, tree)


def test_console_of_findings(tree):
    write(tree / "src/llama.cpp", b"int llama() {\n    return rotated(rot);\n}\n")
    write(tree / "ggml/src/ggmlq.h", b"theirs\n")
    shows("check-findings", run("check", tree, code=1).output, tree)
    shows("patch-findings", run("patch", tree, code=1).output, tree)


def test_odd_bytes_in_a_finding_are_printed(tree):
    write(tree / "src/llama.cpp", b"    return rotated(rot); // caf\xe9\n")
    assert "nearest  1: return rotated(rot); // caf\ufffd" in run("check", tree, code=1).output


def test_console_of_an_edited_tree(tree):
    run("patch", tree)
    write(tree / "src/llama.cpp", (tree / "src/llama.cpp").read_bytes() + b"// mine\n")
    shows("status-modified", run("status", tree, code=1).output, tree)
    shows("revert-modified", run("revert", tree, code=1).output, tree)


def test_console_of_an_interrupted_tree(tree):
    run("patch", tree)
    manifest = tree / ".pyggmlq/manifest.json"
    manifest.write_text(manifest.read_text().replace('"phase": "patched"', '"phase": "patching"'))
    shows("status-interrupted", run("status", tree, code=1).output, tree)
    shows("check-interrupted", run("check", tree, code=1).output, tree)
    shows("patch-interrupted", run("patch", tree).output, tree)


def test_console_of_another_version(tree, monkeypatch):
    run("patch", tree)
    write(_sources.root() / "csrc/ggmlq.c", b"int newer;\n")
    monkeypatch.setattr(_sources, "version", lambda: "2.0.0")
    shows("patch-other-version", run("patch", tree, code=1).output, tree)
    shows("status-other-version", run("status", tree).output, tree)


def test_console_of_explain_and_types(tree):
    shows("explain", run("explain", "llama-rotation", "--tree", tree).output, tree)
    shows("explain-list", run("explain").output, tree)
    shows("explain-unknown", run("explain", "llama-rotations", code=1).output, tree)
    output = run("types").output
    assert "tq3_0     90     32     14        3.5" in output


def test_json_has_one_object_with_everything(tree):
    check = json.loads(run("check", tree, "--json").output)
    assert check["ok"] and {"path": "src/llama.cpp", "action": "edit"} in check["files"]
    assert {hook["id"]: hook["state"] for hook in check["hooks"]}["llama-bench"] == "absent"
    assert json.loads(run("status", tree, "--json").output)["state"] == "unpatched"
    diff = json.loads(run("diff", tree, "--json").output)["diff"]
    assert json.loads(run("patch", tree, "--json").output)["changed"] is True
    assert json.loads(run("patch", tree, "--json").output)["changed"] is False
    assert json.loads(run("diff", tree, "--json").output)["diff"] == diff
    status = json.loads(run("status", tree, "--json").output)
    assert status["state"] == "patched" and status["version"] == "1.2.3" and status["current"]
    assert "src/llama.cpp" in json.loads(run("revert", tree, "--json").output)["files"]
    (tree / "ggml/src/CMakeLists.txt").unlink()
    for command in ("check", "patch", "diff"):
        data = json.loads(run(command, tree, "--json", code=1).output)
        assert not data["ok"] and [finding["code"] for finding in data["findings"]] == ["file-missing"]
    assert json.loads(run("types", "--json").output)["types"][0]["bits_per_value"] == 3.5
    assert json.loads(run("explain", "cpu-attend", "--json").output)["hooks"][0]["count"] == 1


@pytest.mark.parametrize(
    "arguments",
    [["check"], ["check", "no/such/folder"], ["patch", __file__], ["revert", ".", "extra"], ["check", ".", "--force"], ["chekc"]],
)
def test_wrong_usage_exits_with_2(arguments):
    run(*arguments, code=2)


def test_the_diff_on_stdout_is_bytes_that_git_applies(tree):
    """In a real process, through a real pipe; errors go elsewhere."""
    code = (
        "from pathlib import Path\nfrom pyggmlq import _sources\nfrom pyggmlq.cli import app\n"
        f"_sources.root = lambda: Path({str(_sources.root())!r})\napp()\n"
    )
    write(tree / "src/llama.cpp", b"// caf\xe9\r\n    return rotate(rot);\r\n")
    call = [sys.executable, "-c", code, "diff", str(tree)]
    before = subprocess.run(call, capture_output=True, check=True).stdout
    run_git(tree, "init", "-q")
    run_git(tree, "apply", "--whitespace=nowarn", "-", stdin=before)
    assert b"\xe9\r\n    // pyggmlq:begin llama-rotation\r\n" in (tree / "src/llama.cpp").read_bytes()
    applied = snapshot(tree)
    failed = subprocess.run(call, capture_output=True, check=False)
    assert failed.returncode == 1 and failed.stdout == b"" and b"error[leftover]" in failed.stderr
    assert snapshot(tree) == applied


def test_a_pipe_gets_no_colours_and_no_wrapping(tree, monkeypatch):
    wide = run("check", tree).output
    monkeypatch.setenv("COLUMNS", "20")
    assert run("check", tree).output == wide
    assert "\x1b" not in wide


def test_the_engine_works_without_the_compiled_module(tree):
    code = (
        "import sys; sys.modules['pyggmlq._ggmlq'] = None\n"
        "from pyggmlq.cli import app\n"
        "app(['types'])\n"
    )
    assert b"tq3_0" in subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
