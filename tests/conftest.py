# SPDX-License-Identifier: MIT
"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Iterator

import pytest

import pyggmlq
import pyggmlq.fetch
from pyggmlq._quickstart_options import available_threads

ROOT = Path(__file__).resolve().parents[1]
LONG = ("test_llama_center.py", "test_emulated.py", "test_cuda_compile.py", "test_emulated_decode.py", "test_llama_cpp.py", "test_llama_states.py", "test_llama_ds4.py", "test_metal.py",
        "test_hip_compile.py", "test_levels.py", "test_csrc.py", "test_patch_trees.py", "test_lab_kld.py", "test_embedding.py", "test_lab_fit.py")  # fmt: skip
"""Test files that take longest, the longest first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require", action="append", default=[], metavar="MARKER",
        help="a test with this marker that would be skipped fails instead; may be repeated",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    # llama.cpp's threads wait for each other after every operation, and turn in a loop while they do, which is lost where more threads than cores run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    known = [line.partition(":")[0].strip() for line in config.getini("markers")]
    for name in config.option.require:
        if name not in known:
            raise pytest.UsageError(f"--require: found {name!r}, wanted one of the markers that pyproject.toml lists")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `upstream` run only where -m names that marker: "not llama" doesn't ask for half an hour. Of several processes each takes the next
    file when it is done with one: those that take minutes come first, so that no process is left alone with one of them at the end."""
    if "upstream" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("upstream")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        place = {name: i for i, name in enumerate(LONG)}
        items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """-n auto: a process for each core, with 4 GB of memory for what it compiles; more than there are long files would have nothing to do."""
    cores = min(available_threads(), len(LONG))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        cores = min(cores, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4_000_000_000)
    return max(cores, 1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in ("cuda", "hip", "metal"):
        if item.get_closest_marker(name):
            (found,) = [backend for backend in pyggmlq.backends() if backend.name == name]
            if not found.usable:
                pytest.skip(found.reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = (yield).get_result()
    required = [name for name in item.config.option.require if item.get_closest_marker(name)]
    if report.skipped and required and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome, report.longrepr = "failed", f"--require {required[0]}: {reason}"
        report.when = "call"  # or it would count as an error of a fixture


@pytest.fixture(scope="session", autouse=True)
def kept_calibrations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """llama.cpp's programs keep calibrations of centered keys here, not in the user's cache, and find none of earlier runs."""
    os.environ["GGMLQ_KV_CENTER_CACHE"] = str(tmp_path_factory.mktemp("kv-center"))


@pytest.fixture(scope="session")
def llama_tree() -> Callable[[str], Path]:
    """llama_tree("0.3.36") is the pristine llama.cpp of that llama-cpp-python release. Copy it before you change it."""

    def get(version: str) -> Path:
        return pyggmlq.fetch.fetch_tree(version, ROOT / ".cache" / "trees" / version)

    return get
