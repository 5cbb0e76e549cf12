# SPDX-License-Identifier: MIT
"""The source distribution and the wheel that is built from it: complete, and free of what belongs to no installation."""
from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pyggmlq

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel); the wheel is built from the sdist, so what the sdist lacks would be missing there. Not optimized: only what it holds is looked at."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-Ccmake.build-type=Debug", "--outdir", folder, ROOT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_wheel_fits_every_python_of_the_platform(built):
    name = built[1].name
    assert name.startswith(f"pyggmlq-{pyggmlq.__version__}-")
    if hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled():
        return  # free-threaded Python has no stable ABI
    assert "-cp39-abi3-" in name


def test_wheel_contains_what_the_patch_engine_copies(built):
    with zipfile.ZipFile(built[1]) as wheel:
        for folder in ("csrc", "ggml_patch"):
            files = [p for p in (ROOT / folder).rglob("*") if p.is_file()]
            assert files
            for path in files:
                inside = f"pyggmlq/_sources/{path.relative_to(ROOT).as_posix()}"
                assert wheel.read(inside) == path.read_bytes(), inside


def test_wheel_contains_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"pyggmlq", f"pyggmlq-{pyggmlq.__version__}.dist-info"}
    assert "pyggmlq/py.typed" in names
    assert len([name for name in names if name.startswith("pyggmlq/_ggmlq.")]) == 1
    for path in [*(ROOT / "pyggmlq").rglob("*.py"), *(ROOT / "pyggmlq" / "bench" / "ggml").iterdir()]:
        assert path.relative_to(ROOT).as_posix() in names
    assert any(name.endswith("LICENSE") for name in names)


def test_sdist_is_the_checkout(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for needed in ("LICENSE", "README.md", "CMakeLists.txt", "tools/build_cffi.py", "tests/vectors/tq3_0.json"):
        assert needed in names
    assert not [name for name in names if name.startswith((".cache", "build/", ".git/")) or "__pycache__" in name]
