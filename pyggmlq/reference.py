# SPDX-License-Identifier: MIT
"""The formats in numpy, written from docs/FORMAT.md and from nothing else: the second opinion on csrc.

Clear before fast. Encoding, decoding, the 8-bit query and the dot product follow the format in float32 with every
rounding in its place, so they equal the compiled back end bit for bit; attention is plain float64 softmax over decoded
rows, so it is what any attention kernel is measured against.

One short class per type, each on arrays of blocks. The functions at the end are the back end `"reference"` of
pyggmlq/api.py, which checks every argument before it calls them.
"""
from __future__ import annotations

import numpy as np

f32 = np.float32

# Levels, and the step between "codebook of the unit Gaussian" and integers.
LEVEL_SIGMA = f32(57.15)
_POSITIVE = np.rint(np.array([0.24509, 0.75601, 1.34391, 2.15195]) * 57.15)
LEVELS = np.concatenate([-_POSITIVE[::-1], _POSITIVE]).astype(np.float32)
BOUNDARIES = (LEVELS[:-1] + LEVELS[1:]) / f32(2)

FP16_MAX = f32(65504)
FP16_NAN = np.array([0x7E00], "<u2").view("<f2")[0]

# Where value j of a plane pair keeps its 2-bit field (byte, shift) and its 1-bit field (bit of the 32-bit word).
_j = np.arange(32)
_b, _k = _j % 8, _j // 8
_c = 4 * (_b % 4) + _k
QUARTER_BYTE, QUARTER_SHIFT = _b, (2 * _k).astype(np.uint8)
SIGN_BIT = 4 * (_c >> 1) + 2 * (_b // 4) + (_c & 1)


def pack_planes(two, one):
    """Fields of 32 values, uint8 (..., 32) each -> the planes q, uint8 (..., 8), and s, uint8 (..., 4)."""
    q = np.zeros(two.shape[:-1] + (8,), np.uint8)
    for j in range(32):
        q[..., QUARTER_BYTE[j]] |= two[..., j] << QUARTER_SHIFT[j]
    word = np.empty_like(one)
    word[..., SIGN_BIT] = one
    return q, np.packbits(word, axis=-1, bitorder="little")


def unpack_planes(q, s):
    """The inverse of pack_planes."""
    two = (q[..., QUARTER_BYTE] >> QUARTER_SHIFT) & 3
    one = np.unpackbits(s, axis=-1, bitorder="little")[..., SIGN_BIT]
    return two, one


def lane_sum(v):
    """float32 (..., n) -> (...), added in the fixed order of the format: eight lanes, then a tree."""
    lanes = np.zeros(v.shape[:-1] + (8,), np.float32)
    for i in range(0, v.shape[-1], 8):
        lanes = lanes + v[..., i : i + 8]
    l0, l1, l2, l3, l4, l5, l6, l7 = np.moveaxis(lanes, -1, 0)
    return ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))


def assign_levels(y, step):
    """The level index of every value: the number of boundaries at or below it."""
    edges = BOUNDARIES * step[:, None]
    return (y[:, :, None] >= edges[:, None, :]).sum(axis=-1).astype(np.uint8)


def search_levels(y):
    """Step 2 and 3 of the encoder on rotated blocks, float32 (n_blocks, n): (level indices, steps)."""
    rms = np.sqrt(lane_sum(y * y) / f32(y.shape[1]))
    best_index = best_step = best_error = None
    for factor in (0.8, 1.0, 1.2):
        step = f32(factor) * (rms / LEVEL_SIGMA)
        for _ in range(3):
            index = assign_levels(y, step)
            level = LEVELS[index]
            step = lane_sum(y * level) / (level * level).sum(axis=1)
        d = y - step[:, None] * level
        error = lane_sum(d * d)
        if best_error is None:
            best_index, best_step, best_error = index, step, error
        else:
            better = error < best_error
            best_index = np.where(better[:, None], index, best_index)
            best_step = np.where(better, step, best_step)
            best_error = np.where(better, error, best_error)
    return best_index, best_step


class _Rotated:
    """What tq3_0 and planar3 share. A subclass gives the layout (`dtype`), the name of its scale, the power of two that
    goes with it, and the rotation."""

    dtype: np.dtype
    scale: str
    scale_unit: int  # y = scale * level / scale_unit
    block_length: int

    @classmethod
    def encode_blocks(cls, x):
        """float32 (n_blocks, block_length) -> blocks of `dtype` (n_blocks,)."""
        blocks = np.zeros(len(x), cls.dtype)
        # Every block is first brought to 0.5 <= max|x| < 1 by a power of two, and its step back afterwards: nothing in
        # between can overflow or underflow, and scaling the input by a power of two scales the output by just that.
        largest = np.abs(x).max(axis=1)  # NaN if there is one
        finite = np.isfinite(largest)
        coded = finite & (largest > 0)
        _, exponent = np.frexp(largest[coded])
        y = cls.rotate_blocks(np.ldexp(x[coded], -exponent[:, None]))
        index, step = search_levels(y)
        scale = np.minimum(np.ldexp(f32(cls.scale_unit) * step, exponent), FP16_MAX)
        blocks[cls.scale][coded] = scale.astype("<f2")
        blocks[cls.scale][~finite] = FP16_NAN
        fields = np.zeros((len(x), cls.block_length), np.uint8)
        fields[coded] = index
        cls.write_fields(blocks, fields, coded)
        return blocks

    @classmethod
    def decode_blocks_rotated(cls, blocks):
        step = blocks[cls.scale].astype(np.float32) / f32(cls.scale_unit)
        return step[:, None] * LEVELS[cls.read_fields(blocks)]

    @classmethod
    def decode_blocks(cls, blocks):
        """Blocks of `dtype` (n_blocks,) -> float32 (n_blocks, block_length)."""
        return cls.unrotate_blocks(cls.decode_blocks_rotated(blocks))

    @classmethod
    def encode_query_blocks(cls, x):
        """float32 (n_blocks, block_length) -> the rotated 8-bit query: (d float32 (n_blocks,), q int8)."""
        y = cls.rotate_blocks(x)
        largest = np.abs(y).max(axis=1)
        d = np.where(np.isfinite(largest), largest / f32(127), f32(np.nan))
        d[d < np.finfo(np.float32).tiny] = 0  # subnormal: its inverse could be infinite
        inverse = np.divide(f32(1), d, out=np.zeros_like(d), where=d > 0)
        q = np.where(inverse[:, None] > 0, np.rint(y * inverse[:, None]), 0)
        return d, np.clip(q, -127, 127).astype(np.int8)

    @classmethod
    def dot_blocks(cls, blocks, d, q):
        """<row, query> for rows (..., n_blocks): integer per block, blocks added in ascending order in float32."""
        level = LEVELS[cls.read_fields(blocks)].astype(np.int32)
        isum = (level * q).sum(axis=-1, dtype=np.int32).astype(np.float32)
        term = blocks[cls.scale].astype(np.float32) / f32(cls.scale_unit) * d * isum
        total = np.zeros(term.shape[:-1], np.float32)
        for ib in range(term.shape[-1]):
            total = total + term[..., ib]
        return total


class TQ3_0(_Rotated):
    """docs/FORMAT.md, `tq3_0`: signed Walsh-Hadamard rotation of 32 values, one scale for them."""

    block_length = 32
    dtype = np.dtype([("qs", "u1", 8), ("qr", "u1", 4), ("gamma", "<f2")])
    scale, scale_unit = "gamma", 64
    SIGNS = np.array([-1 if c == "-" else 1 for c in "+-++--+-++-+-+--+--++-+--+++--+-"], np.float32)

    @staticmethod
    def hadamard(v):
        """Orthonormal, natural order: five butterflies, half-distance 1, 2, 4, 8, 16, then one product."""
        for h in (1, 2, 4, 8, 16):
            pair = v.reshape(-1, 16 // h, 2, h)
            a, b = pair[:, :, 0], pair[:, :, 1]
            v = np.stack([a + b, a - b], axis=2)
        return v.reshape(-1, 32) * f32(1 / np.sqrt(32))

    @classmethod
    def rotate_blocks(cls, x):
        return cls.hadamard(cls.SIGNS * x)

    @classmethod
    def unrotate_blocks(cls, y):
        return cls.SIGNS * cls.hadamard(y)

    @staticmethod
    def write_fields(blocks, index, where):
        q, s = pack_planes(index >> 1, index & 1)
        blocks["qs"][where], blocks["qr"][where] = q[where], s[where]

    @staticmethod
    def read_fields(blocks):
        two, one = unpack_planes(blocks["qs"], blocks["qr"])
        return 2 * two + one


class Planar3(_Rotated):
    """docs/FORMAT.md, `planar3`: 64 Givens rotations, one scale for 128 values, four plane pairs."""

    block_length = 128
    dtype = np.dtype([("norm", "<f2"), ("qs", "u1", 32), ("signs", "u1", 16)])
    scale, scale_unit = "norm", 512

    @staticmethod
    def angles():
        u, z = [], 42
        for _ in range(64):
            z = (z * 6364136223846793005 + 1442695040888963407) % 2**64
            u.append((z >> 11) / 2**53)
        return 2 * np.pi * np.array(u)

    @classmethod
    def rotate_blocks(cls, x):
        x0, x1 = x[:, 0::2], x[:, 1::2]
        return np.stack([cls.C * x0 - cls.S * x1, cls.S * x0 + cls.C * x1], axis=2).reshape(-1, 128)

    @classmethod
    def unrotate_blocks(cls, y):
        y0, y1 = y[:, 0::2], y[:, 1::2]
        return np.stack([cls.C * y0 + cls.S * y1, cls.C * y1 - cls.S * y0], axis=2).reshape(-1, 128)

    @staticmethod
    def write_fields(blocks, index, where):
        index = index.reshape(-1, 4, 32)
        q, s = pack_planes(index & 3, index >> 2)
        blocks["qs"][where], blocks["signs"][where] = q.reshape(-1, 32)[where], s.reshape(-1, 16)[where]

    @staticmethod
    def read_fields(blocks):
        shape = blocks.shape
        two, one = unpack_planes(blocks["qs"].reshape(*shape, 4, 8), blocks["signs"].reshape(*shape, 4, 4))
        return (4 * one + two).reshape(*shape, 128)


Planar3.C = np.cos(Planar3.angles()).astype(np.float32)
Planar3.S = np.sin(Planar3.angles()).astype(np.float32)


class Q8_0:
    """ggml's q8_0: y = d * q."""

    block_length = 32
    dtype = np.dtype([("d", "<f2"), ("qs", "i1", 32)])

    @staticmethod
    def decode_blocks(blocks):
        return blocks["d"].astype(np.float32)[:, None] * blocks["qs"]


class Q4_0:
    """ggml's q4_0: y = d * (q - 8); low nibbles are values 0..15, high nibbles 16..31."""

    block_length = 32
    dtype = np.dtype([("d", "<f2"), ("qs", "u1", 16)])

    @staticmethod
    def decode_blocks(blocks):
        q = np.concatenate([blocks["qs"] & 15, blocks["qs"] >> 4], axis=1).astype(np.float32) - f32(8)
        return blocks["d"].astype(np.float32)[:, None] * q


class _Plain:
    """An array of floats is its own encoding."""

    block_length = 1

    @classmethod
    def decode_blocks(cls, blocks):
        return blocks.astype(np.float32)[:, None]


class F16(_Plain):
    dtype = np.dtype("<f2")


class F32(_Plain):
    dtype = np.dtype("<f4")


CODECS = {"tq3_0": TQ3_0, "planar3": Planar3, "q8_0": Q8_0, "q4_0": Q4_0, "f16": F16, "f32": F32}


# ---------------------------------------------------------------------------------------------------------------------
# The back end "reference" of pyggmlq/api.py. `type` is a name; arguments are checked, outputs have the right shape.


def _blocks_of_values(x, codec):
    return x.reshape(-1, codec.block_length)


def _blocks_of_bytes(b, codec):
    b = np.ascontiguousarray(b)
    return b.reshape(-1).view(codec.dtype)


def _quiet(function):
    """Overflow, NaN and infinity are part of the format, not news."""
    return np.errstate(all="ignore")(function)


@_quiet
def quantize(x, type, out):
    codec = CODECS[type]
    out[...] = codec.encode_blocks(_blocks_of_values(x, codec)).view(np.uint8).reshape(out.shape)


@_quiet
def dequantize(b, type, out):
    codec = CODECS[type]
    out[...] = codec.decode_blocks(_blocks_of_bytes(b, codec)).reshape(out.shape)


@_quiet
def find_not_finite(b, type):
    """Flat index of the first block whose scale is NaN or infinite, or None."""
    codec = CODECS[type]
    bad = np.flatnonzero(~np.isfinite(_blocks_of_bytes(b, codec)[codec.scale]))
    return int(bad[0]) if bad.size else None


@_quiet
def rotate(x, type, out):
    codec = CODECS[type]
    out[...] = codec.rotate_blocks(_blocks_of_values(x, codec)).reshape(out.shape)


@_quiet
def unrotate(y, type, out):
    codec = CODECS[type]
    out[...] = codec.unrotate_blocks(_blocks_of_values(y, codec)).reshape(out.shape)


@_quiet
def vec_dot(b, x, type, out):
    codec = CODECS[type]
    n_blocks = x.shape[-1] // codec.block_length
    blocks = _blocks_of_bytes(b, codec).reshape(*b.shape[:-1], n_blocks)
    d, q = codec.encode_query_blocks(_blocks_of_values(x, codec))
    d, q = d.reshape(*x.shape[:-1], n_blocks), q.reshape(*x.shape[:-1], n_blocks, codec.block_length)
    out[...] = codec.dot_blocks(blocks, d, q)


def mul_mat_vec(b, x, type, out):
    vec_dot(b[None, :, :], x[:, None, :], type, out)


def set_rows(rows, indices, x, type):
    encoded = np.empty((len(x), rows.shape[1]), np.uint8)
    quantize(x, type, encoded)
    for i, row in zip(indices, encoded):  # in order: of equal indices the last wins
        rows[i] = row


def get_rows(rows, indices, type, out):
    dequantize(rows[indices], type, out)


def alibi_slopes(n_heads, max_bias):
    """ggml's: the largest power of two up to n_heads shares one geometric series, the other heads fill in between."""
    if max_bias == 0:
        return np.ones(n_heads)
    n = 2 ** int(np.floor(np.log2(n_heads)))
    return np.array(
        [2 ** (-max_bias / n * (h + 1)) if h < n else 2 ** (-max_bias / 2 / n * (2 * (h - n) + 1)) for h in range(n_heads)]
    )


def _decode(rows, type):
    """Rows (n_seqs, n_heads, n_kv, row_bytes) or floats (..., n) -> float64 (..., n)."""
    codec = CODECS[type]
    n = rows.shape[-1] * rows.itemsize // codec.dtype.itemsize * codec.block_length
    return codec.decode_blocks(_blocks_of_bytes(rows, codec)).reshape(*rows.shape[:-1], n).astype(np.float64)


def positional_rows(turns, positions, neox):
    """float64 (..., tokens, 2*pairs): cosine and sine of position*turns mod 2^64, of which the upper 32 bits are the fraction of a full turn, for
    uint64 turns (pairs,) and integer positions (..., tokens). neox: all cosines before all sines, else side by side."""
    product = np.asarray(positions, np.int64).astype(np.uint64)[..., None] * turns
    angle = 2 * np.pi * ((product >> np.uint64(32)) / 2.0**32)
    return np.stack([np.cos(angle), np.sin(angle)], -2 if neox else -1).reshape(*product.shape[:-1], -1)


@_quiet
def flash_attn(q, k, v, type_k, type_v, mask, sinks, scale, max_bias, logit_softcap, n_threads, out, term=None):
    """q (n_seqs, n_heads, n_queries, n); k, v (n_seqs_kv, n_heads_kv, n_kv, ...); mask (seqs, heads, n_queries, n_kv)."""
    n_seqs, n_heads = q.shape[:2]
    k, v = _decode(k, type_k), _decode(v, type_v)
    slopes = alibi_slopes(n_heads, max_bias)
    if term is not None:
        rows = positional_rows(term.turns, term.positions, term.neox)
        if term.part is not None:
            rows *= term.part.astype(np.float64)[..., None]
    for i in range(n_seqs):
        i_kv = i // (n_seqs // k.shape[0])
        for h in range(n_heads):
            h_kv = h // (n_heads // k.shape[1])
            score = q[i, h].astype(np.float64) @ k[i_kv, h_kv].T
            if term is not None:
                score = score + term.w[i, h].astype(np.float64) @ rows[i_kv].T
            score = scale * score
            if logit_softcap != 0:
                score = logit_softcap * np.tanh(score / logit_softcap)
            if mask is not None:
                bias = slopes[h] * mask[i % mask.shape[0], h % mask.shape[1]].astype(np.float64)
                score = np.where(bias == -np.inf, bias, score + bias)  # a hidden score may be NaN
            out[i, h] = _softmax_mean(score, v[i_kv, h_kv], None if sinks is None else np.float64(sinks[h]))


def _softmax_mean(score, v, sink):
    """softmax(score) @ v; a sink takes part in the sum only; a row with nothing to attend to gives zeros."""
    top = score.max(axis=1, initial=-np.inf if sink is None else sink, keepdims=True)
    top = np.where(top == -np.inf, 0, top)
    weight = np.exp(score - top)
    total = weight.sum(axis=1) + (0 if sink is None else np.exp(sink - top[:, 0]))
    out = np.zeros((len(score), v.shape[1]))
    for i, row in enumerate(weight):
        used = row != 0  # what is hidden may hold anything, also NaN
        if used.any():
            out[i] = row[used] @ v[used] / total[i]
    return out
