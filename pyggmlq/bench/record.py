# SPDX-License-Identifier: MIT
"""What a run of the benchmark found, as it is kept in a JSON file: every sample, and what it takes to judge them."""
from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from .. import _sources
from .._files import write_atomically
from .stats import Summary, summary

FORMAT = "pyggmlq-bench-1"

OURS, LLAMA, PATCHED = "pyggmlq", "llama.cpp", "llama.cpp+pyggmlq"
"""Whose code ran: this package's module, an unmodified llama.cpp, or a patched one."""


@dataclass(frozen=True)
class Record:
    """One row: an implementation with one pair of types in one case."""

    case: str
    code: str
    type_k: str
    type_v: str
    level: str
    """Instruction set of our kernels; `native` where llama.cpp's build decided."""
    threads: int
    memory: str
    """`warm`: called once right before the clock starts; `cold`: the caches were swept before every call."""
    clock: str
    """`wall`, or `cpu`: processor time of the one thread."""
    unit: str
    count: int
    """Units of work in a call: (query head, cached token) pairs, or values."""
    cache_bytes: int
    """Bytes of encoded rows that a call must read (encode: write) at least once."""
    calls: int
    """Calls of which each sample is the mean."""
    samples_ns: tuple[float, ...]
    shape: dict[str, int] = field(default_factory=dict)

    @property
    def types(self) -> str:
        """`K/V`, or one name where there is only one."""
        return f"{self.type_k}/{self.type_v}" if self.case.startswith("attention") else self.type_k

    @property
    def name(self) -> str:
        """What identifies the row in another run."""
        return f"{self.case} | {self.types} | {self.code} {self.level} | {self.threads} thread{'s' if self.threads > 1 else ''} {self.memory}{' cpu time' if self.clock == 'cpu' else ''}"

    @property
    def summary(self) -> Summary:
        """Of the samples, in ns per call."""
        return summary(self.samples_ns)

    @property
    def gb_per_s(self) -> float:
        """Rate at which encoded rows were used, at the median."""
        return self.cache_bytes / self.summary.median


@dataclass
class Run:
    """A whole run."""

    machine: dict[str, Any]
    pyggmlq: dict[str, Any]
    llama_cpp: Optional[dict[str, Any]]
    date: str
    options: dict[str, Any]
    load_at_start: Optional[float]
    copy_gb_per_s: dict[int, list[float]] = field(default_factory=dict)
    """Threads -> samples of a large copy's traffic, bytes read plus bytes written."""
    records: list[Record] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)

    def copy_rate(self, threads: int) -> Optional[float]:
        """The median copy rate of that many threads, if it was measured."""
        rates = self.copy_gb_per_s.get(threads)
        return summary(rates).median if rates else None

    def to_json(self) -> str:
        """As text; `from_json` reads it back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Run:
        """ValueError if the text is not a run of this format."""
        return Run.from_dict(json.loads(text))

    @staticmethod
    def from_dict(data: Any) -> Run:
        """Of what such a text holds; ValueError as `from_json`."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"found no format {FORMAT!r}, wanted a file of `pyggmlq bench cpu --json`")
        data = {key: value for key, value in data.items() if key != "format"}
        try:
            data["records"] = [Record(**{**row, "samples_ns": tuple(row["samples_ns"])}) for row in data["records"]]
            data["copy_gb_per_s"] = {int(threads): rates for threads, rates in data["copy_gb_per_s"].items()}
            return Run(**data)
        except (TypeError, KeyError) as error:
            raise ValueError(f"found a file of {FORMAT} that lacks or exceeds fields ({error})") from None


def write(run: Run, path: Path) -> None:
    """Replace `path` by the run, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, run.to_json())


def start(options: dict[str, Any]) -> Run:
    """A run that has measured nothing yet."""
    return Run(machine(), our_version(), None, datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), options, load())


def load() -> Optional[float]:
    """Processes that wanted to run, on average over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, last-level cache, frequency governor, system."""
    return {"cpu": _cpu(), "cores": cores(), "last_level_cache_bytes": last_level_cache(), "governor": _governor(),
            "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if found:
        ids = [re.search(rf"^{key}\s*:\s*(\d+)$", _read("/proc/cpuinfo"), re.MULTILINE) for key in ("cpu family", "model")]
        numbers = f" (family {ids[0][1]} model {ids[1][1]})" if ids[0] and ids[1] else ""
        return found[1].strip() + numbers
    brand = _output("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else ""
    return brand or platform.processor() or platform.machine()


def last_level_cache() -> Optional[int]:
    """Bytes of the largest cache that the first processor sees, or None."""
    found = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = re.match(r"(\d+)([KM]?)", _read(path))
        if size:
            found = max(found, int(size[1]) << {"": 0, "K": 10, "M": 20}[size[2]])
    if not found and platform.system() == "Darwin":
        text = _output("sysctl", "-n", "hw.l3cachesize") or _output("sysctl", "-n", "hw.l2cachesize")
        found = int(text) if text.isdigit() else 0
    return found or None


def _governor() -> Optional[str]:
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def our_version() -> dict[str, Any]:
    """Version, and in a checkout the commit and whether files differ from it."""
    result: dict[str, Any] = {"version": _sources.version(), "commit": None, "dirty": None}
    root = _sources.root()
    if (root / ".git").exists():
        result["commit"] = _output("git", "-C", str(root), "rev-parse", "HEAD") or None
        result["dirty"] = is_dirty(root)
    return result


def is_dirty(tree: Path) -> Optional[bool]:
    """Whether tracked files of a git checkout differ from its commit; None if it is none, or git can't say."""
    if not (tree / ".git").exists() or not _output("git", "-C", str(tree), "rev-parse", "HEAD"):
        return None
    return bool(_output("git", "-C", str(tree), "status", "--porcelain", "--untracked-files=no"))


def _read(path: object) -> str:
    try:
        return Path(str(path)).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=10,
                              text=True, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
