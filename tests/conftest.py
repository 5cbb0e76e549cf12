# SPDX-License-Identifier: MIT
"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

import pyggmlq.fetch

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "trees: needs real llama.cpp trees, which the first run downloads (200 MB)")


@pytest.fixture(scope="session")
def llama_tree() -> Callable[[str], Path]:
    """llama_tree("0.3.36") is the pristine llama.cpp of that llama-cpp-python release. Copy it before you change it."""

    def get(version: str) -> Path:
        return pyggmlq.fetch.fetch_tree(version, ROOT / ".cache" / "trees" / version)

    return get
