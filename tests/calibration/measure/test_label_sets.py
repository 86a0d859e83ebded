"""Label sets: mean average precision as scikit-learn's, its interval, and the drift of label sets by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from calibration.measure.drift import SetDrift, measure_drift
from calibration.measure.label_sets import average_precisions, interval_of_drop, measure_f1, predict_answers
from calibration.search import Budget

THRESHOLDS = (0.5, 0.7)


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


@pytest.mark.parametrize("digits", [1, 8])
def test_average_precision_is_that_of_scikit_learn(digits: int) -> None:
    random = np.random.default_rng(0)
    logits = np.round(random.normal(size=(50, 4)), digits).astype(np.float32)  # one digit: ties
    targets = random.random((50, 4)) < 0.3
    targets[:, 2] = False  # no image has it
    found = average_precisions(logits, targets)[0]
    expected = [average_precision_score(targets[:, i], logits[:, i]) for i in (0, 1, 3)]
    assert found == pytest.approx(expected)


def test_weights_are_numbers_of_copies() -> None:
    random = np.random.default_rng(1)
    logits, targets = random.normal(size=(20, 2)).astype(np.float32), random.random((20, 2)) < 0.4
    copies = random.integers(0, 3, 20)
    weighted = average_precisions(logits, targets, copies[None].astype(float))[0]
    repeated = average_precisions(np.repeat(logits, copies, 0), np.repeat(targets, copies, 0))[0]
    assert weighted == pytest.approx(repeated)


def test_sets_reach_their_thresholds() -> None:
    logits = np.array([[0.0, logit(0.71)], [-1e-6, logit(0.69)], [1e38, -1e38]], np.float32)
    assert predict_answers(logits, THRESHOLDS).tolist() == [[True, True], [False, False], [True, False]]


def test_f1_of_all_labels_together() -> None:
    random = np.random.default_rng(0)
    found, truth = random.random((2, 30, 4)) < 0.4
    assert measure_f1(found, truth) == pytest.approx(f1_score(truth, found, average="micro"))
    assert measure_f1(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0


def test_drift_by_hand() -> None:
    reference = np.array([[2, 3], [1, -1], [-2, 2], [-3, -2]], np.float32)
    targets = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool)
    variant = reference.copy()
    variant[3, 0] = 1.5  # a label more, above one of the two images that have it
    drift = measure_drift(reference, variant, targets, None, THRESHOLDS)
    assert isinstance(drift, SetDrift)
    assert drift.agreement == 75.0
    assert drift.float_map == 100.0
    assert drift.map == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    assert drift.drop == drift.map_drop == pytest.approx(100 / 12)
    assert (drift.float_f1, drift.f1) == (100.0, pytest.approx(100 * 8 / 9))
    assert drift.drop_interval.low < drift.drop < drift.drop_interval.high
    assert drift.to_dict().keys().isdisjoint({"top1", "lost"})
    assert measure_drift(reference, variant, None, None, THRESHOLDS).drop is None
    assert measure_drift(reference, variant, np.zeros((4, 2), bool), None, THRESHOLDS).drop is None


@pytest.mark.parametrize("images", [10, 1000])
def test_equal_ranks_leave_open_what_a_share_leaves_open(images: int) -> None:
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(images, 3)), random.random((images, 3)) < 0.3
    interval = interval_of_drop(logits, logits, targets)
    assert interval.high == pytest.approx(1.96**2 / (images + 1.96**2))
    assert interval.low == -interval.high


def test_the_interval_covers_the_drop_of_many_images() -> None:
    """Of 60 draws of 300 images, the intervals of nearly all hold the drop of 60,000 such images."""
    random = np.random.default_rng(0)

    def draw(images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        targets = random.random((images, 3)) < 0.3
        exact = random.normal(size=targets.shape) + 2 * targets
        return exact, exact + 0.8 * random.normal(size=targets.shape), targets

    exact, noisy, targets = draw(60_000)
    truth = float(np.mean(average_precisions(exact, targets) - average_precisions(noisy, targets)))
    intervals = [interval_of_drop(*draw(300)) for _ in range(60)]
    covered = sum(each.low <= truth <= each.high for each in intervals)
    assert covered >= 55
    assert max(each.high - each.low for each in intervals) < 0.1


def test_a_budget_names_what_falls() -> None:
    drift = SetDrift(
        images=9, agreement=90.0, sqnr=30.0, max_error=1.0, map_drop=0.8, drop_low=0.6, drop_high=1.0
    )
    assert Budget(max_drift=0.5).misses(drift, surely=True) == [
        "mAP falls by 0.80 points (limit: 0.5 points)"
    ]
    assert Budget(max_drift=0.7).misses(drift, surely=True) == []
    unknown = SetDrift(images=9, agreement=90.0, sqnr=30.0, max_error=1.0)
    with pytest.raises(ValueError, match="a limit on mAP needs images"):
        Budget(max_drift=0.7).misses(unknown)
