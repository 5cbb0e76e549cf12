# SPDX-License-Identifier: MIT
"""The engine's results as lines for people. Plain text: colour is added, if at all, by the console."""

from __future__ import annotations

from typing import Iterable

from .._types import cache_types
from .finding import Finding
from .plan import Plan
from .spec import Hook
from .state import FOLDER


def upstream(description: dict) -> str:
    version = f"ggml {description['ggml']}" if description["ggml"] else "ggml of unstated version"
    return f"llama.cpp ({version}{', commit ' + description['commit'][:9] if description['commit'] else ''})"


def check(plan: Plan) -> list[str]:
    """Head line, one line per group of hooks, and by name what does not apply. Nothing if no hook was tried."""
    if not plan.outcomes:
        return []
    names = " ".join(f"{t.name}={t.id}" for t in cache_types())
    lines = [
        f"{upstream(plan.upstream)}   hooks {len(plan.spec.hooks)}   copies {len(plan.spec.copies)}   types {names}"
    ]
    groups = sorted({outcome.hook.group for outcome in plan.outcomes})
    for group in groups:
        states = [o.state for o in plan.outcomes if o.hook.group == group]
        words = [
            f"{states.count(state)} {word}"
            for state, word in (("ok", "ok"), ("error", "failed"), ("absent", "not applicable"))
            if state in states
        ]
        lines.append(f"  {group:<8} {', '.join(words)}")
    absent = [o for o in plan.outcomes if o.state == "absent"]
    if absent:
        lines.append("not applicable in this tree, which is fine:")
        width = max(len(o.hook.id) for o in absent)
        lines += [f"  {o.hook.id:<{width}}  {o.file}: {o.reason}" for o in absent]
    return lines


def findings(found: Iterable[Finding]) -> list[str]:
    lines: list[str] = []
    for finding in found:
        lines.append(f"error[{finding.code}] {finding.subject}: {finding.message}")
        for label, text in finding.details:
            if "\n" in text:  # a diff: unindented, so that it can be copied
                lines += [f"  {label}", *text.split("\n")]
            else:
                lines.append(f"  {label:<8} {text}")
    return lines


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def changes(plan: Plan, verb: str) -> str:
    edited = sum(change.before is not None for change in plan.changes)
    return f"{counted(edited, 'file')} {verb} changed, {len(plan.changes) - edited} {verb} added"


def status(found) -> list[str]:
    head = upstream(found.upstream)
    if found.state == "unpatched":
        return [f"{head}: unpatched"]
    by = f"by pyggmlq {found.version}{'' if found.current else ', which differs from this one'}"
    if found.state == "patched":
        return [f"{head}: patched {by} ({counted(len(found.files), 'file')}; originals in {FOLDER})"]
    if found.state == "interrupted":
        do = "`pyggmlq revert` puts every original back"
        return [f"{head}: a patch or revert {by} was interrupted; {do}"]
    odd = [(path, word) for path, word in found.files if word not in ("patched", "created")]
    return [f"{head}: patched {by}, modified since:", *(f"  {word:<8} {path}" for path, word in odd)]


def hook(h: Hook) -> list[str]:
    rows = [
        ("why", h.why),
        ("file", " or ".join(h.files)),
        ("anchor", f"{h.anchor.pattern}   {h.count} {'match' if h.count == 1 else 'matches'}"),
    ]
    if h.within:
        rows.append(("within", f"{h.within.start.pattern} to {h.within.end.pattern}"))
    if h.when:
        verb = "contains" if h.when.wanted else "lacks"
        rows.append(("when", f"{h.when.file or 'the file'} {verb} {h.when.pattern.pattern}"))
    if h.variant:
        rows.append(("variant", h.variant))
    if h.absent:
        rows.append(("absent", f"fine: {h.absent}"))
    rows.append((h.place, f"once per {h.each}" if h.each else ""))
    lines = [f"{h.id}   (ggml_patch/{h.origin})", *(f"  {label:<8} {text}".rstrip() for label, text in rows)]
    return lines + ["    | " + line for line in (h.head + h.text + h.tail).rstrip("\n").split("\n")]
