# SPDX-License-Identifier: MIT
"""A tree and a spec -> what would be written, and everything that speaks against it. Reads only."""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from .._types import cache_types, query_types
from . import match
from .finding import Finding
from .spec import Hook, Spec

HEADER = "ggml/include/ggml.h"
MARKER = b"pyggmlq:begin "

Reader = Callable[[str], "bytes | None"]


@dataclass(frozen=True)
class Outcome:
    """What became of one hook: ``ok`` (with the lines it hit), ``absent`` (fine, see reason), ``inactive``, ``error``."""

    hook: Hook
    state: str
    file: str = ""
    lines: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """A file's bytes before (None: it does not exist) and after."""

    path: str
    before: bytes | None
    after: bytes


@dataclass
class Plan:
    tree: Path
    spec: Spec
    upstream: dict[str, str | None]
    outcomes: list[Outcome] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def make(tree: Path, spec: Spec, read: Reader) -> Plan:
    """Match every hook against the pristine text that ``read`` gives (None: no such file)."""
    plan = Plan(tree, spec, upstream(tree))
    plan.findings += layout(tree) or _leftovers(spec, read) or _foreign(read)
    if plan.findings:
        return plan

    edits: dict[str, list[match.Edit]] = defaultdict(list)
    texts: dict[str, match.Text | None] = {}

    def text_of(path: str) -> match.Text | None:
        if path not in texts:
            problem = unsafe(tree, path)
            if problem:
                plan.findings.append(problem)
            raw = None if problem else read(path)
            texts[path] = None if raw is None else match.Text(raw)
        return texts[path]

    for hook in spec.hooks:
        outcome, found, findings = _one(hook, text_of)
        plan.outcomes.append(outcome)
        plan.findings += findings
        if found:
            edits[outcome.file] += found
    plan.findings += _variants(spec, plan.outcomes)
    for path, found in edits.items():
        plan.findings += _overlaps(path, found)

    for copy in spec.copies:
        problem = unsafe(tree, copy.target)
        if problem:
            plan.findings.append(problem)
        elif read(copy.target) is not None:
            plan.findings.append(
                Finding(
                    "copy-exists",
                    copy.target,
                    "the tree already has a file where ours would go",
                    (("do", "use a pristine tree: this file comes from elsewhere, or from a patch that was cut loose"),),
                )
            )
    if not plan.findings:
        plan.changes = [Change(p, read(p), texts[p].apply(e)) for p, e in sorted(edits.items())]
        plan.changes += [Change(c.target, None, c.content(spec.root)) for c in spec.copies]
        plan.findings += _read_only(tree, plan.changes)
    return plan


def upstream(tree: Path) -> dict[str, str | None]:
    """What the tree says about itself: ggml's version (absent before 2025-09) and the git commit, if any."""
    version = None
    cmake = tree / "ggml" / "CMakeLists.txt"
    if cmake.is_file():
        parts = dict(re.findall(r"set\(GGML_VERSION_(MAJOR|MINOR|PATCH) (\d+)\)", cmake.read_text("utf-8", "replace")))
        if len(parts) == 3:
            version = f"{parts['MAJOR']}.{parts['MINOR']}.{parts['PATCH']}"
    commit = None
    if (tree / ".git").exists():
        try:
            answer = subprocess.run(
                ["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=30, check=False
            )
            commit = answer.stdout.strip() or None
        except (OSError, subprocess.SubprocessError):
            pass
    return {"ggml": version, "commit": commit}


def _one(hook: Hook, text_of: Callable) -> tuple[Outcome, list[match.Edit], list[Finding]]:
    file = next((f for f in hook.files if text_of(f) is not None), None)
    if file is None:
        if hook.absent is not None:
            return Outcome(hook, "absent", hook.files[0], reason=hook.absent), [], []
        finding = Finding(
            "file-missing",
            hook.id,
            f"found no {' or '.join(hook.files)}",
            (
                ("why", hook.why),
                ("do", f"if upstream moved it, adapt `file` in ggml_patch/{hook.origin}; docs/PATCHING.md says how"),
            ),
        )
        return Outcome(hook, "error", hook.files[0]), [], [finding]
    if hook.when:
        asked = text_of(hook.when.file or file)
        holds = asked is not None and bool(hook.when.pattern.search(asked.normal)) == hook.when.wanted
        if not holds and hook.variant:
            return Outcome(hook, "inactive", file), [], []
        if not holds:
            return Outcome(hook, "absent", file, reason=hook.absent), [], []
    text = text_of(file)
    edits, findings = match.find(hook, file, text)
    if findings:
        return Outcome(hook, "error", file), [], findings
    return Outcome(hook, "ok", file, tuple(edit.anchor + 1 for edit in edits)), edits, []


def layout(tree: Path) -> list[Finding]:
    """Is this a llama.cpp tree of the layout that the hooks know? One finding at most."""
    has = {name: (tree / name).exists() for name in (HEADER, "src", "common", "ggml/src/ggml-cpu", "ggml/src/iqk")}
    if has["ggml/src/iqk"]:
        return [Finding("fork", str(tree), "this is ik_llama.cpp, whose layout differs; pyggmlq patches llama.cpp only")]
    old = (tree / "ggml.h").exists() or (has[HEADER] and has["src"] and not has["ggml/src/ggml-cpu"])
    if old:
        message = "this llama.cpp is too old: it has no folder ggml/src/ggml-cpu, which came in November 2024"
        return [Finding("too-old", str(tree), message, (("do", "use a tree from August 2025 or later"),))]
    missing = [name for name in (HEADER, "src", "common") if not has[name]]
    if missing:
        message = f"this is not a llama.cpp tree: found no {', '.join(missing)}"
        return [Finding("not-llama", str(tree), message, (("do", "give the folder that holds ggml/, src/, common/"),))]
    return []


def _foreign(read: Reader) -> list[Finding]:
    """Another project's types where ours would go: an equal name, an equal id, or ids beyond ours."""
    raw = read(HEADER)
    entries = re.findall(r"^\s*GGML_TYPE_(\w+)\s*=\s*(\d+)", match.Text(raw).normal if raw else "", re.MULTILINE)
    ours = cache_types() + query_types()
    names, ids = {t.name.upper() for t in ours}, {t.id for t in ours}
    findings = []
    for name, number in entries:
        if name == "COUNT":
            if int(number) > min(ids):
                findings.append((name, number, f"the tree has type ids up to {int(number) - 1}, ours begin at {min(ids)}"))
        elif name in names:
            findings.append((name, number, "the tree already has a type of this name"))
        elif int(number) in ids:
            findings.append((name, number, "another project's type has an id of ours"))
    return [
        Finding(
            "foreign-types",
            f"GGML_TYPE_{name}",
            f"{message} ({HEADER}: GGML_TYPE_{name} = {number})",
            (("do", "use a pristine llama.cpp: ids are written into session files, so two meanings can't share one"),),
        )
        for name, number, message in findings
    ]


def unsafe(tree: Path, path: str) -> Finding | None:
    """Only regular files below real folders are touched: a symbolic link may lead anywhere."""
    current = tree
    for part in Path(path).parts:
        current = current / part
        if current.is_symlink():
            return Finding("symlink", path, f"{current.relative_to(tree)} is a symbolic link, which pyggmlq won't follow")
    if current.exists() and not current.is_file():
        return Finding("not-a-file", path, "this is not a regular file")
    return None


def _leftovers(spec: Spec, read: Reader) -> list[Finding]:
    paths = sorted({path for hook in spec.hooks for path in hook.files})
    marked = [path for path in paths if MARKER in (read(path) or b"")]
    if not marked:
        return []
    more = f" and {len(marked) - 1} more" if len(marked) > 1 else ""
    return [
        Finding(
            "leftover",
            marked[0] + more,
            "already carries pyggmlq's markers, but the tree has no .pyggmlq/manifest.json that knows of them",
            (("do", "bring the tree back first: git checkout, or git apply -R of the diff that was applied"),),
        )
    ]


def _variants(spec: Spec, outcomes: list[Outcome]) -> list[Finding]:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.hook.variant:
            groups[outcome.hook.variant].append(outcome)
    findings = []
    for name, members in groups.items():
        active = [o.hook.id for o in members if o.state in ("ok", "error")]
        if len(active) != 1 and not any(o.state == "absent" for o in members):
            found = ", ".join(active) or "none"
            findings.append(
                Finding(
                    "variant",
                    name,
                    f"exactly one of {', '.join(o.hook.id for o in members)} must apply, found {found}",
                    (("why", members[0].hook.why), ("do", f"adapt `when` in ggml_patch/{members[0].hook.origin}")),
                )
            )
    return findings


def _overlaps(path: str, edits: list[match.Edit]) -> list[Finding]:
    """Two edits at one spot would make the result depend on their order."""
    findings = []
    ordered = sorted(edits, key=lambda e: (e.start, e.end))
    for one, two in zip(ordered, ordered[1:]):
        if two.start < one.end or two.start == one.start:
            findings.append(
                Finding(
                    "overlap",
                    two.hook.id,
                    f"touches the same lines as {one.hook.id}",
                    ((path, f"line {two.start + 1}"), ("do", "give one of them another anchor, or make them one hook")),
                )
            )
    return findings


def _read_only(tree: Path, changes: list[Change]) -> list[Finding]:
    folders = {tree}
    for change in changes:
        folder = (tree / change.path).parent
        while not folder.exists():
            folder = folder.parent
        folders.add(folder)
    blocked = [folder for folder in sorted(folders) if not os.access(folder, os.W_OK | os.X_OK)]
    if not blocked:
        return []
    shown = "." if blocked[0] == tree else str(blocked[0].relative_to(tree))
    more = f" and {len(blocked) - 1} more" if len(blocked) > 1 else ""
    return [Finding("read-only", str(tree), f"the folder {shown}{more} is not writable", (("do", "make it writable"),))]
