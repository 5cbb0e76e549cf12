# SPDX-License-Identifier: MIT
"""The patch engine: adds the cache types to a llama.cpp tree, completely or not at all, and takes them out again.

    check    what would be changed, and every problem, before anything is written
    patch    write it           revert   bring every byte back
    diff     as a unified diff  status   what state a tree is in

Every function takes the folder of the tree and raises PatchError with all findings if it can't do its work.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from .. import _sources
from . import plan as _plan
from .finding import Finding, PatchError
from .plan import Change, Plan
from .spec import Spec, load
from .state import FOLDER, File, Manifest, State, modified_finding, new_folders, sha256
from .unidiff import unified

__all__ = ["Finding", "PatchError", "Plan", "Spec", "Status", "check", "diff", "load_spec", "patch", "revert", "status"]

_AGAIN = "run `pyggmlq revert`, then `pyggmlq patch`"


@dataclass(frozen=True)
class Status:
    """``state`` is "unpatched", "patched", "modified" or "interrupted"; ``current``: by this very pyggmlq."""

    state: str
    upstream: dict
    version: str | None = None
    current: bool = False
    files: tuple[tuple[str, str], ...] = ()  # (path, "patched" | "created" | "edited" | "missing" | "original")


def load_spec() -> Spec:
    """The hooks and copies that come with this pyggmlq."""
    return load(_sources.root())


def check(tree: str | os.PathLike) -> Plan:
    """Everything that `patch` would do. Problems are in ``findings``. For a patched tree: seen from its originals."""
    state = _open(tree)
    state.refuse_if_locked()
    manifest = state.manifest()
    plan = _plan.make(state.tree, load_spec(), state.pristine(manifest))
    if manifest and manifest.phase != "patched":
        plan.findings.insert(0, _interrupted(state.tree))
    return plan


def patch(tree: str | os.PathLike) -> tuple[Status, bool, Plan | None]:
    """Patch the tree. Returns its status, whether an interrupted run was undone first, and the plan (None: no-op)."""
    state = _open(tree)
    spec = load_spec()
    manifest = state.manifest()
    if manifest and manifest.phase == "patched":
        # without the lock, so that a tree that can't be written to will do
        with contextlib.suppress(PatchError):  # another run may be at work: judged again below, under the lock
            return _already(state, manifest, spec), False, None
    if manifest is None:
        _raise(_plan.layout(state.tree))  # before the lock makes its folder there
    with state.lock():
        undone = _recover(state)
        manifest = state.manifest()
        if manifest:  # another run was faster
            return _already(state, manifest, spec), undone, None
        plan = _plan.make(state.tree, spec, state.current)
        _raise(plan.findings)
        manifest = Manifest(
            phase="patched",
            version=_sources.version(),
            fingerprint=spec.fingerprint,
            upstream=plan.upstream,
            hooks=tuple(o.hook.id for o in plan.outcomes if o.state == "ok"),
            absent=tuple(o.hook.id for o in plan.outcomes if o.state == "absent"),
            files=tuple(File(c.path, sha256(c.before), sha256(c.after)) for c in plan.changes),
            folders=new_folders(state.tree, [c.path for c in plan.changes]),
        )
        try:
            state.apply(manifest, plan.changes)
        except OSError as error:
            raise PatchError(_write_failed(state, error)) from error
        return _status(state, spec), undone, plan


def diff(tree: str | os.PathLike) -> bytes:
    """What `patch` would write, or has written, as a diff that `git apply` accepts. In a patched tree, with later edits."""
    state = _open(tree)
    state.refuse_if_locked()
    manifest = state.manifest()
    if manifest:
        return unified((f.path, state.original(f), state.current(f.path)) for f in manifest.files)
    plan = _plan.make(state.tree, load_spec(), state.current)
    _raise(plan.findings)
    return unified((c.path, c.before, c.after) for c in plan.changes)


def status(tree: str | os.PathLike) -> Status:
    """What state the tree is in. Never writes."""
    state = _open(tree)
    state.refuse_if_locked()
    return _status(state, load_spec())


def revert(tree: str | os.PathLike) -> tuple[tuple[str, ...], bool]:
    """Bring every file back. Returns the paths that were changed or removed, and whether a run had been interrupted."""
    state = _open(tree)
    if not state.folder.exists():
        return (), False
    with state.lock():
        undone = _recover(state)
        manifest = state.manifest()
        if manifest is None:
            state.discard()
            return (), undone
        _refuse_modified(state, manifest)
        _restore(state, manifest)
        return tuple(f.path for f in manifest.files), undone


def _open(tree: str | os.PathLike) -> State:
    return State(Path(tree).resolve())


def _raise(findings: list[Finding]) -> None:
    if findings:
        raise PatchError(*findings)


def _status(state: State, spec: Spec) -> Status:
    manifest = state.manifest()
    if manifest is None:
        _raise(_plan.layout(state.tree))
        return Status("unpatched", _plan.upstream(state.tree))
    files = tuple((f.path, _file_state(state, f)) for f in manifest.files)
    if manifest.phase != "patched":
        word = "interrupted"
    else:
        word = "patched" if all(s in ("patched", "created") for _, s in files) else "modified"
    return Status(word, manifest.upstream, manifest.version, manifest.fingerprint == spec.fingerprint, files)


def _file_state(state: State, file: File) -> str:
    now = sha256(state.current(file.path))
    if now == file.after:
        return "created" if file.before is None else "patched"
    if now is None:
        return "missing"
    return "original" if now == file.before else "edited"


def _already(state: State, manifest: Manifest, spec: Spec) -> Status:
    """The status of a patched tree; PatchError unless it is just as this pyggmlq would patch it."""
    if manifest.fingerprint != spec.fingerprint:
        raise PatchError(_other_version(state.tree, manifest, spec))
    _refuse_modified(state, manifest)
    found = _status(state, spec)
    undone = [path for path, word in found.files if word in ("original", "missing")]
    if undone:
        message = f"patched, but {len(undone)} file(s) are as they were before: {', '.join(undone)}"
        raise PatchError(Finding("partly-undone", str(state.tree), message, (("do", _AGAIN),)))
    return found


def _recover(state: State) -> bool:
    """Undo an interrupted patch, or finish an interrupted revert: both put the originals back."""
    manifest = state.manifest()
    if manifest is None or manifest.phase == "patched":
        return False
    _refuse_modified(state, manifest)
    _restore(state, manifest)
    return True


def _restore(state: State, manifest: Manifest) -> None:
    try:
        state.restore(manifest)
    except OSError as error:
        raise PatchError(_write_failed(state, error)) from error


def _refuse_modified(state: State, manifest: Manifest) -> None:
    modified = state.modified(manifest)
    if modified:
        findings = [modified_finding(f.path) for f in modified]
        edits = unified((f.path, state.written(f), state.current(f.path)) for f in modified)
        detail = (
            ("diff", edits.decode("utf-8", "replace").rstrip("\n")),
            ("do", "save these edits elsewhere and undo them (`git apply -R`), then try again"),
            ("or", f"if the whole tree was replaced by another version, delete its folder {FOLDER}"),
        )
        last = findings[-1]
        findings[-1] = Finding(last.code, last.subject, last.message, detail)
        raise PatchError(*findings)


def _interrupted(tree: Path) -> Finding:
    return Finding(
        "interrupted",
        str(tree),
        "an earlier patch or revert was interrupted",
        (("do", "run `pyggmlq revert`: it puts every original back; or `pyggmlq patch`, which does so first"),),
    )


def _other_version(tree: Path, manifest: Manifest, spec: Spec) -> Finding:
    return Finding(
        "other-version",
        str(tree),
        f"already patched, by pyggmlq {manifest.version} ({manifest.fingerprint[:8]}); "
        f"this is {_sources.version()} ({spec.fingerprint[:8]})",
        (("do", _AGAIN),),
    )


def _write_failed(state: State, error: OSError) -> Finding:
    manifest = state.manifest()
    if manifest is None:
        after = "the tree was put back as it was"
    else:
        after = "the tree could not be put back yet: free what is in the way and run `pyggmlq revert`"
    return Finding("write-failed", str(error.filename or state.tree), f"{error.strerror or error}; {after}")
