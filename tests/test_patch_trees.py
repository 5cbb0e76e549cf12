# SPDX-License-Identifier: MIT
"""The real hooks on real llama.cpp trees, fourteen months apart: census, apply, apply again, diff, revert."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from patch_minitree import run_git, snapshot
from pyggmlq import patch
from pyggmlq.patch import plan
from pyggmlq._types import cache_types, query_types

pytestmark = pytest.mark.trees

VERSIONS = ("0.3.16", "0.3.28", "0.3.36")
NOT_BEFORE_2026_10 = {
    "tests-center",
    "tests-centers",
    "tests-attention-centered",
    "llama-state-clear-include",
    "llama-state-clear",
    "llama-state-dsv4-include",
    "llama-state-dsv4-clear",
    "deepseek4-selected-rows",
    "deepseek4-cpu-indexer",
    "deepseek4-cuda-indexer",
    "deepseek4-tests-indexer-error",
    "deepseek4-tests",
    "deepseek4-tests-speed",
    "deepseek4-state-cache",
    "deepseek4-state-cache-rows",
    "deepseek4-state-type",
    "center-build",
    "center-cache-include",
    "center-cache-member",
    "center-cache-context-member",
    "center-cache-create",
    "center-cache-rotation",
    "center-cache-rotation-set",
    "center-cache-store",
    "center-cache-copy-stream",
    "center-cache-memory",
    "center-graph-include",
    "center-graph-member",
    "center-graph-attention",
    "center-graph-attention-iswa",
    "center-graph-latent",
    "center-graph-latent-selected",
    "center-graph-term",
    "center-graph-flash",
    "center-graph-scores",
    "center-graph-flash-output",
    "center-graph-output",
    "center-context-friend",
    "center-context-include",
    "center-context-begin",
    "center-context-run",
    "center-cpu-include",
    "center-cpu-supports",
    "center-cpu-supports-rounded",
    "center-cpu-store",
    "center-cpu-store-threads",
    "center-state-include",
    "center-state-save",
    "center-state-save-cells",
    "center-state-restore",
    "center-state-restore-cells",
    "center-state-restore-keys",
    "center-common-member",
    "center-common-argument",
    "center-common-context",
    "llama-rotation-back",
    "llama-rotation-back-iswa",
}
NOT_BEFORE_2026 = NOT_BEFORE_2026_10 | {
    "deepseek4-indexer-size",
    "llama-state-build",
    "llama-state-cache-clear",
    "llama-state-cache-include",
    "llama-state-cache-undo",
    "llama-state-cell",
    "llama-state-cell-count",
    "llama-state-context-include",
    "llama-state-head",
    "llama-state-rotation",
    "llama-state-rotation-of-keys",
    "llama-state-recurrent-clear",
    "llama-state-recurrent-include",
    "llama-state-recurrent-undo",
    "llama-state-sequence-file",
    "llama-state-session-file",
    "llama-state-transposition",
}
NOT_APPLICABLE = {
    "0.3.16": {
        "llama-cache-rotation",
        "llama-cache-unrotated",
        "llama-rotations-include",
        "llama-rotations-together",
        "llama-rotations-together-iswa",
        "llama-shift-null-rotation",
        "llama-shift-partial-rotary",
        "tests-set-rows-error",
        "tests-set-rows-pair",
        "tests-set-rows-pairs",
        "tests-cpy-error",
        "tests-cont",
        "tests-attention-shapes",
        "tests-attention-speed",
        "cuda-set-rows",
        "cuda-fuse-set-rows",
        "cuda-get-rows",
        "cuda-cpy",
        "cuda-concat",
        "cuda-mul-mat",
        "cuda-fuse-mul-mat",
        "cuda-flash-attn",
        "metal-build",
        "metal-device-include",
        "metal-supports-op",
        "metal-plain-arithmetic",
        "metal-ops-include",
        "metal-encode",
        "metal-attention-f16",
        "metal-buffer-include",
        "metal-buffer-size",
        *NOT_BEFORE_2026,
    },
    "0.3.28": {"tests-cont", "tests-set-rows-pair", "tests-set-rows-pairs", *NOT_BEFORE_2026_10, "tests-attention-shapes", "tests-attention-speed"},
    "0.3.36": set(),
}
UPSTREAM = {"0.3.16": None, "0.3.28": "0.13.1", "0.3.36": "0.25.3"}


@pytest.fixture(params=VERSIONS)
def version(request) -> str:
    return request.param


@pytest.fixture
def tree(version, llama_tree, tmp_path, monkeypatch) -> Path:
    """A copy of what the hooks may touch: nothing else of a tree is read."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    pristine, copy = llama_tree(version), tmp_path / "tree"
    for name in ("ggml", "src", "common", "tests", "tools/llama-bench", "gguf-py/gguf"):
        shutil.copytree(pristine / name, copy / name)
    shutil.copy(pristine / "tools/CMakeLists.txt", copy / "tools")
    return copy


def test_census(tree, version):
    """Every hook applies, or is named as not applicable for a reason that is written down."""
    found = patch.check(tree)
    assert not found.findings
    assert found.upstream["ggml"] == UPSTREAM[version]
    assert {o.hook.id for o in found.outcomes if o.state == "absent"} == NOT_APPLICABLE[version]
    for outcome in found.outcomes:
        if outcome.hook.variant:
            meant = outcome.hook.id.endswith("-2025") == (version == "0.3.16")
            assert outcome.state == ("ok" if meant else "inactive"), outcome.hook.id
    for outcome in found.outcomes:
        if outcome.state == "ok":
            assert len(outcome.lines) == outcome.hook.count


def test_round_trip(tree):
    before = snapshot(tree)
    _, _, done = patch.patch(tree)
    patched = snapshot(tree)
    assert set(patched) - set(before) >= {copy.target for copy in done.spec.copies}
    for change in done.changes:
        begins = Counter(re.findall(rb"pyggmlq:begin (\S+)", change.after))
        assert begins == Counter(re.findall(rb"pyggmlq:end (\S+)", change.after))
        if change.before is not None:
            assert begins and change.before != change.after
    assert patch.patch(tree)[2] is None
    assert snapshot(tree) == patched
    patch.revert(tree)
    assert snapshot(tree) == before


def test_git_apply_of_the_diff_equals_patch(tree):
    touched = {change.path for change in patch.check(tree).changes}
    diff = patch.diff(tree)
    run_git(tree, "init", "-q")
    run_git(tree, "apply", "--check", "-", stdin=diff)
    run_git(tree, "apply", "--whitespace=nowarn", "-", stdin=diff)
    applied = {path: (tree / path).read_bytes() for path in touched}
    run_git(tree, "apply", "-R", "--whitespace=nowarn", "-", stdin=diff)
    patch.patch(tree)
    assert {path: (tree / path).read_bytes() for path in touched} == applied


def test_ids_are_where_upstream_has_none(tree):
    patch.patch(tree)
    header = (tree / "ggml/include/ggml.h").read_text()
    values = {name: int(value) for name, value in re.findall(r"^\s*GGML_TYPE_(\w+)\s*=\s*(\d+),", header, re.MULTILINE)}
    ours = {info.name.upper(): info.id for info in cache_types() + query_types()}
    assert {name: values[name] for name in ours} == ours
    assert len(set(values.values())) == len(values)
    assert values["COUNT"] == max(ours.values()) + 1


def test_a_hook_whose_place_is_gone_is_named(llama_tree, version):
    """For every hook: without a line that its anchor hits, this hook is what `check` complains about. Hooks in other files aren't looked for each time."""
    pristine, spec = llama_tree(version), patch.load_spec()

    def read(path: str) -> bytes | None:
        return (pristine / path).read_bytes() if (pristine / path).is_file() else None

    for outcome in plan.make(pristine, spec, read).outcomes:
        if outcome.state != "ok":
            continue
        lines = read(outcome.file).split(b"\n")
        del lines[outcome.lines[-1] - 1]
        without = b"\n".join(lines)
        here = dataclasses.replace(spec, hooks=tuple(hook for hook in spec.hooks if outcome.file in hook.files), copies=())
        findings = plan.make(pristine, here, lambda path: without if path == outcome.file else read(path)).findings
        assert outcome.hook.id in [finding.subject for finding in findings]
