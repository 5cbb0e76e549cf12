# SPDX-License-Identifier: MIT
"""The benchmark: statistics on fixed samples, records, tables, comparison, and the program that times llama.cpp's side.
Nothing here depends on how fast anything is."""
from __future__ import annotations

import io
import json
import math
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import pyggmlq
from pyggmlq.bench import cases, cpu, data, record, reference, report, stats, warnings
from pyggmlq.bench.cases import Case
from pyggmlq.bench.record import LLAMA, OURS, Record, Run
from pyggmlq.cli import app

ROOT = Path(__file__).resolve().parents[1]
DECODE = "attention decode head=128 heads_kv=1 gqa=2 kv=256 queries=1"
TINY = (
    Case("encode", (("width", 256), ("rows", 4))),
    Case("decode", (("width", 256), ("rows", 4))),
    Case("dot", (("width", 128), ("rows", 16))),
    Case("attention", (("head", 128), ("heads_kv", 1), ("gqa", 2), ("kv", 256), ("queries", 1))),
    Case("attention", (("head", 64), ("heads_kv", 2), ("gqa", 3), ("kv", 96), ("queries", 5))),
)


def row(code: str = OURS, types: str = "tq3_0", samples=(10e6, 11e6, 12e6), **changes) -> Record:
    fields = dict(
        case=DECODE, code=code, type_k=types, type_v=types, level="native" if code == LLAMA else "portable", threads=1, memory="warm", clock="wall",
        unit="pair", count=512, cache_bytes=28672, calls=2, samples_ns=tuple(samples), shape={"queries": 1},
    )  # fmt: skip
    return Record(**{**fields, **changes})


def run_of(*rows: Record, **changes) -> Run:
    fields = dict(
        machine={"cpu": "Test CPU", "cores": 2, "last_level_cache_bytes": 1 << 25, "governor": None}, pyggmlq={"version": "1.0", "commit": None, "dirty": None},
        llama_cpp={"commit": "0123456789abc", "ggml": "0.1"}, date="2026-01-01T00:00:00+00:00", options={}, load_at_start=0.1,
        copy_gb_per_s={1: [19.0, 20.0, 21.0]}, records=list(rows),
    )  # fmt: skip
    return Run(**{**fields, **changes})


def printed(table) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


# Statistics ----------------------------------------------------------------------------------------------------------


def test_summary_of_fixed_samples():
    found = stats.summary([5, 1, 3, 2, 4, 11, 6, 7, 8, 9, 10])
    assert (found.median, found.p10, found.p90, found.minimum, found.n) == (6, 2, 10, 1, 11)
    assert found.spread == pytest.approx(8 / 6)
    with pytest.raises(ValueError, match="found none"):
        stats.summary([])


def test_ratio_says_how_many_times_faster_ours_is():
    assert stats.ratio([30.0] * 9, [10.0] * 9) == stats.Ratio(3.0, 0.0)


def test_ratio_of_paired_samples_cancels_a_drift_of_the_machine():
    drift = [1, 2, 1.5, 3, 1.2, 2.5, 1.1, 1.9, 2.2]
    slow, fast = [30 * d for d in drift], [10 * d for d in drift]
    assert stats.ratio(slow, fast).error == pytest.approx(0, abs=1e-9)
    assert stats.ratio(slow, fast, paired=False).error > 0.3


def test_ratio_is_the_same_every_time():
    a, b = [5.0, 6, 7, 5.5, 6.5], [1.0, 2, 1.5, 1.2, 1.7]
    assert stats.ratio(a, b) == stats.ratio(a, b)


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [
        ([1, 2, 3, 4], [5, 6, 7, 8], 2 / 70),  # the most extreme of 70 orders, on either side
        ([5, 6, 7, 8], [1, 2, 3, 4], 2 / 70),
        ([1, 4], [2, 3], 1.0),
        ([1, 3], [2, 4], 4 / 6),
        (range(9), range(9, 18), 2 / 48620),
        ([1, 1, 1], [1, 1, 1], 1.0),
    ],
)
def test_mann_whitney_exact(a, b, p):
    assert stats.mann_whitney(list(a), list(b)) == pytest.approx(p)


def test_mann_whitney_with_ties_is_the_normal_approximation():
    a, b = [1, 2, 2, 3, 4], [3, 4, 5, 5, 6]
    # U by counting; the variance with the correction for four values (2, 3, 4, 5) that occur twice
    u = sum((x > y) + (x == y) / 2 for x in a for y in b)
    variance = 25 / 12 * (11 - (6 + 6 + 6 + 6) / 90)
    z = (12.5 - u - 0.5) / math.sqrt(variance)
    assert stats.mann_whitney(a, b) == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_mann_whitney_distribution_is_complete_and_symmetric():
    for n_a, n_b in ((1, 1), (3, 5), (9, 9), (30, 30)):
        ways = stats._u_distribution(n_a, n_b)
        assert sum(ways) == math.comb(n_a + n_b, n_a)
        assert ways == ways[::-1]


def test_exact_and_approximate_mann_whitney_agree_on_many_samples(monkeypatch):
    a, b = [2 * i for i in range(25)], [2 * i + 9 for i in range(25)]
    exact = stats.mann_whitney(a, b)
    monkeypatch.setattr(stats, "_EXACT_LIMIT", 0)
    assert stats.mann_whitney(a, b) == pytest.approx(exact, rel=0.05)


def test_geometric_mean():
    assert stats.geometric_mean([0.5, 2, 1]) == pytest.approx(1)


# Cases ---------------------------------------------------------------------------------------------------------------


def test_cases_have_names_of_their_own_and_whole_blocks():
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)
    assert any(case.quick for case in cases.CASES)
    for case in cases.CASES:
        assert case.pairs(), case
        for k, v in case.pairs():
            assert case.fits(k) and case.fits(v)
        assert all(case.fits(name) for name in cases.REFERENCES)


def test_cases_count_bytes_and_pairs():
    case = cases._attention(128, 8, 4, 4096)
    assert case.count == 32 * 4096
    assert case.cache_bytes("f16", "f16") == 4096 * 4096
    assert case.cache_bytes("planar3", "planar3") == 4096 * 800
    assert case.cache_bytes("q8_0", "tq3_0") == 4096 * (1088 + 448)


def test_planar3_is_left_out_where_a_head_is_no_whole_block():
    case = cases._attention(64, 8, 8, 4096)
    assert case.pairs() == [("tq3_0", "tq3_0"), ("q8_0", "tq3_0")]


# Records -------------------------------------------------------------------------------------------------------------


def test_a_run_survives_json(tmp_path):
    run = run_of(row(), row(LLAMA, "f16"), warnings=[{"code": "busy", "text": "a", "remedy": "b"}])
    record.write(run, tmp_path / "new" / "run.json")
    assert Run.from_json((tmp_path / "new" / "run.json").read_text()) == run


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "pyggmlq-bench-0"}', '{"format": "pyggmlq-bench-1", "records": []}', "nonsense"])
def test_another_file_is_refused(text):
    with pytest.raises(ValueError):
        Run.from_json(text)


def test_a_new_run_describes_the_machine_and_the_version():
    run = record.start({"quick": True})
    assert run.machine["cpu"] and run.machine["cores"] >= 1
    assert run.pyggmlq["version"] == pyggmlq.__version__
    assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize(
    ("code", "run"),
    [
        ("busy", run_of(row(LLAMA), load_at_start=1.5)),
        ("frequency", run_of(row(LLAMA), machine={"cores": 2, "governor": "powersave"})),
        ("few", run_of(row(LLAMA, samples=[1.0] * 8))),
        ("threads", run_of(row(LLAMA, threads=3))),
        ("unsteady", run_of(row(LLAMA, samples=[1.0, 1, 1, 1, 1, 2, 2, 2, 2]))),
        ("no-reference", run_of(row())),
        ("tree-dirty", run_of(row(LLAMA), llama_cpp={"commit": "0", "dirty": True})),
        ("dirty", run_of(row(LLAMA), pyggmlq={"version": "1", "dirty": True})),
    ],
)
def test_each_warning_has_a_remedy(code, run):
    found = {warning.code: warning for warning in warnings.of(run)}
    assert code in found
    assert found[code].text and found[code].remedy


def test_a_good_run_has_no_warnings():
    assert warnings.of(run_of(row(LLAMA, samples=[10.0] * 9), row(samples=[3.0] * 9), load_at_start=0.2)) == []


# Tables --------------------------------------------------------------------------------------------------------------


def test_table_shows_times_rates_and_ratios():
    rows = [row(LLAMA, "f16", [30e6] * 9), row(LLAMA, "q4_0", [60e6] * 9), row(samples=[10e6] * 9)]
    lines = printed(report.case_table(rows, 20.0)).splitlines()
    assert lines[0].startswith(DECODE + ", 1 thread, warm; copy 20.0 GB/s")
    ours = next(line for line in lines if line.startswith("tq3_0"))
    assert ours.split() == ["tq3_0/tq3_0", "portable", "10.0", "ms", "10.0-10.0", "1.95e+04", "29", "kB", "0.00", "0", "3.00±0.00", "6.00±0.00"]


def test_table_of_prefill_leaves_rates_out():
    decode, prefill = (printed(report.case_table([row(shape={"queries": n})], 20.0)).splitlines()[2].split() for n in (1, 64))
    assert decode == [*prefill, "0.00", "0"]


def test_ratio_is_taken_within_the_same_case_and_threads():
    ours = row()
    others = [row(LLAMA, "f16", threads=2), row(LLAMA, "f16", case="other"), row(LLAMA, "f16", memory="cold"), row("llama.cpp+pyggmlq", "f16")]
    assert report.ratio_to(ours, "f16", others) is None
    assert report.ratio_to(ours, "f16", [*others, row(LLAMA, "f16", [33e6] * 3)]).value == 3.0


@pytest.mark.parametrize(("ns", "text"), [(0.5, "0.50 ns"), (12.34, "12.3 ns"), (99.96, "100 ns"), (1500, "1.50 us"), (2.5e6, "2.50 ms"), (3e9, "3.00 s")])
def test_durations(ns, text):
    assert report.duration(ns) == text


def test_header_names_machine_and_versions():
    text = "\n".join(report.header(run_of(row())))
    assert "Test CPU, 2 cores, last-level cache 32 MiB, load 0.1" in text and "llama.cpp 012345678," in text
    text = "\n".join(report.header(run_of(row(), llama_cpp={"commit": None, "ggml": "0.9"})))
    assert "llama.cpp of an unknown commit, ggml 0.9" in text


# Comparing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(tmp_path):
    a = run_of(row(samples=[30.0, 31, 32, 33, 34, 35, 36, 37, 38]), row(types="planar3"), row(LLAMA, "f16"))
    b = run_of(row(samples=[10.0, 11, 12, 13, 14, 15, 16, 17, 18]), row(level="avx2"), row(LLAMA, "f16"), machine={"cpu": "Other CPU"})
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for run, path in zip((a, b), paths):
        record.write(run, path)
    return [str(path) for path in paths]


def test_compare_prints_what_matches_and_what_does_not(two_runs):
    done = CliRunner().invoke(app, ["compare", *two_runs])
    assert done.exit_code == 0, done.output
    assert f"{DECODE} | tq3_0/tq3_0 | pyggmlq portable | 1 thread warm" in done.output
    assert "2.429±" in done.output
    assert f"only in a: {DECODE} | planar3/planar3 | pyggmlq portable | 1 thread warm" in done.output
    assert f"only in b: {DECODE} | tq3_0/tq3_0 | pyggmlq avx2 | 1 thread warm" in done.output
    assert "geometric mean of a/b, pyggmlq: 2.429 (1 row)" in done.output
    assert "geometric mean of a/b, llama.cpp: 1.000 (1 row)" in done.output
    assert "note: processors differ: Test CPU and Other CPU" in done.output


def test_compare_as_json(two_runs):
    done = CliRunner().invoke(app, ["compare", "--json", *two_runs])
    found = json.loads(done.output)
    assert done.exit_code == 0 and found["ok"] and len(found["pairs"]) == 2
    assert found["pairs"][0]["speedup"] == pytest.approx(34 / 14)
    assert found["pairs"][0]["p"] == pytest.approx(2 / 48620)
    assert len(found["only_a"]) == len(found["only_b"]) == 1
    assert found["geometric_means"]["pyggmlq"] == pytest.approx(34 / 14)


def test_compare_without_a_common_row(tmp_path):
    for name, run in (("a", run_of(row())), ("b", run_of())):
        record.write(run, tmp_path / name)
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == 0 and "no row is in both runs" in done.output and "only in a:" in done.output


def test_compare_refuses_another_file(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")])
    assert done.exit_code == 2 and "pyggmlq-bench-1" in done.output


# Measuring -----------------------------------------------------------------------------------------------------------


def test_data_are_frozen_and_about_standard_normal():
    x = data.values(data.PERIOD, data.SEED_K)
    assert x.dtype == np.float32 and abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert np.array_equal(data.values(data.PERIOD + 3, data.SEED_K)[-3:], x[:3])
    assert abs(np.corrcoef(x, data.values(data.PERIOD, data.SEED_V))[0, 1]) < 0.01


@pytest.mark.parametrize("name", ["tq3_0", "planar3", "f16", "q8_0"])
def test_encoded_rows_repeat_with_the_data(name):
    whole = data.encoded(name, 2 * data.PERIOD, data.SEED_K)
    assert np.array_equal(whole[: len(whole) // 2], whole[len(whole) // 2 :])


def test_q8_0_rows_are_read_as_what_was_encoded():
    head = 64
    q = np.ones((1, 1, head), np.float32)
    x = data.values(head, data.SEED_V)
    v = data.encoded("q8_0", head, data.SEED_V).reshape(1, 1, -1)
    out = pyggmlq.flash_attn(q, np.zeros((1, 1, head), np.float16), v, type_k="f16", type_v="q8_0")
    assert np.abs(out.reshape(-1) - x).max() <= np.abs(x).max() / 127


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Options for a run of the tiny cases, each sample being one call."""
    monkeypatch.setattr(cpu, "CASES", TINY)
    monkeypatch.setattr(cpu, "TARGET_NS", 1)
    monkeypatch.setattr(cpu, "copy_rates", lambda threads, repetitions: [10.0] * repetitions)
    return cpu.Options(repetitions=3, no_reference=True, work_dir=tmp_path, levels=("portable",))


def test_a_run_without_llama_cpp_measures_every_case(tiny):
    seen = []
    run = cpu.run(tiny, lambda text: None, lambda run, case, threads: seen.append((case, threads)))
    assert [case for case, _ in seen] == list(TINY)
    assert len(run.records) == sum(len(case.pairs()) for case in TINY)
    assert all(len(r.samples_ns) == 3 and min(r.samples_ns) > 0 and r.level == "portable" and r.code == OURS for r in run.records)
    assert run.copy_rate(1) == 10.0
    assert {warning["code"] for warning in run.warnings} >= {"few", "no-reference"}
    assert Run.from_json(run.to_json()) == run


def test_only_attention_runs_with_several_threads(tiny):
    options = cpu.Options(**{**vars(tiny), "threads": (1, 2)})
    assert [(case.what, n) for case, n in cpu.selected(options)] == [
        ("encode", 1), ("decode", 1), ("dot", 1), ("attention", 1), ("attention", 2), ("attention", 1), ("attention", 2)
    ]  # fmt: skip
    run = cpu.run(cpu.Options(**{**vars(options), "only": "head=64.*tq3_0/tq3_0"}), lambda text: None, lambda *_: None)
    assert [(r.threads, r.types) for r in run.records] == [(1, "tq3_0/tq3_0"), (2, "tq3_0/tq3_0")]


def test_cold_runs_say_so_and_sweep(tiny, monkeypatch):
    sweeps = []
    monkeypatch.setattr(cpu, "_sweeper", lambda: lambda: sweeps.append(1))
    run = cpu.run(cpu.Options(**{**vars(tiny), "only": "^dot.*tq3", "cold": True}), lambda text: None, lambda *_: None)
    assert [(r.memory, r.calls, len(r.samples_ns)) for r in run.records] == [("cold", 1, 3)]
    assert len(sweeps) == 3


def test_cpu_time_is_for_one_thread(tiny):
    options = cpu.Options(**{**vars(tiny), "threads": (1, 2), "only": "head=64.*tq3_0/tq3_0", "cpu_time": True})
    run = cpu.run(options, lambda text: None, lambda *_: None)
    assert [(r.threads, r.clock) for r in run.records] == [(1, "cpu"), (2, "wall")]
    assert run.records[0].name.endswith("1 thread warm cpu time") and "warm, cpu time" in printed(report.case_table(run.records[:1], None))


def test_one_thread_works_on_the_callers_thread():
    """Else --cpu-time would not see it."""
    case = Case("attention", (("head", 128), ("heads_kv", 2), ("gqa", 4), ("kv", 4096), ("queries", 8)))
    subject = cpu.Ours(case, "tq3_0", "tq3_0", "portable", 1, {})
    subject.sample(1, False)
    whole = time.process_time_ns()
    own = 20 * subject.sample(20, False, "cpu")
    assert own > 0.8 * (time.process_time_ns() - whole)


def test_a_wrong_result_is_not_timed(tiny, monkeypatch):
    real = pyggmlq.flash_attn

    def broken(*args, type_k, out, **options):
        result = real(*args, type_k=type_k, out=out, **options)
        if type_k == "planar3":
            out[...] = 1
        return result

    monkeypatch.setattr(pyggmlq, "flash_attn", broken)
    with pytest.raises(reference.BenchError, match=r"portable planar3/planar3 is not that of .* \(cosine"):
        cpu.run(cpu.Options(**{**vars(tiny), "only": "head=128"}), lambda text: None, lambda *_: None)


def test_similarity_does_not_accept_what_is_not_finite():
    a = np.ones(4, np.float32)
    assert cpu.similarity(a, 2 * a) == pytest.approx(1)
    assert not cpu.similarity(a, np.full(4, np.nan)) >= cpu.SIMILARITY
    assert not cpu.similarity(a, np.zeros(4)) >= cpu.SIMILARITY


def test_copy_rates_of_two_threads_copy_everything(monkeypatch):
    monkeypatch.setattr(record, "last_level_cache", lambda: None)
    rates = cpu.copy_rates(2, 2)
    assert len(rates) == 2 and min(rates) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "wanted numbers from 1 up"),
        (["--threads", "1,x"], "wanted numbers from 1 up"),
        (["--only", "("], "wanted a regular expression"),
        (["--only", "no such case"], "no case matches"),
        (["--level", "sse17"], "wanted one of"),
        (["--repetitions", "0"], "repetitions"),
    ],
)
def test_usage_errors(arguments, said):
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "cpu", *arguments])
    assert done.exit_code == 2 and said in done.output


def test_list_prints_what_only_matches():
    done = CliRunner().invoke(app, ["bench", "cpu", "--list", "--only", "kv=32768.*planar3"])
    assert done.output.splitlines() == ["attention decode head=128 heads_kv=8 gqa=4 kv=32768 queries=1 | planar3/planar3"]


def test_bench_prints_a_table_and_writes_json(tiny, tmp_path):
    path = tmp_path / "run.json"
    arguments = ["bench", "cpu", "--no-reference", "--repetitions", "3", "--threads", "1", "--level", "portable", "--json", str(path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for case in TINY:
        assert case.name in done.output
    assert "warning: 3 repetitions are fewer than 9; use --repetitions 9 or more" in done.output
    assert len(Run.from_json(path.read_text()).records) == sum(len(case.pairs()) for case in TINY)


def test_a_tree_that_is_patched_is_no_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(reference.patch, "status", lambda tree: reference.patch.Status("patched", {}))
    with pytest.raises(reference.BenchError, match="is patched, and the comparison is with an unmodified"):
        reference.obtain_tree(tmp_path, tmp_path, lambda text: None)
    monkeypatch.setattr(reference.patch, "status", lambda tree: reference.patch.Status("unpatched", {}))
    with pytest.raises(reference.BenchError, match="is unpatched, wanted a patched"):
        reference.patched_tree(tmp_path)


# llama.cpp's side ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script")
def test_program_that_refuses_or_dies_is_reported(tmp_path):
    script = tmp_path / "ggml_bench"
    script.write_text(f"#!{sys.executable}\nimport sys\nfor line in sys.stdin:\n"
                      "    if line.startswith('types'): print('{\"ok\":true,\"types\":[\"f16\"]}', flush=True)\n"
                      "    elif line.startswith('run'): print('{\"ok\":true,\"ns\":[1.5]}', flush=True)\n"
                      "    elif line.startswith('output'): print('{\"ok\":true,\"values\":[1,null]}', flush=True)\n"
                      "    elif line.startswith('open'): print('{\"ok\":false,\"error\":\"no such type\"}', flush=True)\n"
                      "    else: sys.exit('GGML_ASSERT failed')\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with reference.Program(script, tmp_path / "log") as program:
        assert program.types() == ["f16"]
        assert program.run("x", warm=True, inner=1, clock="cpu") == [1.5]
        assert np.isnan(program.output("x", 2)[1])
        with pytest.raises(reference.BenchError, match="no such type"):
            program.open("x", op="dot")
        with pytest.raises(reference.BenchError, match="stopped at 'close x' .*GGML_ASSERT failed"):
            program.close("x")


def test_a_failed_build_says_why_and_names_its_log(tmp_path):
    pytest.importorskip("cmake")
    (tmp_path / "tree").mkdir()
    with pytest.raises(reference.BenchError, match=r"building ggml of .*tree failed \(.*\); --no-reference goes without it") as error:
        reference.build(tmp_path / "tree", tmp_path / "work", lambda text: None)
    assert "found no ggml/CMakeLists.txt" in error.value.log.read_text()


@pytest.mark.llama
def test_reference_computes_what_we_compute(llama_tree, tmp_path_factory, monkeypatch):
    """The same data, layout and mask on both sides: f16 attention and q8_0 rows agree, and our types come close."""
    work = ROOT / ".cache"
    tree = llama_tree("0.3.36")
    path = reference.build(tree, work, print)
    with reference.Program(path, tmp_path_factory.mktemp("bench") / "log") as program:
        assert {"f16", "q8_0", "q4_0"} <= set(program.types())
        for case in TINY:
            if case.what != "attention":
                continue
            theirs = cpu.InGgml(program, LLAMA, case, "f16", "f16", 2)
            ours = cpu.Ours(case, "f16", "f16", cpu.levels()[0].name, 2, {})
            assert theirs.sample(2, True) > 0 and ours.sample(2, True) > 0
            np.testing.assert_allclose(ours.output(), theirs.output(), rtol=0, atol=2e-3)
            theirs.close()
        for what in ("encode", "decode"):
            case = Case(what, (("width", 256), ("rows", 4)))
            theirs = cpu.InGgml(program, LLAMA, case, "q8_0", "q8_0", 1)
            theirs.sample(1, False)
            np.testing.assert_allclose(theirs.output(), data.values(1024, data.SEED_K), rtol=0, atol=0.02)
        with pytest.raises(reference.BenchError, match="tq3_0 is not in this ggml"):
            program.open("x", op="dot", k="tq3_0", width=128, rows=4)
    monkeypatch.setattr(cpu, "CASES", TINY)
    monkeypatch.setattr(cpu, "TARGET_NS", 1)
    monkeypatch.setattr(cpu, "copy_rates", lambda threads, repetitions: [10.0] * repetitions)
    run = cpu.run(cpu.Options(tree=tree, work_dir=work, repetitions=3), print, lambda *_: None)
    assert run.llama_cpp["commit"] == "0c1e57098"
    for r in run.records:
        if r.code == OURS:
            assert all(report.ratio_to(r, name, run.records) for name in cases.REFERENCES)


def test_random_gguf_has_the_shape_that_was_asked_for(tmp_path):
    gguf = pytest.importorskip("gguf")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import make_random_gguf
    finally:
        sys.path.pop(0)
    path = tmp_path / "random.gguf"
    make_random_gguf.write(make_random_gguf.parse([str(path), "--layers", "2", "--heads", "6", "--heads-kv", "2", "--embd", "256", "--type", "f16"]))
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 2 * 9
    assert list(tensors["blk.1.attn_k.weight"].shape) == [256, 256] and list(tensors["blk.0.attn_q.weight"].shape) == [256, 768]
    assert reader.fields["llama.attention.key_length"].contents() == 128
    with pytest.raises(SystemExit) as error:
        make_random_gguf.parse([str(path), "--heads", "5", "--heads-kv", "2"])
    assert error.value.code == 2


# Whole models --------------------------------------------------------------------------------------------------------

# Says what it was asked for as speeds: decode K.depth.order of the call, prefill a tenth of it. A type it doesn't know ends it.
FAKE_LLAMA_BENCH = """#!{python}
import json, os, sys
from pathlib import Path
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if words["-ctk"] == "q5_1":
    sys.exit("E main: error: failed to create context")
log = Path(__file__).with_name("calls")
with log.open("a") as file:
    file.write(f"{{words['-ctk']}} {{words['-d']}} {{os.environ.get('CUDA_VISIBLE_DEVICES')}}\\n")
order = len(log.read_text().splitlines())
speed = {speed} + order
print("this line isn't JSON")
for prompt in (int(words["-p"]), 0):
    n = 0 if prompt else int(words["-n"])
    if prompt or n:
        print(json.dumps(dict(n_prompt=prompt, n_gen=n, n_depth=int(words["-d"]), avg_ts=speed, stddev_ts=0, samples_ts=[speed / (10 if prompt else 1)] * int(words["-r"]))))
"""


def fake_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def builds(tmp_path, monkeypatch):
    """(patched, unmodified, model): folders with a fake llama-bench, 1000 and 2000 tokens per second; nvidia-smi says 100 + GPU MiB."""
    for name, speed in (("patched", 1000), ("unmodified", 2000)):
        fake_program(tmp_path / name / "llama-bench", FAKE_LLAMA_BENCH.format(python=sys.executable, speed=speed))
    fake_program(tmp_path / "bin" / "nvidia-smi", '#!/bin/sh\nexpr 100 + "$2"\n')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "m.gguf").touch()
    return tmp_path / "patched", tmp_path / "unmodified", tmp_path / "m.gguf"


def bench_llama(builds, *words):
    return CliRunner().invoke(app, ["bench", "llama", str(builds[2]), "--programs", str(builds[0]), *map(str, words)])


@pytest.mark.skipif(sys.platform == "win32", reason="the fake programs are scripts")
def test_types_take_turns_in_whole_models(builds, tmp_path):
    words = ["--unmodified", builds[1], "--pairs", "f16,tq3_0,planar3/f16", "--depth", "0x3,256", "--repetitions", 2, "--devices", "1", "--json", tmp_path / "r.json"]
    done = bench_llama(builds, *words)
    assert done.exit_code == 0, done.output
    calls = {name: [line.split() for line in (tmp_path / name / "calls").read_text().splitlines()] for name in ("patched", "unmodified")}
    assert calls["patched"] == [[k, d, "1"] for k, d in (("tq3_0", "256"), ("planar3", "256"), ("tq3_0", "0"), ("planar3", "0"), ("planar3", "0"), ("tq3_0", "0"), ("tq3_0", "0"), ("planar3", "0"))]
    assert calls["unmodified"] == [["f16", d, "1"] for d in ("256", "0", "0", "0")]
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    rows = {(r["depth"], r["k"], r["v"]): r for r in found["rows"]}
    assert list(rows) == [(d, *pair) for d in (0, 256) for pair in (("f16", "f16"), ("tq3_0", "tq3_0"), ("planar3", "f16"))]
    assert rows[0, "tq3_0", "tq3_0"]["decode"] == [1003.0] * 2 + [1006.0] * 2 + [1007.0] * 2
    assert rows[0, "tq3_0", "tq3_0"]["prefill"] == [100.3] * 2 + [100.6] * 2 + [100.7] * 2
    assert rows[256, "f16", "f16"]["code"] == "unmodified" and rows[256, "f16", "f16"]["decode"] == [2001.0] * 2
    lines = done.output.splitlines()
    assert lines[2].split() == ["0", "tq3_0/tq3_0", "patched", "1006.0", "1003.0-1007.0", f"{1006 / 2003:.3f}", "100.6", "100.3-100.7", f"{1006 / 2003:.3f}", "101"]
    assert {line.split()[-1] for line in lines[1:]} == {"101"}


@pytest.mark.skipif(sys.platform == "win32", reason="the fake programs are scripts")
def test_errors_of_whole_models(builds, tmp_path):
    done = bench_llama(builds, "--pairs", "f16,q5_1", "--depth", "64")
    assert done.exit_code == 1 and "error: llama-bench with q5_1/q5_1 at depth 64 ended with 1: " in done.output and "failed to create context" in done.output
    fake_program(builds[0] / "llama-bench", "#!/bin/sh\nkill -9 $$\n")
    assert "at depth 64 was ended by SIGKILL" in bench_llama(builds, "--depth", "64").output
    (builds[0] / "llama-bench").unlink()
    assert "holds no llama-bench: build the target llama-bench" in bench_llama(builds).output
    for words, wanted in (
        (["--depth", "4k"], "wanted a number of tokens"), (["--depth", "0x3,0"], "a depth twice"), (["--devices", "0,0"], "wanted different numbers"),
        (["--pairs", "q9"], "wanted one of"), (["--prompt", "0", "--generate", "0"], "wanted something to time"),
    ):  # fmt: skip
        done = bench_llama(builds, *words)
        assert done.exit_code == 2 and wanted in " ".join(done.output.replace("│", " ").split()), (words, done.output)
