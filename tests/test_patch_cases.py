# SPDX-License-Identifier: MIT
"""The real hooks, one by one: patch_cases/<hook>/before -> after, and what goes into a tree at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyggmlq import _sources, patch
from pyggmlq.patch import match
from pyggmlq._types import cache_types

CASES = Path(__file__).parent / "patch_cases"
SPEC = patch.load_spec()


@pytest.mark.parametrize("hook", SPEC.hooks, ids=lambda hook: hook.id)
def test_a_hook_turns_before_into_after(hook):
    (before,) = (CASES / hook.id).glob("before.*")
    text = match.Text(before.read_bytes())
    if hook.when and not hook.when.file:
        assert bool(hook.when.pattern.search(text.normal)) == hook.when.wanted
    edits, findings = match.find(hook, hook.files[0], text)
    assert not findings
    assert text.apply(edits).decode() == before.with_name("after" + before.suffix).read_bytes().decode()


@pytest.mark.parametrize("hook", SPEC.hooks, ids=lambda hook: hook.id)
def test_a_hook_does_not_match_its_own_result(hook):
    """Its anchor is gone or as often there as before; what it inserts is no new place to insert."""
    (after,) = (CASES / hook.id).glob("after.*")
    text = match.Text(after.read_bytes())
    edits, _ = match.find(hook, hook.files[0], text)
    assert len(edits) in (0, hook.count)


def test_every_case_belongs_to_a_hook():
    assert {path.name for path in CASES.iterdir()} - {"console"} == {hook.id for hook in SPEC.hooks}


def test_every_file_of_csrc_is_copied_or_left_out_for_a_stated_reason():
    root = _sources.root()
    left_out = [path for path, _ in SPEC.left_out]
    names = {path.relative_to(root).as_posix() for path in (root / "csrc").rglob("*") if path.is_file()}
    unaccounted = {
        name
        for name in names - {copy.source for copy in SPEC.copies}
        if not any(name == path or (path.endswith("/") and name.startswith(path)) for path in left_out)
    }
    assert not unaccounted
    assert all((root / path).exists() for path in left_out), "copies.toml leaves out what isn't there"


def test_includes_between_copied_files_work_in_a_tree():
    """An include finds its file beside it, or, inside ggml, in ggml/src (-I)."""
    targets = {copy.target for copy in SPEC.copies}
    names = {Path(target).name for target in targets}
    for copy in SPEC.copies:
        folder = copy.target.rsplit("/", 1)[0]
        for included in re.findall(r'#\s*include "([^"]+)"', (_sources.root() / copy.source).read_text()):
            if Path(included).name in names:
                places = {f"{folder}/{included}"} | ({f"ggml/src/{included}"} if folder.startswith("ggml/src") else set())
                assert places & targets, f"{copy.target} includes {included}"


def test_hooks_name_no_type():
    """Names and ids come from ggmlq-types.def alone."""
    for hook in SPEC.hooks:
        for info in cache_types():
            assert info.name not in (hook.head + hook.text + hook.tail).lower(), hook.id
