# SPDX-License-Identifier: MIT
"""Every warning of the benchmark: when it is due, what it says, and what to do."""
from __future__ import annotations

from dataclasses import dataclass

from .record import LLAMA, Run

FEW = 9
"""Repetitions below which percentiles and the Mann-Whitney test say little."""

UNSTEADY = 0.2


@dataclass(frozen=True)
class Warning:  # noqa: A001 - it is one
    """`code` is stable; `remedy` is what to do about `text`."""

    code: str
    text: str
    remedy: str


def of(run: Run) -> list[Warning]:
    """The warnings that a finished run deserves."""
    found = []
    cores = run.machine.get("cores") or 1
    repetitions = min((len(row.samples_ns) for row in run.records), default=FEW)
    if run.load_at_start is not None and run.load_at_start > cores / 2:
        found.append(Warning("busy", f"the machine was busy at the start: load {run.load_at_start:g} on {cores} cores",
                             "close other programs and run again, or use --threads 1 --cpu-time; ratios within a run suffer less than times"))
    if run.machine.get("governor") not in (None, "performance"):
        found.append(Warning("frequency", f"the processor's frequency is scaled (governor {run.machine['governor']})",
                             "for steady times: sudo cpupower frequency-set -g performance"))
    if repetitions < FEW:
        found.append(Warning("few", f"{repetitions} repetitions are fewer than {FEW}", f"use --repetitions {FEW} or more to compare runs"))
    threads = max((row.threads for row in run.records), default=1)
    if threads > cores:
        found.append(Warning("threads", f"{threads} threads ran on {cores} cores", f"use --threads {cores} or fewer"))
    unsteady = [row for row in run.records if row.summary.spread > UNSTEADY]
    if unsteady:
        found.append(Warning("unsteady", f"p10 to p90 span more than {UNSTEADY:.0%} of the median in {len(unsteady)} of {len(run.records)} rows",
                             "let the machine be idle, or use more --repetitions"))
    if run.records and not any(row.code == LLAMA for row in run.records):
        found.append(Warning("no-reference", "llama.cpp was not measured, so there are no ratios", "leave out --no-reference"))
    if (run.llama_cpp or {}).get("dirty"):
        found.append(Warning("tree-dirty", "the llama.cpp tree differs from its commit, so it may not be an unmodified one",
                             "compare with a clean checkout, or leave out --tree"))
    if run.pyggmlq.get("dirty"):
        found.append(Warning("dirty", "the checkout differs from its commit", "commit before you keep the figures"))
    return found
