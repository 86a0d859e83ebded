from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from calibration.measure.statistics import Interval, Paired, mean_interval, sqnr_interval, wilson_interval


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(hits, total, low, high):
    found = wilson_interval(hits, total)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_stays_within_0_and_1():
    some, others = wilson_interval(3, 40), wilson_interval(37, 40)
    assert (some.low, some.high) == pytest.approx((1 - others.high, 1 - others.low))
    assert wilson_interval(40, 40).high == pytest.approx(1)
    assert wilson_interval(40, 40).low < 0.95


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_share(hits, total):
    with pytest.raises(ValueError, match="expected 0 <= hits <= total"):
        wilson_interval(hits, total)


def test_wilson_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [wilson_interval(int(hits), 200) for hits in random.binomial(200, 0.97, 2000)]
    covered = np.mean([each.low <= 0.97 <= each.high for each in intervals])
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    # 2 · P(X <= min) of a fair coin; the last two worked out with scipy.stats.binomtest
    [(0, 0, 1.0), (1, 0, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (10, 2, 158 / 4096), (3, 3, 1.0),
     (30, 12, 0.00791590), (150, 112, 0.02208170)],
)  # fmt: skip
def test_mcnemar_is_exact(lost, gained, expected):
    assert Paired(lost, gained, 1000).p_value() == pytest.approx(expected, rel=1e-6)


def test_mcnemar_of_very_many_images_neither_overflows_nor_rounds_to_nothing():
    p = Paired(3000, 2500, 100_000).p_value()
    normal = math.erfc((500 - 1) / math.sqrt(5500) / math.sqrt(2))  # with the continuity correction
    assert p == pytest.approx(normal, rel=0.1)


def test_paired_counts_what_only_one_model_gets_right():
    first = np.array([True, True, True, False, False, True])
    second = np.array([True, False, False, True, False, True])
    assert Paired.of(first, second) == Paired(2, 1, 6)
    assert Paired.of(first, second).difference == pytest.approx(-1 / 6)
    with pytest.raises(ValueError, match="the same images twice"):
        Paired.of(first, second[:3])


def test_interval_of_the_difference():
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850, airway hyper-responsiveness
    found = Paired(7, 1, 21).interval()
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    # by hand: z² / (n + z²) where the models never differ
    same = Paired(0, 0, 153).interval()
    assert (same.low, same.high) == pytest.approx((-3.84146 / 156.84146, 3.84146 / 156.84146), abs=1e-6)
    mirrored = Paired(1, 7, 21).interval()
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(("lost", "gained", "total"), [(5, 0, 5), (0, 5, 5), (1, 0, 1), (0, 0, 1), (3, 2, 5)])
def test_interval_of_the_difference_of_hardly_any_images(lost: int, gained: int, total: int) -> None:
    found = Paired(lost, gained, total).interval()
    assert -1 <= found.low <= (gained - lost) / total <= found.high <= 1
    assert found.high - found.low > 0.5


@pytest.mark.parametrize(
    ("images", "share"), [(153, 0.005), (600, 0.005), (600, 0.01), (765, 0.005), (2000, 0.002)]
)
def test_a_loss_at_the_limit_is_hardly_ever_taken_for_one_below_it(images: int, share: float) -> None:
    """Exact, for a variant that loses images and gains none: how often the interval ends above the truth."""
    counts = np.arange(images + 1)
    wrong = [Paired(int(lost), 0, images).interval().low > -share for lost in counts[:60]]
    assert binom.pmf(counts[:60], images, share)[wrong].sum() <= 0.03


def test_interval_of_the_difference_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    counts = random.multinomial(300, [0.03, 0.01, 0.96], 2000)
    intervals = [Paired(int(lost), int(gained), 300).interval() for lost, gained, _ in counts]
    covered = np.mean([each.low <= -0.02 <= each.high for each in intervals])
    assert 0.93 < covered < 0.98


def test_sqnr_interval_surrounds_the_figure_and_narrows_with_more_images():
    random = np.random.default_rng(0)

    def interval(images):
        exact = random.standard_normal((images, 10))
        noisy = exact + 0.1 * random.standard_normal(exact.shape) * random.uniform(0.2, 2, (images, 1))
        return sqnr_interval(exact, noisy), 10 * np.log10(
            np.square(exact).sum() / np.square(exact - noisy).sum()
        )

    few, few_exact = interval(50)
    many, many_exact = interval(5000)
    assert few.low < few_exact < few.high
    assert many.low < many_exact < many.high
    assert many.high - many.low < 0.3 * (few.high - few.low)


def test_sqnr_interval_is_the_same_each_time_and_refuses_equal_logits():
    exact = np.random.default_rng(0).standard_normal((20, 3))
    assert sqnr_interval(exact, exact + 0.1) == sqnr_interval(exact, exact + 0.1)
    assert isinstance(sqnr_interval(exact, exact + 0.1), Interval)
    assert sqnr_interval(exact, exact) == Interval(200.0, 200.0)
    assert sqnr_interval(exact[:1], exact[:1] + 0.1) is None
    with pytest.raises(ValueError, match="the same images"):
        sqnr_interval(exact, exact[:3])


def test_interval_of_a_mean() -> None:
    found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.4457397, 4.5542603))  # 2.5 ± 3.18245 · 1.29099 / 2
    assert mean_interval(np.array([1.0])) is None
