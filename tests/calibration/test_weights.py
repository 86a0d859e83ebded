"""int8 weights: how far they are from the float ones, and that AVX2's 16-bit sums cannot saturate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.weights import quantize_weight

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0, -1.0]),
)


@given(matrices, st.just(1.0) | st.floats(1.0, 1.1))
@settings(max_examples=300, deadline=None)
def test_no_pair_saturates_without_vnni(weight: np.ndarray, ratio: float) -> None:
    stored, _ = quantize_weight(weight, "any-cpu", ratio=ratio)
    padded = np.concatenate([stored, np.zeros((len(stored) % 2, stored.shape[1]), np.int8)]).astype(np.int64)
    pairs = padded.reshape(-1, 2, stored.shape[1])
    # The worst activations: 255 wherever the weights share a sign, else 0.
    highest = 255 * np.maximum(pairs, 0).sum(axis=1)
    lowest = 255 * np.minimum(pairs, 0).sum(axis=1)
    assert highest.max(initial=0) <= 2**15 - 1
    assert lowest.min(initial=0) >= -(2**15)


@given(matrices, st.sampled_from(["any-cpu", "full-range"]))
@settings(max_examples=300, deadline=None)
def test_half_a_step_at_most(weight: np.ndarray, target: str) -> None:
    stored, scale = quantize_weight(weight, target)
    assert stored.dtype == np.int8
    assert scale.shape == (weight.shape[1],)
    assert stored.min(initial=0) >= -127  # symmetric: -128 has no counterpart
    error = np.abs(stored * scale.astype(np.float64) - weight)
    assert (error <= scale * 0.5001 + 1e-30).all()


@given(matrices)
@settings(max_examples=100, deadline=None)
def test_the_step_is_no_larger_than_it_must_be(weight: np.ndarray) -> None:
    _, free = quantize_weight(weight, "full-range")
    _, limited = quantize_weight(weight, "any-cpu")
    largest = np.abs(weight).max(axis=0)
    used = largest > 1e-30
    np.testing.assert_allclose(free[used] * 127, largest[used], rtol=1e-5)
    assert (limited >= free * 0.99999).all()
    assert (limited[used] * 63 <= largest[used] * 1.001).all()  # two equal neighbors are the worst case


@given(matrices, st.floats(0.5, 2.0), st.sampled_from(["any-cpu", "full-range"]))
@settings(max_examples=100, deadline=None)
def test_a_ratio_multiplies_the_scales(weight: np.ndarray, ratio: float, target: str) -> None:
    _, usual = quantize_weight(weight, target)
    ratios = np.linspace(ratio, 1, weight.shape[1]).astype(np.float32)
    stored, scale = quantize_weight(weight, target, ratio=ratios)
    used = np.abs(weight).max(axis=0) > 1e-25
    np.testing.assert_allclose(scale[used], (usual * ratios)[used], rtol=1e-6)
    levels = np.clip(np.rint(weight / scale), -127, 127)  # of a ratio below 1 the largest are clipped
    np.testing.assert_array_equal(stored, levels)


def test_no_scale_is_below_the_least_whatever_the_ratio() -> None:
    weight = np.array([[1.0, 100.0], [-0.5, 50.0]], np.float32)
    least = np.array([0.5, 0.5], np.float32)
    stored, scale = quantize_weight(weight, "full-range", ratio=0.9, least=least)
    np.testing.assert_allclose(scale, [0.5, 90 / 127], rtol=1e-6)
    np.testing.assert_array_equal(stored, [[2, 127], [-1, 71]])


def test_one_scale_an_output() -> None:
    weight = np.array([[1.0, 100.0], [-0.5, 50.0]], np.float32)
    stored, scale = quantize_weight(weight, "full-range")
    np.testing.assert_array_equal(stored, [[127, 127], [-64, 64]])
    np.testing.assert_allclose(scale, [1 / 127, 100 / 127], rtol=1e-6)


@pytest.mark.parametrize("target", ["any-cpu", "full-range"])
def test_zeros_stay_zeros(target: str) -> None:
    stored, scale = quantize_weight(np.zeros((3, 2), np.float32), target)
    assert not stored.any()
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
