#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Instructions and stalls of the decode kernels, by NVIDIA's profiler: the table of docs/CUDA-ATTENTION.md.

    python3 tests/cuda/profile_attend.py ./bench_attend 4 18     # cases of `bench_attend time`, counted from 0: GQA 4, kv 32768, tq3_0 and planar3

Wants `ncu` on the path and a GPU whose counters may be read. Clocks are left as they are, caches too: the program's own rotation over several
caches keeps rows out of L2. Of a case's launches the 31st is profiled.
"""
from __future__ import annotations

import csv
import subprocess
import sys

WARPS = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
ROWS = (
    ("kernel, µs", "gpu__time_duration.sum", 1e-3, 1),
    ("warp instructions, millions", "smsp__inst_executed.sum", 1e-6, 2),
    ("scheduler issues, % of active cycles", "smsp__issue_active.avg.pct_of_peak_sustained_active", 1, 0),
    ("ALU pipe, %", "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active", 1, 0),
    ("FMA pipe, %", "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active", 1, 0),
    ("LSU pipe, %", "sm__inst_executed_pipe_lsu.avg.pct_of_peak_sustained_active", 1, 0),
    ("tensor pipe, %", "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active", 1, 0),
    ("memory busy, %", "dram__throughput.avg.pct_of_peak_sustained_elapsed", 1, 0),
    ("bytes read from memory, MB", "dram__bytes_read.sum", 1e-6, 1),
    ("warps a multiprocessor", "sm__warps_active.avg.per_cycle_active", 1, 1),
    ("warps that can go on, a scheduler", "smsp__warps_eligible.avg.per_cycle_active", 1, 2),
    ("registers a thread", "launch__registers_per_thread", 1, 0),
    ("stall, cycles an instruction: fixed latency", WARPS.format("wait"), 1, 2),
    ("not selected", WARPS.format("not_selected"), 1, 2),
    ("math pipe", WARPS.format("math_pipe_throttle"), 1, 2),
    ("shared memory", WARPS.format("short_scoreboard"), 1, 2),
    ("shared memory queue", WARPS.format("mio_throttle"), 1, 2),
    ("long latency", WARPS.format("long_scoreboard"), 1, 2),
    ("barrier", WARPS.format("barrier"), 1, 2),
    ("no instruction", WARPS.format("no_instruction"), 1, 2),
    ("constant cache", WARPS.format("imc_miss"), 1, 2),
)
"""(what, the profiler's name for it, factor to the unit of the table, digits)."""


def profile(program: str, case: str) -> dict[str, float]:
    """The profiler's numbers for one launch of a case, in base units."""
    command = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--cache-control", "none", "--graph-profiling", "node",
               "--kernel-name", "regex:attend", "--launch-skip", "30", "--launch-count", "1", "--metrics", ",".join(row[1] for row in ROWS), program, "time", case]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = list(csv.reader(line for line in done.stdout.splitlines() if line.startswith('"')))
    if done.returncode or len(lines) < 3:  # names, units, numbers
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode} and printed no numbers:\n{done.stdout[-2000:]}")
    return {name: float(text.replace(",", "")) for name, text in zip(lines[0], lines[-1]) if name in {row[1] for row in ROWS} and text}


def table(columns: dict[str, dict[str, float]]) -> list[str]:
    """Lines of a Markdown table; `-` where a profiler doesn't know a name."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for what, name, factor, digits in ROWS:
        numbers = [f"{found[name] * factor:.{digits}f}" if name in found else "-" for found in columns.values()]
        lines.append(f"| {what} | {' | '.join(numbers)} |")
    return lines


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    print("\n".join(table({f"case {case}": profile(sys.argv[1], case) for case in sys.argv[2:]})))
