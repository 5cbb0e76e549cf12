# SPDX-License-Identifier: MIT
"""What codecs do to the attention of a real model, per layer and KV head, from the rows of `pyggmlq dump-kv`.

Queries are the model's own, masks are causal and windowed as the model's, and every error is that of one layer by itself:
what the error of a layer does to the next ones is not in it (`pyggmlq kld` measures that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import center
from .._pairs import bits_per_value
from . import codecs as known
from .codecs import Codec
from .dump import Dump, Layer, rope_angles, rope_pairs, without_rope
from .evaluate import log_softmax

FIRST_QUERY = 16
"""Queries with fewer keys before them are left out: a softmax over so few says little."""


def default_codecs() -> list[Codec]:
    """What a cache of llama.cpp can be: every block type, without and with its own rotation (`h+`), ours and q4_0 also with
    centered keys (`c+`); other encoders of tq3_0."""
    names = ("tq3_0", "tq3_0:rms", "tq3_0:search", "tq3_0:queries", "planar3", "q8_0", "q5_0", "q4_0", "iq4_nl")
    chosen = {prefix + name for prefix in ("", "h+") for name in names} | {prefix + name for prefix in ("c+", "c+h+") for name in ("tq3_0", "planar3", "q4_0")}
    return [codec for codec in known.all_codecs() if codec.name in chosen]


def run(dump: Dump, codecs: Sequence[Codec], n_queries: int, step: Callable[[str], None]) -> dict[str, Any]:
    """{"rows", "layers", "notes"}: each codec on K and on V of each layer and KV head; `step` is called before each layer.

    `rows`, one for each layer, KV head and codec. `k_mse`, `v_mse`: squared error over square of the rows. `logit_error`:
    rms error of the attention logits in nats, without what is the same for all keys of a query, which softmax doesn't see.
    `logit_spread`: rms of the logits themselves, in the same way. `k_kld`: mean divergence of the attention weights with
    this K from those with the exact one, in nats; `k_top1`: share of queries whose heaviest key stays. `k_output`,
    `v_output`: squared error over square of the head's output if only K, or only V, went through the codec: what compares
    the two. Means are over the queries of all query heads that share the KV head; V is null where it is a part of K. The
    codec `cache TYPE` is the cache that was dumped itself.

    `layers`, one for each layer: `pairs` maps codecs to the share of the logit error that each RoPE pair brings, fastest
    pair first (null without RoPE); `mean_share`, `mean_share_before_rope`: share of K's square that its mean over tokens
    has; `peak`: square of the largest channel over that of the mean channel; `block_k`, `block_q`: of the 32 neighbouring
    values that hold most of K's square, their share of K's and of Q's.
    """
    rows: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    notes: list[str] = []
    for number in dump.layers:
        layer = dump.layer(number)
        step(f"layer {number}")
        width_v = layer.v.shape[2] if layer.v is not None else 0
        pairs: dict[str, list[float]] = {}
        here = _Exact(layer, dump, n_queries)
        for codec in [_cache(layer), *codecs]:
            if any(width % codec.multiple_of for width in (layer.k.shape[2], width_v)):
                notes.append(f"{codec.name} needs head sizes that are a multiple of {codec.multiple_of}, but K has {layer.k.shape[2]} and V {width_v}")
                continue
            if (codec.for_queries or codec.centered) and len(np.unique(dump.windows)) < 2:
                notes.append(f"{codec.name} needs a dump of two windows or more: one says how to store the keys of another")
                continue
            if codec.centered and (rope_angles(layer, dump.positions) is None or layer.facts["rope"]["at"]):
                notes.append(f"{codec.name} is left out in layers without RoPE, or with one that doesn't begin a head or can't be taken back here")
                continue
            stored_k, stored_v = _stored(layer, codec, dump)
            found = here.compare(stored_k, stored_v)
            rows += [{"layer": layer.index, "head": head, "codec": codec.name, "bits": codec.bits(layer.k.shape[2]), **errors} for head, errors in enumerate(found)]
            if here.pairs is not None:
                pairs[codec.name] = here.pair_shares(stored_k - layer.k)
        layers.append({"layer": layer.index, "window": layer.facts["window"], "pairs": pairs or None, **_statistics(layer, dump)})
    return {"rows": rows, "layers": layers, "notes": list(dict.fromkeys(notes))}


def _cache(layer: Layer) -> Codec:
    """The dumped cache as a codec; `_stored` knows it by its name."""
    type_k, type_v = layer.facts["type_k"], layer.facts["type_v"] or layer.facts["type_k"]
    name = type_k if type_k == type_v else f"{type_k}/{type_v}"
    bits = (bits_per_value(type_k) + bits_per_value(type_v)) / 2
    return Codec(f"cache {name}", lambda x: x, lambda width: bits)


def _stored(layer: Layer, codec: Codec, dump: Dump) -> tuple[np.ndarray, np.ndarray | None]:
    """K and V as they come back. What an encoder wants to know of keys and queries it is told of the other windows."""
    if codec.name.startswith("cache "):
        return layer.k_cache, layer.v_cache

    def through(x: np.ndarray) -> np.ndarray:
        return codec.round_trip(np.ascontiguousarray(x.reshape(-1, x.shape[2]))).reshape(x.shape)

    k = _keys_for_queries(layer, codec, dump.windows) if codec.for_queries else _centered_keys(layer, dump, through) if codec.centered else through(layer.k)
    return k, None if layer.v is None else through(layer.v)


def _centered_keys(layer: Layer, dump: Dump, through: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Keys that are centered and scaled (`pyggmlq.center`), go `through` a codec, and get back what attention adds to their scores."""
    before, angle, rope = without_rope(layer, dump.positions), rope_angles(layer, dump.positions), layer.facts["rope"]
    out, windows, neox = np.empty_like(layer.k), np.unique(dump.windows), rope["mode"] == 2

    def by_head(x: np.ndarray) -> np.ndarray:
        return x.transpose(1, 0, 2)  # and back

    for window, other in zip(windows, np.roll(windows, 1)):
        here, there = dump.windows == window, dump.windows == other
        fitted = center.fit(by_head(before[there]), by_head(layer.q[there]), rope["n_dims"], neox)
        chosen, cos, sin = center.shorter(fitted, by_head(before[here])), np.cos(angle[here]), np.sin(angle[here])
        stored = center.center(fitted, by_head(layer.k[here]), cos, sin, chosen)
        back = by_head(through(by_head(stored).astype(np.float32))) / fitted.scale[:, None]
        mean = fitted.mean[:, None] * chosen[:, None]
        out[here] = by_head(back + center.rope(mean, cos, sin, neox))
    return out


def _keys_for_queries(layer: Layer, codec: Codec, windows: np.ndarray) -> np.ndarray:
    out, group = np.empty_like(layer.k), layer.q.shape[1] // layer.k.shape[1]
    for window in np.unique(windows):
        here = windows == window
        for head in range(layer.k.shape[1]):
            q = layer.q[~here, head * group : (head + 1) * group].reshape(-1, layer.q.shape[2]).astype(np.float64)
            out[here, head] = codec.for_queries(np.ascontiguousarray(layer.k[here, head]), q.T @ q / len(q))
    return out


class _Exact:
    """Attention of one layer with exact rows, for chosen queries of every window."""

    def __init__(self, layer: Layer, dump: Dump, n_queries: int) -> None:
        self.layer = layer
        self.n_kv = layer.k.shape[1]
        self.group = layer.q.shape[1] // self.n_kv
        self.pairs = rope_pairs(layer)
        self.places = []  # by KV head and window
        for window in np.unique(dump.windows):
            keys = np.flatnonzero(dump.windows == window)
            chosen = np.unique(np.linspace(min(FIRST_QUERY, len(keys) - 1), len(keys) - 1, n_queries).astype(int))
            at, of = dump.positions[keys], dump.positions[keys][chosen]
            mask = at[None, :] <= of[:, None]
            if layer.facts["window"]:
                mask &= at[None, :] > of[:, None] - layer.facts["window"]
            mask = np.tile(mask, (self.group, 1))
            for head in range(self.n_kv):
                q = layer.q[keys[chosen], head * self.group : (head + 1) * self.group].transpose(1, 0, 2).reshape(len(mask), -1)
                self.places.append(_Place(layer, head, keys, q, mask))

    def compare(self, k: np.ndarray, v: np.ndarray | None) -> list[dict[str, Any]]:
        """Errors by KV head, K and V replaced one at a time."""
        layer, found = self.layer, []
        for head in range(self.n_kv):
            places = [place for place in self.places if place.head == head]
            parts = [place.errors(k[place.keys, head], None if v is None else v[place.keys, head]) for place in places]
            total = {key: sum(part[key] for part in parts) for key in parts[0]}
            n, seen, square = (sum(getattr(place, key) for place in places) for key in ("n", "seen", "square"))
            found.append({
                "k_mse": _relative(layer.k[:, head], k[:, head]), "v_mse": None if v is None else _relative(layer.v[:, head], v[:, head]),
                "logit_error": float(np.sqrt(total["error"] / seen)), "logit_spread": float(np.sqrt(sum(place.spread for place in places) / seen)),
                "k_kld": max(0.0, float(total["kld"]) / n), "k_top1": float(total["top"]) / n, "k_output": float(total["k"]) / square,
                "v_output": None if v is None else float(total["v"]) / square,
            })  # fmt: skip
        return found

    def pair_shares(self, error: np.ndarray) -> list[float]:
        """Of the variance of the logit error, what comes from each RoPE pair (the rest of a head is left out), mean over heads."""
        total = np.zeros(len(self.pairs))
        for head in range(self.n_kv):
            q = self.layer.q[:, head * self.group : (head + 1) * self.group].reshape(-1, self.layer.q.shape[2])[:, self.pairs]
            e = error[:, head] - error[:, head].mean(axis=0)
            e = e[:, self.pairs]
            power = np.einsum("npi,npj->pij", q, q) / len(q) * np.einsum("npi,npj->pij", e, e) / len(e)
            by_pair = power.sum(axis=(1, 2))
            total += by_pair / max(by_pair.sum(), 1e-30)
        return [round(float(share), 5) for share in total / self.n_kv]


class _Place:
    """One KV head in one window: `keys` are its rows, `q` (n, head size) queries, `mask` (n, keys) what they see."""

    def __init__(self, layer: Layer, head: int, keys: np.ndarray, q: np.ndarray, mask: np.ndarray) -> None:
        self.head, self.keys, self.q, self.mask, self.n = head, keys, q, mask, len(q)
        self.scale, self.cap = np.float32(layer.facts["scale"]), layer.facts["softcap"]
        self.values = (layer.k if layer.v is None else layer.v)[keys, head]
        self.score = self._scores(layer.k[keys, head])
        self.log_p = log_softmax(self.score)
        self.p = np.exp(self.log_p)
        self.top = self.log_p.argmax(axis=1)
        self.out = self.p @ self.values
        self.square, self.seen = float((self.out**2).sum()), int(mask.sum())
        self.spread = _spread(np.where(mask, self.score, np.float32(0)), mask)

    def _scores(self, k: np.ndarray) -> np.ndarray:
        score = self.scale * (self.q @ k.T)
        if self.cap:
            score = self.cap * np.tanh(score / self.cap)
        return np.where(self.mask, score, np.float32(-1e30))

    def errors(self, k: np.ndarray, v: np.ndarray | None) -> dict[str, float]:
        score = self._scores(k)
        log_s = log_softmax(score)
        out = np.exp(log_s) @ self.values
        return {
            "error": _spread((score - self.score) * self.mask, self.mask), "kld": float((self.p * (self.log_p - log_s)).sum(dtype=np.float64)),
            "top": int((log_s.argmax(axis=1) == self.top).sum()), "k": float(((out - self.out) ** 2).sum()),
            "v": 0.0 if v is None else float(((self.p @ v - self.out) ** 2).sum()),
        }  # fmt: skip


def _spread(x: np.ndarray, seen: np.ndarray) -> float:
    """Sum of squares about the mean of each row, over what is `seen`; x is zero elsewhere."""
    n = seen.sum(axis=1)
    return float((x**2).sum(dtype=np.float64) - (x.sum(axis=1, dtype=np.float64) ** 2 / n).sum())


def _relative(x: np.ndarray, y: np.ndarray) -> float:
    square = float((x.astype(np.float64) ** 2).sum())
    return float(((x.astype(np.float64) - y) ** 2).sum()) / square if square else 0.0


def _statistics(layer: Layer, dump: Dump) -> dict[str, Any]:
    def mean_share(k: np.ndarray) -> float:
        return float((k.mean(axis=0) ** 2).sum() / (k**2).sum(axis=(1, 2)).mean())

    before = without_rope(layer, dump.positions)
    power = (layer.k.astype(np.float64) ** 2).mean(axis=0)
    block_k, block_q = _largest_block(layer, power)
    return {
        "mean_share": mean_share(layer.k), "mean_share_before_rope": None if before is None else mean_share(before),
        "peak": float((power.max(axis=1) / power.mean(axis=1)).mean()), "block_k": block_k, "block_q": block_q,
    }  # fmt: skip


def _largest_block(layer: Layer, power: np.ndarray) -> tuple[float, float]:
    """Of the 32 neighbouring values that hold most of K's square: their share of K's and of Q's, mean over KV heads."""
    blocks = power[:, : power.shape[1] // 32 * 32].reshape(len(power), -1, 32).sum(axis=2) / power.sum(axis=1, keepdims=True)
    most = blocks.argmax(axis=1)
    queries = (layer.q.astype(np.float64) ** 2).mean(axis=0).reshape(len(power), -1, power.shape[1]).sum(axis=1)
    of_q = np.stack([queries[head, 32 * at : 32 * at + 32].sum() / queries[head].sum() for head, at in enumerate(most)])
    return float(blocks.max(axis=1).mean()), float(of_q.mean())


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each codec: means over layers and heads (`logit_error`: rms), and the head that K harms most."""
    found = []
    for name in dict.fromkeys(row["codec"] for row in rows):
        here = [row for row in rows if row["codec"] == name]
        worst = max(here, key=lambda row: row["k_kld"])

        def mean(key: str, here: list[dict[str, Any]] = here) -> float | None:
            values = [row[key] for row in here if row[key] is not None]
            return float(np.mean(values)) if values else None

        found.append({
            "codec": name, "bits": here[0]["bits"], "logit_error": float(np.sqrt(np.mean([row["logit_error"] ** 2 for row in here]))),
            **{key: mean(key) for key in ("k_mse", "k_kld", "k_top1", "k_output", "v_mse", "v_output")},
            "worst": f"{worst['layer']}.{worst['head']}", "worst_kld": worst["k_kld"],
        })  # fmt: skip
    return found
