# SPDX-License-Identifier: MIT
"""The folder ``.pyggmlq`` of a tree: what was patched, the originals, and how an interrupted run is put right.

    manifest.json      phase, versions, and path, hash before and after of every file; it doubles as the journal
    saved/originals/   every edited file as it was
    saved/patched/     every file as we wrote it, so that a later edit can be shown as a diff
    saved/new/         what a running patch is about to rename into place
    staging/           becomes saved/ by one rename once it is complete
    lock               held (by the operating system, so a killed run frees it) while a run writes
    .gitignore         "*": the folder never shows in `git status`

A patch writes saved/, then the manifest with phase "patching", renames the new files into place, and sets the phase to
"patched". A revert sets "reverting", puts the originals back, and removes the folder. So for either phase, "patching" or
"reverting", the cure is the same: put the originals back. `restore` is that cure; it may itself be interrupted and run
again. Without a manifest the tree is as it was, unless someone deleted the manifest: see `discard`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from .finding import Finding, PatchError
from .plan import Change, Reader, unsafe
from .spec import stays_inside

FOLDER = ".pyggmlq"
_FORMAT = 1


@dataclass(frozen=True)
class File:
    """One file of a patch; ``before`` is None for a file that the patch created."""

    path: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Manifest:
    phase: str  # "patching", "patched" or "reverting"
    version: str
    fingerprint: str
    upstream: dict
    hooks: tuple[str, ...]
    absent: tuple[str, ...]
    files: tuple[File, ...]
    folders: tuple[str, ...]  # that the patch created, parents first

    def to_json(self) -> str:
        data = {"format": _FORMAT, **vars(self), "files": [vars(file) for file in self.files]}
        return json.dumps(data, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        data = json.loads(text)
        if data.pop("format") != _FORMAT:
            raise ValueError("unknown format")
        data["files"] = tuple(File(**file) for file in data["files"])
        for key in ("hooks", "absent", "folders"):
            data[key] = tuple(data[key])
        for path in (*(file.path for file in data["files"]), *data["folders"]):
            if not stays_inside(path):
                raise ValueError(f"it names the path {path}")
        return Manifest(**data)


def sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


class State:
    """The state of one tree. Reading never writes; every writing method needs the lock to be held."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.folder = tree / FOLDER
        self.saved = self.folder / "saved"
        odd = self.folder.exists() and not self.folder.is_dir()
        if odd or self.folder.is_symlink() or any(path.is_symlink() for path in self.folder.glob("*")):
            raise PatchError(Finding("state", FOLDER, "this is not a real folder; pyggmlq keeps the originals in it"))

    # reading

    def manifest(self) -> Manifest | None:
        path = self.folder / "manifest.json"
        try:
            return Manifest.from_json(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PatchError(
                Finding(
                    "state",
                    f"{FOLDER}/manifest.json",
                    f"it can't be read ({error}): it was damaged, or written by a newer pyggmlq",
                    (("do", f"use the pyggmlq that patched the tree, or restore by hand from {FOLDER}/saved/originals"),),
                )
            ) from None

    def current(self, path: str) -> bytes | None:
        """The file's bytes now, or None."""
        full = self.tree / path
        return full.read_bytes() if full.is_file() else None

    def original(self, file: File) -> bytes | None:
        """The file's bytes before the patch, from the saved copy or, if already put back, from the tree."""
        if file.before is None:
            return None
        for candidate in (self.saved / "originals" / file.path, self.tree / file.path):
            data = candidate.read_bytes() if candidate.is_file() else None
            if sha256(data) == file.before:
                return data
        raise PatchError(
            Finding(
                "state",
                file.path,
                f"its original is no longer in {FOLDER}/saved/originals",
                (("do", "restore the file from where the tree came from; its SHA-256 was " + file.before),),
            )
        )

    def written(self, file: File) -> bytes | None:
        """The file's bytes as the patch wrote them, or None if that copy is gone."""
        path = self.saved / "patched" / file.path
        return path.read_bytes() if path.is_file() else None

    def pristine(self, manifest: Manifest | None) -> Reader:
        """A reader of the tree as it was before the patch."""
        patched = {file.path: file for file in manifest.files} if manifest else {}

        def read(path: str) -> bytes | None:
            return self.original(patched[path]) if path in patched else self.current(path)

        return read

    def modified(self, manifest: Manifest) -> list[File]:
        """Files that are neither as the patch wrote them nor as they were before."""
        return [f for f in manifest.files if sha256(self.current(f.path)) not in (f.after, f.before)]

    def refuse_if_locked(self) -> None:
        """PatchError while another run writes: what a reader sees then is neither the one state nor the other."""
        try:
            handle = os.open(self.folder / "lock", os.O_RDWR)
        except OSError:  # nobody patched here, or we may not write: then nobody like us can be writing
            return
        try:
            if not _try_lock(handle):
                raise PatchError(self._locked())
        finally:
            os.close(handle)

    def _locked(self) -> Finding:
        message = "another pyggmlq is at work on this tree"
        return Finding("locked", str(self.tree), message, (("do", "try again when it is done"),))

    # writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one run at a time writes to a tree. Leaves no folder behind if there is nothing to keep."""
        path = self.folder / "lock"
        try:
            self.folder.mkdir(exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another run, which is just done, removed the folder
            raise PatchError(self._locked()) from None
        except OSError as error:
            raise PatchError(Finding("read-only", str(path), f"can't be written: {error.strerror}")) from None
        try:
            if not _try_lock(handle) or not _is_same_file(handle, path):
                raise PatchError(self._locked())
            try:
                _write(self.folder / ".gitignore", b"*\n")
                yield
            finally:
                self._unlock(handle, path)
        finally:
            with contextlib.suppress(OSError):
                os.close(handle)

    def apply(self, manifest: Manifest, changes: list[Change]) -> None:
        """Write ``changes``, all or none; on any failure the tree is put back first."""
        self.discard()
        staging = self.folder / "staging"
        try:
            for change in changes:
                like = None
                if change.before is not None:
                    like = self.tree / change.path
                    _write(staging / "originals" / change.path, change.before, like)
                _write(staging / "patched" / change.path, change.after)
                _write(staging / "new" / change.path, change.after, like)
            os.replace(staging, self.saved)
            self._save(manifest, "patching")
        except BaseException:
            if self.manifest() is None:
                self.discard()
            raise
        try:
            for folder in manifest.folders:
                (self.tree / folder).mkdir(exist_ok=True)
            for change in changes:
                os.replace(self.saved / "new" / change.path, self.tree / change.path)
            _sync_folders({(self.tree / change.path).parent for change in changes})
            shutil.rmtree(self.saved / "new")
            self._save(manifest, "patched")
        except BaseException:
            self.restore(manifest)
            raise

    def restore(self, manifest: Manifest) -> None:
        """Put every original back and forget the patch. Idempotent; refuses, before writing, if a file was edited."""
        problems = [problem for file in manifest.files if (problem := unsafe(self.tree, file.path))]
        problems += [modified_finding(file.path) for file in self.modified(manifest)]
        if problems:
            raise PatchError(*problems)
        todo = [file for file in manifest.files if sha256(self.current(file.path)) != file.before]
        for file in todo:
            self.original(file)  # all there? else PatchError, before anything is written
        self._save(manifest, "reverting")
        for file in todo:
            if file.before is None:
                (self.tree / file.path).unlink()
            else:
                saved = self.saved / "originals" / file.path
                os.utime(saved)  # newer than any object built from the patched file, so that make and ninja rebuild
                os.replace(saved, self.tree / file.path)
        for folder in reversed(manifest.folders):
            with contextlib.suppress(OSError):  # someone's own file lies in it
                (self.tree / folder).rmdir()
        _sync_folders({(self.tree / file.path).parent for file in todo})
        (self.folder / "manifest.json").unlink()
        self.discard()

    def discard(self) -> None:
        """Remove what is saved, where there is no manifest. Refuses if that would destroy the only copy of an original."""
        originals = self.saved / "originals"
        for path in sorted(originals.rglob("*")):
            name = path.relative_to(originals).as_posix()
            if path.is_file() and path.read_bytes() != self.current(name):
                raise PatchError(
                    Finding(
                        "state",
                        f"{FOLDER}/manifest.json",
                        f"it is gone, but {FOLDER}/saved/originals/{name} differs from the tree's {name}",
                        (("do", f"put back what you need from {FOLDER}/saved/originals, then delete {FOLDER}"),),
                    )
                )
        for name in ("saved", "staging"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "manifest.json.new").unlink()

    def _save(self, manifest: Manifest, phase: str) -> None:
        data = Manifest(**{**vars(manifest), "phase": phase}).to_json().encode()
        _write(self.folder / "manifest.json.new", data)
        os.replace(self.folder / "manifest.json.new", self.folder / "manifest.json")
        _sync_folders({self.folder})

    def _unlock(self, handle: int, lock: Path) -> None:
        """Free the lock, and remove the folder if nothing is kept in it."""
        if {path.name for path in self.folder.iterdir()} - {"lock", ".gitignore"}:
            return  # closing the handle frees it
        with contextlib.suppress(OSError):
            (self.folder / ".gitignore").unlink()
            if os.name == "nt":  # there, an open file can't be removed, and one that another run holds can't either
                os.close(handle)
            lock.unlink()
            self.folder.rmdir()


def modified_finding(path: str) -> Finding:
    return Finding("modified", path, "it was edited after it was patched")


def new_folders(tree: Path, paths: list[str]) -> tuple[str, ...]:
    """Folders that must be created for ``paths``, parents first."""
    needed = {str(p.as_posix()) for path in paths for p in Path(path).parents if str(p) != "."}
    return tuple(sorted(folder for folder in needed if not (tree / folder).exists()))


def _write(path: Path, data: bytes, like: Path | None = None) -> None:
    """Write and flush to disk, with the permissions of ``like``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if like is not None:
        shutil.copymode(like, path)


def _sync_folders(folders: set[Path]) -> None:
    if os.name == "nt":  # folders can't be opened there
        return
    for folder in folders:
        if folder.is_dir():
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_same_file(handle: int, path: Path) -> bool:
    """False if another run removed the lock file between our opening and our locking it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False
