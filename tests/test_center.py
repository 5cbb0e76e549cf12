# SPDX-License-Identifier: MIT
"""Positional centering (pyggmlq/center.py): attention scores don't change, whatever mean, scale, positions and RoPE."""
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyggmlq
from pyggmlq import center, reference
from pyggmlq._hadamard import hadamard as hadamard_transform
from pyggmlq._types import type_info

ROOT = Path(__file__).resolve().parents[1]


def angles(rng, positions, n_rot, kind):
    """cos and sin of a RoPE as models have them: plain, with frequency factors, with YaRN's interpolation and magnitude."""
    half = n_rot // 2
    frequency = rng.choice([1e4, 5e5, 1e6]) ** (-np.arange(half) / half)
    magnitude = 1.0
    if kind == "factors":
        frequency = frequency / np.geomspace(1, 32, half)
    elif kind == "yarn":
        ramp = np.clip((np.arange(half) - half / 4) / (half / 2), 0, 1)
        frequency = frequency * (1 - ramp) + frequency / 8 * ramp
        magnitude = 0.1 * np.log(8) + 1
    theta = np.asarray(positions)[:, None] * frequency
    return magnitude * np.cos(theta), magnitude * np.sin(theta)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["plain", "factors", "yarn"]),
    neox=st.booleans(),
    head_size=st.sampled_from([64, 96, 128]),
    unturned=st.sampled_from([0, 2, 32]),
    group=st.integers(1, 3),
    first=st.sampled_from([0, 1, 4]),
)
def test_scores_are_unchanged(seed, kind, neox, head_size, unturned, group, first):
    rng = np.random.default_rng(seed)
    n_kv, n_tokens, n_queries, n_rot = 2, 9, 3, head_size - unturned
    mean = rng.normal(0, 10, (n_kv, head_size))
    mean[:, n_rot:] = 0
    scale = np.exp(rng.uniform(np.log(0.1), np.log(10), (n_kv, head_size)))
    i, j = center.pairs(n_rot, neox)
    scale[:, j] = scale[:, i]
    calibration = center.Calibration(mean, scale, n_rot, neox)

    positions = rng.integers(0, 100_000, n_tokens)
    cos, sin = angles(rng, positions, n_rot, kind)
    before = mean[:, None] + rng.normal(0, 1, (n_kv, n_tokens, head_size))
    keys = center.rope(before, cos, sin, neox)
    queries = rng.normal(0, 1, (n_kv * group, n_queries, head_size))
    centered = np.arange(n_tokens) >= first

    stored = center.center(calibration, keys, cos, sin, centered)
    scaled, w = center.query(calibration, queries)
    c = center.row(cos, sin, neox, centered)
    found = np.einsum("hqd,hkd->hqk", scaled, np.repeat(stored, group, 0)) + np.einsum("hqr,kr->hqk", w, c)
    wanted = np.einsum("hqd,hkd->hqk", queries, np.repeat(keys, group, 0))
    assert np.abs(found - wanted).max() <= 1e-11 * np.abs(wanted).max()

    # What the cache does instead: the mean is taken off, and the scale applied, before RoPE.
    short = center.rope(scale[:, None] * (before - mean[:, None] * centered[:, None]), cos, sin, neox)
    assert np.allclose(short, stored, rtol=0, atol=1e-11 * np.abs(keys).max())
    # A key that moves to another position (K-shift): stored rows and c are turned alike.
    shift = angles(np.random.default_rng(seed), np.full(n_tokens, 7), n_rot, "plain")
    moved_keys, moved_rows = (center.rope(x, *shift, neox) for x in (stored, c))
    found = np.einsum("hqd,hkd->hqk", scaled, np.repeat(moved_keys, group, 0)) + np.einsum("hqr,kr->hqk", w, moved_rows)
    wanted = np.einsum("hqd,hkd->hqk", queries, np.repeat(center.rope(keys, *shift, neox), group, 0))
    assert np.abs(found - wanted).max() <= 1e-11 * np.abs(wanted).max()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), near=st.booleans())
def test_turns_are_exact_at_any_position(seed, near):
    """Whole numbers of 64 bits, of which the upper 32 count; so far positions turn by the remainder of whole turns, and negative ones back."""
    rng = np.random.default_rng(seed)
    frequencies = rng.choice([1, -1, 7], 20) * 5e5 ** (-rng.uniform(0, 1, 20))
    positions = rng.integers(*((-1000, 1000) if near else (-(2**31), 2**31)), 5).astype(np.int32)
    turns = center.turns(frequencies)
    assert turns.dtype == np.uint64
    cos, sin = center.cos_sin(turns, positions)
    whole = [[(int(t) * int(p) % 2**64 >> 32) / 2**32 for t in turns] for p in positions]
    assert np.allclose(cos, np.cos(2 * np.pi * np.array(whole)), rtol=0, atol=1e-15)
    assert np.allclose(sin, np.sin(2 * np.pi * np.array(whole)), rtol=0, atol=1e-15)
    if near:
        theta = positions[:, None] * frequencies
        assert np.abs(cos - np.cos(theta)).max() < 4e-9 and np.abs(sin - np.sin(theta)).max() < 4e-9
    neox = bool(seed % 2)
    assert np.array_equal(reference.positional_rows(turns, positions, neox), center.row(cos, sin, neox))


def test_the_mean_after_rope_is_not_the_same():
    """The test above can tell: without c, or with c of other positions, scores change."""
    rng = np.random.default_rng(1)
    calibration = center.Calibration(np.full((1, 64), 3.0), np.ones((1, 64)), 64, False)
    cos, sin = angles(rng, [5, 60], 64, "plain")
    keys, queries = rng.normal(0, 1, (1, 2, 64)), rng.normal(0, 1, (1, 1, 64))
    scaled, w = center.query(calibration, queries)
    stored = center.center(calibration, keys, cos, sin)
    wanted = queries[0] @ keys[0].T
    assert np.allclose(scaled[0] @ stored[0].T + w[0] @ center.row(cos, sin, False).T, wanted)
    assert not np.allclose(scaled[0] @ stored[0].T, wanted, atol=1)
    assert not np.allclose(scaled[0] @ stored[0].T + w[0] @ center.row(cos, sin, False)[::-1].T, wanted, atol=1)


@pytest.mark.parametrize("neox", [False, True])
def test_fit_minimizes_what_it_says(neox):
    """Of many scales near the fitted one, none has a smaller sum(q^2/s^2) * sum(s^2 * variance)."""
    rng = np.random.default_rng(2)
    spread = np.exp(rng.normal(0, 1, 32))
    i, j = center.pairs(64, neox)
    per_value = np.empty(64)
    per_value[i] = per_value[j] = spread
    keys = 5 + per_value * rng.normal(0, 1, (2, 4000, 64))
    queries = per_value[::-1] * rng.normal(0, 1, (4, 4000, 64))
    fitted = center.fit(keys, queries, 64, neox)
    assert np.allclose(fitted.mean, 5, atol=0.5) and np.array_equal(fitted.scale[:, i], fitted.scale[:, j])

    def error(scale):
        variance = keys[:, center.FIRST :].var(1)
        energy = (queries[:, center.FIRST :].reshape(2, -1, 64) ** 2).mean(1)
        return (energy / scale**2).sum(1) * (scale**2 * variance).sum(1)

    best = error(fitted.scale)
    assert (best < 0.7 * error(np.ones_like(fitted.scale))).all()
    for _ in range(50):
        other = np.exp(rng.normal(0, 0.3, (2, 32)))
        scale = fitted.scale.copy()
        scale[:, i] *= other
        scale[:, j] *= other
        assert (error(scale) > 0.999 * best).all()


def test_fit_where_a_pair_never_varies():
    keys, queries = np.ones((1, 20, 8)), np.zeros((1, 20, 8))
    queries[..., 0] = 1
    assert np.array_equal(center.fit(keys, queries, 8, True).scale, np.ones((1, 8)))  # nothing to scale by
    keys[:, ::2, 1] = 2
    scale = center.fit(keys, queries, 8, True).scale
    assert np.isfinite(scale).all() and scale.min() >= center.SCALES[0] and scale.max() <= center.SCALES[1]


def test_shorter_is_what_it_says():
    """A key is centered if the row that would be stored is shorter so, over all heads."""
    rng = np.random.default_rng(3)
    calibration = center.Calibration(rng.normal(0, 2, (2, 8)), np.exp(rng.normal(0, 1, (2, 8))), 8, False)
    keys = calibration.mean[:, None] * rng.uniform(-1, 2, (1, 200, 1)) + rng.normal(0, 1, (2, 200, 8))
    one, none = np.ones((200, 4)), np.zeros((200, 4))  # no rotation
    length = [(center.center(calibration, keys, one, none, np.full(200, c)) ** 2).sum((0, 2)) for c in (True, False)]
    found = center.shorter(calibration, keys)
    assert np.array_equal(found, length[0] < length[1]) and 20 < found.sum() < 180


@pytest.mark.parametrize("name", center.GAIN)
def test_gain_makes_up_for_what_rounding_takes(name):
    """Rows of normal values come back shorter; after the gain, at most by what normal values lose more than a model's. C has the same numbers."""
    rows = np.random.default_rng(4).normal(0, 1, (2000, 128)).astype(np.float32)

    def comes_back(gain):
        return float((pyggmlq.dequantize(pyggmlq.quantize(gain * rows, type=name), type=name) * rows).sum() / (rows**2).sum())

    gain = np.float32(center.GAIN[name])
    assert 0.965 < comes_back(np.float32(1)) < 0.98 and 0.996 < comes_back(gain) < 1.001
    source = (ROOT / "csrc/ggml/llama-ggmlq-center.cpp").read_text(encoding="utf-8")
    assert f"case GGML_TYPE_{name.upper()}:" in source
    assert float(re.search(rf"case GGML_TYPE_{name.upper()}: +return ([0-9.]+)f;", source)[1]) == center.GAIN[name]


@pytest.fixture(scope="module")
def rounding(tmp_path_factory):
    """llama-ggmlq-round.h as a program."""
    folder = tmp_path_factory.mktemp("round")
    (folder / "main.cpp").write_text(
        """#include "llama-ggmlq-round.h"
#include <cstdio>
#include <cstdlib>
int main(int, char ** argv) { // type, head size, hadamard; then square and rows on stdin
    const int64_t n = atoi(argv[2]);
    std::vector<double> square(n);
    std::vector<float> row(n);
    if (fread(square.data(), sizeof(double), n, stdin) != (size_t) n) { return 1; }
    const ggmlq_llama_round round(atoi(argv[1]), n, atoi(argv[3]), square);
    while (fread(row.data(), sizeof(float), n, stdin) == (size_t) n) {
        round(row.data(), row.data());
        fwrite(row.data(), sizeof(float), n, stdout);
    }
}
""")
    c, cxx, flags = os.environ.get("CC", "cc"), os.environ.get("CXX", "c++"), ["-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/ggml"]
    subprocess.run([c, "-std=c11", *flags, "-c", ROOT / "csrc/ggmlq-codec.c", "-o", folder / "codec.o"], check=True)
    subprocess.run([cxx, "-std=c++17", *flags, folder / "main.cpp", folder / "codec.o", "-o", folder / "round"], check=True)

    def run(rows, square, name, hadamard):
        given = square.astype(np.float64).tobytes() + rows.astype(np.float32).tobytes()
        command = [folder / "round", str(type_info(name).id), str(rows.shape[1]), str(hadamard)]
        return np.frombuffer(subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout, np.float32).reshape(rows.shape)

    return run


@pytest.mark.parametrize("name, head_size, hadamard", [("tq3_0", 64, 64), ("tq3_0", 96, 0), ("planar3", 256, 256)])
def test_rounding_for_queries(rounding, name, head_size, hadamard):
    """C++ and numpy agree, products with such queries lose less, and the encoder finds the levels again."""
    rng = np.random.default_rng(5)
    spread = np.exp(rng.normal(0, 1, head_size))
    rows = (rng.normal(0, 1, (400, head_size)) * spread).astype(np.float32)
    queries = rng.normal(0, 1, (500, head_size)) * spread
    square = (queries**2).mean(0)
    found, wanted = rounding(rows, square, name, hadamard), center.round_for_queries(rows, square, name, hadamard)
    # a value at a boundary may go either way, and all that follow with it
    same = np.abs(found - wanted).max(1) < 1e-4 * np.abs(wanted).max(1)
    assert same.mean() > 0.97, same.mean()

    def spread_out(x):
        return hadamard_transform(x, hadamard) if hadamard else x

    def stored(x):
        return spread_out(pyggmlq.dequantize(pyggmlq.quantize(np.ascontiguousarray(spread_out(x)), type=name), type=name))

    error, plain = ((((stored(x) - rows) @ queries.T) ** 2).mean() for x in (found, rows))
    assert error < 0.75 * plain, (error, plain)
    kept = np.abs(stored(found) - found).max(1) < 2e-3 * np.abs(found).max(1)
    assert kept.mean() > 0.95, kept.mean()


def test_rounding_leaves_what_has_no_levels(rounding):
    rows = np.zeros((3, 64), np.float32)
    rows[1, 5], rows[2, 40] = np.nan, np.inf
    assert np.array_equal(rounding(rows, np.ones(64), "tq3_0", 64), rows, equal_nan=True)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: center.pairs(3, True), "n_rot is 3"),
        (lambda: center.turns([1.0, np.inf]), "wanted finite numbers"),
        (lambda: center.turns(1.0), "frequencies are"),
        (lambda: center.rope(np.zeros((2, 8)), np.zeros((3, 4)), np.zeros((3, 4)), True), "of its tokens"),
        (lambda: center.rope(np.zeros((2, 8)), np.zeros((2, 5)), np.zeros((2, 5)), True), "at most the head size"),
        (lambda: center.row(np.zeros((2, 4)), np.zeros((2, 3)), True), "wanted both"),
        (lambda: center.row(np.zeros((2, 4)), np.zeros((2, 4)), True, np.ones(3, bool)), "wanted bool"),
        (lambda: center.fit(np.zeros((2, 9, 8)), np.zeros((3, 9, 8)), 8, True), "multiple of kv_heads"),
        (lambda: center.fit(np.zeros((2, 5, 8)), np.zeros((2, 5, 8)), 8, True), "found 5 tokens"),
        (lambda: center.shorter(center.Calibration(np.zeros((2, 8)), np.ones((2, 8)), 8, True), np.zeros((3, 1, 8))), "with .2, 8. heads"),
        (lambda: center.query(center.Calibration(np.zeros((2, 8)), np.ones((2, 8)), 8, True), np.zeros((3, 1, 8))), "multiple of 2"),
        (lambda: center.round_for_queries(np.zeros((2, 48)), np.ones(48), "tq3_0", 0), "a multiple of 32"),
    ],
)
def test_bad_input_is_told_so(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.fixture
def make_hard_keys(monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_hard_keys
    import make_random_gguf

    def make(folder, *options):
        """A model of random weights and its copy with hard keys: the readers of both, and the angle."""
        import gguf

        model, hard = folder / "model.gguf", folder / "hard.gguf"
        if not model.exists():
            shape = ["--layers", "2", "--heads", "4", "--heads-kv", "2", "--head-size", "64", "--embd", "96", "--type", "q8_0"]
            make_random_gguf.write(make_random_gguf.parse([str(model), *shape]))
        angle = make_hard_keys.write(make_hard_keys.parse([str(model), str(hard), *options]))
        return gguf.GGUFReader(model), gguf.GGUFReader(hard), angle

    make.module, make.error = make_hard_keys, make_hard_keys.HardKeysError
    return make


def test_hard_keys_differ_in_bias_and_frequency_alone(make_hard_keys, tmp_path):
    old, new, angle = make_hard_keys(tmp_path, "--bias", "70", "--tokens", "100")
    assert angle == pytest.approx(100 * 10000 ** (-62 / 64))
    assert [(key, field.contents(), field.types) for key, field in old.fields.items() if not key.startswith("GGUF.")] == [
        (key, field.contents(), field.types) for key, field in new.fields.items() if not key.startswith("GGUF.")
    ]
    tensors = {tensor.name: tensor for tensor in new.tensors}
    for tensor in old.tensors:
        copy = tensors.pop(tensor.name)
        assert copy.tensor_type == tensor.tensor_type and list(copy.shape) == list(tensor.shape) and np.array_equal(copy.data, tensor.data)
    wanted = np.zeros(128, np.float32)
    wanted[[62, 126]] = 70
    assert tensors.pop("rope_freqs.weight").data.tolist() == [1] * 31 + [1000]
    assert {name: tensor.data.tolist() for name, tensor in tensors.items()} == {f"blk.{i}.attn_k.bias": wanted.tolist() for i in range(2)}

    # what is there already is added to, or multiplied
    (tmp_path / "hard.gguf").rename(tmp_path / "model.gguf")
    _, new, slower = make_hard_keys(tmp_path, "--bias", "5", "--tokens", "100", "--slower", "2")
    tensors = {tensor.name: tensor.data for tensor in new.tensors}
    assert slower == pytest.approx(angle / 1000)
    assert tensors["blk.1.attn_k.bias"][[61, 62, 126]].tolist() == [0, 75, 75] and tensors["rope_freqs.weight"][-2:].tolist() == [1, 2000]
    (tmp_path / "hard.gguf").unlink()
    _, new, _ = make_hard_keys(tmp_path, "--tokens", "100", "--slower", "1")
    assert [t.data.tolist() for t in new.tensors if t.name == "rope_freqs.weight"] == [tensors["rope_freqs.weight"].tolist()[:-1] + [1000]]


def test_what_hard_keys_can_not_be_made_of_is_said(make_hard_keys, tmp_path):
    with pytest.raises(make_hard_keys.error, match=r"turns by 0\.137 rad in 1024 tokens, wanted at most 0\.02: at most 149 tokens"):
        make_hard_keys(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf"}
    make_hard_keys(tmp_path, "--tokens", "149")
    with pytest.raises(make_hard_keys.error, match="exists already"):
        make_hard_keys(tmp_path, "--tokens", "149")
    with pytest.raises(make_hard_keys.error, match="can't be read as GGUF"):
        make_hard_keys.module.write(make_hard_keys.module.parse([__file__, str(tmp_path / "other.gguf")]))
    with pytest.raises(SystemExit):
        make_hard_keys.module.parse(["model.gguf", "hard.gguf", "--bias", "nan"])
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(make_hard_keys.error, match="the architecture is gemma3, wanted llama"):
        make_hard_keys.module.write(make_hard_keys.module.parse([str(tmp_path / "gemma.gguf"), str(tmp_path / "other.gguf")]))
