# SPDX-License-Identifier: MIT
"""flash_attn: the compiled kernel against float64 on decoded rows, for every pair of types and every option.

The kernel rounds the query to 8 bits where K is one of our types. The oracle is given the same rounded query, so that the
comparison stays as sharp as float32; that rounding has its own tests (test_reference.py, test_vectors.py).
"""
from __future__ import annotations

import multiprocessing
import os

import gguf
import numpy as np
import pytest
import tolerances

import pyggmlq
from pyggmlq import _cpu, center, reference
from pyggmlq._types import cache_types, foreign_types

CACHE_TYPES = [info.name for info in cache_types()]
BACKENDS = ["cpu", "reference", pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("hip", marks=pytest.mark.hip),
            pytest.param("metal", marks=pytest.mark.metal)]
ALL_TYPES = [info.name for info in foreign_types() + cache_types()]


def encode(x, name):
    """float32 (..., n) -> what flash_attn takes as k or v of that type."""
    if name in CACHE_TYPES:
        return pyggmlq.quantize(x, name)
    if name in ("f16", "f32"):
        return x.astype({"f16": np.float16, "f32": np.float32}[name])
    return gguf.quants.quantize(x, gguf.GGMLQuantizationType[name.upper()])


def rounded_query(q, name):
    """The query that a K of this type meets: rounded to 8 bits in the rotated space."""
    if name not in CACHE_TYPES:
        return q
    codec = reference.CODECS[name]
    d, levels = codec.encode_query_blocks(np.ascontiguousarray(q).reshape(-1, codec.block_length))
    return codec.unrotate_blocks(d[:, None] * levels).reshape(q.shape)


def rounded_term(w, c):
    """The same of a term: signed 14-bit integers for each 32 values of w, 13-bit ones for each 128 of a row of c, as ggmlq.h says."""

    def rounded(x, length, most):
        x = np.asarray(x, np.float32)
        padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % length)]).reshape(*x.shape[:-1], -1, length)
        largest = np.abs(padded).max(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            levels = np.where(largest > 0, np.rint(padded * (np.float32(most) / largest)), 0)
        return (levels * (largest / np.float32(most))).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]].astype(np.float32)

    return rounded(w, 32, 8191), rounded(c, 128, 4095)


def case(seed, type_k="f16", type_v="f16", n_heads=4, n_heads_kv=2, n_queries=3, n_kv=70, head=128, head_v=None, seqs=None):
    """(q, k, v): k and v encoded, seqs = (n_seqs, n_seqs_kv) or None for no such axis."""
    rng = np.random.default_rng(seed)
    lead_q, lead_kv = ((), ()) if seqs is None else ((seqs[0],), (seqs[1],))
    q = rng.standard_normal((*lead_q, n_heads, n_queries, head), np.float32)
    k = rng.standard_normal((*lead_kv, n_heads_kv, n_kv, head), np.float32)
    v = rng.standard_normal((*lead_kv, n_heads_kv, n_kv, head_v or head), np.float32)
    return q, encode(k, type_k), encode(v, type_v)


def agree(q, k, v, type_k, type_v, **options):
    """The cpu result, after comparing it with the reference within the bound of tolerances.attention."""
    found = pyggmlq.flash_attn(q, k, v, type_k=type_k, type_v=type_v, **options)
    options.pop("n_threads", None)
    scale = options.pop("scale", None) or q.shape[-1] ** -0.5
    q_met, k_met, type_met = rounded_query(q, type_k), k, type_k
    if term := options.pop("term", None):  # a query and a key with more values
        w, c = rounded_term(*term)
        decoded = reference._decode(k[None] if k.ndim == 3 else k, type_k).reshape(k.shape[:-1] + q.shape[-1:])
        c = np.broadcast_to(c[..., None, :, :], k.shape[:-1] + c.shape[-1:])
        q = q_met = np.concatenate([q_met, w], -1)
        k, k_met, type_met = *[np.concatenate([decoded, c], -1).astype(np.float32)] * 2, "f32"
    wanted = pyggmlq.flash_attn(
        q_met, k_met, v, type_k=type_met, type_v=type_v, backend="reference", scale=scale, **options
    )  # fmt: skip
    assert found.dtype == np.float32 and found.shape == wanted.shape == q.shape[:-1] + wanted.shape[-1:]
    k, v = (reference._decode(x[None] if x.ndim == 3 else x, t) for x, t in ((k, type_met), (v, type_v)))
    mask = options.get("mask")
    bias = 0 if mask is None else np.abs(mask[np.isfinite(mask)]).max(initial=0)
    bound = tolerances.attention(
        q.reshape(-1, q.shape[-1]), k.reshape(-1, k.shape[-1]), v.reshape(-1, v.shape[-1]), scale, bias, k.shape[2]
    )  # fmt: skip
    error = np.linalg.norm(found.astype(np.float64) - wanted, axis=-1).max(initial=0)
    assert error <= bound, (error, bound)
    # The bound can tell a right result from a wrong one.
    assert wanted.size == 0 or not wanted.any() or bound < 0.05 * np.linalg.norm(wanted, axis=-1).max()
    return found


@pytest.mark.parametrize("type_v", ALL_TYPES)
@pytest.mark.parametrize("type_k", ALL_TYPES)
def test_every_pair_of_types(type_k, type_v):
    agree(*case(1, type_k, type_v), type_k, type_v)


@pytest.mark.parametrize("head", [32, 64, 96, 128, 192, 256, 512, 1024])
@pytest.mark.parametrize("name", ALL_TYPES)
def test_head_sizes(name, head):
    if head % reference.CODECS[name].block_length:
        with pytest.raises(ValueError, match="wanted a multiple of"):
            pyggmlq.quantize(np.zeros(head, np.float32), name)
        return
    agree(*case(2, name, name, head=head), name, name)


@pytest.mark.parametrize("type_k, type_v, head, head_v", [("tq3_0", "planar3", 192, 128), ("planar3", "tq3_0", 128, 32),
                                                          ("f32", "tq3_0", 33, 64), ("tq3_0", "f16", 576, 7)])  # fmt: skip
def test_head_sizes_of_k_and_v_may_differ(type_k, type_v, head, head_v):
    agree(*case(3, type_k, type_v, head=head, head_v=head_v), type_k, type_v)


@pytest.mark.parametrize("n_queries", [1, 2, 19])
@pytest.mark.parametrize("group", [1, 3, 4, 8, 11])
@pytest.mark.parametrize("name", ["tq3_0", "planar3"])
def test_grouped_queries(name, group, n_queries):
    agree(*case(4, name, name, n_heads=2 * group, n_heads_kv=2, n_queries=n_queries, n_kv=33), name, name)


@pytest.mark.parametrize("n_kv", [1, 31, 32, 33, 64, 257])
def test_lengths_of_the_cache(n_kv):
    agree(*case(5, "tq3_0", "planar3", n_kv=n_kv), "tq3_0", "planar3")


@pytest.mark.parametrize("seqs", [(1, 1), (2, 2), (4, 2), (3, 1)])
def test_sequences(seqs):
    q, k, v = case(6, "tq3_0", "planar3", seqs=seqs)
    found = agree(q, k, v, "tq3_0", "planar3")
    for i in range(seqs[0]):  # each sequence is what it would be alone
        i_kv = i // (seqs[0] // seqs[1])
        alone = pyggmlq.flash_attn(q[i], k[i_kv], v[i_kv], type_k="tq3_0", type_v="planar3")
        assert np.array_equal(found[i], alone)


def causal_mask(n_queries, n_kv):
    visible = np.arange(n_kv) <= np.arange(n_queries)[:, None] + n_kv - n_queries
    return np.where(visible, 0, -np.inf).astype(np.float16)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (4,), (1, 1), (2, 1), (2, 4), (1, 2)])
@pytest.mark.parametrize("name", ["tq3_0", "planar3"])
def test_masks_repeat_over_heads_and_sequences(name, shape):
    q, k, v = case(7, name, name, seqs=(4, 2))
    mask = np.random.default_rng(7).uniform(-4, 0, (*shape, 3, 70)).astype(np.float16)
    mask[..., 1, 5:60] = -np.inf
    found = agree(q, k, v, name, name, mask=mask)
    full = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    full = np.tile(full, (4 // full.shape[0], 4 // full.shape[1], 1, 1))
    assert np.array_equal(found, pyggmlq.flash_attn(q, k, v, type_k=name, type_v=name, mask=full))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_masked_has_no_influence(backend):
    """Not even if it is NaN: an unwritten cache cell may hold anything. A query with nothing to look at gives zeros."""
    q, k, v = case(8, "tq3_0", "planar3", n_queries=4)
    mask = causal_mask(4, 70)
    mask[:, 40:] = -np.inf
    mask[2] = -np.inf
    options = dict(type_k="tq3_0", type_v="planar3", backend=backend)
    clean = pyggmlq.flash_attn(q, k, v, mask=mask, **options)
    assert not clean[:, 2].any() and clean[:, [0, 1, 3]].all()
    short = pyggmlq.flash_attn(q[:, [0, 1, 3]], k[:, :40], v[:, :40], **options)
    assert np.allclose(clean[:, [0, 1, 3]], short, rtol=0, atol=1e-6)
    k[:, 40:], v[:, 40:] = 0xFF, 0xFF
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, mask=mask, **options), clean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_one_query_sees_is_hidden_from_the_others(backend):
    """They share its decoding, not its NaN."""
    q, k, v = case(17, "tq3_0", "planar3", n_queries=3)
    v[:, 69] = 0xFF  # the last token: the causal mask shows it to the last query alone
    found = pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="planar3", mask=causal_mask(3, 70), backend=backend)
    assert np.isfinite(found[:, :2]).all() and np.isnan(found[:, 2]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_finite_rows_give_nan_where_they_are_seen(backend):
    q, k, v = case(9, "tq3_0", "planar3", n_heads=2, n_heads_kv=2)
    k[0, 3] = 0xFF  # a NaN scale
    found = pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="planar3", backend=backend)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@pytest.mark.parametrize("name", ["f16", "tq3_0", "planar3"])
def test_sinks(name):
    q, k, v = case(10, name, name)
    plain = agree(q, k, v, name, name)
    sinks = np.array([-np.inf, -2, 3, 60], np.float32)
    found = agree(q, k, v, name, name, sinks=sinks)
    assert np.array_equal(found[0], plain[0])
    assert np.linalg.norm(found[3]) < 1e-6 * np.linalg.norm(plain[3])
    hidden = np.full((3, 70), -np.inf, np.float16)
    assert not agree(q, k, v, name, name, sinks=sinks, mask=hidden).any()


@pytest.mark.parametrize("name", ["q8_0", "tq3_0", "planar3"])
def test_softcap_and_scale(name):
    q, k, v = case(11, name, name)
    capped = agree(q, k, v, name, name, scale=0.3, logit_softcap=2.0)
    assert not np.allclose(capped, agree(q, k, v, name, name, scale=0.3), atol=1e-2)


@pytest.mark.parametrize("n_heads", [4, 6, 8])
def test_alibi(n_heads):
    """Also where the number of heads isn't a power of two."""
    q, k, v = case(12, "tq3_0", "planar3", n_heads=n_heads)
    distance = -np.abs(np.arange(70) - np.array([[60], [10], [69]])).astype(np.float16)
    found = agree(q, k, v, "tq3_0", "planar3", mask=distance, max_bias=8.0)
    assert not np.allclose(found, agree(q, k, v, "tq3_0", "planar3", mask=distance), atol=1e-2)


def term_of(seed, q, k, size):
    """(w, c) that belong to q and k: of the size of a head's own scores."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((*q.shape[:-1], size), np.float32)
    return w, rng.standard_normal((*k.shape[:-3], k.shape[-2], size)).astype(np.float16)


@pytest.mark.parametrize("size", [1, 30, 32, 64, 100, 128])
@pytest.mark.parametrize("name", ["f16", "q4_0", "tq3_0", "planar3"])
def test_the_term_that_all_heads_share(name, size):
    q, k, v = case(18, name, name, n_heads=6, n_heads_kv=2)
    term = term_of(18, q, k, size)
    found = agree(q, k, v, name, name, term=term)
    assert np.abs(found - pyggmlq.flash_attn(q, k, v, type_k=name, type_v=name)).max() > 0.05


@pytest.mark.parametrize("size", [2, 64, 128, 256])
def test_the_rounding_of_the_term(size):
    """With keys of zeros and one value per token, the weights that come out are those of the terms alone: their ratios tell the error of each,
    also where one value of w is a thousand times the others, as with a large mean. Half a step of either factor times the other."""
    rng = np.random.default_rng(23)
    w = rng.standard_normal((1, 1, size)).astype(np.float32)
    w[..., 0] *= 1000
    c = np.cos(rng.uniform(0, 7, (9, size))).astype(np.float16)
    found = pyggmlq.flash_attn(
        np.zeros((1, 1, 256), np.float32), np.zeros((1, 9, 256), np.float32), np.eye(9, dtype=np.float32)[None], type_k="f32", type_v="f32",
        term=(w, c), scale=2e-3)  # fmt: skip
    logits = np.log(found[0, 0].astype(np.float64)) / 2e-3
    w, c = w[0, 0].astype(np.float64), c.astype(np.float64)
    half_steps = np.repeat([np.abs(w[i : i + 32]).max() / 8191 / 2 for i in range(0, size, 32)], 32)[:size]
    bound = np.abs(c) @ half_steps + np.abs(c).max(1) / 4095 / 2 * np.abs(w).sum()
    error = (logits - logits[0]) - (c @ w - (c @ w)[0])
    assert (np.abs(error) <= bound + bound[0] + 0.005).all()  # and the exponential of float32
    assert np.abs(error).max() > 0 and bound.max() < 0.005 * np.abs(w[0])


@pytest.mark.parametrize("size, neox", [(16, False), (64, True), (100, False), (128, True), (256, False)])
def test_the_term_of_neighbours(size, neox):
    """Where the rows of c are those of consecutive positions, one of 64 is turned to the others. That each pair is within ten roundings to f16: two of a
    row are 1.4, steps known from three rows twice that and as much again by their own rounding and that slow ones are lines, the row that is turned, and the one it
    is compared with. Rows that don't go on like that are taken as they are."""
    rng = np.random.default_rng(24)
    theta = (5000 + np.arange(200))[:, None] * 1e5 ** (-np.arange(size // 2) / (size // 2))
    c = (1.25 * center.row(np.cos(theta), np.sin(theta), neox)).astype(np.float16)
    w = 0.3 * rng.standard_normal((1, 1, size)).astype(np.float32)
    w[..., size // 2] = 20

    def terms(c, mask=None):
        found = pyggmlq.flash_attn(
            np.zeros((1, 1, 256), np.float32), np.zeros((1, 200, 256), np.float32), np.eye(200, dtype=np.float32)[None], type_k="f32", type_v="f32",
            term=(w, c), scale=1 / 64, mask=mask)  # fmt: skip
        with np.errstate(divide="ignore"):
            return 64 * np.log(found[0, 0].astype(np.float64))

    def error(c):
        exact = c.astype(np.float64) @ w[0, 0]
        return terms(c) - exact - (terms(c)[0] - exact[0])

    first, second = center.pairs(size, neox)
    pairs = np.hypot(w[0, 0, first], w[0, 0, second])
    bound = 10 * 1.25 / 4096 * pairs.sum() + 2.5 * 1.25 * len(pairs) * max(pairs.max() / 32000, pairs.sum() / 260000)  # and w, turned in 15 bits
    plain = terms(c)
    assert 0 < np.abs(error(c)).max() <= 2 * bound < 0.1 * np.ptp(plain)
    assert np.sqrt((error(c) ** 2).mean()) < 1.25 / 4096 * np.linalg.norm(pairs) * 3  # what it is on average

    unlike = c.copy()
    unlike[70, -1] += 0.5  # not looked at: so that tile was computed from its middle
    assert np.array_equal(terms(unlike), plain)
    unlike[70, 0] += 0.5
    assert 0 < np.abs(error(unlike)).max() <= 2 * bound and abs(terms(unlike)[70] - plain[70] - w[0, 0, [0, -1]].sum() / 2) < 2 * bound
    mask = np.zeros((1, 200), np.float16)
    mask[:, 180:] = -np.inf
    unlike = c.copy()
    unlike[180:] = np.nan
    assert np.array_equal(terms(unlike, mask), terms(c, mask))


def test_the_term_of_sequences_and_threads():
    q, k, v = case(19, "tq3_0", "planar3", n_heads=4, n_heads_kv=1, n_queries=2, n_kv=1000, seqs=(4, 2))
    term = term_of(19, q, k, 128)
    options = dict(type_k="tq3_0", type_v="planar3", mask=causal_mask(2, 1000), logit_softcap=4.0)
    found = agree(q, k, v, term=term, n_threads=3, **options)
    for i in range(4):  # each sequence is what it would be alone
        alone = pyggmlq.flash_attn(q[i], k[i // 2], v[i // 2], term=(term[0][i], term[1][i // 2]), **options)
        assert np.allclose(found[i], alone, rtol=0, atol=1e-5)
    wide_w, wide_c = np.full((4, 2, 4, 130), 7, np.float32), np.full((2, 1000, 130), 7, np.float16)
    wide_w[..., :128], wide_c[..., :128] = term[0].swapaxes(1, 2), term[1]
    strided = (wide_w[..., :128].swapaxes(1, 2), wide_c[..., :128])
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, term=strided, n_threads=3, **options), found)


def test_a_term_where_the_token_is_hidden_has_no_influence():
    q, k, v = case(20, "tq3_0", "tq3_0", n_queries=1)
    w, c = term_of(20, q, k, 128)
    mask = np.zeros((1, 70), np.float16)
    mask[:, 40:] = -np.inf
    clean = pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="tq3_0", mask=mask, term=(w, c))
    c[40:] = np.nan
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="tq3_0", mask=mask, term=(w, c)), clean)


def test_the_term_of_a_centered_cache():
    """The use it is for: keys with a large mean before RoPE, centered, give what f32 keys do, at 3 bits."""
    rng = np.random.default_rng(21)
    n_rot, theta = 128, np.arange(70)[:, None] * 1e4 ** (-np.arange(64) / 64)
    before = 8 * rng.standard_normal((2, 1, 128)) + 0.05 * rng.standard_normal((2, 70, 128))
    keys = center.rope(before, np.cos(theta), np.sin(theta), True)
    q, _, v = case(21, "tq3_0", "f32")
    calibration = center.fit(before, np.concatenate([q] * 24, axis=1)[:, :70], n_rot, True)
    stored = center.center(calibration, keys, np.cos(theta), np.sin(theta)).astype(np.float32)
    scaled, w = (x.astype(np.float32) for x in center.query(calibration, q))
    c = center.row(np.cos(theta), np.sin(theta), True).astype(np.float32)
    wanted = pyggmlq.flash_attn(q, keys.astype(np.float32), v, type_k="f32", type_v="f32", scale=0.02)
    options = dict(type_k="tq3_0", type_v="f32", scale=0.02)
    plain = pyggmlq.flash_attn(q, encode(keys.astype(np.float32), "tq3_0"), v, **options)
    found = pyggmlq.flash_attn(scaled, encode(stored, "tq3_0"), v, term=(w, c.astype(np.float16)), **options)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(plain - wanted)


@pytest.mark.parametrize("w, c, words", [
    ((4, 3, 129), (70, 129), "1 to 128 values"),
    ((4, 2, 64), (70, 64), "as in q"),
    ((4, 3, 64), (69, 64), "as in k"),
    ((4, 3, 64), (70, 32), "as in w"),
])  # fmt: skip
def test_terms_that_do_not_fit(w, c, words):
    q, k, v = case(22, "tq3_0", "tq3_0")
    term = (np.zeros(w, np.float32), np.zeros(c, np.float16))
    with pytest.raises(ValueError, match=words):
        pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="tq3_0", term=term)


def test_everything_at_once():
    q, k, v = case(13, "planar3", "tq3_0", n_heads=12, n_heads_kv=2, n_queries=5, n_kv=100, head=256, seqs=(4, 2))
    sinks = np.linspace(-1, 1, 12, dtype=np.float32)
    options = dict(mask=causal_mask(5, 100), sinks=sinks, scale=0.1, max_bias=4.0, logit_softcap=5.0)
    agree(q, k, v, "planar3", "tq3_0", n_threads=3, **options)


@pytest.mark.parametrize("n_queries", [1, 7])
def test_threads_change_nothing(n_queries):
    q, k, v = case(14, "tq3_0", "planar3", n_heads=12, n_heads_kv=3, n_queries=n_queries)
    one = pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="planar3")
    for n_threads in (2, 3, 16, 100):
        assert np.array_equal(pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="planar3", n_threads=n_threads), one)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own():
    q, k, v = case(14, "tq3_0", "planar3")

    def attend():
        return pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="planar3", n_threads=3)

    wanted = attend()  # the parent has its threads now
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(0 if np.array_equal(attend(), wanted) else 1))
    child.start()
    child.join(60)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views(backend):
    """A cache is [token][head][row]; the views that attention wants have their axes swapped, and gaps."""
    q, k, v = case(15, "tq3_0", "f16")
    mask = np.random.default_rng(15).uniform(-4, 0, (3, 70)).astype(np.float16)
    options = dict(type_k="tq3_0", type_v="f16", backend=backend)
    wanted = pyggmlq.flash_attn(q, k, v, mask=mask, **options)
    # On a GPU the layout chooses the kernel, and one of them rounds queries: test_cuda.py holds both to their bounds.
    rounds = backend not in ("cpu", "reference")

    def same(found, atol=0.0):
        return np.allclose(found, wanted, rtol=0, atol=0.03 if rounds else atol)

    def gaps(x):  # the same values with heads and tokens swapped in memory, and unused bytes between rows
        wide = np.full((x.shape[1], x.shape[0], x.shape[2] + 2), 77, x.dtype)
        wide[..., :-2] = x.swapaxes(0, 1)
        return wide[..., :-2].swapaxes(0, 1)

    wide_mask = np.full((3, 90), 1, np.float16)
    wide_mask[:, :70] = mask
    found = pyggmlq.flash_attn(gaps(q), gaps(k), gaps(v), mask=wide_mask[:, :70], **options)
    assert same(found)
    transposed_q = np.asfortranarray(q)  # rows not contiguous: copied
    assert same(pyggmlq.flash_attn(transposed_q, k, v, mask=mask, **options))
    backwards = pyggmlq.flash_attn(q, k[:, ::-1], v[:, ::-1], mask=np.ascontiguousarray(mask[:, ::-1]), **options)
    assert same(backwards, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend):
    options = dict(type_k="tq3_0", type_v="planar3", backend=backend)
    q, k, v = case(16, "tq3_0", "planar3")
    assert not pyggmlq.flash_attn(q, k[:, :0], v[:, :0], **options).any()
    assert pyggmlq.flash_attn(q[:, :0], k, v, **options).shape == (4, 0, 128)
    assert pyggmlq.flash_attn(q[:0], k, v, **options).shape == (0, 3, 128)
    out = np.full((4, 3, 128), 7, np.float32)
    assert pyggmlq.flash_attn(q, k, v, out=out, **options) is out and np.abs(out).max() < 7
