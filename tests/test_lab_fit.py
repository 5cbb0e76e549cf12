# SPDX-License-Identifier: MIT
"""`pyggmlq fit`: sizes that llama.cpp logged for real models; marked `llama`: every architecture that it can make a model of."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import gguf
import pytest
from typer.testing import CliRunner

from pyggmlq._pairs import Case, bits_per_value, block_size
from pyggmlq._types import cache_types, foreign_types
from pyggmlq.cli import app
from pyggmlq.lab import LabError, fit

from llama_build import build, patched, run


def write(path: Path, architecture: str, **keys: object) -> Path:
    """A GGUF file of nothing but the keys of an architecture, dots written as two underscores."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in keys.items():
        key = name.replace("__", ".") if name.startswith("split") else f"{architecture}.{name.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_uint16(key, value) if key == "split.count" else writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


SMOLLM2 = {"block_count": 30, "context_length": 8192, "embedding_length": 576, "attention__head_count": 9, "attention__head_count_kv": 3}
GEMMA = {"block_count": 18, "context_length": 32768, "embedding_length": 640, "attention__head_count": 4, "attention__head_count_kv": 1,
         "attention__key_length": 256, "attention__value_length": 256, "attention__sliding_window": 512}  # fmt: skip


def mib(path: Path, pair: str, n_ctx: int) -> tuple[float, ...]:
    k, v = pair.split("/")
    return tuple(round(size / fit.MIB, 2) for size in fit.read(path).cache_bytes(Case(k, v), n_ctx))


@pytest.mark.parametrize(
    ("architecture", "keys", "pair", "n_ctx", "wanted"),
    [  # as llama.cpp 0c1e57098 logged them with the real files of these models
        ("llama", SMOLLM2, "f16/f16", 2048, (22.5, 22.5, 0)),
        ("llama", SMOLLM2, "tq3_0/q8_0", 2048, (4.92, 11.95, 0)),
        ("gemma3", GEMMA, "f16/f16", 2048, (10.5, 10.5, 0)),
        ("gemma3", GEMMA, "planar3/q4_0", 2048, (2.05, 2.95, 0)),
        ("gemma3", GEMMA, "q4_0/q4_0", 512, (1.27, 1.27, 0)),
    ],
)
def test_sizes_that_llama_cpp_logged(tmp_path: Path, architecture: str, keys: dict, pair: str, n_ctx: int, wanted: tuple):
    assert mib(write(tmp_path / "m.gguf", architecture, **keys), pair, n_ctx) == wanted


def test_contexts_are_padded_as_llama_cpp_does(tmp_path: Path):
    path = write(tmp_path / "m.gguf", "llama", **SMOLLM2)
    assert mib(path, "f16/f16", 1800) == mib(path, "f16/f16", 2048)


def test_a_latent_cache_has_no_v(tmp_path: Path):
    keys = {"block_count": 2, "embedding_length": 1024, "attention__head_count": 16, "attention__head_count_kv": 1, "attention__key_length": 576,
            "attention__value_length": 512, "attention__key_length_mla": 192, "attention__value_length_mla": 128}  # fmt: skip
    path = write(tmp_path / "m.gguf", "deepseek2", **keys)
    assert fit.read(path).cache_bytes(Case("f16", "f16"), 256) == (2 * 256 * 576 * 2, 0, 0)


def test_layers_without_kv_heads_keep_a_state(tmp_path: Path):
    keys = {"block_count": 3, "embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": [0, 2, 0], "shortconv__l_cache": 3}
    model = fit.read(write(tmp_path / "m.gguf", "lfm2", **keys))
    assert model.cache_bytes(Case("f16", "f16"), 256) == (256 * 32 * 2, 256 * 32 * 2, 2 * 64 * 2 * 4)


DEEPSEEK4 = {"block_count": 4, "embedding_length": 512, "attention__head_count": 64, "attention__head_count_kv": 1, "attention__key_length": 512,
             "attention__value_length": 512, "attention__sliding_window": 128, "attention__indexer__key_length": 128,
             "attention__compress_ratios": [0, 4, 128, 4]}  # fmt: skip


def test_compressed_caches_lie_beside_the_window(tmp_path: Path):
    model = fit.read(write(tmp_path / "m.gguf", "deepseek4", **DEEPSEEK4))
    raw, csa, hca = 4 * 768, 2 * 32768, 1024
    state = 2 * 4 * (2 * 8 * 1024 + 128 * 512 + 2 * 8 * 256)
    assert model.cache_bytes(Case("planar3", "planar3"), 131072) == ((raw + csa + hca) * 200 + csa * 50, 0, state)
    assert model.cache_bytes(Case("tq3_0", "tq3_0"), 131072)[0] == (raw + csa + hca) * 224 + csa * 56
    assert "K and V are the same rows" in model.refusal(Case("planar3", "tq3_0"))


def test_the_longest_context_is_the_longest(tmp_path: Path):
    model = fit.read(write(tmp_path / "m.gguf", "gemma3", **GEMMA))
    for case in fit.default_pairs():
        n_ctx = model.longest_context(case, 100 * fit.MIB)
        needed = [sum(model.cache_bytes(case, n)) + model.center_bytes(case, n) for n in (n_ctx, n_ctx + fit.PAD)]
        assert needed[0] <= 100 * fit.MIB < needed[1]
    assert model.longest_context(Case("f16", "f16"), 1000) == 0


def test_centered_keys_take_a_little_more(tmp_path: Path):
    """test_llama_center.py compares these with what llama.cpp takes."""
    gemma, cells = fit.read(write(tmp_path / "m.gguf", "gemma3", **GEMMA)), 1024  # of a window of 512, too
    assert gemma.center_bytes(Case("tq3_0", "f16"), 32768) == 2 * (3 * 32768 + 15 * cells) + 18 * 2 * 36 * 32**2
    assert gemma.center_bytes(Case("q8_0", "tq3_0"), 32768) == 0
    smollm2 = fit.read(write(tmp_path / "m.gguf", "llama", **SMOLLM2, rope__dimension_count=32))
    assert smollm2.center_bytes(Case("tq3_0", "tq3_0"), 2048) == 2 * 2048 * 30 + 30 * 2 * 3 * 3 * 32**2
    assert fit.read(write(tmp_path / "m.gguf", "gpt2", **SMOLLM2)).center_bytes(Case("tq3_0", "tq3_0"), 2048) == 0
    output = invoke(tmp_path / "m.gguf", "--context", 2048, "--pairs", "tq3_0").output
    assert "centering MiB" not in output


def test_what_prefill_on_cuda_works_with(tmp_path: Path):
    model = fit.read(write(tmp_path / "m.gguf", "llama", **SMOLLM2))
    values, mask = model.layers[0].k_values, 2 * 512 * 1024
    assert [model.work_bytes(Case(*pair), 1000) for pair in (("f16", "f16"), ("tq3_0", "tq3_0"), ("f16", "tq3_0"))] == [mask, mask + 4 * 1024 * values, mask + 2 * 1024 * values]
    for case in (Case("tq3_0", "tq3_0"), Case("q8_0", "tq3_0")):
        n_ctx = model.longest_context(case, 100 * fit.MIB, cuda=True)
        needed = [sum(model.cache_bytes(case, n)) + model.center_bytes(case, n) + model.work_bytes(case, n) for n in (n_ctx, n_ctx + fit.PAD)]
        assert needed[0] <= 100 * fit.MIB < needed[1]
        assert n_ctx < model.longest_context(case, 100 * fit.MIB)
    row = fit.row(model, Case("tq3_0", "tq3_0"), None, 1000, 512, True)
    assert row["bytes_work"] == mask + 4 * 1024 * values
    assert "work MiB" in invoke(tmp_path / "m.gguf", "--context", 1000, "--cuda").output
    assert "work MiB" not in invoke(tmp_path / "m.gguf", "--context", 1000).output


def test_a_cache_that_does_not_grow_fits_any_context(tmp_path: Path):
    keys = {"block_count": 2, "embedding_length": 64, "ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4, "attention__head_count": 0}
    model = fit.read(write(tmp_path / "m.gguf", "mamba", **keys))
    assert model.longest_context(Case("f16", "f16"), fit.MIB) is None
    assert model.cache_bytes(Case("f16", "f16"), 256)[2] == 2 * 4 * (3 * 128 + 16 * 128)


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def test_the_command_counts_weights_and_reserve(tmp_path: Path):
    path = write(tmp_path / "m.gguf", "llama", **SMOLLM2)
    data = json.loads(invoke(path, "--memory", "200M", "--reserve", "50M", "--json").output)
    assert data["budget_bytes"] == 150 * fit.MIB - path.stat().st_size
    rows = {(row["k"], row["v"]): row for row in data["rows"]}
    assert rows["f16", "f16"]["n_ctx"] < rows["q8_0", "tq3_0"]["n_ctx"] < rows["tq3_0", "tq3_0"]["n_ctx"]
    assert "multiple of 128" in rows["planar3", "planar3"]["refused"]
    table = invoke(path, "--memory", "200M", "--reserve", "50M").output
    assert "note: contexts above 8192 fit, but the model wasn't trained for them" in table
    assert str(rows["f16", "f16"]["n_ctx"]) in table and table.count("multiple of 128") == 2  # K, and V beside q8_0


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (["--memory", "10M"], 1, "is more than 10M"),
        (["--memory", "many"], 2, "wanted a size such as 24G"),
        ([], 2, "wanted one of them"),
        (["--context", "512", "--pairs", "q9"], 2, "found 'q9', wanted one of"),
    ],
)
def test_bad_requests(tmp_path: Path, arguments: list[str], status: int, wanted: str):
    done = invoke(write(tmp_path / "m.gguf", "llama", **SMOLLM2), *arguments)
    assert done.exit_code == status and wanted in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("architecture", "keys", "wanted"),
    [
        ("deepseek32", SMOLLM2, "of a kind that fit does not compute"),
        ("deepseek4", SMOLLM2, "does not say how the layers of deepseek4 compress"),
        ("mimo2", {**SMOLLM2, "attention__sliding_window": 128}, "does not say which layers of mimo2 have a sliding window"),
        ("llama", {"context_length": 5}, "no layers"),
        ("llama", {**SMOLLM2, "split__count": 3}, "give the first one, ..-00001-of-00003.gguf"),
    ],
)
def test_what_can_not_be_told_is_refused(tmp_path: Path, architecture: str, keys: dict, wanted: str):
    with pytest.raises(LabError, match=re.escape(wanted)):
        fit.read(write(tmp_path / "m.gguf", architecture, **keys))


def test_an_unknown_architecture_is_computed_with_a_note(tmp_path: Path):
    path = write(tmp_path / "m.gguf", "brandnew", **SMOLLM2)
    assert mib(path, "f16/f16", 2048) == (22.5, 22.5, 0)
    assert "the architecture brandnew was not compared with llama.cpp" in " ".join(invoke(path, "--context", "2048").output.split())
    assert fit.read(write(tmp_path / "l.gguf", "llama", **SMOLLM2)).notes == ()


def test_a_split_model_counts_all_its_files(tmp_path: Path):
    first = write(tmp_path / "m-00001-of-00002.gguf", "llama", **SMOLLM2, split__count=2)
    with pytest.raises(LabError, match="m-00002-of-00002.gguf is missing"):
        fit.read(first)
    first.with_name("m-00002-of-00002.gguf").write_bytes(bytes(1000))
    assert fit.read(first).weight_bytes == first.stat().st_size + 1000


@pytest.mark.parametrize(("text", "wanted"), [("24G", 24 << 30), ("1.5 GiB", 3 << 29), ("900mb", 900 << 20), ("77", 77)])
def test_sizes(text: str, wanted: int):
    assert fit.parse_size(text) == wanted


def test_sizes_of_types_are_those_of_gguf():
    assert block_size("iq4_nl") == (32, 18) and bits_per_value("q5_0") == 5.5
    known = {kind.name.lower(): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {info.name for info in cache_types()}
    for info in foreign_types():
        assert info.name in ours or block_size(info.name) == known[info.name]


# What llama.cpp allocates --------------------------------------------------------------------------------------------

ALLOCATED = re.compile(r"size = +[\d.]+ MiB \(.*K \((?P<k>\w+)\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB")
STATE = re.compile(r"size = +([\d.]+) MiB \( *\d+ cells, +\d+ layers, +\d+ seqs|layers = \d+, size = +([\d.]+) MiB")  # the second: DeepSeek-V4


def context_log(command: list) -> str:
    """What `command` logs when it makes its context; empty if it doesn't get that far.

    The random models have no tokenizer, so the program ends abruptly right after that, often before its log is written out:
    only a log with a line from after the caches tells of all of them.
    """
    for _ in range(10):
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        log = done.stdout.rsplit("constructing llama_context", 1)[-1]
        if "compute buffer size" in log:
            return log
    return ""


@pytest.mark.llama
def test_every_architecture_of_llama_cpp(llama_tree, tmp_path, tmp_path_factory):
    """llama.cpp's test-llama-archs writes a small random model of each; what it then allocates must be what fit says."""
    tree = patched(llama_tree("0.3.36"), tmp_path_factory.mktemp("patched") / "llama.cpp")
    programs = build(tree, ("test-llama-archs", "llama-perplexity"))
    run([programs / "test-llama-archs", "-o", tmp_path])
    (tmp_path / "text.txt").write_text("words")
    compared, wrong = set(), []
    for path in sorted(tmp_path.glob("*.gguf")):
        try:
            model = fit.read(path)
        except LabError:
            continue
        for case in (Case("f16", "f16"), Case("q8_0", "tq3_0")):
            log = context_log([programs / "llama-perplexity", "-m", path, "-c", "5000", "-b", "512", "-ub", "512", "-lv", "4", "-fa", "on", "-t", "1",
                               "-f", tmp_path / "text.txt", "--no-warmup", "-ctk", case.k, "-ctv", case.v])  # fmt: skip
            caches = [(float(k), float(v)) for _, k, v in ALLOCATED.findall(log)]
            states = [float(one or other) for one, other in STATE.findall(log)]
            if not caches and not states:
                continue
            logged = [sum(k for k, _ in caches), sum(v for _, v in caches), sum(states)]
            computed = [size / fit.MIB for size in model.cache_bytes(case, 5000)]
            compared.add(path.stem)
            if any(abs(a - b) > 0.0051 * max(1, len(caches)) for a, b in zip(logged, computed)):
                wrong.append(f"{path.stem}, {case}: found {computed}, wanted {logged}")
    assert not wrong, "\n".join(wrong)
    assert len(compared) >= 90, f"only {len(compared)} models could be compared"
