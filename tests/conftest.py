# SPDX-License-Identifier: MIT
"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

import pyggmlq.fetch

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `upstream` run only where -m names that marker: "not llama" doesn't ask for half an hour."""
    if "upstream" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("upstream")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def llama_tree() -> Callable[[str], Path]:
    """llama_tree("0.3.36") is the pristine llama.cpp of that llama-cpp-python release. Copy it before you change it."""

    def get(version: str) -> Path:
        return pyggmlq.fetch.fetch_tree(version, ROOT / ".cache" / "trees" / version)

    return get
