# SPDX-License-Identifier: MIT
"""llama.cpp's whole test suite on the patched tree: what passed before must still pass.

Marked `upstream` and left out unless asked for, `tools/test -m upstream`: compiles everything twice (20 to 30 minutes on two
cores) and needs the models of no one: tests that download fail before and after.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from llama_build import CACHE, build, patched, sync


def passing(tree: Path) -> set[str]:
    """Names of the tests of ctest that pass."""
    folder = build(tree).parent
    done = subprocess.run(["ctest", "--test-dir", str(folder), "--timeout", "600"], capture_output=True, text=True, errors="replace")
    return set(re.findall(r"Test +#\d+: (\S+) \.+ +Passed", done.stdout))


@pytest.mark.upstream
def test_what_passed_still_passes(llama_tree, tmp_path):
    pristine = CACHE / "0.3.36"
    sync(llama_tree("0.3.36"), pristine)
    before, after = passing(pristine), passing(patched(pristine, tmp_path / "llama.cpp"))
    assert len(before) > 40, f"only {len(before)} tests pass on the unmodified tree: {sorted(before)}"
    assert not before - after
