"""Scores are made to mean what they say, with images that did not decide the temperature."""

from __future__ import annotations

import numpy as np
import pytest

from export.report.reliability import calibration_error, fit_temperature, measure_reliability


def drawn(
    count: int, *, temperature: float, classes: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model that is overconfident by `temperature`, and classes drawn from its true scores."""
    random = np.random.default_rng(seed)
    true = random.normal(size=(count, classes)) * 1.5
    scores = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    targets = np.array([random.choice(classes, p=row) for row in scores])
    return (true * temperature).astype(np.float32), targets


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    assert fit_temperature(*drawn(4000, temperature=temperature)) == pytest.approx(temperature, rel=0.06)


def test_calibration_error_of_a_model_that_is_always_sure() -> None:
    logits = np.array([[50, 0], [50, 0], [0, 50], [50, 0]], np.float32)
    assert calibration_error(logits, np.array([0, 0, 1, 1])) == pytest.approx(0.25)
    assert calibration_error(logits, np.array([0, 0, 1, 0])) == pytest.approx(0.0, abs=1e-9)
    even = np.zeros((4, 2), np.float32)  # a score of one half, right half of the time
    assert calibration_error(even, np.array([0, 0, 1, 1])) == pytest.approx(0.0)


def test_the_error_falls_on_images_that_did_not_decide() -> None:
    logits, targets = drawn(3000, temperature=3.0)
    found = measure_reliability({"float32": logits, "int8": logits * 1.01}, targets)
    assert found is not None
    assert found.images == 3000
    assert found.temperature == fit_temperature(logits, targets)
    assert found.after["float32"] < found.before["float32"] / 3
    assert abs(found.after["int8"] - found.after["float32"]) < 0.01
    assert found.to_dict(None)["reliability"]["ece_after"] == found.after


def test_no_image_is_judged_by_a_temperature_that_it_decided() -> None:
    """Targets that are chance: a fit on the same images looks better than it is on others."""
    random = np.random.default_rng(3)
    logits, targets = random.normal(size=(100, 5)).astype(np.float32) * 4, random.integers(0, 5, 100)
    found = measure_reliability({"float32": logits}, targets)
    assert found is not None
    own = calibration_error(logits / found.temperature, targets)
    assert found.after["float32"] != own


def test_nothing_is_fitted_on_too_little() -> None:
    logits, targets = drawn(99, temperature=2.0)
    assert measure_reliability({"float32": logits}, targets) is None
    assert measure_reliability({"float32": logits}, None) is None


def test_an_answer_of_the_true_name_is_right() -> None:
    """Each class of a model twice, and images that know their name only: the same temperature and errors."""
    logits, targets = drawn(2000, temperature=2.0)
    one = measure_reliability({"float32": logits}, targets)
    twice = np.concatenate([logits, logits - 50], axis=1)
    random = np.random.default_rng(1)
    swap = random.random(len(logits)) < 0.5  # half of the answers are of the other class of that name
    twice[swap] = np.roll(twice[swap], logits.shape[1], axis=1)
    two = measure_reliability({"float32": twice}, targets, np.tile(np.arange(5), 2))
    assert one is not None
    assert two is not None
    assert two.temperature == pytest.approx(one.temperature, rel=1e-3)
    assert two.before["float32"] == pytest.approx(one.before["float32"], abs=1e-6)
    assert two.after["float32"] == pytest.approx(one.after["float32"], abs=1e-4)
