"""Each range rule against what it claims to minimize, found again by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.plan import Range
from calibration.ranges import BINS, RULES, Histogram

SHRINKS = [1.0 - 0.05 * step for step in range(15)]  # 1.0 to 0.3
numbers = st.floats(-1000, 1000, width=32) | st.sampled_from([0.0, 1.0, -1.0, 0.5])
batches = st.lists(hnp.arrays(np.float32, st.integers(0, 30), elements=numbers), min_size=1, max_size=5)


def histogram_of(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def bounds(rule: str, values: np.ndarray) -> tuple[float, float]:
    return RULES[rule](histogram_of(values), float(values.min()), float(values.max()))


def stored(value: float, low: float, high: float) -> float:
    """The value after a trip through uint8 over this range, from the definition of affine quantization."""
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    zero_point = round(-min(low, 0.0) / scale)
    return (min(max(round(value / scale) + zero_point, 0), 255) - zero_point) * scale


def outlier(seed: int, factor: float, count: int = 4000) -> np.ndarray:
    """Values after a GELU: most of them small, one `factor` times the largest of the others."""
    values = np.abs(np.random.default_rng(seed).normal(size=count)).astype(np.float32)
    values[0] = factor * values.max()
    return values - np.float32(0.1)


@given(batches)
@settings(max_examples=200)
def test_no_value_is_lost_and_each_is_within_a_bin_of_where_it_belongs(batches: list[np.ndarray]) -> None:
    histogram, values = histogram_of(*batches), np.concatenate(batches).astype(np.float64)
    if not np.abs(values).max(initial=0):
        assert histogram.limit == 0
        assert not histogram.counts.any()
        return
    # Zeros before the first number have no bin yet; they are inside every range anyway.
    first = next(i for i, batch in enumerate(batches) if np.abs(batch).max(initial=0) > 0)
    values = np.concatenate(batches[first:]).astype(np.float64)
    assert histogram.counts.sum() == len(values)
    assert np.abs(values).max() <= histogram.limit
    width = histogram.centers[1] - histogram.centers[0]
    assert width == pytest.approx(2 * histogram.limit / BINS)
    slack = width * 1.001
    for edge in range(0, BINS, 64):
        below = histogram.counts[:edge].sum()
        position = edge * width - histogram.limit
        assert (values < position - slack).sum() <= below <= (values <= position + slack).sum()


def test_the_bins_double_until_the_largest_value_fits_and_no_further() -> None:
    histogram = histogram_of(np.array([1.0, -0.5], np.float32))
    assert histogram.limit == 1.0
    histogram.update(np.array([-1.0], np.float32))
    assert histogram.limit == 1.0
    histogram.update(np.array([-4.0, 0.1], np.float32))
    assert histogram.limit == 4.0
    histogram.update(np.array([4.5], np.float32))
    assert histogram.limit == 8.0
    at = {float(histogram.centers[i]): int(histogram.counts[i]) for i in np.flatnonzero(histogram.counts)}
    width = 16 / BINS
    found = [value for value, count in at.items() for _ in range(count)]
    assert found == pytest.approx([-4.0, -1.0, -0.5, 0.1, 1.0, 4.5], abs=width)


def test_the_centers_are_in_the_middle_of_equal_bins() -> None:
    centers = histogram_of(np.array([3.0], np.float32)).centers
    assert centers.shape == (BINS,)
    assert centers[0] == pytest.approx(-3.0 + 3.0 / BINS)
    assert centers[-1] == pytest.approx(3.0 - 3.0 / BINS)
    np.testing.assert_allclose(np.diff(centers), 6.0 / BINS)


def test_the_rules_that_a_plan_may_name() -> None:
    """The names stand in plans that were saved: one that goes breaks them."""
    assert list(RULES) == ["min-max", "margin", "percentile", "mse", "entropy"]


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_min_max_is_the_range_that_was_seen_and_margin_a_tenth_more(low: float, high: float) -> None:
    histogram = Histogram()
    assert RULES["min-max"](histogram, low, high) == (low, high)
    assert RULES["margin"](histogram, low, high) == pytest.approx((1.1 * low, 1.1 * high))


@given(st.integers(0, 50), st.floats(-3, 3))
@settings(max_examples=25)
def test_percentile_leaves_out_half_of_a_hundredth_of_a_percent_on_each_side(seed: int, mean: float) -> None:
    values = np.random.default_rng(seed).standard_t(3, size=60_000).astype(np.float32) + np.float32(mean)
    low, high = bounds("percentile", values)
    width = 2 * float(np.abs(values).max()) / BINS
    # Of 60,000 values three may lie outside on each side, give or take what shares a bin with the bound.
    ordered = np.sort(values)
    assert ordered[2] - width <= low <= ordered[3] + width
    assert ordered[-4] - width <= high <= ordered[-3] + width


@given(st.lists(numbers.filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=20))
def test_percentile_is_never_wider_than_what_was_seen(values: list[float]) -> None:
    array = np.array(values, np.float32)
    low, high = bounds("percentile", array)
    assert array.min() <= low
    assert high <= array.max()
    # With so few values none may be left out: the bounds are theirs, to half a bin.
    half = float(np.abs(array).max()) / BINS
    assert low <= array.min() + half * 1.01
    assert high >= array.max() - half * 1.01


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_of_zeros_has_an_empty_range(rule: str) -> None:
    low, high = bounds(rule, np.zeros(5, np.float32))
    assert low == high == 0
    assert Range.of(low, high).fake_quantize(np.zeros(5)).tolist() == [0.0] * 5


def cost_of(histogram: Histogram, low: float, high: float) -> float:
    """Squared error of the values that the histogram stands for, one by one."""
    return sum(
        int(count) * (stored(float(center), low, high) - float(center)) ** 2
        for center, count in zip(histogram.centers, histogram.counts, strict=True)
        if count
    )


@given(st.integers(0, 1000), st.floats(1.0, 20.0))
@settings(max_examples=15)
def test_mse_has_the_least_squared_error_of_all_shrunk_ranges(seed: int, factor: float) -> None:
    values = outlier(seed, factor, count=600)
    histogram, low, high = histogram_of(values), float(values.min()), float(values.max())
    costs = [cost_of(histogram, low * shrink, high * shrink) for shrink in SHRINKS]
    found = bounds("mse", values)
    assert any(found == pytest.approx((low * shrink, high * shrink)) for shrink in SHRINKS)
    assert cost_of(histogram, *found) == pytest.approx(min(costs), rel=1e-6)


def test_mse_clips_an_outlier_that_costs_less_than_its_steps_and_no_other() -> None:
    many = outlier(0, 1.6, count=200_000)
    assert bounds("mse", many)[1] < 0.95 * many.max()
    alone = outlier(0, 10.0, count=50)
    assert bounds("mse", alone) == pytest.approx((alone.min(), alone.max()))


def divergence(histogram: Histogram, low: float, high: float) -> float:
    """Kullback-Leibler divergence of the values from what 256 levels keep of them, bin by bin.

    What lies outside is counted at the outermost level; a level's count is spread evenly over the bins
    that it stands for, as far as they are not empty.
    """
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    zero_point = round(-min(low, 0.0) / scale)
    count_of = [0] * 256
    bins_of: list[list[int]] = [[] for _ in range(256)]
    for index, (center, count) in enumerate(zip(histogram.centers, histogram.counts, strict=True)):
        exact = center / scale + zero_point
        level = min(max(round(exact), 0), 255)
        count_of[level] += int(count)
        if count and -0.5 <= exact <= 255.5:
            bins_of[level].append(index)
    kept = {bin_: count_of[level] / len(bins) for level, bins in enumerate(bins_of) for bin_ in bins}
    total, all_kept = int(histogram.counts.sum()), sum(kept.values())
    return sum(
        count / total * math.log(count / total / max(kept.get(index, 0.0) / all_kept, 1e-12))
        for index, count in enumerate(histogram.counts.tolist())
        if count
    )


@given(st.integers(0, 1000), st.floats(1.0, 30.0))
@settings(max_examples=12)
def test_entropy_keeps_the_distribution_closest_of_all_shrunk_ranges(seed: int, factor: float) -> None:
    values = outlier(seed, factor, count=2_000)
    histogram, low, high = histogram_of(values), float(values.min()), float(values.max())
    costs = [divergence(histogram, low * shrink, high * shrink) for shrink in SHRINKS]
    found = bounds("entropy", values)
    assert any(found == pytest.approx((low * shrink, high * shrink)) for shrink in SHRINKS)
    assert divergence(histogram, *found) == pytest.approx(min(costs), rel=1e-6, abs=1e-9)


def test_entropy_clips_a_long_tail_and_keeps_an_even_distribution() -> None:
    even = np.linspace(-1, 1, 2**16, dtype=np.float32)
    assert bounds("entropy", even) == pytest.approx((-1.0, 1.0))
    for degrees, shrink in ((3, 0.45), (5, 0.9), (50, 1.0)):  # the heavier the tails, the more of them goes
        tails = np.random.default_rng(0).standard_t(degrees, size=200_000).astype(np.float32)
        assert bounds("entropy", tails) == pytest.approx((shrink * tails.min(), shrink * tails.max()))


@given(st.sampled_from(sorted(RULES)), st.integers(0, 100), st.floats(0.1, 10))
@settings(max_examples=40)
def test_a_tensor_twice_as_large_gets_a_range_twice_as_large(rule: str, seed: int, factor: float) -> None:
    values = outlier(seed, factor, count=500)
    small, large = bounds(rule, values), bounds(rule, values * 4)
    assert large == pytest.approx((4 * small[0], 4 * small[1]), rel=1e-5)
