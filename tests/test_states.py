# SPDX-License-Identifier: MIT
"""`pyggmlq convert-state`: files made here, their conversion against one of single rows, and what is refused."""
from __future__ import annotations

import json
import os
import random
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pyggmlq import _centered, _hadamard, center, states
from pyggmlq.cli import app
from state_files import IDS, cache, centered, damaged, decode, encode, places, state
from tolerances import QUALITY

UNTURNED = ("f32", "f16", "tq3_0")  # what llama.cpp doesn't rotate
TYPES = tuple(IDS)
HEADS = states.HeadSizes(128, 64)


def values(layers: int = 2, cells: int = 5, n: int = 256, seed: int = 3):
    return list(np.random.default_rng(seed).standard_normal((layers, cells, n), np.float32))


def convert(data: bytes, folder, *arguments, **options) -> bytes:
    (folder / "in").write_bytes(data)
    states.convert_state(folder / "in", folder / "out", *arguments, **options)
    return (folder / "out").read_bytes()


def refusal(data: bytes, folder, *arguments, **options) -> str:
    with pytest.raises(states.StateError) as problem:
        convert(data, folder, *arguments, **options)
    assert [path.name for path in folder.iterdir()] == ["in"], "something was written"
    return str(problem.value)


def hadamard(n: int) -> np.ndarray:
    """By its definition, Sylvester's construction."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return (h / np.sqrt(n)).astype(np.float64)


def turned(x: np.ndarray, size: int) -> np.ndarray:
    return (x.reshape(-1, size).astype(np.float64) @ hadamard(size)).reshape(x.shape).astype(np.float32)


# --- what is converted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["session", "sequence"])
@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
def test_every_type_becomes_every_other(kind, source, target, tmp_path):
    """The file is what writing the same rows, rotated where exactly one side is, as the target would have given."""
    k, v = values(), values(seed=4)
    found = convert(state(kind, cache(k, v, source, source)), tmp_path, target, target, HEADS)

    def wanted_rows(rows: list, size: int) -> list:
        stored = [decode(encode(x, source), source, len(x)) for x in rows]
        return stored if (source in UNTURNED) == (target in UNTURNED) else [_hadamard.hadamard(x, size) for x in stored]

    wanted = state(kind, cache(wanted_rows(k, 128), wanted_rows(v, 64), target, target))
    if source == target:
        wanted = state(kind, cache(k, v, source, source))
    assert found == wanted


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([32, 64, 128, 256]), st.integers(1, 40), st.integers(0, 2**32))
def test_the_transform_is_the_walsh_hadamard_matrix(size, n_rows, seed):
    x = np.random.default_rng(seed).standard_normal((n_rows, 2 * size), np.float32)
    assert np.allclose(_hadamard.hadamard(x, size), turned(x, size), atol=1e-5)
    assert np.allclose(_hadamard.hadamard(_hadamard.hadamard(x, size), size), x, atol=1e-5)


@pytest.mark.parametrize("name", ["tq3_0", "planar3"])
def test_there_and_back_costs_what_the_type_costs(name, tmp_path):
    k, v = values(n=512), values(n=512, seed=9)
    there = convert(state("session", cache(k, v, "f16", "f16")), tmp_path, name, name, HEADS)
    assert len(there) < 0.25 * len(state("session", cache(k, v, "f16", "f16")))
    (tmp_path / "in").unlink()
    back = convert(there, tmp_path, "f32", "f32", HEADS)
    _, parts = states._scan(open(tmp_path / "out", "rb"), len(back), None)
    rows = [part for part in parts if isinstance(part, states._Rows)]
    for row, x in zip(rows, [*k, *v]):
        y = np.frombuffer(back[row.offset : row.offset + row.size], np.float32).reshape(x.shape)
        assert np.sum((x - y) ** 2) / np.sum(x**2) < 1.15 * QUALITY[name][0]  # few rows: no exact mean


@pytest.mark.parametrize("heads, size_k, size_v", [((64, 64), 64, 64), ((256, 256), 256, 64), ((128, 128), 128, 64), ((32, 32), 0, 0), ((192, 96), 64, 0)])
def test_rotation_follows_the_head_size(heads, size_k, size_v, tmp_path):
    """K by the largest power of two that divides the head size, V by 64, neither if 64 doesn't divide it."""
    n = 768
    k, v = values(n=n), values(n=n, seed=8)
    found = convert(state("sequence", cache(k, v, "f32", "f32")), tmp_path, "q8_0", "q8_0", states.HeadSizes(*heads))
    turn = [[_hadamard.hadamard(x, size) if size else x for x in rows] for rows, size in ((k, size_k), (v, size_v))]
    assert found == state("sequence", cache(*turn, "q8_0", "q8_0"))


def test_without_rotation_no_head_size_is_needed(tmp_path):
    k, v = values(), values(seed=4)
    found = convert(state("sequence", cache(k, v, "f32", "f32")), tmp_path, "planar3", None, rotation=False)
    assert found == state("sequence", cache(k, v, "planar3", "f32"))


@pytest.mark.parametrize("source, target", [("q8_0", "planar3"), ("f32", "f16"), ("tq3_0", "f16")])
def test_between_rotated_or_between_unrotated_types_none_is_needed_either(source, target, tmp_path):
    convert(state("sequence", cache(values(), values(), source, source)), tmp_path, target, target)


def test_one_side_alone_leaves_the_other_as_it_is(tmp_path):
    k, v = values(), values(seed=4)
    assert convert(state("session", cache(k, v, "q8_0", "f16")), tmp_path, "q4_0", None) == state(
        "session", cache([decode(encode(x, "q8_0"), "q8_0", len(x)) for x in k], v, "q4_0", "f16")
    )


@pytest.mark.parametrize("kind, version, extra", [("session", 9, 8), ("session", 10, 12), ("sequence", 2, 8), ("sequence", 3, 12)])
def test_cells_of_models_with_two_dimensional_positions(kind, version, extra, tmp_path):
    k, v = values(), values(seed=4)
    found = convert(state(kind, cache(k, v, "f32", "f32", extra=bytes(range(extra))), version=version), tmp_path, "f16", "f16")
    assert found == state(kind, cache(k, v, "f16", "f16", extra=bytes(range(extra))), version=version)


def test_two_caches_and_cells_of_several_sequences(tmp_path):
    """Sliding windows: one cache after the other, each with its layers."""
    k, v, windowed = values(), values(seed=4), values(layers=5, cells=3, seed=5)
    whole = lambda name: state("session", cache(k, v, name, name, sequences=3), cache(windowed, windowed, name, name))  # noqa: E731
    assert convert(whole("f32"), tmp_path, "f16", "f16") == whole("f16")


def test_transposed_values_between_floats(tmp_path):
    k, v = values(), values(seed=4)
    found = convert(state("sequence", cache(k, v, "f32", "f32", transposed=True)), tmp_path, None, "f16")
    assert found == state("sequence", cache(k, v, "f32", "f16", transposed=True))


def centered_cache(type_k: str, type_v: str, neox: bool = True, rotates: bool = True, layers: int = 2):
    """A saved cache of two KV heads of 128, and its keys as they were."""
    rng = np.random.default_rng(8)
    k, v = values(layers=layers), values(layers=layers, seed=4)
    calibrations = [center.Calibration(rng.normal(0, 3, (2, 128)) * (np.arange(128) < 96), rng.uniform(0.5, 2, (2, 1)) * np.ones((2, 128)), 96, neox) for _ in k]
    positions = np.array([0, 1, 5, 6, 100_000])
    rows, centering = centered(k, calibrations, positions, rotates)
    return cache(rows, v, type_k, type_v, centering=centering, positions=positions), k, v


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("rotates, target", [(True, "f16"), (False, "f32"), (True, "q8_0")])
def test_centered_keys_of_another_type_are_what_they_were(rotates, target, neox, tmp_path):
    """And the file is one of any llama.cpp, rotated as its caches are. What is stored is f16 before or after, so a key of about 3 is off by 0.005."""
    data, k, v = centered_cache("f32" if target != "f32" else "f16", "f16", neox, rotates)
    found = convert(state("sequence", data), tmp_path, target, None)
    assert len(found) == len(state("sequence", cache(k, v, target, "f16")))
    _, parts = states._scan(open(tmp_path / "out", "rb"), len(found), None)
    for part, x in zip([part for part in parts if isinstance(part, states._Rows)], k):
        rows = decode(found[part.offset : part.offset + part.size], target, len(x))
        rows = _hadamard.hadamard(rows, 128) if target == "q8_0" else rows
        assert np.abs(rows - x).max() < (0.05 if target == "q8_0" else 0.02)
        assert np.abs(rows - x).max() > 0


def test_centered_keys_of_the_same_type_stay_centered(tmp_path):
    data, _, v = centered_cache("tq3_0", "f16")
    whole = state("session", data)
    assert convert(whole, tmp_path, None, "f16") == whole == convert(whole, tmp_path, "tq3_0", None)
    found = convert(whole, tmp_path, None, "f32")
    assert len(found) == len(whole) + 2 * sum(x.size for x in v)


def test_centered_and_other_layers_of_one_cache_are_refused(tmp_path):
    data, *_ = centered_cache("f16", "f16", layers=1)
    one = cache(values(), values(), "f16", "f16")
    mark = data.index(struct.pack("<II", 1, 5))  # the streams and cells
    cells = 5
    at = mark + 8 + 5 * 12
    mixed = data[:mark] + one[: 8 + 5 * 12] + data[at : at + cells] + one[8 + 5 * 12 :]
    assert convert(state("sequence", mixed), tmp_path, None, "f32")
    (tmp_path / "out").unlink()
    assert "let llama.cpp restore this state" in refusal(state("sequence", mixed), tmp_path, "f32", None)


def test_a_damaged_calibration_is_found(tmp_path):
    data, *_ = centered_cache("f16", "f16")
    whole = bytearray(state("sequence", data))
    whole[whole.index(struct.pack("<I", _centered.MARK)) + 100] ^= 4
    assert "with a wrong checksum: damaged" in refusal(bytes(whole), tmp_path, "f32", None)


def test_positional_rows_in_a_state_are_refused(tmp_path):
    """As an earlier version saved them."""
    data, *_ = centered_cache("f16", "f16")
    old = data.replace(struct.pack("<II", _centered.MARK, _centered.VERSION), struct.pack("<II", _centered.MARK, 1))
    text = refusal(state("sequence", old), tmp_path, "f32", None)
    assert "centered in a way (version 1) that isn't known, wanted version 2: let the prompt be computed again" in text


def test_an_empty_state_stays_empty(tmp_path):
    data = state("sequence", struct.pack("<II", 1, 0))
    assert convert(data, tmp_path, "tq3_0", "tq3_0") == data


def test_what_is_not_finite_is_passed_on(tmp_path):
    k = values()
    k[0][0, 0], k[0][1, 0], k[1][2, 3] = np.inf, np.nan, 1e30
    found = convert(state("sequence", cache(k, k, "f32", "f32")), tmp_path, "tq3_0", "f16", HEADS)
    with np.errstate(over="ignore"):
        assert len(found) == len(state("sequence", cache(k, k, "tq3_0", "f16")))


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(states, "_BATCH_BYTES", 64 << 10)
    x = values(layers=4, cells=2000, n=512)
    (tmp_path / "in").write_bytes(state("sequence", cache(x, x, "f16", "f16")))
    tracemalloc.start()
    states.convert_state(tmp_path / "in", tmp_path / "out", "tq3_0", "tq3_0", HEADS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20 < (tmp_path / "in").stat().st_size


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_a_missing_head_size(tmp_path):
    text = refusal(state("session", cache(values(), values(), "f16", "f16")), tmp_path, "planar3", None)
    assert text == "found no head size of K, wanted one: llama.cpp rotates quantized caches by heads, and the file doesn't have it"


def test_a_head_size_that_does_not_fit(tmp_path):
    text = refusal(state("session", cache(values(), values(), "f16", "f16")), tmp_path, None, "q8_0", states.HeadSizes(80, 80))
    assert text == "found V rows of 256 values, wanted a multiple of the head size, 80"


def test_a_row_that_is_no_whole_number_of_blocks(tmp_path):
    text = refusal(state("session", cache(values(n=192), values(n=192), "f16", "f16")), tmp_path, "planar3", None, HEADS)
    assert text == "found K rows of 192 values, wanted a multiple of 128 (planar3)"


def test_transposed_values_for_a_block_type(tmp_path):
    text = refusal(state("session", cache(values(), values(), "f16", "f16", transposed=True)), tmp_path, None, "tq3_0", HEADS)
    assert "found a transposed V cache, wanted one that was saved with flash attention on" in text


def test_a_cache_without_values(tmp_path):
    text = refusal(state("session", cache(values(), [], "f16", "f16")), tmp_path, "tq3_0", None, HEADS)
    assert text.endswith("caches of K and V are known, no recurrent layers, and none without values (MLA)")


def test_a_type_that_is_not_known(tmp_path):
    data = state("session", cache(values(), values(), "f16", "f16")).replace(struct.pack("<iQ", 1, 512), struct.pack("<iQ", 20, 512))
    assert refusal(data, tmp_path, "tq3_0", None, HEADS).startswith("found K rows of the type with id 20, wanted one of f32,")
    assert convert(data, tmp_path, None, None) == data


def test_another_architecture_than_the_models(tmp_path):
    data = state("session", cache(values(), values(), "f16", "f16"))
    text = refusal(data, tmp_path, "tq3_0", None, states.HeadSizes(128, 128, "gemma3"))
    assert text == "found a state of architecture 'llama', wanted 'gemma3' as the model"


@pytest.mark.parametrize("data", [b"", b"GGUF" + bytes(100), struct.pack("<III", states.SESSION, 8, 0), os.urandom(1000)], ids=["empty", "gguf", "old", "noise"])
def test_a_foreign_file(data, tmp_path):
    assert refusal(data, tmp_path, "tq3_0", "tq3_0", HEADS).startswith("found ")


def test_every_truncation(tmp_path):
    data = state("sequence", cache(values(layers=1, cells=2, n=32), values(layers=1, cells=2, n=32), "f16", "q8_0"))
    for size in range(len(data)):
        refusal(data[:size], tmp_path, "f32", None)


def test_ten_thousand_damaged_files(tmp_path, monkeypatch):
    """Converted whole or refused in a sentence, and nothing is left behind; never another exception."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a minute of waiting for the disk
    rng = random.Random(6)
    small = values(layers=2, cells=3, n=128)
    originals = [
        state("session", cache(small, small, "f16", "f16")),
        state("sequence", cache(small, small, "q8_0", "tq3_0")),
        state("sequence", cache(small, small, "f32", "f16", transposed=True)),
        state("session", cache(small, small, "f16", "f16", extra=bytes(12)), cache(small[:1], small[:1], "planar3", "q4_0", extra=bytes(12))),
        state("session", centered_cache("f16", "f16", layers=1)[0]),
    ]
    interesting = [places(data) for data in originals]
    outcomes = {"converted": 0, "refused": 0}
    for i in range(10_000):
        which = i % len(originals)
        (tmp_path / "in").write_bytes(damaged(originals[which], interesting[which], rng))
        try:
            states.convert_state(tmp_path / "in", tmp_path / "out", "tq3_0", rng.choice((None, "tq3_0", "f16")), states.HeadSizes(64, 64))
        except states.StateError as problem:
            outcomes["refused"] += 1
            assert str(problem).startswith("found ") and "\n" not in str(problem)
            assert [path.name for path in tmp_path.iterdir()] == ["in"]
        else:
            outcomes["converted"] += 1
            again = (tmp_path / "out").read_bytes()
            states._scan(open(tmp_path / "out", "rb"), len(again), None)
            (tmp_path / "out").unlink()
    assert min(outcomes.values()) > 1000, outcomes


# --- writing ------------------------------------------------------------------------------------------------------------


def test_the_target_may_be_the_source(tmp_path):
    data = state("sequence", cache(values(), values(), "f32", "f32"))
    (tmp_path / "state").write_bytes(data)
    states.convert_state(tmp_path / "state", tmp_path / "state", "f16", "f16")
    assert (tmp_path / "state").read_bytes() == state("sequence", cache(values(), values(), "f16", "f16"))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_leaves_the_old_target(tmp_path, monkeypatch):
    (tmp_path / "in").write_bytes(state("sequence", cache(values(), values(), "f32", "f32")))
    (tmp_path / "out").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        states.convert_state(tmp_path / "in", tmp_path / "out", "f16", "f16")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_without_the_package_gguf_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert convert(state("sequence", cache(values(), values(), "f16", "f16")), tmp_path, "tq3_0", "tq3_0", HEADS)
    (tmp_path / "out").unlink()
    text = refusal(state("sequence", cache(values(), values(), "f16", "f16")), tmp_path, "q8_0", None, HEADS)
    assert text == "found no package gguf, wanted it for this conversion: pip install 'pyggmlq[states]'"


# --- the command --------------------------------------------------------------------------------------------------------


def command(*words):
    return CliRunner().invoke(app, ["convert-state", *map(str, words)])


def test_command(tmp_path):
    (tmp_path / "in").write_bytes(state("session", cache(values(), values(), "f16", "f16")))
    done = command(tmp_path / "in", tmp_path / "out", "--type-k", "tq3_0", "--type-v", "planar3", "--head-size-k", 128, "--head-size-v", 128)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "session, 5 cached tokens, rotated or rotated back as llama.cpp's caches are", "K f16 -> tq3_0", "V f16 -> planar3",
        f"{(tmp_path / 'in').stat().st_size} -> {(tmp_path / 'out').stat().st_size} bytes",
    ]  # fmt: skip
    done = command(tmp_path / "out", tmp_path / "back", "--type-k", "f32", "--json")
    assert json.loads(done.output)["to_k"] == ["f32"] and json.loads(done.output)["rotated"] is False


def test_command_refuses_in_one_sentence(tmp_path):
    (tmp_path / "in").write_bytes(state("session", cache(values(), values(), "f16", "f16")))
    done = command(tmp_path / "in", tmp_path / "out", "--type-k", "planar3")
    assert done.exit_code == 1
    assert "error: found no head size of K" in done.output and "Nothing was written." in done.output
    done = command(tmp_path / "in", tmp_path / "out", "--type-k", "planar3", "--json")
    assert done.exit_code == 1 and json.loads(done.output)["ok"] is False
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, text", [
    ([], "found neither --type-k nor --type-v"),
    (["--type-k", "q3"], "--type-k: found 'q3', wanted one of f32, f16, q4_0, q8_0, tq3_0, planar3"),
])  # fmt: skip
def test_command_usage(words, text, tmp_path):
    (tmp_path / "in").write_bytes(b"")
    done = command(tmp_path / "in", tmp_path / "out", *words)
    assert done.exit_code == 2
    assert text in " ".join(done.output.replace("│", " ").split())
