# SPDX-License-Identifier: MIT
"""The patch engine on a miniature tree: what it writes, what it refuses, and what survives a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patch_minitree import CSRC, HOOKS, TREE, make_sources, make_tree, run_git, snapshot, write
from pyggmlq import _sources, patch
from pyggmlq.patch import match, spec, state


@pytest.fixture(autouse=True)
def fast(monkeypatch) -> None:
    """Nothing here pulls the plug, so nothing needs to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    folder = make_sources(tmp_path / "sources")
    monkeypatch.setattr(_sources, "root", lambda: folder)
    return folder


@pytest.fixture
def tree(tmp_path, sources) -> Path:
    return make_tree(tmp_path / "tree")


def codes(call) -> list[str]:
    """The codes of the findings that a call raises."""
    with pytest.raises(patch.PatchError) as caught:
        call()
    for finding in caught.value.findings:
        assert finding.subject and finding.message
    return [finding.code for finding in caught.value.findings]


def refused(tree: Path) -> list[str]:
    """The codes for which a tree is refused, by `patch` and `check` alike, with nothing written."""
    before = snapshot(tree)
    found = codes(lambda: patch.patch(tree))
    assert [finding.code for finding in patch.check(tree).findings] == found
    assert snapshot(tree) == before
    return found


def edit(tree: Path, path: str, old: str, new: str) -> None:
    data = (tree / path).read_bytes()
    assert data.count(old.encode()) >= 1
    (tree / path).write_bytes(data.replace(old.encode(), new.encode()))


# what is written


def test_patch_inserts_what_the_hooks_say(tree):
    patch.patch(tree)
    assert (tree / "ggml/include/ggml.h").read_text() == (
        "#pragma once\n"
        "enum ggml_type {\n"
        "    GGML_TYPE_F32 = 0,\n"
        "    GGML_TYPE_Q4_0 = 2,\n"
        "    // pyggmlq:begin core-ids\n"
        "    GGML_TYPE_TQ3_0 = 90,\n"
        "    GGML_TYPE_PLANAR3 = 91,\n"
        "    GGML_TYPE_TQ3_0_Q8 = 92,\n"
        "    GGML_TYPE_PLANAR3_Q8 = 93,\n"
        "    GGML_TYPE_COUNT = 94,\n"
        "    // pyggmlq:end core-ids\n"
        "};\n"
    )
    assert (tree / "ggml/src/CMakeLists.txt").read_text() == (
        "add_library(base\n    ggml.c\n    # pyggmlq:begin core-build\n    ggmlq.c\n    # pyggmlq:end core-build\n    ggml-quants.c)\n"
    )
    ops = (tree / "ggml/src/ggml-cpu/ops.cpp").read_text()
    assert ops.count("        case GGML_TYPE_PLANAR3:\n        // pyggmlq:end cpu-switches\n        case GGML_TYPE_Q4_0:\n") == 2
    assert "void attend(int type) {\n    // pyggmlq:begin cpu-attend\n    if (ggmlq_attend" in ops
    assert "return rot ? rotate(rot) : 0;" in (tree / "src/llama.cpp").read_text()
    assert (tree / "ggml/src/ggmlq.c").read_bytes() == CSRC["ggmlq.c"]
    assert (tree / "ggml/src/ggml-cpu/extra/deep/cpu.c").read_bytes() == CSRC["cpu.c"]


def test_patch_twice_changes_nothing_the_second_time(tree):
    status, undone, plan = patch.patch(tree)
    assert (status.state, status.current, undone) == ("patched", True, False) and plan
    before = snapshot(tree), (tree / "src/llama.cpp").stat().st_mtime_ns
    status, undone, plan = patch.patch(tree)
    assert (status.state, undone, plan) == ("patched", False, None)
    assert (snapshot(tree), (tree / "src/llama.cpp").stat().st_mtime_ns) == before


def test_revert_leaves_no_trace(tree):
    before = snapshot(tree)
    patch.patch(tree)
    assert snapshot(tree) != before
    paths, undone = patch.revert(tree)
    assert "src/llama.cpp" in paths and not undone
    assert snapshot(tree) == before
    assert patch.revert(tree) == ((), False)
    assert patch.status(tree).state == "unpatched"


def test_modes_are_kept_and_reverted_files_are_new_enough_to_be_rebuilt(tree):
    old = tree / "src/llama.cpp"
    os.utime(old, (1e9, 1e9))
    patch.patch(tree)
    assert old.stat().st_mode & 0o777 == 0o755
    patched_at = old.stat().st_mtime_ns
    time.sleep(0.02)
    patch.revert(tree)
    assert old.stat().st_mode & 0o777 == 0o755
    assert old.stat().st_mtime_ns > patched_at


def test_a_users_own_file_in_a_folder_of_ours_survives_a_revert(tree):
    patch.patch(tree)
    write(tree / "ggml/src/ggml-cpu/extra/mine.txt", b"mine")
    patch.revert(tree)
    assert (tree / "ggml/src/ggml-cpu/extra/mine.txt").read_bytes() == b"mine"
    assert not (tree / "ggml/src/ggml-cpu/extra/deep").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\r\n", 3),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.rstrip(b"\n"),
        lambda data: data + b"// caf\xe9 \x00 \x0c \xe2\x80\xa8 \x85 lone\rreturn\n",
        lambda data: data.replace(b"\n", b"\r\n").rstrip(),
    ],
    ids=["crlf", "mixed", "bom", "no-final-newline", "odd-bytes", "crlf-no-final-newline"],
)
def test_bytes_that_no_hook_touches_are_kept(tree, change):
    for path in TREE:
        (tree / path).write_bytes(change((tree / path).read_bytes()))
    before = snapshot(tree)
    plan = patch.check(tree)
    assert not plan.findings
    for entry in plan.changes:
        if entry.before is None:
            continue
        kept, inside = [], False
        for line in entry.after.split(b"\n"):  # drop what is between the markers
            if b"pyggmlq:begin" in line:
                inside = True
            if not inside:
                kept.append(line)
            if b"pyggmlq:end" in line:
                inside = False
        removed = [line for line in entry.before.split(b"\n") if b"GGML_TYPE_COUNT" not in line and b"return rotate" not in line]
        assert kept == removed
        if entry.before.count(b"\r\n") == entry.before.count(b"\n"):
            assert entry.after.count(b"\r\n") == entry.after.count(b"\n")
    patch.patch(tree)
    patch.revert(tree)
    assert snapshot(tree) == before


def test_an_insertion_after_an_unterminated_last_line_keeps_the_file_unterminated():
    text = match.Text(b"a\nlast")
    hook = _hook(anchor="^last\n", place="after", text="more\n", mark=False)
    edits, findings = match.find(hook, "x.c", text)
    assert not findings and text.apply(edits) == b"a\nlast\nmore"


def _hook(**changes) -> spec.Hook:
    import re

    values = dict(
        id="x-y", why="w", files=("x.c",), anchor="", place="after", head="", text="", tail="", each=None, count=1,
        within=None, when=None, variant=None, absent=None, mark=True, origin="x.toml:1",
    )
    values.update(changes)
    values["anchor"] = re.compile(values["anchor"], re.MULTILINE)
    return spec.Hook(**values)


# git


def test_git_sees_nothing_of_ours_but_the_patch_and_nothing_after_revert(tmp_path, sources):
    tree = make_tree(tmp_path / "tree", git=True)
    assert len(patch.status(tree).upstream["commit"]) == 40
    patch.patch(tree)
    assert ".pyggmlq" not in run_git(tree, "status", "--porcelain", "-uall")
    assert " M src/llama.cpp" in run_git(tree, "status", "--porcelain", "-uall")
    patch.revert(tree)
    assert run_git(tree, "status", "--porcelain", "--ignored", "-uall") == ""


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_git_apply_of_the_diff_equals_patch(tmp_path, sources, newline):
    one, two = (make_tree(tmp_path / name) for name in ("one", "two"))
    for tree in (one, two):
        for path in TREE:
            (tree / path).write_bytes((tree / path).read_bytes().replace(b"\n", newline))
        (tree / "src/llama.cpp").write_bytes((tree / "src/llama.cpp").read_bytes().rstrip())
    run_git(one, "init", "-q")
    before = patch.diff(one)
    run_git(one, "apply", "--whitespace=nowarn", "-", stdin=before)
    patch.patch(two)
    assert patch.diff(two) == before
    assert b".pyggmlq" not in before
    assert snapshot(one) == snapshot(two, ignore=(".pyggmlq",))


# what is refused: one clear error each, nothing written


def test_anchor_counts_are_exact_and_all_findings_come_at_once(tree):
    edit(tree, "ggml/src/ggml-cpu/ops.cpp", "void get_rows(int type) {", "void get_rows(int type) {\n        case GGML_TYPE_Q4_0:")
    edit(tree, "ggml/src/CMakeLists.txt", "    ggml.c\n", "    ggml.cpp\n")
    plan = patch.check(tree)
    assert refused(tree) == ["anchor-count", "anchor-count"]
    few, many = plan.findings
    assert few.message == "found 0, wanted 1"
    assert ("nearest", "2: ggml.cpp") in few.details
    assert any(label == "do" and "core.toml:13" in text for label, text in few.details)
    assert many.message == "found 3, wanted 2"
    assert ("found", "4: case GGML_TYPE_Q4_0:") in many.details


def test_a_window_must_be_found_once_and_end(tree):
    edit(tree, "ggml/src/ggml-cpu/ops.cpp", "void attend(int type) {", "void attend_all(int type) {")
    assert refused(tree) == ["window-count"]
    edit(tree, "ggml/src/ggml-cpu/ops.cpp", "void attend_all(int type) {", "void attend(int type) {")
    edit(tree, "ggml/src/ggml-cpu/ops.cpp", "    compute(type);\n}\n", "    compute(type);\n")
    assert refused(tree) == ["window-end"]


def test_a_missing_file_is_an_error_unless_the_hook_says_why_not(tree):
    (tree / "src/llama.cpp").unlink()
    plan = patch.check(tree)
    assert not plan.findings
    assert {o.hook.id: o.reason for o in plan.outcomes if o.state == "absent"} == {
        "llama-rotation": "this tree does not rotate",
        "llama-bench": "this tree has no benchmark",
    }
    (tree / "ggml/src/CMakeLists.txt").unlink()
    assert refused(tree) == ["file-missing"]


def test_when_an_optional_hook_does_not_apply_it_is_named(tree):
    edit(tree, "src/llama.cpp", "rotate(rot)", "rotate(q)")
    plan = patch.check(tree)
    assert not plan.findings
    assert [o.hook.id for o in plan.outcomes if o.state == "absent"] == ["llama-rotation", "llama-bench"]


def test_exactly_one_variant_must_apply(tree, sources):
    variant = """
[[hook]]
id = "cpu-{0}"
why = "One of two."
file = "common/arg.cpp"
variant = "cpu-choice"
when = {{ file = "ggml/include/ggml.h", {1} = 'pragma {2}' }}
anchor = '^const types'
place = "before"
text = "// {0}\\n"
"""

    def variants(*rows):
        text = HOOKS["cpu.toml"] + "".join(variant.format(*row) for row in rows)
        (sources / "ggml_patch/cpu.toml").write_text(text)

    variants(("old", "lacks", "once"), ("new", "contains", "once"))
    patch.patch(tree)
    assert "// new\n" in (tree / "common/arg.cpp").read_text()
    patch.revert(tree)
    variants(("old", "contains", "twice"), ("new", "contains", "thrice"))
    assert refused(tree) == ["variant"]
    variants(("old", "lacks", "twice"), ("new", "contains", "once"))
    assert refused(tree) == ["variant", "overlap"]


def test_overlapping_hooks_are_refused(tree, sources):
    text = HOOKS["cpu.toml"] + HOOKS["cpu.toml"].replace("cpu-switches", "cpu-again").replace("cpu-attend", "cpu-twice")
    (sources / "ggml_patch/cpu.toml").write_text(text)
    assert refused(tree) == ["overlap"] * 3


def test_replace_must_cover_whole_lines(tree, sources):
    text = HOOKS["core.toml"].replace(r"= \d+,\n'", r"= \d+'")
    (sources / "ggml_patch/core.toml").write_text(text)
    assert refused(tree) == ["anchor-partial"]


@pytest.mark.parametrize(
    "line, code",
    [
        ("    GGML_TYPE_TQ3_0 = 50,\n", ["foreign-types"]),
        ("    GGML_TYPE_OTHER = 91,\n", ["foreign-types"]),
        ("    GGML_TYPE_PLANAR3_Q8 = 93,\n    GGML_TYPE_TQ3_0 = 90,\n", ["foreign-types"] * 2),
    ],
)
def test_another_projects_types_are_refused(tree, line, code):
    edit(tree, "ggml/include/ggml.h", "    GGML_TYPE_COUNT", line + "    GGML_TYPE_COUNT")
    assert refused(tree) == code


def test_a_tree_with_ids_beyond_ours_is_refused(tree):
    edit(tree, "ggml/include/ggml.h", "GGML_TYPE_COUNT = 43", "GGML_TYPE_COUNT = 400")
    assert refused(tree) == ["foreign-types"]


def test_a_file_where_ours_would_go_is_refused(tree):
    write(tree / "ggml/src/ggmlq.c", CSRC["ggmlq.c"])
    assert refused(tree) == ["copy-exists"]


def test_markers_without_a_state_folder_are_refused(tree):
    patch.patch(tree)
    os.rename(tree / ".pyggmlq", tree.with_name("moved away"))
    assert set(refused(tree)) == {"leftover"}


def test_a_lost_manifest_does_not_cost_the_originals(tree):
    patch.patch(tree)
    (tree / ".pyggmlq/manifest.json").unlink()
    before = snapshot(tree)
    assert set(refused(tree)) == {"leftover"}
    assert codes(lambda: patch.revert(tree)) == ["state"]
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda tree: (tree / "ggml/include/ggml.h").unlink(), "not-llama"),
        (lambda tree: write(tree / "ggml.h", b""), "too-old"),
        (lambda tree: write(tree / "ggml/src/iqk/x.h", b""), "fork"),
    ],
)
def test_a_tree_of_another_kind_is_refused(tree, change, code):
    change(tree)
    assert refused(tree) == [code]
    assert codes(lambda: patch.status(tree)) == [code]
    assert codes(lambda: patch.diff(tree)) == [code]


def test_an_empty_folder_is_refused(tmp_path, sources):
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == ["not-llama"]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege there")
@pytest.mark.parametrize("victim", ["src/llama.cpp", "src", "ggml/src/ggmlq.h"])
def test_symbolic_links_are_not_followed(tree, tmp_path, victim):
    outside = tmp_path / "outside"
    if (tree / victim).exists():
        os.rename(tree / victim, outside)
    else:
        outside.write_bytes(b"")
    os.symlink(outside, tree / victim)
    assert "symlink" in refused(tree)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege there")
def test_a_linked_state_folder_is_refused(tree, tmp_path):
    os.symlink(tmp_path, tree / ".pyggmlq")
    assert codes(lambda: patch.patch(tree)) == ["state"]


@pytest.mark.parametrize("path", ["../outside", "/outside", "src/../../outside", ""])
def test_a_manifest_that_points_out_of_the_tree_is_refused(tree, tmp_path, path):
    """A tree may come from anyone."""
    patch.patch(tree)
    manifest = tree / ".pyggmlq/manifest.json"
    data = json.loads(manifest.read_text())
    (tmp_path / "outside").write_bytes(CSRC["ggmlq.c"])
    data["files"][-1] = {"path": path, "before": None, "after": state.sha256(CSRC["ggmlq.c"])}
    manifest.write_text(json.dumps(data))
    assert codes(lambda: patch.revert(tree)) == ["state"]
    assert (tmp_path / "outside").exists()


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege there")
def test_a_revert_does_not_follow_symbolic_links_either(tree, tmp_path):
    patch.patch(tree)
    os.rename(tree / "src", tmp_path / "outside")
    os.symlink(tmp_path / "outside", tree / "src")
    before = snapshot(tmp_path / "outside")
    assert codes(lambda: patch.revert(tree)) == ["symlink"]
    assert snapshot(tmp_path / "outside") == before


def test_a_read_only_tree_is_refused(tree, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "ggml-cpu" and real(path, mode))
    assert refused(tree) == ["read-only"]


def test_a_tree_patched_by_another_pyggmlq_must_be_reverted_first(tree, sources):
    before = snapshot(tree)
    patch.patch(tree)
    write(sources / "csrc/ggmlq.c", b"int newer;\n")
    assert codes(lambda: patch.patch(tree)) == ["other-version"]
    status = patch.status(tree)
    assert (status.state, status.current) == ("patched", False)
    patch.revert(tree)
    assert snapshot(tree) == before
    patch.patch(tree)
    assert (tree / "ggml/src/ggmlq.c").read_bytes() == b"int newer;\n"


def test_edits_after_the_patch_are_reported_and_never_lost(tree):
    before = snapshot(tree)
    patch.patch(tree)
    edit(tree, "src/llama.cpp", "int llama", "int my_llama")
    (tree / "ggml/src/ggmlq.h").unlink()
    edited = snapshot(tree)
    status = patch.status(tree)
    assert status.state == "modified"
    assert dict(status.files)["src/llama.cpp"] == "edited" and dict(status.files)["ggml/src/ggmlq.h"] == "missing"
    with pytest.raises(patch.PatchError) as caught:
        patch.revert(tree)
    assert [f.subject for f in caught.value.findings] == ["src/llama.cpp"]
    shown = dict(caught.value.findings[-1].details)["diff"]
    assert "-int llama() {\n+int my_llama() {" in shown
    assert codes(lambda: patch.patch(tree)) == ["modified"]
    assert snapshot(tree) == edited
    edit(tree, "src/llama.cpp", "int my_llama", "int llama")
    patch.revert(tree)
    assert snapshot(tree) == before


def test_files_that_git_put_back_do_not_keep_a_revert_from_working(tree):
    before = snapshot(tree)
    patch.patch(tree)
    write(tree / "src/llama.cpp", TREE["src/llama.cpp"].encode())
    assert patch.status(tree).state == "modified"
    assert codes(lambda: patch.patch(tree)) == ["partly-undone"]
    patch.revert(tree)
    assert snapshot(tree) == before


def test_check_and_diff_of_a_patched_tree_see_its_originals(tree):
    fresh = patch.check(tree), patch.diff(tree)
    patch.patch(tree)
    plan = patch.check(tree)
    assert not plan.findings and plan.changes == fresh[0].changes
    assert patch.diff(tree) == fresh[1]


def test_a_damaged_manifest_is_reported(tree):
    patch.patch(tree)
    for damage in ("{", "[]", '{"format": 2}', '{"format": 1}', ""):
        (tree / ".pyggmlq/manifest.json").write_text(damage)
        assert codes(lambda: patch.status(tree)) == ["state"]
        assert codes(lambda: patch.revert(tree)) == ["state"]


def test_a_lost_original_is_reported_before_anything_is_written(tree):
    patch.patch(tree)
    (tree / ".pyggmlq/saved/originals/src/llama.cpp").unlink()
    before = snapshot(tree, ignore=(".pyggmlq",))
    assert codes(lambda: patch.revert(tree)) == ["state"]
    assert snapshot(tree, ignore=(".pyggmlq",)) == before


# hook files: strict


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("why = ", "wyh = ", "unknown key `wyh`; the nearest known one is `why`"),
        ("why = ", "wyh = ", "`why` is missing"),
        ('place = "after"', 'place = "behind"', "wanted one of before, after, replace"),
        ('each = "type+query"', 'each = "kind"', "wanted one of type, query, type+query"),
        ("@indent@ggmlq.c", "@ident@ggmlq.c", "unknown @ident@ in `text`; the nearest known one is @indent@"),
        ("@id_end@", "@id@", "unknown @id@ in `tail`"),
        ("ggmlq.c\\n", "ggmlq.c", "must end with a newline"),
        ("@indent@GGML_TYPE_@NAME@ = @id@,", "GGML_TYPE_@NAME@ = @id@,", None),
        ('"core-build"', '"cpu-build"', "begin with `core-`"),
        ('"core-build"', '"core-ids"', "used more than once"),
        ('"ggml/src/CMakeLists.txt"', '"../CMakeLists.txt"', "without `..`"),
        ('"ggml/src/CMakeLists.txt"', '"/etc/passwd"', "must be relative"),
        ('"ggml/src/CMakeLists.txt"', "7", "`file` is a int, wanted str or list"),
        (r"ggml\.c\n'", r"ggml\.c(\n'", "not a regular expression"),
        ('place = "after"', 'place = "after"\ncount = 0', "`count` is 0"),
        ('place = "after"', 'place = "after"\ncount = true', "`count` is a bool"),
        ('place = "after"', 'place = "after"\nabsent = "who cares"', "`absent` must begin with `ok: `"),
        ('place = "after"', "place = \"after\"\nwhen = 'x'", "`when` needs `variant`"),
        ('place = "after"', 'place = "after"\nvariant = "x"', "`variant` needs `when`"),
        ('place = "after"', "place = \"after\"\nwithin = { from = 'x' }", "`to` is missing"),
        ('place = "after"', "place = \"after\"\nabsent = \"ok: x\"\nwhen = { contains = 'x', lacks = 'y' }", "exactly one of"),
        ("[[hook]]", "[[hook]", "not valid TOML"),
        ("[[hook]]", "[[hooks]]", "unknown key `hooks`; the nearest known one is `hook`"),
    ],
)
def test_a_mistake_in_a_hook_file_is_named(tree, sources, old, new, words):
    text = HOOKS["core.toml"]
    assert old in text
    (sources / "ggml_patch/core.toml").write_text(text.replace(old, new))
    if words is None:  # @indent@ is still in `tail`: fine
        patch.check(tree)
        return
    with pytest.raises(patch.PatchError) as caught:
        patch.check(tree)
    assert words in str(caught.value)


def test_replace_must_keep_what_it_captured(tree, sources):
    text = HOOKS["llama.toml"].replace("return @arg@ ? rotate(@arg@) : 0", "return 0")
    (sources / "ggml_patch/llama.toml").write_text(text)
    with pytest.raises(patch.PatchError, match="@arg@ is not inserted again"):
        patch.check(tree)


def test_a_missing_source_is_named(tree, sources):
    (sources / "csrc/cpu.c").unlink()
    assert codes(lambda: patch.check(tree)) == ["source-missing"]


def test_an_unknown_hook_id_gets_the_nearest(sources):
    with pytest.raises(patch.PatchError, match="nearest: cpu-attend"):
        patch.load_spec().hook("cpu-atend")


# properties


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_tree_with_a_line_less_is_patched_completely_or_not_at_all(tmp_path, sources, data):
    path = data.draw(st.sampled_from(sorted(TREE)))
    lines = TREE[path].splitlines(keepends=True)
    gone = data.draw(st.integers(0, len(lines) - 1))
    tree = make_tree(tmp_path / f"tree-{time.monotonic_ns()}")
    write(tree / path, "".join(lines[:gone] + lines[gone + 1 :]).encode())
    before = snapshot(tree)
    wanted = patch.check(tree)
    try:
        patch.patch(tree)
    except patch.PatchError:
        assert wanted.findings and snapshot(tree) == before
    else:
        assert not wanted.findings
        assert all((tree / change.path).read_bytes() == change.after for change in wanted.changes)
        patch.revert(tree)
        assert snapshot(tree) == before


@settings(deadline=None, max_examples=200)
@given(raw=st.binary(max_size=80) | st.text("ab\r\n\ufeff", max_size=30).map(lambda text: text.encode()))
def test_text_without_edits_keeps_every_byte(raw):
    text = match.Text(raw)
    assert text.apply([]) == raw
    assert text.normal.count("\n") == len(text)


def test_everything_reaches_the_disk_before_the_first_rename_into_the_tree(tree, monkeypatch):
    def kind(path: Path) -> str:
        return path.name if path.parent.name == ".pyggmlq" else "tree"

    calls = []
    real = os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("sync"))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(kind(Path(b))), real(a, b)))
    status, _, _ = patch.patch(tree)
    first = calls.index("tree")
    edited = sum(word == "patched" for _, word in status.files)
    assert calls[:first].count("sync") >= 2 * len(status.files) + edited
    assert calls[first - 2 : first] == ["manifest.json", "sync"]  # the journal, then its folder
    assert calls[first:].count("tree") == len(status.files) and calls[-2:] == ["manifest.json", "sync"]


# crashes: a child process is killed just before each change that it would make to the disk

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.chmod", "shutil.rmtree")


def killed_at(step: int, call) -> bool:
    """Runs `call` in a child that dies before its change number `step`; False if it lived to the end."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WEXITSTATUS(status) in (0, 9), "the child failed in another way"
        return os.WEXITSTATUS(status) == 9
    done = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal done
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            if done == step:
                os._exit(9)
            done += 1

    try:
        sys.addaudithook(hook)
        call()
    except BaseException:
        os._exit(1)
    os._exit(0)


@needs_fork
@pytest.mark.parametrize("interrupted", ["patch", "revert"])
@pytest.mark.parametrize("then", ["patch", "revert"])
def test_a_run_killed_at_any_point_is_put_right_by_the_next(tmp_path, sources, interrupted, then):
    steps, seen = 0, set()
    while True:
        tree = make_tree(tmp_path / f"tree{steps}")
        pristine = snapshot(tree)
        if interrupted == "revert":
            patch.patch(tree)
        if not killed_at(steps, lambda: getattr(patch, interrupted)(tree)):
            break
        found = patch.status(tree)
        seen.add(found.state)
        if found.state == "interrupted":
            assert "interrupted" in [f.code for f in patch.check(tree).findings]
        if then == "patch":
            patch.patch(tree)
            assert patch.status(tree).state == "patched"
            assert not (tree / ".pyggmlq/saved/new").exists()
        patch.revert(tree)
        assert snapshot(tree) == pristine
        steps += 1
    assert steps > 20 and seen == {"unpatched", "interrupted"} | ({"patched"} if interrupted == "revert" else set())


@needs_fork
def test_a_recovery_killed_at_any_point_is_put_right_by_the_next(tmp_path, sources):
    def interrupted(name: str, at: int) -> Path:
        tree = make_tree(tmp_path / name)
        assert killed_at(at, lambda: patch.patch(tree))
        return tree

    first = next(k for k in range(0, 999, 5) if patch.status(interrupted(f"try{k}", k)).state == "interrupted")
    pristine = snapshot(make_tree(tmp_path / "pristine"))
    steps = 0
    while True:
        tree = interrupted(f"tree{steps}", first + 8)
        assert patch.status(tree).state == "interrupted"
        if not killed_at(steps, lambda: patch.revert(tree)):
            break
        patch.revert(tree)
        assert snapshot(tree) == pristine
        steps += 1
    assert steps > 5


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for-good"])
def test_a_failing_rename_is_undone_or_can_be_undone(tmp_path, sources, monkeypatch, lasting):
    real = os.replace
    outcomes = set()
    for step in range(100):
        tree = make_tree(tmp_path / f"tree{step}")
        pristine = snapshot(tree)
        calls = 0

        def failing(source, target):
            nonlocal calls
            calls += 1
            if calls - 1 == step or (lasting and calls - 1 > step):
                raise OSError(28, "No space left on device", str(target))
            real(source, target)

        monkeypatch.setattr(os, "replace", failing)
        try:
            patch.patch(tree)
        except patch.PatchError as error:
            assert [f.code for f in error.findings] == ["write-failed"]
            message = error.findings[0].message
            monkeypatch.setattr(os, "replace", real)
            if "was put back" in message:
                outcomes.add("undone")
            else:
                outcomes.add("left")
                assert lasting and patch.status(tree).state == "interrupted"
                patch.revert(tree)
            assert snapshot(tree) == pristine
        else:
            assert step == calls
            break
    assert outcomes == ({"undone", "left"} if lasting else {"undone"})


def test_a_failing_revert_can_be_repeated(tree, monkeypatch):
    before = snapshot(tree)
    patch.patch(tree)
    real = os.replace

    def failing(source, target):
        if Path(target).name == "llama.cpp":
            raise OSError(13, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    for _ in range(2):
        assert codes(lambda: patch.revert(tree)) == ["write-failed"]
        assert patch.status(tree).state == "interrupted"
    monkeypatch.setattr(os, "replace", real)
    assert patch.revert(tree) == ((), True)
    assert snapshot(tree) == before


def test_an_edit_between_crash_and_recovery_is_not_lost(tree, monkeypatch):
    real, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) > 3:
            raise OSError(5, "Input/output error", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    assert codes(lambda: patch.patch(tree)) == ["write-failed"]
    monkeypatch.setattr(os, "replace", real)
    edit(tree, "src/llama.cpp", "int llama", "int my_llama")
    assert patch.status(tree).state == "interrupted"
    assert codes(lambda: patch.revert(tree)) == ["modified"]
    assert codes(lambda: patch.patch(tree)) == ["modified"]
    edit(tree, "src/llama.cpp", "int my_llama", "int llama")
    patch.revert(tree)
    assert patch.status(tree).state == "unpatched"


# two runs at once


def test_a_second_run_is_refused_while_one_is_writing(tree):
    with state.State(tree).lock():
        for reading in (patch.status, patch.check, patch.diff):
            assert codes(lambda: reading(tree)) == ["locked"]
        code = (
            "import sys; from pathlib import Path; from pyggmlq import _sources, patch\n"
            f"_sources.root = lambda: Path({str(_sources.root())!r})\n"
            "for run in (patch.patch, patch.revert):\n"
            f"    try: run({str(tree)!r})\n"
            "    except patch.PatchError as error: print([f.code for f in error.findings])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['locked']\n['locked']\n"
    assert not (tree / ".pyggmlq").exists()


@needs_fork
def test_many_runs_at_once_leave_a_consistent_tree(tree):
    pristine = snapshot(tree)
    children = []
    for number in range(6):
        child = os.fork()
        if not child:
            for _ in range(5):
                try:
                    (patch.patch if number % 2 else patch.revert)(tree)
                except patch.PatchError as error:
                    if {f.code for f in error.findings} != {"locked"}:
                        os.write(2, str(error).encode())
                        os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children] == [0] * 6
    assert patch.status(tree).state in ("patched", "unpatched")
    patch.revert(tree)
    assert snapshot(tree) == pristine
