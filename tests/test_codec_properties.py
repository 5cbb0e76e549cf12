# SPDX-License-Identifier: MIT
"""What must hold for every input, on every usable back end."""
from __future__ import annotations

import numpy as np
import pytest
import tolerances
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pyggmlq
from pyggmlq import reference
from pyggmlq._types import cache_types

CACHE_TYPES = [info.name for info in cache_types()]
BACKENDS = ["reference", "cpu", pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("hip", marks=pytest.mark.hip),
            pytest.param("metal", marks=pytest.mark.metal)]

settings.register_profile("codec", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("codec")

each = pytest.mark.parametrize("backend", BACKENDS)
each_type = pytest.mark.parametrize("name", CACHE_TYPES)


def values(n_blocks, length, limit=2.0**100):
    """float32 (n_blocks, length): finite, with many repeats and zeros, as hypothesis likes them."""
    elements = st.floats(-limit, limit, width=32, allow_subnormal=True)
    return hnp.arrays(np.float32, (n_blocks, length), elements=elements)


def eighths(n_blocks, length):
    """float32 that stay exact under scaling: multiples of 1/8 up to 2^9."""
    return hnp.arrays(np.int32, (n_blocks, length), elements=st.integers(-4096, 4096)).map(lambda v: v.astype(np.float32) / 8)


def block_length(name):
    return reference.CODECS[name].block_length


def scales_and_fields(rows, name):
    blocks = rows.reshape(-1).view(reference.CODECS[name].dtype).copy()
    scales = blocks[reference.CODECS[name].scale].copy()
    blocks[reference.CODECS[name].scale] = 0
    return scales, blocks


@each
@each_type
@given(data=st.data())
def test_rotation_is_orthonormal(name, backend, data):
    x = data.draw(values(2, block_length(name), limit=2.0**60))
    y = pyggmlq.rotate(x, name, backend)
    norm = np.linalg.norm(x.astype(np.float64), axis=1)
    floor = 1e-37  # where products round to subnormals
    assert (np.abs(np.linalg.norm(y.astype(np.float64), axis=1) - norm) <= tolerances.ROTATION * norm + floor).all()
    back = pyggmlq.unrotate(y, name, backend).astype(np.float64)
    assert (np.linalg.norm(back - x, axis=1) <= tolerances.ROTATION * norm + floor).all()
    y0, y1 = y.astype(np.float64)
    x0, x1 = x.astype(np.float64)
    assert abs(y0 @ y1 - x0 @ x1) <= 2 * tolerances.ROTATION * norm[0] * norm[1] + floor * (1 + norm.sum())


@each
@each_type
@given(data=st.data(), exponent=st.integers(-60, 60))
def test_scaling_by_a_power_of_two_commutes(name, backend, data, exponent):
    """All the way: equal fields always, and the scale times that power where fp16 holds it exactly."""
    x = data.draw(eighths(2, block_length(name)))
    scales, fields = scales_and_fields(pyggmlq.quantize(x, name, backend), name)
    scaled_scales, scaled_fields = scales_and_fields(pyggmlq.quantize(np.ldexp(x, exponent), name, backend), name)
    assert np.array_equal(fields, scaled_fields)
    wanted = np.ldexp(scales.astype(np.float64), exponent)
    normal = (wanted >= 2.0**-14) & (wanted < 65504) & (scales >= 2.0**-14) & (scales < 65504)
    assert np.array_equal(scaled_scales[normal].astype(np.float64), wanted[normal])


@each
@each_type
@given(data=st.data())
def test_blocks_are_independent(name, backend, data):
    """Permuting blocks permutes the output, and a bad block spoils only itself."""
    n_blocks, length = 4, block_length(name)
    x = data.draw(values(n_blocks, length))
    order = np.array(data.draw(st.permutations(range(n_blocks))))
    rows = pyggmlq.quantize(x, name, backend)
    assert np.array_equal(pyggmlq.quantize(x[order], name, backend), rows[order])
    assert np.array_equal(pyggmlq.quantize(x.reshape(-1), name, backend), rows.reshape(-1))

    bad = x.copy()
    bad[1, data.draw(st.integers(0, length - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    decoded = pyggmlq.dequantize(pyggmlq.quantize(bad, name, backend), name, backend=backend)
    assert np.isnan(decoded[1]).all()
    kept = [0, 2, 3]
    assert np.array_equal(decoded[kept], pyggmlq.dequantize(rows, name, backend=backend)[kept])


@each
@each_type
@given(data=st.data())
def test_step_is_the_least_squares_one(name, backend, data):
    """What is lost is orthogonal to what is stored: <x, decoded> = <decoded, decoded>, but for the rounding of the scale."""
    x = data.draw(values(2, block_length(name), limit=2.0**10))
    norm = np.linalg.norm(x.astype(np.float64), axis=1)
    assume((norm > 2.0**-6).all())  # the scale is a normal half
    decoded = pyggmlq.dequantize(pyggmlq.quantize(x, name, backend), name, backend=backend).astype(np.float64)
    stored = np.linalg.norm(decoded, axis=1)
    assert (stored > 0).all()
    assert (np.abs((x * decoded).sum(axis=1) - stored**2) <= tolerances.least_squares(norm, stored)).all()


@each
@each_type
def test_zeros_decode_to_zeros(name, backend):
    length = block_length(name)
    rows = pyggmlq.quantize(np.zeros(2 * length, np.float32), name, backend)
    assert not rows.any()
    assert not pyggmlq.dequantize(rows, name, backend=backend).any()
