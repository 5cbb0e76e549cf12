# SPDX-License-Identifier: MIT
"""Centered keys in the patched llama.cpp 0.3.36 with real models: with an f16 cache, which shows the method's own error, and with ours."""

from __future__ import annotations

import numpy as np
import pytest

from test_llama_cpp import complete, gemma, patched_tree, programs, smollm2  # noqa: F401  (fixtures)
from test_llama_states import PREFIX, kld, probe, start  # noqa: F401  (fixtures)

pytestmark = pytest.mark.llama

CENTERED, PLAIN = ({"GGMLQ_KV_CENTER": mode} for mode in ("all", "off"))


def logits(start, model, k, v, env, attention="on", actions=(), more=(), seq=0, at=PREFIX):  # noqa: F811
    """Log probabilities after the prefix and these commands, and the log."""
    with start(model, k, v, attention, env=env, more=more) as p:
        p.do("prefix", PREFIX, 0)
        for action in actions:
            p.do(*action)
        path = p.folder / "logits"
        p.do("logits", at, 32, seq, path)
        x = np.fromfile(path, np.float32).reshape(32, -1).astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True)), p.log()


def exact(start, model, **options):  # noqa: F811
    """With an f16 cache, centered keys answer as plain ones do: within what f16 and f32 caches, with and without flash attention, differ by, since
    small models turn any other rounding of a key into a KLD of thousandths. Three bits, or a wrong row, cost ten times that."""
    plain = [logits(start, model, t, t, PLAIN, attention, **options) for t, attention in (("f16", "on"), ("f16", "off"), ("f32", "off"))]
    noise = max(kld(p[0], q[0]).mean() for p in plain for q in plain)
    assert noise < 0.005
    for attention, (wanted, log) in zip(("on", "off"), plain):
        assert "centered" not in log
        found, log = logits(start, model, "f16", "f16", CENTERED, attention, **options)
        assert f"keys are centered: {dict(smollm2=30, gemma=18)[model]} layers" in log
        assert 0 < kld(wanted, found).mean() < 2 * noise


@pytest.mark.parametrize("model", ["smollm2", "gemma"])
def test_centering_is_exact(start, model):  # noqa: F811
    """Gemma has two RoPEs of distant pairs and sliding windows, SmolLM2 neighbouring pairs."""
    exact(start, model)


def test_keys_that_move(start):  # noqa: F811
    """K-shift turns the positional rows as it turns keys."""
    exact(start, "smollm2", actions=[("drop", 8, 64)], at=PREFIX - 64)


def test_sequences_that_are_copied(start):  # noqa: F811
    """A copied stream takes its positional rows along."""
    exact(start, "smollm2", actions=[("copy",)], more=("streams",), seq=1)


@pytest.mark.parametrize("model, k, attention", [("smollm2", "tq3_0", "on"), ("smollm2", "tq3_0", "off"), ("gemma", "tq3_0", "on"), ("gemma", "planar3", "on")])
def test_three_bits_lose_less(start, model, k, attention):  # noqa: F811
    reference = logits(start, model, "f16", "f16", PLAIN)[0]
    plain = kld(reference, logits(start, model, k, "f16", PLAIN, attention)[0]).mean()
    centered = kld(reference, logits(start, model, k, "f16", {"GGMLQ_KV_CENTER": "auto"}, attention)[0]).mean()
    assert centered < plain / 2, (centered, plain)


def test_keys_of_tq3_0_are_rotated_where_they_are_centered(start):  # noqa: F811
    """By llama.cpp's attn_rot, which is left out for this type otherwise: its switch changes nothing then."""
    off = {"LLAMA_ATTN_ROT_DISABLE": "1"}
    for env, same in (PLAIN, True), ({"GGMLQ_KV_CENTER": "auto"}, False):
        rotated, log = logits(start, "smollm2", "tq3_0", "f16", env)
        unrotated, log_off = logits(start, "smollm2", "tq3_0", "f16", {**env, **off})
        assert np.array_equal(rotated, unrotated) == same
        assert ("attn_rot_k = 1" in log, "attn_rot_k = 1" in log_off) == (not same, False)


def test_off_is_the_default_and_changes_nothing(start):  # noqa: F811
    unset, log = logits(start, "smollm2", "tq3_0", "tq3_0", {})
    assert "centered" not in log
    assert np.array_equal(unset, logits(start, "smollm2", "tq3_0", "tq3_0", PLAIN)[0])
    auto, log = logits(start, "smollm2", "q4_0", "q4_0", {"GGMLQ_KV_CENTER": "auto"})  # only keys of our types
    assert "centered" not in log
    assert np.array_equal(auto, logits(start, "smollm2", "q4_0", "q4_0", PLAIN)[0])


AUTO = {"GGMLQ_KV_CENTER": "auto"}


@pytest.fixture
def other(tmp_path):
    """Another calibration: of a few words."""
    (tmp_path / "words").write_text("The harbour was empty that morning, and the fishermen mended their nets in the sun. " * 2, encoding="utf-8")
    return {**AUTO, "GGMLQ_KV_CENTER_TEXT": str(tmp_path / "words")}


def restored(start, model, k, v, env, kind, path, actions=(), after=(), at=PREFIX, others=False, **options):  # noqa: F811
    """Log probabilities and log of a context that restores a file; `others`: while another sequence is in its cache."""
    with start(model, k, v, env=env, **options) as p:
        if others:
            p.do("prefix", 40, 1)
        assert p.ask("load", kind, path, 0) == f"restored {PREFIX}", p.log()[-2000:]
        for action in after:
            p.do(*action)
        return p.logits(at), p.log()


@pytest.mark.parametrize("model, k, v, kind, options", [
    ("smollm2", "tq3_0", "tq3_0", "session", {}),
    ("smollm2", "tq3_0", "f16", "sequence", {"attention": "off"}),
    ("smollm2", "tq3_0", "f16", "session", {"more": ("streams",)}),
    ("gemma", "planar3", "planar3", "session", {}),
    ("gemma", "tq3_0", "planar3", "sequence", {"more": ("window",)}),
])  # fmt: skip
def test_a_state_goes_on_as_without_the_interruption(start, other, model, k, v, kind, options, tmp_path):  # noqa: F811
    """The same bits, in a context with the same calibration, and in an empty one with another, which takes over the state's."""
    with start(model, k, v, env=AUTO, **options) as p:
        p.do("prefix", PREFIX, 0)
        p.do("save", kind, tmp_path / "state", PREFIX, 0)
        wanted = p.logits()
    same, log = restored(start, model, k, v, AUTO, kind, tmp_path / "state", **options)
    assert "from now on" not in log and "converting" not in log
    taken, log = restored(start, model, k, v, other, kind, tmp_path / "state", **options)
    assert "keys are centered by the saved calibration" in log and "converting" not in log
    assert np.array_equal(wanted, same) and np.array_equal(wanted, taken)
    with start(model, k, v, env=other, **options) as p:  # what it took over it saves
        p.do("load", kind, tmp_path / "state", 0) if False else p.ask("load", kind, tmp_path / "state", 0)
        p.do("save", kind, tmp_path / "again", PREFIX, 0)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "state").read_bytes()


def test_the_text_of_a_calibration(start, tmp_path):  # noqa: F811
    """Of a file, where one is named: fewer tokens, other means; one that can't be read leaves keys as they are."""
    (tmp_path / "prose").write_text("The harbour was empty that morning, and the fishermen mended their nets in the sun. " * 2, encoding="utf-8")
    builtin, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": "auto"})
    assert "keys are centered: 30 layers, calibrated on 435 tokens" in log
    other, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": "auto", "GGMLQ_KV_CENTER_TEXT": str(tmp_path / "prose")})
    assert "keys are centered: 30 layers, calibrated on 3" in log and not np.array_equal(builtin, other)
    plain, log = logits(start, "smollm2", "tq3_0", "f16", {"GGMLQ_KV_CENTER": "auto", "GGMLQ_KV_CENTER_TEXT": str(tmp_path / "none")})
    assert "keys are not centered: GGMLQ_KV_CENTER_TEXT is" in log and "can't be read or is empty" in log
    assert np.array_equal(plain, logits(start, "smollm2", "tq3_0", "f16", PLAIN)[0])


def test_what_can_not_be_centered_is_said(start, smollm2):  # noqa: F811
    with pytest.raises(AssertionError, match="GGMLQ_KV_CENTER is 'on', wanted off, auto or all"), start("smollm2", "tq3_0", "f16", env={"GGMLQ_KV_CENTER": "on"}):
        pass
    # ggml's attention, not ours, reads q5_0: it can't add the missing term
    log = logits(start, "smollm2", "tq3_0", "q5_0", CENTERED)[1]
    assert "keys are not centered: CPU has no attention for centered keys of type tq3_0 with values of type q5_0" in log


def test_the_argument(programs, smollm2):  # noqa: F811
    """--kv-center of llama.cpp's programs is stronger than the variable; a wrong value of either is refused before the model is loaded."""
    for argument, env, centered in ("auto", "off", True), ("off", "auto", False):
        text, log, status = complete(programs, smollm2, "tq3_0", "f16", "-fa", "on", "--kv-center", argument, n_predict=2, env={"GGMLQ_KV_CENTER": env})
        assert status == 0 and ("keys are centered: 30 layers" in log) == centered, log
    _, log, status = complete(programs, smollm2, "tq3_0", "f16", "--kv-center", "on")
    assert status == 1 and """error while handling argument "--kv-center": it is 'on', wanted off, auto or all""" in log and "loading model" not in log
    _, log, status = complete(programs, smollm2, "tq3_0", "f16", env={"GGMLQ_KV_CENTER": "on"})
    assert status == 1 and """error while handling environment variable "GGMLQ_KV_CENTER": it is 'on', wanted off, auto or all""" in log
