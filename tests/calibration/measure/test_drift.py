"""Drift figures, checked by hand and by their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.measure.drift import measure_drift, sqnr

REFERENCE = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 4.0], [5.0, 0.0, 0.0]], np.float32)


def test_by_hand() -> None:
    variant = REFERENCE.copy()
    variant[1] = [0.0, 1.0, 2.0]  # changes the label of the second image
    drift = measure_drift(REFERENCE, variant, np.array([0, 1, 2, 1]))
    assert drift.images == 4
    assert drift.agreement == 75.0
    assert (drift.float_top1, drift.top1, drift.top1_drop) == (75.0, 50.0, 25.0)
    assert drift.max_error == 1.0
    assert drift.sqnr == pytest.approx(10 * np.log10((10 + 5 + 17 + 25) / 2))


def test_a_better_variant_has_a_negative_drop() -> None:
    targets = np.array([0, 1, 2, 1])
    variant = REFERENCE.copy()
    variant[3] = [0.0, 1.0, 0.0]
    assert measure_drift(REFERENCE, variant, targets).top1_drop == -25.0


def test_without_classes() -> None:
    drift = measure_drift(REFERENCE, REFERENCE + 0.1)
    assert drift.agreement == 100.0
    assert drift.top1 is drift.top1_drop is drift.float_top1 is None
    assert drift.to_dict()["top1"] is None


def test_no_difference_is_200_decibels() -> None:
    assert measure_drift(REFERENCE, REFERENCE).sqnr == 200.0


@pytest.mark.parametrize("decibels", [0, 10, 20, 40])
def test_sqnr_is_in_decibels(decibels: int) -> None:
    noise = REFERENCE * 10 ** (-decibels / 20)
    assert sqnr(REFERENCE, REFERENCE + noise) == pytest.approx(decibels, abs=1e-3)


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (0, 3)])
def test_other_images_are_refused(shape: tuple[int, int]) -> None:
    reference = REFERENCE[: shape[0]] if shape[0] == 0 else REFERENCE
    with pytest.raises(ValueError, match="expected logits of the same images"):
        measure_drift(reference, np.zeros(shape, np.float32))


def test_any_class_of_the_true_name_is_right() -> None:
    rows = np.eye(3, dtype=np.float32)
    same_name = np.array([0, 1, 0])  # the classes 0 and 2 have one name
    drift = measure_drift(rows, rows[[2, 1, 1]], np.array([0, 1, 0]), same_name)
    assert (drift.float_top1, drift.top1) == (100.0, pytest.approx(200 / 3))
    assert (drift.lost, drift.gained) == (1, 0)
    exact = measure_drift(rows, rows[[2, 1, 1]], np.array([0, 1, 0]))
    assert (exact.lost, exact.gained) == (1, 0)
    assert exact.float_top1 == pytest.approx(200 / 3)


def test_the_drop_and_the_agreement_have_intervals() -> None:
    rows = np.eye(2, dtype=np.float32)[np.arange(100) % 2]
    worse = rows.copy()
    worse[:4] = worse[:4, ::-1]
    drift = measure_drift(rows, worse, rows.argmax(axis=1))
    assert drift.drop_interval is not None
    assert 0 < drift.drop_interval.low < 4.0 < drift.drop_interval.high < 12
    assert drift.agreement_interval.low < 96.0 < drift.agreement_interval.high
    assert measure_drift(rows, worse).drop_interval is None
