# SPDX-License-Identifier: MIT
"""`pyggmlq dump-kv` with a stand-in for its program, files that are damaged, and attention errors against cases with known
answers; marked `llama`: rows of a real model."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from pyggmlq import api, center, fetch, reference
from pyggmlq.cli import app
from pyggmlq.lab import LabError, attention, codecs, dump, record

from llama_build import CACHE, build, patched
from stand_ins import needs_scripts
from test_lab_kld import write_model

N, HEAD, ROPE = 48, 32, "n_dims=32 mode={mode} n_ctx_orig=2048 freq_base=10000 freq_scale=1 ext_factor=0 attn_factor=1 beta_fast=32 beta_slow=1 at=0"


def write_window(path: Path, number: int, n: int = N, mode: int = 0, visible: int = N, mla: bool = False, **tensors: np.ndarray) -> None:
    """What llama-ggmlq-lab writes for a window: two layers, four query heads, two KV heads."""
    random = np.random.default_rng(number)
    rows = {"positions": np.arange(n, dtype=np.int32), "tokens": np.arange(n, dtype=np.int32), "windows": np.full(n, number, np.int32)}
    for layer in (0, 1):
        for side in dump.SIDES[: 3 if mla else 5]:
            heads = 4 if side == "q" else 2
            rows[f"layer.{layer}.{side}"] = random.standard_normal((n, heads, HEAD), dtype=np.float32)
    facts = f"scale={1 / math.sqrt(HEAD)} max_bias=0 softcap=0 visible={visible} rotation_k=0 rotation_v=0 type_k=q8_0 type_v={'' if mla else 'q8_0'}"
    metadata = {"format": dump.WINDOW_FORMAT}
    for layer in (0, 1):
        metadata.update({f"layer.{layer}": facts, f"layer.{layer}.rope": ROPE.format(mode=mode)})
    save_file({**rows, **tensors}, path, metadata)


# A stand-in that hands out prepared windows, but not those that are there.
PROGRAM = """#!{python} -IS
import json, shutil, sys
from pathlib import Path
me, a = Path(sys.argv[0]), sys.argv[1:]
rules = json.loads((me.parent / "rules.json").read_text())
folder, windows = Path(a[1]), int(a[3])
if "say" in rules:
    sys.exit(rules["say"])
print(f"windows {{min(windows, 3)}} of {{windows}}")
for i in range(min(windows, 3)):
    name = f"window-{{i:05d}}.safetensors"
    if not (folder / name).exists():
        if i == rules.get("stop_at"):
            sys.exit("error: killed")
        shutil.copy(me.parent / name, folder / name)
        with open(me.parent / "made.txt", "a") as made:
            made.write(f"{{i}} ")
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.bin, self.model, self.text, self.out = folder / "bin", folder / "demo.gguf", folder / "text.txt", folder / "out" / "rows.safetensors"
        self.work = folder / "work"
        self.bin.mkdir()
        (self.bin / "llama-ggmlq-lab").write_text(PROGRAM.format(python=sys.executable))
        (self.bin / "llama-ggmlq-lab").chmod(0o755)
        for i in range(3):
            write_window(self.bin / f"window-{i:05d}.safetensors", i)
        write_model(self.model)
        self.text.write_text("words")
        self.rules()

    def rules(self, **rules: object) -> None:
        (self.bin / "rules.json").write_text(json.dumps(rules))

    def run(self, *arguments: str):
        return CliRunner().invoke(
            app, ["dump-kv", str(self.model), "--text", str(self.text), "-o", str(self.out), "--programs", str(self.bin), "--work-dir", str(self.work),
                  "--context", str(N), *arguments])  # fmt: skip

    def made(self) -> str:
        path = self.bin / "made.txt"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A dump of two windows."""
    return joined(tmp_path)


def joined(folder: Path, **how: object) -> Path:
    parts = [folder / f"window-{i}.safetensors" for i in (0, 1)]
    for i, path in enumerate(parts):
        write_window(path, i, **how)
    dump._join(parts, folder / "rows.safetensors", {"format": dump.FORMAT, "pyggmlq": {}, "text": {}, "model": {"name": "Demo", "file": "demo.gguf"}, "options": {"context": N}})
    return folder / "rows.safetensors"


# Writing -------------------------------------------------------------------------------------------------------------


@needs_scripts
def test_windows_become_one_file(machine: Machine):
    done = machine.run("--windows", "2")
    assert done.exit_code == 0, done.output
    found = load_file(machine.out)
    parts = [load_file(machine.bin / f"window-{i:05d}.safetensors") for i in range(2)]
    assert set(found) == set(parts[0])
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, np.concatenate([part[name] for part in parts]), err_msg=name)
    layer = dump.Dump(machine.out).layer("1")
    assert layer.facts["type_k"] == "q8_0" and layer.facts["rope"]["freq_base"] == 10000 and layer.facts["window"] is None
    assert not list((machine.work / "dump").iterdir()) and [path.name for path in machine.out.parent.iterdir()] == ["rows.safetensors"]
    assert str(machine.work.parent) not in machine.out.read_bytes()[:20000].decode("latin-1"), "a dump says nothing of where its files lay"


@needs_scripts
def test_an_interrupted_dump_goes_on(machine: Machine):
    machine.rules(stop_at=1)
    done = machine.run("--windows", "3")
    assert done.exit_code == 1 and "llama-ggmlq-lab ended with status 1" in done.output and not machine.out.exists()
    assert machine.made() == "0"
    machine.rules()
    assert machine.run("--windows", "3").exit_code == 0
    assert machine.made() == "1 2" and len(load_file(machine.out)["positions"]) == 3 * N


@needs_scripts
def test_fewer_windows_than_asked_for_are_named(machine: Machine):
    done = machine.run("--windows", "5")
    assert done.exit_code == 0 and "note: the text gave only 3 of 5 windows" in done.output


@needs_scripts
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("error: the text has 9 tokens, wanted at least 48", "text.txt is too short: found 9 tokens, wanted at least 48 (--context)"),
        ("error: this model has no attention with a KV cache", "demo.gguf can't be dumped: this model has no attention with a KV cache"),
        ("0.0.1.2 E init: K cache type planar3 needs a head size that is a multiple of 128, but that of layer 0 is 64", "K cache type planar3 needs a head size"),
    ],
)
def test_what_cannot_be_dumped_is_said_and_nothing_is_written(machine: Machine, said: str, sentence: str):
    machine.rules(say=said)
    done = machine.run("--pair", "planar3")
    assert done.exit_code == 1 and sentence in " ".join(done.output.split()) and not machine.out.exists()


def test_wrong_arguments_are_refused(machine: Machine):
    for arguments in (["--pair", "q8_0,q4_0"], ["--pair", "q9"], ["--attn-rot", "on,off"], ["-o", "rows.npy"]):
        assert machine.run(*arguments).exit_code == 2, arguments
    write_model(machine.model, n_vocab=0)
    assert "has no vocabulary" in machine.run().output


# Reading -------------------------------------------------------------------------------------------------------------


def test_a_dump_that_is_cut_off_is_refused(rows: Path):
    whole = rows.read_bytes()
    for cut in (4, 40, len(whole) // 2, len(whole) - 1):
        rows.write_bytes(whole[:cut])
        done = CliRunner().invoke(app, ["eval", str(rows), "--json", str(rows.with_suffix(".json"))])
        assert done.exit_code == 1 and "cut off" in done.output and not rows.with_suffix(".json").exists(), cut


def test_nan_a_missing_tensor_and_another_file_are_refused(tmp_path: Path):
    bad = np.zeros((N, 2, HEAD), np.float32)
    bad[3, 1, 7] = np.nan
    path = joined(tmp_path, **{"layer.1.k": bad})
    with pytest.raises(LabError, match=r"layer.1.k: found NaN or infinity in 2 of 96 rows"):
        dump.Dump(path).layer("1")
    save_file({"x": np.zeros((4, 4), np.float32)}, path)
    with pytest.raises(LabError, match="found no rows of `pyggmlq dump-kv`"):
        dump.Dump(path)
    assert not dump.is_dump(path), "rows of another kind are eval's own"
    tensors, metadata, _ = dump.header(joined(tmp_path))
    save_file({name: value for name, value in load_file(path).items() if name != "layer.0.q"}, path, metadata)
    with pytest.raises(LabError, match="found no tensor layer.0.q"):
        dump.Dump(path)


@pytest.mark.parametrize("mode", [0, 2])
def test_rope_is_taken_back(tmp_path: Path, mode: int):
    """Rows that are equal before RoPE, written as RoPE turns them."""
    flat = np.random.default_rng(0).standard_normal((2, HEAD)).astype(np.float32)
    angle = np.arange(N)[:, None, None] * 10000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2))
    a, b = (slice(0, None, 2), slice(1, None, 2)) if mode == 0 else (slice(0, HEAD // 2), slice(HEAD // 2, None))
    k = np.empty((N, 2, HEAD), np.float32)
    k[..., a] = flat[:, a] * np.cos(angle) - flat[:, b] * np.sin(angle)
    k[..., b] = flat[:, b] * np.cos(angle) + flat[:, a] * np.sin(angle)
    rows = dump.Dump(joined(tmp_path, mode=mode, **{"layer.0.k": k}))
    found = dump.without_rope(rows.layer("0"), rows.positions)
    np.testing.assert_allclose(found, np.broadcast_to(flat, found.shape), atol=1e-4)


# Attention -----------------------------------------------------------------------------------------------------------


def by_hand(layer: dump.Layer, rows: dump.Dump, head: int, k: np.ndarray, v: np.ndarray) -> tuple[float, float, float]:
    """(KLD, output error by K, by V) of one KV head, query by query."""
    divergence, out_k, out_v, square, n = 0.0, 0.0, 0.0, 0.0, 0
    for window in (0, 1):
        at = np.flatnonzero(rows.windows == window)
        for i in range(attention.FIRST_QUERY, N):
            seen = [j for j in range(N) if j <= i and (layer.facts["window"] is None or i - j < layer.facts["window"])]
            for q_head in (2 * head, 2 * head + 1):
                def weights(keys: np.ndarray) -> np.ndarray:
                    score = np.exp(keys[at][seen, head].astype(float) @ layer.q[at[i], q_head].astype(float) / math.sqrt(HEAD))
                    return score / score.sum()

                p, s = weights(layer.k), weights(k)
                divergence += float((p * np.log(p / s)).sum())
                out = p @ layer.v[at][seen, head]
                out_k += ((s @ layer.v[at][seen, head] - out) ** 2).sum()
                out_v += ((p @ v[at][seen, head] - out) ** 2).sum()
                square += (out**2).sum()
                n += 1
    return divergence / n, out_k / square, out_v / square


@pytest.mark.parametrize("visible", [N, 9])
def test_errors_are_those_of_a_loop_over_queries(tmp_path: Path, visible: int):
    rows = dump.Dump(joined(tmp_path, visible=visible))
    found = attention.run(rows, [], N - attention.FIRST_QUERY, lambda text: None)
    layer = rows.layer("1")
    for head in (0, 1):
        (row,) = [row for row in found["rows"] if (row["layer"], row["head"]) == (1, head)]
        assert row["codec"] == "cache q8_0" and row["bits"] == 8.5
        wanted = by_hand(layer, rows, head, layer.k_cache, layer.v_cache)
        np.testing.assert_allclose([row["k_kld"], row["k_output"], row["v_output"]], wanted, rtol=1e-4)


def test_an_exact_cache_has_no_error_and_mla_no_v(tmp_path: Path):
    x = np.random.default_rng(1).standard_normal((N, 2, HEAD), dtype=np.float32)
    rows = dump.Dump(joined(tmp_path, mla=True, **{"layer.0.k": x, "layer.0.k_cache": x}))
    row = attention.run(rows, [], 16, lambda text: None)["rows"][0]
    assert (row["k_kld"], row["k_mse"], row["logit_error"], row["k_top1"], row["v_output"]) == (0, 0, 0, 1, None)


def test_what_a_rotation_before_the_type_does_depends_on_where_queries_look(tmp_path: Path):
    """A large mean in channels that queries don't weigh: tq3_0 keeps its noise in their block, a Hadamard spreads it."""
    random = np.random.default_rng(2)
    k, q = random.standard_normal((N, 2, 128), dtype=np.float32), random.standard_normal((N, 4, 128), dtype=np.float32)
    k[..., [5, 9]] += 40
    q[..., :32] *= 0.05
    v = random.standard_normal((N, 2, 128), dtype=np.float32)
    tensors = {f"layer.{layer}.{side}": x for layer in (0, 1) for side, x in (("q", q), ("k", k), ("k_cache", k), ("v", v), ("v_cache", v))}
    found = attention.run(dump.Dump(joined(tmp_path, **tensors)), attention.default_codecs(), 16, lambda text: None)
    kld = {row["codec"]: row["k_kld"] for row in found["rows"] if (row["layer"], row["head"]) == (0, 0)}
    assert kld["tq3_0"] < 0.2 * kld["h+tq3_0"] and kld["h+planar3"] < 0.5 * kld["planar3"]
    facts = found["layers"][0]
    assert facts["block_k"] > 0.9 and facts["block_q"] < 0.01 and facts["mean_share"] > 0.9
    assert sum(facts["pairs"]["tq3_0"]) == pytest.approx(1)


@pytest.mark.parametrize("mode", [0, 2])
def test_centered_keys_are_exact_but_for_the_type_which_has_less_to_store(tmp_path: Path, mode: int):
    """Keys whose mean before RoPE is large; a codec that changes nothing must leave them as they are."""
    random = np.random.default_rng(5)
    before, angle = random.standard_normal((N, 2, HEAD)), np.arange(N)[:, None] * 10000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2))
    before[..., [3, 17, 30]] += 12
    k = center.rope(before.transpose(1, 0, 2), np.cos(angle), np.sin(angle), mode == 2).transpose(1, 0, 2).astype(np.float32)
    rows = dump.Dump(joined(tmp_path, mode=mode, **{f"layer.{layer}.{side}": k for layer in (0, 1) for side in ("k", "k_cache")}))
    by_name = {codec.name: codec for codec in attention.default_codecs()}
    same = codecs.Codec("same", lambda x: x, lambda width: 32.0, centered=True)
    found = attention.run(rows, [same, by_name["h+tq3_0"], by_name["c+h+tq3_0"]], 16, lambda text: None)
    kld, mse = ({row["codec"]: row[key] for row in found["rows"]} for key in ("k_kld", "k_mse"))
    assert mse["same"] < 1e-11 and kld["c+h+tq3_0"] < 0.25 * kld["h+tq3_0"]
    rows.windows = np.zeros_like(rows.windows)
    assert "needs a dump of two windows" in attention.run(rows, [same], 8, lambda text: None)["notes"][0]
    assert "left out in layers without RoPE" in attention.run(dump.Dump(joined(tmp_path, mode=8)), [same], 8, lambda text: None)["notes"][0]


def test_the_command_writes_what_the_report_draws(rows: Path, tmp_path: Path):
    out = {name: tmp_path / f"a.{name}" for name in ("json", "csv", "svg", "html", "md", "png")}
    done = CliRunner().invoke(app, ["eval", str(rows), "--queries", "8", "--json", str(out["json"]), "--csv", str(out["csv"]), "--plot", str(out["svg"])])
    assert done.exit_code == 0, done.output
    assert "h+tq3_0" in done.output and "note: planar3 needs head sizes that are a multiple of 128, but K has 32 and V 32" in done.output
    data = record.read(out["json"])
    assert data["format"] == record.ATTENTION and len(out["csv"].read_text().splitlines()) == 1 + len(data["rows"])
    assert {(row["layer"], row["head"]) for row in data["rows"]} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    done = CliRunner().invoke(app, ["report", str(out["json"]), *(word for name in ("html", "md", "png") for word in ("-o", str(out[name])))])
    assert done.exit_code == 0, done.output
    page = out["html"].read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "Where K hurts: Demo" in page and 'href="http' not in page
    worst = attention.summary(data["rows"])[1]
    assert f"| {worst['codec']} | 3.500 |" in out["md"].read_text() and out["png"].read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, ["eval", str(rows), "random_normal"]).exit_code == 2


def test_encoders_of_one_format_differ_in_error_only():
    x = np.random.default_rng(3).standard_normal((512, 64), dtype=np.float32)
    by_name = {codec.name: codec for codec in codecs.all_codecs()}
    rms, ours, search = (((by_name[name].round_trip(x) - x) ** 2).sum() for name in ("tq3_0:rms", "tq3_0", "tq3_0:search"))
    assert search <= ours < 0.98 * rms and ours < 1.02 * search


def test_keys_can_be_rounded_for_the_queries_that_they_meet():
    """The same format, eight levels and a step for each block; for queries from all directions nothing is gained."""
    random = np.random.default_rng(4)
    x = random.standard_normal((256, 64), dtype=np.float32)
    q = random.standard_normal((500, 4), dtype=np.float32) @ random.standard_normal((4, 64), dtype=np.float32)
    plain = {codec.name: codec for codec in codecs.all_codecs()}["tq3_0"].round_trip(x)
    y = codecs.tq3_0_for_queries(x, q[:250].T @ q[:250] / 250)
    assert ((q[250:] @ (y - x).T) ** 2).sum() < 0.4 * ((q[250:] @ (plain - x).T) ** 2).sum()
    for block in reference.TQ3_0.rotate_blocks(y[:8].reshape(-1, 32)):
        assert len(np.unique((block / np.abs(block).max()).round(4))) <= 8
    for_any = codecs.tq3_0_for_queries(x, np.eye(64, dtype=np.float32))
    assert ((for_any - x) ** 2).sum() == pytest.approx(((plain - x) ** 2).sum(), rel=0.03)


def test_queries_of_one_window_say_nothing_of_its_own_keys(tmp_path: Path):
    """Else an encoder would be judged by the queries that it was made for."""
    rows = dump.Dump(joined(tmp_path))
    rows.windows = np.zeros_like(rows.windows)
    found = attention.run(rows, [codec for codec in codecs.all_codecs() if codec.name == "tq3_0:queries"], 8, lambda text: None)
    assert {row["codec"] for row in found["rows"]} == {"cache q8_0"} and "needs a dump of two windows" in found["notes"][0]


# A real model --------------------------------------------------------------------------------------------------------


@pytest.mark.llama
def test_rows_of_a_real_model_are_those_that_its_cache_holds(llama_tree, tmp_path, tmp_path_factory):
    tree = patched(llama_tree("0.3.36"), tmp_path_factory.mktemp("patched") / "llama.cpp")
    programs, model = build(tree, dump.TARGETS), fetch.fetch_model("smollm2-135m", CACHE.parent / "models")
    text = tmp_path / "text.txt"
    text.write_text("the the the the " * 40)

    def rows(*arguments: str) -> dump.Dump:
        out = tmp_path / "rows.safetensors"
        done = CliRunner().invoke(
            app, ["dump-kv", str(model), "--text", str(text), "-o", str(out), "--programs", str(programs), "--work-dir", str(tmp_path), "--context", "64",
                  "--windows", "1", *arguments])  # fmt: skip
        assert done.exit_code == 0, done.output
        return dump.Dump(out)

    plain = rows()
    first = plain.layer("0")
    np.testing.assert_array_equal(first.k.astype(np.float16).astype(np.float32), first.k_cache)
    before = dump.without_rope(first, plain.positions)[4:]  # one token at 60 positions: one key, but for RoPE
    assert np.abs(before - before[0]).max() < 2e-3 * np.abs(before).max() < 0.1 * np.abs(first.k[4:] - first.k[4]).max()
    unrotated = rows("--pair", "tq3_0").layer("0")
    assert unrotated.facts["rotation_k"] == unrotated.facts["rotation_v"] == 0, "llama.cpp's rotation isn't for this type"
    np.testing.assert_array_equal(api.dequantize(api.quantize(unrotated.k, type="tq3_0"), type="tq3_0"), unrotated.k_cache)
    rotated = rows("--pair", "q4_0", "--tokens", "16")
    assert list(rotated.positions) == list(range(0, 64, 4))
    layer = rotated.layer("0")
    assert layer.facts["rotation_k"] == 64 and layer.facts["rotation_v"] == 64
    np.testing.assert_allclose(layer.k, unrotated.k[::4], atol=1e-3)
    assert 0 < attention._relative(layer.k, layer.k_cache) < 0.05

    broken = tmp_path / "broken.gguf"  # what llama.cpp says of it comes last in its log, which must be written to the end
    broken.write_bytes(model.read_bytes().replace(b"blk.3.attn_k.weight", b"blk.3.attn_x.weight", 1))
    done = CliRunner().invoke(app, ["dump-kv", str(broken), "--text", str(text), "-o", str(tmp_path / "none.safetensors"), "--programs", str(programs), "--work-dir", str(tmp_path)])
    assert done.exit_code == 1 and "tensor 'blk.3.attn_k.weight' not found" in " ".join(done.output.split()) and not (tmp_path / "none.safetensors").exists()
