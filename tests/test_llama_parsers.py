# SPDX-License-Identifier: MIT
"""The parsers of llama.cpp's output, on lines as the programs print them (0c1e57098 unless said otherwise)."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from pyggmlq import llama

STAMP = "0.01.101.301 I "


def kv_line(cells: int, layers: int, k: str, mib_k: float, v: str, mib_v: float, stamp: str = STAMP) -> str:
    return (
        f"{stamp}llama_kv_cache: size = {mib_k + mib_v:7.2f} MiB ({cells:6d} cells, {layers:3d} layers,  1/1 seqs), "
        f"K ({k}): {mib_k:7.2f} MiB, V ({v}): {mib_v:7.2f} MiB\n"
    )


def test_kv_memory_sums_the_caches_of_a_sliding_window_model():
    log = (
        STAMP
        + "llama_context: constructing llama_context\n"
        + kv_line(2048, 3, "q8_0", 1.59, "q4_0", 0.84)
        + kv_line(1024, 15, "q8_0", 3.98, "q4_0", 2.11)
    )
    assert llama.parse_kv_memory(log) == llama.KvMemory("q8_0", "q4_0", 5.57, 2.95, 2)


def test_kv_memory_counts_only_the_last_context():
    trial = STAMP + "llama_context: constructing llama_context\n" + kv_line(2048, 30, "f16", 22.5, "f16", 22.5)
    assert llama.parse_kv_memory(trial + trial) == llama.KvMemory("f16", "f16", 22.5, 22.5, 1)


def test_kv_memory_reads_lines_of_older_versions():
    """4227c9be4 prints neither time stamps nor the word 'seqs' in the same place."""
    log = "llama_kv_cache_unified: size =   45.00 MiB (  2048 cells,  30 layers,  1/1 seqs), K (f16):   22.50 MiB, V (f16):   22.50 MiB\n"
    assert llama.parse_kv_memory(log) == llama.KvMemory("f16", "f16", 22.5, 22.5, 1)


def test_kv_memory_shows_mixed_types():
    log = kv_line(512, 3, "tq3_0", 0.16, "f16", 0.75) + kv_line(512, 15, "f16", 3.75, "f16", 3.75)
    assert llama.parse_kv_memory(log).type_k == "f16+tq3_0"


def test_kv_memory_absent():
    assert llama.parse_kv_memory("nothing here\n") is None


def test_model_info():
    log = (
        STAMP
        + "print_info: n_embd_head_k         = 256\n"
        + STAMP
        + "print_info: general.name          = Some Model 3\n"
    )
    assert llama.parse_model_info(log) == {"n_embd_head_k": "256", "general.name": "Some Model 3"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("0.10.535.904 I Final estimate: PPL = 9.7683 +/- 0.97202", (9.7683, 0.97202)),
        (
            "[1]24.0,[2]6.2,perplexity: 2.15 seconds per pass - ETA 0.10.535.904 I Final estimate: PPL = 9.7683 +/- 0.97202",
            (9.7683, 0.97202),
        ),
        ("no estimate", None),
    ],
)
def test_perplexity(line: str, wanted: tuple[float, float] | None):
    assert llama.parse_perplexity(line + "\n") == wanted


DIVERGENCE = """\
====== Perplexity statistics ======
Mean PPL(Q)                   :  10.874788 ±   1.085363
Mean PPL(base)                :   9.743468 ±   0.965793
Mean PPL(Q)/PPL(base)         :   1.116111 ±   0.021061

====== KL divergence statistics ======
Mean    KLD:   0.115416 ±   0.005830
Maximum KLD:   2.691166
99.9%   KLD:   1.501
99.0%   KLD:   0.755
Median  KLD:   0.04
Minimum KLD:  -0.000045

====== Token probability statistics ======
Mean    Δp: -2.977 ± 0.299 %
Same top p: 84.804 ± 1.125 %
"""


def test_divergence():
    assert llama.parse_divergence(DIVERGENCE) == llama.Divergence(
        10.874788, 1.085363, 0.115416, 0.00583, 0.755, 2.691166, 84.804, 1.125, 1.116111, 0.021061, 0.04, 1.501
    )


def test_divergence_of_a_collapsed_model_is_not_a_number():
    found = llama.parse_divergence(
        DIVERGENCE.replace("10.874788 ±   1.085363", "nan ±  -nan").replace("0.115416", "inf")
    )
    assert math.isnan(found.ppl) and found.kld == math.inf


def test_divergence_of_a_run_that_stopped_early():
    assert llama.parse_divergence(DIVERGENCE.split("====== Token")[0]) is None


def test_rotation_is_that_of_the_last_context():
    line = STAMP + "llama_kv_cache: attn_rot_{side} = {value}, n_embd_head_k_all = 64\n"
    trial = line.format(side="k", value=0) + line.format(side="v", value=0)
    last = STAMP + "llama_context: constructing llama_context\n" + line.format(side="k", value=1) + line.format(side="v", value=0)
    assert llama.parse_rotation(trial + last) == (True, False)
    assert llama.parse_rotation("llama_kv_cache_unified: size = 45.00 MiB\n") is None


def test_centering_is_that_of_the_last_context():
    start = STAMP + "llama_context: constructing llama_context\n"
    centered = start + STAMP + "ggmlq_llama_center_calibrate: keys are centered: 30 layers, calibrated on 256 tokens in 3109 ms\n"
    not_centered = start + STAMP + "ggmlq_llama_center_run: keys are not centered: found no layer that can be; not 0 (its keys have no RoPE)\n"
    assert (llama.parse_centering(centered), llama.parse_not_centered(centered)) == (30, None)
    assert llama.parse_centering(centered + not_centered) is None
    assert llama.parse_not_centered(centered + not_centered) == "keys are not centered: found no layer that can be; not 0 (its keys have no RoPE)"
    assert llama.parse_not_centered(start) is None


def test_placement_names_the_devices_of_the_cache():
    log = (
        STAMP + "llama_prepare_model_devices: using device CUDA0 (Demo (TM) 80GB) (0000:01:00.0) - 80000 MiB free\n"
        + STAMP + "llama_context: constructing llama_context\n" + STAMP + "llama_kv_cache:        CPU KV buffer size =    16.88 MiB\n"
        + STAMP + "llama_context: constructing llama_context\n" + 2 * (STAMP + "llama_kv_cache:      CUDA0 KV buffer size =    16.88 MiB\n")
        + STAMP + "sched_reserve: graph: nodes = 1296, splits = 38 (with bs=512), 3 (with bs=1), input objects = 4, input tensors = 8\n"
    )  # fmt: skip
    assert llama.parse_placement(log) == llama.Placement("Demo (TM) 80GB", 38)
    older = "llama_kv_cache_unified:        CPU KV buffer size =    16.88 MiB\nllama_context: graph splits = 1\n"
    assert llama.parse_placement(older) == llama.Placement("CPU", 1)
    assert llama.parse_placement("llama_context: graph splits = 1\n") is None


def test_windows_are_counted_by_their_lines():
    line = "{:4d}      22.7921 ±    4.6132       0.00072 ±    0.00387       0.00313 ±    0.00011     1.413 ±  0.086 %    97.255 ±  1.025 %\n"
    table = "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence\n" + line.format(1) + line.format(16)
    assert llama.parse_windows(table + DIVERGENCE) == 16
    assert llama.parse_windows("perplexity: you need at least 1024 tokens to evaluate perplexity with a context of 512\n") is None


def test_bench_reads_every_record():
    output = 'ggml: a line that is not a record\n{"type_k": "q8_0", "type_v": "f16", "avg_ts": 54.5, "stddev_ts": 3.5, "samples_ts": [50.0, 59.0]}\n'
    ((record, speed),) = llama.parse_bench(output)
    assert (record["type_k"], record["type_v"]) == ("q8_0", "f16")
    assert speed == llama.Speed(54.5, 3.5, (50.0, 59.0))


def test_refusal_is_the_sentence_about_the_type():
    log = (
        "0.00.1.2 I llama_context: n_ctx = 512\n"
        "0.00.300.001 E llama_init: K cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0\n"
        "0.00.300.002 E failed to create context\n"
    )
    assert (
        llama.refusal(log, ("planar3", "f16"))
        == "K cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0"
    )
    assert llama.refusal(log, ("q8_0", "f16")) is None


def test_refusal_by_upstream():
    log = "llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=80\n"
    assert llama.refusal(log, ("q8_0",)) == "K cache type q8_0 with block size 32 does not divide n_embd_head_k=80"


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        (
            "0.00.1.2 I fine\n0.00.1.3 E llama_model_load: error loading model: no such tensor\n0.00.1.4 E cmn: giving up\n",
            "error loading model: no such tensor",
        ),
        (
            'error while handling argument "-ctk": Unsupported cache type: bogus\n\nusage:\n',
            'error while handling argument "-ctk": Unsupported cache type: bogus',
        ),
        ("", "it printed nothing"),
    ],
)
def test_last_error(log: str, wanted: str):
    assert llama.last_error(log) == wanted


# Programs ------------------------------------------------------------------------------------------------------------

needs_scripts = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are scripts with a #! line")


def make_program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


@needs_scripts
def test_a_failed_tool_names_its_log(tmp_path: Path):
    make_program(tmp_path, "llama-bench", "sys.stderr.write('0.1.2.3 E main: error: out of memory\\n'); sys.exit(3)")
    tools = llama.Tools(tmp_path, tmp_path / "logs", threads=2)
    with pytest.raises(llama.ToolError, match="llama-bench ended with status 3 .*out of memory") as caught:
        tools.bench("speed", tmp_path / "m.gguf", "f16", "f16", depth=1, n_gen=1, repetitions=1)
    text = caught.value.log.read_text()
    assert "-ctk f16 -ctv f16" in text and "exit status 3" in text


@needs_scripts
def test_bench_refuses_another_types_record(tmp_path: Path):
    make_program(
        tmp_path,
        "llama-bench",
        """print('{"type_k": "f16", "type_v": "f16", "avg_ts": 1, "stddev_ts": 0, "samples_ts": [1]}')""",
    )
    tools = llama.Tools(tmp_path, tmp_path / "logs", threads=2)
    with pytest.raises(llama.ToolError, match="no result for tq3_0/f16"):
        tools.bench("speed", tmp_path / "m.gguf", "tq3_0", "f16", depth=1, n_gen=1, repetitions=1)


@needs_scripts
def test_complete_returns_only_what_was_generated(tmp_path: Path):
    make_program(tmp_path, "llama-completion", "print(' Patience.'); sys.stderr.write('a log line\\n')")
    tools = llama.Tools(tmp_path, tmp_path / "logs", threads=2)
    text, log = tools.complete("text", tmp_path / "m.gguf", tmp_path / "p.txt", "f16", "f16", n_ctx=64, n_predict=4)
    assert text == "Patience." and "a log line" in log


def test_a_missing_program_says_which_target(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="build the target llama-bench"):
        llama.Tools(tmp_path, tmp_path, 1).program("llama-bench")
