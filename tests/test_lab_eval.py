# SPDX-License-Identifier: MIT
"""`pyggmlq eval`: references against what is known of them, metrics against cases with known answers, and the command."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from typer.testing import CliRunner

from pyggmlq.cli import app
from pyggmlq.lab import LabError, codecs, data, evaluate, record

RNG = np.random.default_rng(5)
GAUSS = RNG.standard_normal((2048, 512), dtype=np.float32)
BY_NAME = {codec.name: codec for codec in codecs.all_codecs()}


def errors(name: str, x: np.ndarray) -> dict[str, float]:
    return evaluate.value_errors(x, BY_NAME[name].round_trip(x))


# Codecs --------------------------------------------------------------------------------------------------------------


def test_the_list_is_complete():
    assert len(BY_NAME) == len(codecs.all_codecs())
    for method in ("turboquant", "turboquant-qjl", "turboquant-wht", "rotorquant", "isoquant", "isoquant-fast", "planarquant"):
        assert {f"{method}-{bits}" for bits in (2, 3, 4)} <= set(BY_NAME)
    for name in ("tq3_0", "planar3", "q8_0", "q5_0", "q4_0", "iq4_nl", "rotorquant-3", "isoquant-3", "planarquant-3"):
        assert {name, f"h+{name}"} <= set(BY_NAME)


def test_ours_reach_what_the_format_promises():
    assert errors("tq3_0", GAUSS)["cosine_mean"] >= 0.9866 and errors("planar3", GAUSS)["cosine_mean"] >= 0.9836


def test_planar3_needs_a_hadamard_on_outliers():
    x = data.outlier(np.random.default_rng(0), 512, 512)
    assert errors("planar3", x)["cosine_mean"] < 0.95
    assert errors("h+planar3", x)["cosine_mean"] > 0.98


@pytest.mark.parametrize("rotation", codecs.ROTATIONS)
@pytest.mark.parametrize("width", [128, 512])
def test_rotations_are_orthonormal(rotation: str, width: int):
    turn = codecs.ROTATIONS[rotation]
    x = GAUSS[:16, :width]
    y = turn.apply(x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(turn.undo(y), x, atol=1e-5)
    assert np.abs(y - x).max() > 0.5


def test_rotations_stay_in_their_groups():
    """A value may only reach the values that its method mixes it with: 2, 3, 4 neighbours, or the whole row."""
    x = np.zeros((1, 120), np.float32)
    x[0, 12] = 1
    for name, reach in (("planarquant", range(12, 14)), ("rotorquant", range(12, 15)), ("isoquant", range(12, 16)), ("isoquant-fast", range(12, 16))):
        assert set(np.flatnonzero(np.abs(codecs.ROTATIONS[name].apply(x)[0]) > 1e-7)) == set(reach)
    assert (np.abs(codecs.ROTATIONS["turboquant"].apply(x)) > 1e-7).all()


def test_costs_of_rotations_at_128_are_those_published():
    """RotorQuant 2,408 multiply-adds, IsoQuant 1,024, IsoQuant-Fast 512 (arXiv 2603.28430; a group of two values short of 128
    counts as a whole one there)."""
    assert BY_NAME["isoquant-3"].multiply_adds(128) == 1024
    assert BY_NAME["isoquant-fast-3"].multiply_adds(128) == 512
    assert BY_NAME["rotorquant-3"].multiply_adds(129) == 2408
    assert BY_NAME["turboquant-3"].parameters(128) == 128**2
    assert BY_NAME["turboquant-wht-3"].multiply_adds(128) == 128 * 7


def test_codebooks_are_those_of_lloyd_and_max():
    np.testing.assert_allclose(codecs.gaussian_codebook(2)[2:], [0.4528, 1.5104], atol=2e-4)
    np.testing.assert_allclose(codecs.gaussian_codebook(3)[4:], [0.24509, 0.75601, 1.34391, 2.15195], atol=2e-4)
    np.testing.assert_allclose(codecs.gaussian_codebook(4), -codecs.gaussian_codebook(4)[::-1], atol=1e-6)


@pytest.mark.parametrize(("bits", "wanted"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
@pytest.mark.parametrize("method", ["turboquant", "turboquant-wht", "rotorquant", "isoquant", "isoquant-fast", "planarquant"])
def test_scalar_methods_reach_the_distortion_of_the_gaussian_quantizer(method: str, bits: int, wanted: float):
    assert errors(f"{method}-{bits}", GAUSS)["relative_mse"] == pytest.approx(wanted, rel=0.02)


def test_the_sketch_makes_dot_products_unbiased():
    """The plain quantizer shrinks dot products by its distortion; with QJL their slope is 1, at pi/2 times the error of one bit less."""
    slopes = {}
    for name in ("turboquant-2", "turboquant-qjl-2"):
        y = BY_NAME[name].round_trip(GAUSS)
        slopes[name] = (y * GAUSS).sum() / (GAUSS * GAUSS).sum()
    assert slopes["turboquant-2"] == pytest.approx(1 - 0.1175, abs=0.01)
    assert slopes["turboquant-qjl-2"] == pytest.approx(1, abs=0.01)
    assert errors("turboquant-qjl-3", GAUSS)["relative_mse"] == pytest.approx(0.1175 * math.pi / 2, rel=0.03)


def test_hadamard_is_its_own_inverse_in_blocks_of_a_power_of_two():
    x = GAUSS[:8, :192]  # 64 * 3
    np.testing.assert_allclose(codecs.hadamard(codecs.hadamard(x)), x, atol=1e-5)
    one = np.zeros((1, 192), np.float32)
    one[0, 64] = 8
    assert set(np.flatnonzero(codecs.hadamard(one))) == set(range(64, 128))


def test_iq4_nl_is_encoded_as_gguf_decodes_it():
    y = dequantize(codecs.encode_iq4_nl(GAUSS), gguf.GGMLQuantizationType.IQ4_NL)
    assert errors("q4_0", GAUSS)["relative_mse"] > evaluate.value_errors(GAUSS, y)["relative_mse"] > errors("q5_0", GAUSS)["relative_mse"]
    zeros = np.zeros((2, 64), np.float32)
    assert not dequantize(codecs.encode_iq4_nl(zeros), gguf.GGMLQuantizationType.IQ4_NL).any()
    levels = np.tile(np.array(gguf.quants.IQ4_NL.kvalues, np.float32), (1, 2))
    np.testing.assert_array_equal(dequantize(codecs.encode_iq4_nl(levels), gguf.GGMLQuantizationType.IQ4_NL), levels)


@pytest.mark.parametrize("name", [name for name, codec in BY_NAME.items() if not codec.centered])  # the others are the same on rows that are no keys
def test_every_codec_keeps_shape_and_zeros(name: str):
    x = GAUSS[:3, :128].copy()
    x[1] = 0
    y = BY_NAME[name].round_trip(x)
    assert y.shape == x.shape and y.dtype == np.float32 and np.isfinite(y).all()
    assert not y[1].any()
    assert 2 <= BY_NAME[name].bits(128) <= 8.5


# Metrics -------------------------------------------------------------------------------------------------------------


def test_errors_of_equal_rows_are_none():
    found = {**evaluate.value_errors(GAUSS, GAUSS), **evaluate.attention_errors(GAUSS[:8], GAUSS, GAUSS)}
    ones = {"cosine_mean", "cosine_p1", "cosine_min", "score_pearson", "top1"}
    assert all(value == pytest.approx(1 if name in ones else 0, abs=1e-9) for name, value in found.items())


def test_errors_of_halved_rows():
    found = evaluate.value_errors(GAUSS, GAUSS / 2)
    assert found["cosine_min"] == pytest.approx(1) and found["norm_error"] == pytest.approx(0.5)
    assert found["relative_mse"] == pytest.approx(0.25)


def test_softmax_kld_of_two_keys_by_hand():
    """Scores (0, 1) become (0, 0): weights (1, e)/(1 + e) become one half each."""
    q = np.ones((1, 1), np.float32)
    p = math.e / (1 + math.e)
    wanted = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    found = evaluate.attention_errors(q, np.array([[0.0], [1.0]], np.float32), np.zeros((2, 1), np.float32))
    assert found["softmax_kld"] == pytest.approx(wanted) and found["top1"] == 0 and found["score_pearson"] == 0


def test_zero_rows_are_left_out_of_cosine_and_norm():
    x, y = GAUSS[:4].copy(), GAUSS[:4].copy()
    x[2] = y[2] = 0
    assert evaluate.value_errors(x, y)["cosine_min"] == pytest.approx(1)


# Data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", data.MADE)
def test_made_data_are_rows_that_a_seed_repeats(name: str):
    first, again = (data.MADE[name](np.random.default_rng(3), 200, 512) for _ in range(2))
    assert first.shape == (200, 512) and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert first.any(axis=1).all()


def test_e4m3_has_four_significant_bits():
    assert list(data.round_to_e4m3(np.array([1.0, 1.06, 1.07, 17.0, 1000, -0.001, 2**-9], np.float32))) == [1, 1, 1.125, 16, 448, -(2**-9), 2**-9]


def test_files_are_read(tmp_path: Path):
    from safetensors.numpy import save_file

    np.save(tmp_path / "k.npy", GAUSS.reshape(2, 1024, 512))
    assert data.load(tmp_path / "k.npy", 100, 0)["k"].shape == (100, 512)
    save_file({"layer0.k": GAUSS[:70], "positions": np.arange(70)}, tmp_path / "dump.safetensors")
    found = data.load(tmp_path / "dump.safetensors", 1000, 0)
    assert list(found) == ["layer0.k"]
    np.testing.assert_array_equal(found["layer0.k"], GAUSS[:70])
    header = json.dumps({"k": {"dtype": "BF16", "shape": [2, 64], "data_offsets": [0, 256]}, "f8": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [256, 260]}})
    bits = GAUSS[:2, :64].view(np.uint32) >> 16
    (tmp_path / "bf16.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bits.astype("<u2").tobytes() + bytes(4))
    np.testing.assert_array_equal(data.load(tmp_path / "bf16.safetensors", 9, 0)["k"].view(np.uint32), bits << 16)


@pytest.mark.parametrize("case", ["nan", "cut npy", "cut safetensors", "integers", "one axis", "other kind"])
def test_bad_files_are_one_sentence(tmp_path: Path, case: str):
    from safetensors.numpy import save_file

    path, wanted = tmp_path / "x.npy", ""
    bad = GAUSS[:70].copy()
    bad[[3, 8], 5] = np.nan
    if case == "nan":
        np.save(path, bad)
        wanted = "found NaN or infinity in 2 of 70 rows"
    elif case == "cut npy":
        np.save(path, GAUSS[:70])
        path.write_bytes(path.read_bytes()[:5000])
        wanted = "x.npy can't be read"
    elif case == "cut safetensors":
        path = tmp_path / "x.safetensors"
        save_file({"k": GAUSS[:70]}, path)
        path.write_bytes(path.read_bytes()[:5000])
        wanted = "x.safetensors is cut off or damaged: found 5000 bytes"
    elif case == "integers":
        np.save(path, np.ones((70, 64), int))
        wanted = "wanted rows of floats"
    elif case == "one axis":
        np.save(path, GAUSS[0])
        wanted = "wanted rows of floats"
    else:
        path = tmp_path / "x.csv"
        path.write_text("1,2")
        wanted = "wanted .npy or .safetensors"
    with pytest.raises(LabError, match=wanted):
        data.load(path, 100, 0)


# The command ---------------------------------------------------------------------------------------------------------


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_the_command_writes_json_csv_and_a_plot(tmp_path: Path):
    out = tmp_path / "out"
    done = invoke("random_normal", "outlier", "--only", "^(tq3_0|planar3|turboquant-[23]|q4_0)$", "--rows", 256, "--width", 128,
                  "--json", out / "e.json", "--csv", out / "e.csv", "--plot", out / "e.svg")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = record.read(out / "e.json")
    assert [row["codec"] for row in found["rows"]] == 2 * ["tq3_0", "planar3", "q4_0", "turboquant-2", "turboquant-3"]
    with (out / "e.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["relative_mse"]) for row in table] == [row["relative_mse"] for row in found["rows"]]
    assert "<svg" in (out / "e.svg").read_text() and not list(out.glob("*.new"))
    assert done.output.count("turboquant-3") == 2


def test_widths_that_a_codec_can_not_take_are_noted():
    done = invoke("random_normal", "--rows", 64, "--width", 96, "--only", "^(tq3_0|planar3)$")
    assert done.exit_code == 0
    assert "random_normal: planar3 needs rows of a multiple of 128 values, but these have 96" in done.output


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (["nonsense"], 2, "found 'nonsense', wanted a file or one of random_normal"),
        (["--only", "nothing"], 2, "no codec matches 'nothing'"),
        (["--only", "("], 2, "wanted a regular expression"),
        (["random_normal", "--only", "^c"], 2, "made rows have no positions"),
        (["--plot", "x.bmp"], 1, "wanted one of .png, .svg, .pdf"),
    ],
)
def test_usage_errors(arguments: list[str], status: int, wanted: str):
    done = invoke(*arguments)
    assert done.exit_code == status and wanted in " ".join(done.output.replace("│", " ").split())
