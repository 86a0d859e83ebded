"""Distances of samples, and the noise that chance makes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from export.measure.field_statistics import describe_values
from runtime.monitor import drift
from runtime.monitor.drift import count_independent, estimate_noise, measure_distance
from runtime.monitor.monitor import _compare


def test_the_distance_is_that_of_jensen_and_shannon() -> None:
    equal, other = np.array([3, 0, 5]), np.array([30, 0, 50])
    assert measure_distance(equal, other) == 0
    assert measure_distance(np.array([4, 0]), np.array([0, 9])) == 1
    # Half of one sample is where the other one is: 0.75 log2(4/3) / 2 + … = 0.311 bits.
    assert measure_distance(np.array([1, 1]), np.array([2, 0])) == pytest.approx(0.3113, abs=1e-4)


@pytest.mark.parametrize("degrees", [1, 2, 5, 9])
def test_the_quantile_is_that_of_chi_square(degrees: int) -> None:
    found = drift._chi_square_quantile(degrees, 1e-4)
    assert 1 <= found / chi2.isf(1e-4, degrees) < 1.14


def test_noise_falls_with_images_on_both_sides() -> None:
    noise = [estimate_noise(9, here, there, 11) for here, there in ((50, 50), (200, 50), (200, 5000))]
    assert sorted(noise, reverse=True) == noise
    assert estimate_noise(9, 1, 1, 11) == 1


@pytest.mark.parametrize("there", [50, 360, 5000])
@pytest.mark.parametrize("here", [50, 200])
@pytest.mark.parametrize("kind", ["normal", "rounded", "mostly one"])
def test_chance_alone_raises_nothing(here: int, there: int, kind: str) -> None:
    """2,000 pairs of one source, each as one of 11 statistics: at most 1 alarm, where 0.2 are expected."""
    random = np.random.default_rng(there + here)

    def draw(count: int) -> np.ndarray:
        values = random.normal(size=count)
        return {"normal": values, "rounded": np.round(values), "mostly one": np.maximum(values, 0.5)}[kind]

    alarms = 0
    for _ in range(200):
        reference = describe_values(draw(there))
        alarms += sum(_compare(draw(here), reference, there, 11).raised for _ in range(10))
    assert alarms <= 1


def test_a_change_of_half_a_deviation_is_raised_with_200_images_and_no_alarm_is_with_20() -> None:
    random = np.random.default_rng(0)
    reference = describe_values(random.normal(size=5000))
    raised = [_compare(random.normal(size=200) + 0.75, reference, 5000, 11).raised for _ in range(50)]
    assert sum(raised) == 50
    assert not _compare(random.normal(size=20) + 9, reference, 5000, 11).raised


def test_frames_of_one_scene_are_few_independent_images() -> None:
    """A walk of small steps: its 200 values lie close together, which is no drift."""
    random = np.random.default_rng(0)
    reference = describe_values(random.normal(size=5000))
    for _ in range(100):
        start = random.normal()
        frames = start + np.cumsum(random.normal(size=200) * 0.1)
        assert not _compare(frames, reference, 5000, 11).raised
    assert count_independent(np.arange(200.0) // 20) < 25
    assert count_independent(random.normal(size=200)) > 150
    assert count_independent(np.full(200, 0.3)) == 200
