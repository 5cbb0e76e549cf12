# SPDX-License-Identifier: MIT
"""README.md's table of what was run, emulated and compiled: made by tools/gen_support from a list that agrees with the code."""
from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_loader = importlib.machinery.SourceFileLoader("gen_support", str(ROOT / "tools" / "gen_support"))
gen_support = importlib.util.module_from_spec(importlib.util.spec_from_loader("gen_support", _loader))
_loader.exec_module(gen_support)


@pytest.fixture
def data():
    return copy.deepcopy(gen_support.tomllib.loads((ROOT / "docs" / "support.toml").read_text(encoding="utf-8")))


def test_the_committed_table_is_the_generated_one():
    done = subprocess.run([sys.executable, ROOT / "tools" / "gen_support", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_list_is_that_of_the_code(data):
    assert gen_support.problems(data) == []
    for name in ("cuda", "hip", "metal"):
        assert gen_support.operations(data["backend"][name]) == {
            "SET_ROWS", "GET_ROWS", "CPY", "DUP", "CONT", "CONCAT", "MUL_MAT", "FLASH_ATTN_EXT", "LIGHTNING_INDEXER",
        }  # fmt: skip


def test_a_row_too_many_or_too_few_is_seen(data):
    data["row"][1]["ops"] = ["ROPE"]
    data["row"][0]["metal"] = "perfect"
    data["backend"]["cpu"]["shown"].append("tests/test_nothing.py")
    found = "\n".join(gen_support.problems(data))
    assert "metal: CONCAT is in csrc/ggml/ggml-metal-ggmlq.cpp and in no row" in found
    assert "cuda: a row claims ROPE, which csrc/ggml/ggml-cuda-ggmlq.cu doesn't list" in found
    assert "metal is 'perfect', wanted one of run, emulated, compiled, untried, no" in found
    assert "cpu: shown by tests/test_nothing.py, which isn't there" in found
