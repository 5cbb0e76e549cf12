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
from hypothesis import given, settings
from hypothesis import strategies as st

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


def rounded_term(term):
    """The same of a term, as the CPU rounds it (ggmlq.h): (w, rows, by how much products may differ). w has one scale for a row, by its largest pair
    or the sum of its pairs; rows are multiples of 1/8191, where a cosine within 2^-20 decides."""
    pairs, w = len(term.turns), np.asarray(term.w, np.float32)
    first, second = center.pairs(2 * pairs, term.neox)
    size = np.abs(w[..., first]) + np.abs(w[..., second])
    most = np.add.reduceat(size, np.arange(0, pairs, 128), -1).max(-1)
    factor = np.minimum(np.float32(32000) / size.max(-1), np.float32(260000) / most)[..., None]
    exact = 8191 * reference.positional_rows(term.turns, term.positions, term.neox)
    open_ = np.abs(exact % 1 - 0.5) <= 8191 / 2**20
    part = 1.0 if term.part is None else term.part[..., None].astype(np.float64)
    w = np.rint(w * factor) / factor
    return w, part * np.rint(exact) / 8191, (np.abs(w).reshape(-1, 2 * pairs) @ (open_ / 8191).reshape(-1, 2 * pairs).T).max(initial=0)


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
    more = 0.0
    if term := options.pop("term", None):  # a query and a key with more values
        w, c, more = rounded_term(term)
        decoded = reference._decode(k[None] if k.ndim == 3 else k, type_k).reshape(k.shape[:-1] + q.shape[-1:])
        c = np.broadcast_to(c[..., None, :, :], k.shape[:-1] + c.shape[-1:])
        q = q_met = np.concatenate([q_met, w], -1).astype(np.float32)
        k, k_met, type_met = *[np.concatenate([decoded, c], -1).astype(np.float32)] * 2, "f32"
    wanted = pyggmlq.flash_attn(
        q_met, k_met, v, type_k=type_met, type_v=type_v, backend="reference", scale=scale, **options
    )  # fmt: skip
    assert found.dtype == np.float32 and found.shape == wanted.shape == q.shape[:-1] + wanted.shape[-1:]
    k, v = (reference._decode(x[None] if x.ndim == 3 else x, t) for x, t in ((k, type_met), (v, type_v)))
    mask = options.get("mask")
    bias = 0 if mask is None else np.abs(mask[np.isfinite(mask)]).max(initial=0)
    bound = tolerances.attention(
        q.reshape(-1, q.shape[-1]), k.reshape(-1, k.shape[-1]), v.reshape(-1, v.shape[-1]), scale, bias, k.shape[2], scale * more
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


def term_of(seed, q, k, pairs, neox=False, part=True):
    """A Term that belongs to q and k: of the size of a head's own scores, positions at random, most tokens with a part."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((*q.shape[:-1], 2 * pairs), np.float32)
    positions = rng.integers(-100, 100_000, (*k.shape[:-3], k.shape[-2])).astype(np.int32)
    parts = rng.choice([0, 0.75, 1], positions.shape, p=[0.2, 0.2, 0.6]).astype(np.float16)
    return center.Term(w, center.turns(1e4 ** (-np.arange(pairs) / pairs)), positions, neox, parts if part else None)


@pytest.mark.parametrize("pairs", [1, 15, 16, 32, 50, 64])
@pytest.mark.parametrize("name", ["f16", "q4_0", "tq3_0", "planar3"])
def test_the_term_that_all_heads_share(name, pairs):
    q, k, v = case(18, name, name, n_heads=6, n_heads_kv=2)
    for neox in (False, True):
        found = agree(q, k, v, name, name, term=term_of(18, q, k, pairs, neox, part=neox))
        assert np.abs(found - pyggmlq.flash_attn(q, k, v, type_k=name, type_v=name)).max() > 0.05


def terms_alone(term, mask=None):
    """The terms of one query, up to a number that all share: with keys of zeros and one value per token, the weights that come out are those of the
    terms alone."""
    n_kv = len(term.positions)
    scale = 40 / np.abs(term.w).sum()  # so that no weight is too small for a float
    found = pyggmlq.flash_attn(
        np.zeros((1, 1, 1024), np.float32), np.zeros((1, n_kv, 1024), np.float32), np.eye(n_kv, dtype=np.float32)[None], type_k="f32", type_v="f32",
        term=term, scale=scale, mask=mask)  # fmt: skip
    with np.errstate(divide="ignore"):
        return np.log(found[0, 0].astype(np.float64)) / scale


def exact_terms(term):
    rows = reference.positional_rows(term.turns, term.positions, term.neox) @ term.w[0, 0].astype(np.float64)
    return rows if term.part is None else rows * term.part


def bounds_of_terms(term):
    """How far a term may be from the exact one: (of a row that is computed, of one that is turned from one of its neighbours). Half a step of w, which has
    one scale, times the row; half a step of the row times w, and what 40/sum|w| makes of floats. Turned, w has at most three half steps more, and a
    pair of the row is off by half a step of 2^-13 in each value, or by 2^-12 where it is slow, and half a step of its line."""
    first, second = center.pairs(term.w.shape[-1], term.neox)
    w = np.abs(term.w[0, 0].astype(np.float64))
    size = w[first] + w[second]
    step = max(size.max() / 32000, max(size[i : i + 128].sum() for i in range(0, len(size), 128)) / 260000)
    floats = 1e-5 * w.sum()
    computed = step / 2 * 2 * len(size) + w.sum() / 8191 / 2 * 1.02 + floats
    return computed, 2 * step * 2 * len(size) + (1 / 8191 + 2.0**-12) * w.sum() + floats


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pairs=st.integers(1, 130),
    neox=st.booleans(),
    kind=st.sampled_from(["text", "two texts", "sequences in turn", "at random", "backwards", "all the same"]),
    first=st.sampled_from([0, 5000, -100, 2**31 - 201, -(2**31)]),
    model=st.sampled_from(["rope", "random", "fast and slow"]),
)
def test_terms_of_any_positions(seed, pairs, neox, kind, first, model):
    """Consecutive positions or not, near or far from 0, and whatever frequencies, also in no order: within the bounds of rounding."""
    rng = np.random.default_rng(seed)
    t = np.arange(200)
    offsets = {"text": t, "two texts": t % 130, "sequences in turn": t // 3 + 50 * (t % 3), "at random": rng.permutation(t),
               "backwards": t[::-1], "all the same": t * 0}[kind]  # fmt: skip
    turns = {"rope": center.turns(rng.choice([1e4, 5e5]) ** (-np.arange(pairs) / pairs)),
             "random": rng.integers(0, 2**64, pairs, np.uint64), "fast and slow": center.turns(rng.choice([-1, 1e-3, 4e-3, -6e-3], pairs))}[model]  # fmt: skip
    w = 0.3 * rng.standard_normal((1, 1, 2 * pairs)).astype(np.float32)
    w[..., rng.integers(2 * pairs)] = 20
    part = rng.choice([0, 0.5, 1], 200, p=[0.1, 0.1, 0.8]).astype(np.float16) if seed % 2 else None
    term = center.Term(w, turns, (first + offsets).astype(np.int32), neox, part)
    error = terms_alone(term) - exact_terms(term)
    assert np.ptp(error) <= 2 * bounds_of_terms(term)[pairs <= 128]


@pytest.mark.parametrize("pairs, neox", [(8, False), (32, True), (50, False), (64, True), (128, False), (200, False)])
def test_the_rounding_of_the_term(pairs, neox):
    """On average it is less than w rounded to halves would be, also where one value of w is a thousand times the others, as with a large mean."""
    rng = np.random.default_rng(24)
    for large, positions in (20, 5000 + np.arange(200)), (20, rng.integers(0, 10**6, 200)), (300, 5000 + np.arange(200)):
        w = 0.3 * rng.standard_normal((1, 1, 2 * pairs)).astype(np.float32)
        w[..., pairs] = large
        term = center.Term(w, center.turns(1e5 ** (-np.arange(pairs) / pairs)), positions.astype(np.int32), neox)
        error = terms_alone(term) - exact_terms(term)
        assert 0 < error.std() < np.linalg.norm(w) / 4096
        # and a wrong position is told from a right one
        assert error.std() < 0.2 * (exact_terms(term) - exact_terms(term._replace(positions=term.positions + 1))).std()


@pytest.mark.parametrize("pairs", [1, 64, 128, 512])
@pytest.mark.parametrize("turn", [0, 2**63])
@pytest.mark.parametrize("apart", [1, 1001])
def test_the_largest_sums_of_the_term(pairs, turn, apart):
    """Every cosine is 1 or -1 and every pair as large as the others: integers come as near to their limit as they can."""
    w = np.zeros((1, 1, 2 * pairs), np.float32)
    w[..., :pairs] = -3
    t = np.arange(100)
    term = center.Term(w, np.full(pairs, turn, np.uint64), (apart * t).astype(np.int32), True, (t % 3 != 0).astype(np.float16))
    assert np.ptp(terms_alone(term) - exact_terms(term)) < 2e-3 * 3 * pairs


@pytest.mark.parametrize("kind", ["text", "sequences in turn"])
def test_tokens_without_a_term_may_have_any_position(kind):
    """Hidden ones and those whose part is 0, as empty cells are: not a bit of the others changes."""
    rng = np.random.default_rng(25)
    t = np.arange(200)
    positions = (t if kind == "text" else t // 2 + 5000 * (t % 2)).astype(np.int32)
    part = np.ones(200, np.float16)
    part[[0, 1, 2, 3, 77]] = 0
    mask = np.zeros((1, 200), np.float16)
    mask[:, [100, *range(180, 200)]] = -np.inf
    w = rng.standard_normal((1, 1, 128)).astype(np.float32)
    term = center.Term(w, center.turns(1e5 ** (-np.arange(64) / 64)), positions, True, part)
    clean = terms_alone(term, mask)
    other = positions.copy()
    other[[0, 1, 2, 3, 77, 100, *range(180, 200)]] = rng.integers(-(2**31), 2**31, 26)
    assert np.array_equal(terms_alone(term._replace(positions=other), mask), clean)
    other[78] += 5
    changed = terms_alone(term._replace(positions=other), mask)
    assert abs(changed[78] - clean[78]) > 0.1 and np.allclose(changed[79:99], clean[79:99], atol=0.01)


def test_the_term_of_sequences_and_threads():
    q, k, v = case(19, "tq3_0", "planar3", n_heads=4, n_heads_kv=1, n_queries=2, n_kv=1000, seqs=(4, 2))
    term = term_of(19, q, k, 64)
    options = dict(type_k="tq3_0", type_v="planar3", mask=causal_mask(2, 1000), logit_softcap=4.0)
    found = agree(q, k, v, term=term, n_threads=3, **options)
    for i in range(4):  # each sequence is what it would be alone
        own = term._replace(w=term.w[i], positions=term.positions[i // 2], part=term.part[i // 2])
        alone = pyggmlq.flash_attn(q[i], k[i // 2], v[i // 2], term=own, **options)
        assert np.allclose(found[i], alone, rtol=0, atol=1e-5)
    wide_w, wide_positions, wide_part = np.full((4, 2, 4, 130), 7, np.float32), np.full((2, 1003), 7, np.int32), np.full((2, 1001), 7, np.float16)
    wide_w[..., :128], wide_positions[:, 1:-2], wide_part[:, :-1] = term.w.swapaxes(1, 2), term.positions, term.part
    strided = term._replace(w=wide_w[..., :128].swapaxes(1, 2), positions=wide_positions[:, 1:-2], part=wide_part[:, :-1])
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, term=strided, n_threads=3, **options), found)
    scattered = term._replace(turns=np.repeat(term.turns, 2)[::2], positions=np.asfortranarray(term.positions))
    assert np.array_equal(pyggmlq.flash_attn(q, k, v, term=scattered, n_threads=3, **options), found)


def test_the_term_of_a_centered_cache():
    """The use it is for: keys with a large mean before RoPE, centered, give what f32 keys do, at 3 bits."""
    rng = np.random.default_rng(21)
    turns, positions = center.turns(1e4 ** (-np.arange(64) / 64)), np.arange(70, dtype=np.int32)
    angles = center.cos_sin(turns, positions)
    before = 8 * rng.standard_normal((2, 1, 128)) + 0.05 * rng.standard_normal((2, 70, 128))
    keys = center.rope(before, *angles, True)
    q, _, v = case(21, "tq3_0", "f32")
    calibration = center.fit(before, np.concatenate([q] * 24, axis=1)[:, :70], 128, True)
    stored = center.center(calibration, keys, *angles).astype(np.float32)
    scaled, w = (x.astype(np.float32) for x in center.query(calibration, q))
    wanted = pyggmlq.flash_attn(q, keys.astype(np.float32), v, type_k="f32", type_v="f32", scale=0.02)
    options = dict(type_k="tq3_0", type_v="f32", scale=0.02)
    plain = pyggmlq.flash_attn(q, encode(keys.astype(np.float32), "tq3_0"), v, **options)
    found = pyggmlq.flash_attn(scaled, encode(stored, "tq3_0"), v, term=center.Term(w, turns, positions, True), **options)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(plain - wanted)


@pytest.mark.parametrize("changes, error, words", [
    ({"w": np.zeros((4, 3, 130), np.float32), "turns": np.zeros(65, np.uint64)}, ValueError, "turns: found 65 pairs, wanted 1 to 64"),
    ({"turns": np.zeros(31, np.uint64)}, ValueError, r"w: found \(1, 4, 3, 64\), wanted .* 62 values"),
    ({"w": np.zeros((4, 2, 64), np.float32)}, ValueError, r"w: found .*, wanted \(1, 4, 3\) as in q"),
    ({"positions": np.zeros(69, np.int32)}, ValueError, r"positions: found \(1, 69\) .*as in k"),
    ({"positions": np.zeros(70, np.int64)}, TypeError, "positions: found dtype int64, wanted int32"),
    ({"turns": np.zeros(32)}, TypeError, "turns: found dtype float64, wanted uint64"),
    ({"part": np.zeros((2, 70), np.float16)}, ValueError, r"part: found \(2, 70\)"),
    ({"neox": 1}, TypeError, "neox: found int, wanted a bool"),
])  # fmt: skip
def test_terms_that_do_not_fit(changes, error, words):
    q, k, v = case(22, "tq3_0", "tq3_0")
    term = center.Term(np.zeros((4, 3, 64), np.float32), np.zeros(32, np.uint64), np.zeros(70, np.int32))
    with pytest.raises(error, match=words):
        pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="tq3_0", term=term._replace(**changes))
    with pytest.raises(TypeError, match="found tuple, wanted a pyggmlq.center.Term"):
        pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="tq3_0", term=tuple(term))


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
