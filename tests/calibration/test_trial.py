"""A trial's error is that of the integers that would run, and its choice has the smallest error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.observe import Observation, RowStatistics
from calibration.plan import Range
from calibration.ranges import RULES
from calibration.trial import RATIOS, Choice, Trial
from calibration.weights import quantize_weight

FEATURES, OUTPUTS = 6, 4
seeds = st.integers(0, 500)
targets = st.sampled_from(["full-range", "any-cpu"])


def observation(fit: np.ndarray, held: np.ndarray | None = None) -> Observation:
    """Statistics that calibration keeps of these rows."""
    made = Observation.empty(fit.shape[1], 4)
    for part, rows in ((made.fit, fit), (made.held, held)):
        if rows is not None:
            part.update(rows.astype(np.float32))
    return made


def drawn(seed: int, *, gelu: bool = False, rows: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to fit, rows to judge by, and a weight, all random; two features are larger than the others."""
    random = np.random.default_rng(seed)
    both = random.normal(size=(2, rows, FEATURES)) * np.array([6, 3, 1, 1, 0.5, 1])
    if gelu:
        both = np.maximum(both, -0.17)
    weight = random.normal(size=(FEATURES, OUTPUTS))
    return both[0].astype(np.float32), both[1].astype(np.float32), weight.astype(np.float32)


def trial_of(
    seed: int, *, gelu: bool = False, target: Any = "full-range", scales: np.ndarray | None = None
) -> Trial:
    fit, held, weight = drawn(seed, gelu=gelu)
    ones = np.ones(FEATURES, np.float32) if scales is None else scales
    return Trial(observation(fit, held), weight, ones, target, gelu=gelu)


def integers_say(
    rows: np.ndarray,
    weight: np.ndarray,
    choice: Choice,
    target: Any,
    gelu: bool,
    ratio: np.ndarray | float = 1.0,
) -> np.ndarray:
    """The output of the kernel: uint8 by int8 in whole numbers, then the two scales; columns in float."""
    stored, scale = quantize_weight(weight, target, ratio=ratio)
    out = np.zeros((len(rows), weight.shape[1]))
    rest = [feature for feature in range(rows.shape[1]) if feature not in choice.columns]
    for index, row in enumerate(rows.astype(np.float64)):
        peak = 1.0
        if choice.per_token is not None:
            peak = max((row if gelu else np.abs(row))[rest].max(), choice.per_token)
        for feature, value in enumerate(row / peak):
            if feature in choice.columns:
                out[index] += value * peak * weight[feature]
                continue
            level = min(max(round(value / choice.input.scale) + choice.input.zero_point, 0), 255)
            whole = (level - choice.input.zero_point) * stored[feature].astype(np.int64)
            out[index] += whole * choice.input.scale * scale.astype(np.float64) * peak
    return out


def error_of(choice: Choice, seed: int, target: Any, gelu: bool) -> float:
    _, held, weight = drawn(seed, gelu=gelu)
    exact = held.astype(np.float64) @ weight.astype(np.float64)
    return float(np.square(integers_say(held, weight, choice, target, gelu) - exact).sum())


@given(seeds, targets, st.booleans(), st.sampled_from(sorted(RULES)))
@settings(max_examples=25)
def test_the_error_of_one_range_is_that_of_the_integers(
    seed: int, target: Any, gelu: bool, rule: str
) -> None:
    choice = trial_of(seed, gelu=gelu, target=target).choose_per_tensor(rules=(rule,))
    assert (choice.rule, choice.per_token, choice.columns) == (rule, None, ())
    assert choice.error == pytest.approx(error_of(choice, seed, target, gelu), rel=1e-3)


@given(seeds, targets, st.booleans())
@settings(max_examples=25)
def test_the_error_of_rows_with_their_own_scale_is_that_of_the_integers(
    seed: int, target: Any, gelu: bool
) -> None:
    choice = trial_of(seed, gelu=gelu, target=target).choose_per_token()
    assert choice.columns == ()
    assert choice.per_token is not None
    assert choice.error == pytest.approx(error_of(choice, seed, target, gelu), rel=1e-3)


@given(seeds, st.sets(st.integers(0, FEATURES - 1), min_size=1, max_size=FEATURES - 1).map(sorted).map(tuple))
@settings(max_examples=25)
def test_the_error_with_features_in_float_is_that_of_the_other_integers(
    seed: int, columns: tuple[int, ...]
) -> None:
    choice = trial_of(seed).choose_per_tensor(columns)
    assert choice.columns == columns
    assert choice.error == pytest.approx(error_of(choice, seed, "full-range", gelu=False), rel=1e-3)
    rest = [feature for feature in range(FEATURES) if feature not in columns]
    fit, _, _ = drawn(seed)
    (seen,) = [trial_of(seed).choose_per_tensor(columns, rules=("min-max",)).input]
    assert seen == Range.of(float(fit[:, rest].min()), float(fit[:, rest].max()))


@given(seeds, st.sets(st.integers(0, FEATURES - 1), min_size=1, max_size=FEATURES - 1).map(sorted).map(tuple))
@settings(max_examples=25)
def test_rows_with_their_own_scale_and_features_in_float_at_once(seed: int, columns: tuple[int, ...]) -> None:
    """A row's peak is that of the features that are quantized."""
    choice = trial_of(seed, gelu=True).choose_per_token(columns)
    assert (choice.columns, choice.rule) == (columns, "exact")
    assert choice.error == pytest.approx(error_of(choice, seed, "full-range", gelu=True), rel=1e-3)
    fit, _, _ = drawn(seed, gelu=True)
    rest = [feature for feature in range(FEATURES) if feature not in columns]
    floors = np.maximum(np.quantile(fit[:, rest].max(axis=1), (0.0, 0.1, 0.25, 0.5, 0.75)), 1e-6)
    assert np.isclose(floors, choice.per_token, rtol=1e-5).any()


@given(seeds)
@settings(max_examples=20)
def test_the_rows_of_the_class_token_count_as_much_as_all_others(seed: int) -> None:
    fit, held, weight = drawn(seed)
    _, first, _ = drawn(seed + 1)
    seen, ones = observation(fit, held), np.ones(FEATURES, np.float32)
    seen.held_class = RowStatistics(FEATURES, 8)
    seen.held_class.update(first[:5])
    choice = trial_of(seed).choose_per_tensor(rules=("min-max",))
    both = Trial(seen, weight, ones, "full-range", gelu=False).choose_per_tensor(rules=("min-max",))
    assert both.input == choice.input
    rows = integers_say(first[:5], weight, choice, "full-range", False) - first[:5] @ weight.astype(float)
    expected = choice.error + len(held) / 5 * np.square(rows).sum()
    assert both.error == pytest.approx(expected, rel=1e-3)


@given(seeds, st.booleans())
@settings(max_examples=25)
def test_the_rule_with_the_least_error_is_taken(seed: int, gelu: bool) -> None:
    trial = trial_of(seed, gelu=gelu)
    each = {rule: trial.choose_per_tensor(rules=(rule,)) for rule in RULES}
    best = trial.choose_per_tensor()
    assert best.error == min(choice.error for choice in each.values())
    assert best == each[best.rule]
    two = trial.choose_per_tensor(rules=("percentile", "mse"))
    assert two.error == min(each["percentile"].error, each["mse"].error)


def test_no_rule_always_wins() -> None:
    """Else the trial would not have to compare."""
    winners = {
        trial_of(seed, gelu=gelu).choose_per_tensor().rule for seed in range(60) for gelu in (False, True)
    }
    assert len(winners) >= 3


def test_ranges_come_from_the_rows_to_fit_and_errors_from_those_that_judge() -> None:
    fit, held, weight = drawn(0)
    ones = np.ones(FEATURES, np.float32)
    seen, with_outlier = held.copy(), held.copy()
    with_outlier[0, 0] = 60.0
    calm, surprised = (
        Trial(observation(fit, rows), weight, ones, "full-range", gelu=False) for rows in (seen, with_outlier)
    )
    for rule in RULES:
        before, after = calm.choose_per_tensor(rules=(rule,)), surprised.choose_per_tensor(rules=(rule,))
        assert before.input == after.input
        assert after.error > before.error + 1000
    assert calm.choose_per_token().per_token == surprised.choose_per_token().per_token


def test_a_single_image_judges_itself() -> None:
    fit, _, weight = drawn(0)
    ones = np.ones(FEATURES, np.float32)
    alone = Trial(observation(fit), weight, ones, "full-range", gelu=False)
    twice = Trial(observation(fit, fit), weight, ones, "full-range", gelu=False)
    assert alone.choose_per_tensor() == twice.choose_per_tensor()
    assert alone.choose_per_tensor().error > 0


@given(seeds, st.lists(st.floats(0.25, 4, width=32), min_size=FEATURES, max_size=FEATURES))
@settings(max_examples=25)
def test_scales_divide_the_rows(seed: int, scales: list[float]) -> None:
    """A trial of divided rows is a trial of smaller rows: when it fits, judges and fits again."""
    fit, held, weight = drawn(seed)
    factors, ones = np.array(scales, np.float32), np.ones(FEATURES, np.float32)
    divided = Trial(observation(fit, held), weight, factors, "full-range", gelu=False)
    smaller = Trial(observation(fit / factors, held / factors), weight, ones, "full-range", gelu=False)
    for rule in ("min-max", "mse"):
        found, expected = divided.choose_per_tensor(rules=(rule,)), smaller.choose_per_tensor(rules=(rule,))
        assert found.input.scale == pytest.approx(expected.input.scale, rel=1e-5)
        assert found.error == pytest.approx(expected.error, rel=1e-3)
        again, expected = divided.refit(found), smaller.refit(expected)
        assert again.input.scale == pytest.approx(expected.input.scale, rel=1e-5)
    assert divided.choose_per_token().per_token == pytest.approx(
        smaller.choose_per_token().per_token, rel=1e-5
    )
    assert divided.choose_per_token().error == pytest.approx(smaller.choose_per_token().error, rel=1e-3)


@given(seeds)
@settings(max_examples=20)
def test_refitting_looks_at_the_rows_that_judged_too(seed: int) -> None:
    fit, held, _ = drawn(seed)
    trial = trial_of(seed)
    everything = np.concatenate([fit, held])
    low, high = float(everything.min()), float(everything.max())
    for rule, expected in {"min-max": Range.of(low, high), "margin": Range.of(1.1 * low, 1.1 * high)}.items():
        choice = trial.choose_per_tensor(rules=(rule,))
        found = trial.refit(choice)
        assert found.input == expected
        assert (found.rule, found.error, found.columns) == (rule, choice.error, ())


def test_refitting_keeps_the_rule_and_looks_at_its_histogram_again() -> None:
    """For rules that look at more than the extremes: the same as if all rows had been there to fit."""
    fit, held, weight = drawn(4)
    ones = np.ones(FEATURES, np.float32)
    everything = Trial(observation(np.concatenate([fit, held]), held), weight, ones, "full-range", gelu=False)
    for rule in ("percentile", "mse", "entropy"):
        choice = trial_of(4).choose_per_tensor((0, 2), rules=(rule,))
        found, expected = trial_of(4).refit(choice), everything.choose_per_tensor((0, 2), rules=(rule,))
        assert found.input.scale == pytest.approx(expected.input.scale, rel=0.01)
        assert (found.rule, found.columns) == (rule, (0, 2))
        assert found.input != choice.input


def test_rows_with_their_own_scale_need_no_refitting() -> None:
    choice = trial_of(0).choose_per_token()
    assert trial_of(0).refit(choice) is choice


@pytest.mark.parametrize("gelu", [False, True])
def test_no_row_exceeds_the_range_of_rows_with_their_own_scale(gelu: bool) -> None:
    fit, held, weight = drawn(1, gelu=gelu)
    held[0] *= 50
    ones = np.ones(FEATURES, np.float32)
    choice = Trial(observation(fit, held), weight, ones, "full-range", gelu=gelu).choose_per_token()
    assert choice.per_token is not None
    low = -choice.input.zero_point * choice.input.scale
    high = (255 - choice.input.zero_point) * choice.input.scale
    peaks = held.max(axis=1, keepdims=True) if gelu else np.abs(held).max(axis=1, keepdims=True)
    rows = held / np.maximum(peaks, choice.per_token)
    assert rows.max() <= high + choice.input.scale / 2
    assert rows.min() >= low - choice.input.scale / 2


def least_peak(rows: np.ndarray, *, gelu: bool) -> Choice:
    features = rows.shape[1]
    weight, ones = np.ones((features, 1), np.float32), np.ones(features, np.float32)
    return Trial(observation(rows), weight, ones, "full-range", gelu=gelu).choose_per_token()


def test_the_smallest_peak_that_a_row_is_divided_by() -> None:
    without_gelu = least_peak(np.array([[-0.5, 0.1], [-2.0, 0.1]], np.float32), gelu=False)
    assert without_gelu.per_token == pytest.approx(2.0 * 1e-4)  # ten thousand times below the largest
    assert without_gelu.input == Range.of(-1.0, 1.0)
    alike = least_peak(np.array([[0.5, -0.1]] * 3, np.float32), gelu=True)
    assert alike.per_token == 0.5
    assert alike.input == Range.of(-0.1701 / 0.5, 1.0)
    assert (alike.rule, without_gelu.rule) == ("exact", "exact")
    for rows in (np.zeros((3, 2), np.float32), np.full((3, 2), -0.1, np.float32)):
        assert least_peak(rows, gelu=True).per_token == 1e-6  # a row never positive must not be divided by 0
    assert least_peak(np.zeros((3, 2), np.float32), gelu=False).per_token == 1e-6


@given(seeds)
@settings(max_examples=20)
def test_behind_a_gelu_the_smallest_peak_with_the_least_error_is_taken(seed: int) -> None:
    fit, _, _ = drawn(seed, gelu=True)
    trial = trial_of(seed, gelu=True)
    quantiles = np.quantile(fit.max(axis=1), (0.0, 0.1, 0.25, 0.5, 0.75))
    errors = []
    for floor in quantiles:
        floor = max(float(floor), 1e-6)
        choice = Choice(0.0, Range.of(-0.1701 / floor, 1.0), "exact", per_token=floor)
        errors.append(error_of(choice, seed, "full-range", gelu=True))
    assert trial.choose_per_token().error == pytest.approx(min(errors), rel=1e-3)


def test_one_faint_row_does_not_make_the_range_of_all_wider() -> None:
    random = np.random.default_rng(0)
    rows = random.uniform(0.5, 5, (200, 4)).astype(np.float32)
    rows[0] = 0.001
    choice = least_peak(rows, gelu=True)
    assert choice.per_token is not None
    assert choice.per_token > 1


def test_a_gelu_is_never_below_the_constant() -> None:
    """x · Φ(x) and its tanh form have their minimum just above -0.1701: so fine a bound is worth a level."""
    x = np.linspace(-3, 1, 100_001)
    exact = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x]
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    least = trial_of(0, gelu=True).choose_per_token()
    assert least.per_token is not None
    low = -least.input.zero_point * least.input.scale * least.per_token
    assert low <= min(min(exact), tanh.min()) + least.input.scale * least.per_token / 2
    assert low > -0.2


def mean_free(error: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The energy of each output's error, less its mean, where some rows count more than others."""
    error = error - np.average(error, axis=0, weights=counts)
    return np.asarray(counts @ np.square(error))


def with_class_token(seed: int, target: Any) -> Trial:
    """A trial of which two rows to fit, and two that judge, are those of a class token."""
    fit, held, weight = drawn(seed)
    seen, ones = observation(fit[2:], held[2:]), np.ones(FEATURES, np.float32)
    seen.fit_class, seen.held_class = RowStatistics(FEATURES, 8), RowStatistics(FEATURES, 8)
    seen.fit_class.update(fit[:2])
    seen.held_class.update(held[:2])
    return Trial(seen, weight, ones, target, gelu=False)


@given(seeds, targets)
@settings(max_examples=40)
def test_a_ratio_is_that_of_the_least_error_on_the_rows_to_fit(seed: int, target: Any) -> None:
    """Found again by brute force; the two rows of the class token count as much as the other 38."""
    trial = with_class_token(seed, target)
    found = trial.choose_ratios(trial.choose_per_tensor())
    assert len(found) in (0, OUTPUTS)
    rows, weight = drawn(seed)[0].astype(np.float64), trial.weight
    counts = np.array([19.0] * 2 + [1.0] * 38)
    candidates = [each for each in (1.0, *RATIOS) if each >= 1 or target == "full-range"]
    errors = []
    for ratio in candidates:
        stored, scale = quantize_weight(weight, target, ratio=ratio)
        errors.append(mean_free(rows @ (stored * scale.astype(np.float64) - weight), counts))
    for output, ratio in enumerate(found):
        least = min(each[output] for each in errors)
        assert errors[candidates.index(ratio)][output] == pytest.approx(least, rel=1e-3)


@given(seeds, targets)
@settings(max_examples=40)
def test_ratios_lower_the_error_of_the_rows_that_judge(seed: int, target: Any) -> None:
    """By the integers that would run."""
    trial = with_class_token(seed, target)
    choice = trial.choose_per_tensor()
    found = trial.choose_ratios(choice)
    rows, weight = drawn(seed)[1], trial.weight
    counts = np.array([19.0] * 2 + [1.0] * 38)
    exact = rows.astype(np.float64) @ weight.astype(np.float64)
    ratio = np.array(found, np.float32) if found else 1.0
    before, after = (integers_say(rows, weight, choice, target, False, each) - exact for each in (1.0, ratio))
    if found:
        assert mean_free(after, counts).sum() < mean_free(before, counts).sum()
        assert trial._spread(choice, ratio) == pytest.approx(mean_free(after, counts).sum(), rel=1e-3)


def test_ratios_that_the_rows_that_judge_contradict_are_dropped() -> None:
    """Fit by one feature alone and judged by the others, whose rounding says nothing about it."""
    dropped = []
    for seed in range(40):
        fit, held, weight = drawn(seed)
        fit[:, 1:], held[:, 0] = 0.0, 0.0
        ones = np.ones(FEATURES, np.float32)
        # For one output: of four, some always gain.
        trial = Trial(observation(fit, held), weight[:, :1], ones, "full-range", gelu=False)
        found = trial.choose_ratios(trial.choose_per_tensor())
        assert found in ((), *((each,) for each in RATIOS))
        dropped.append(found == ())
    assert 20 < sum(dropped) < 40


@given(seeds, targets)
@settings(max_examples=60)
def test_ratios_beside_features_in_float_are_compared_with_what_the_file_would_have(
    seed: int, target: Any
) -> None:
    """The file rounds what is left by scales of its own, with ratios and without."""
    columns = (0, 2)
    trial = trial_of(seed, gelu=True, target=target)
    choice = trial.choose_per_tensor(columns)
    if found := trial.choose_ratios(choice):
        rows, weight, rest = drawn(seed, gelu=True)[1], trial.weight, [1, 3, 4, 5]
        whole = replace(choice, columns=())
        exact = rows[:, rest].astype(np.float64) @ weight[rest].astype(np.float64)
        before, after = (
            integers_say(rows[:, rest], weight[rest], whole, target, True, each) - exact
            for each in (1.0, np.array(found, np.float32))
        )
        counts = np.ones(len(rows))
        assert mean_free(after, counts).sum() < mean_free(before, counts).sum()


def test_what_no_ratio_improves_has_none() -> None:
    zeros, ones = np.zeros((8, FEATURES), np.float32), np.ones(FEATURES, np.float32)
    _, held, weight = drawn(0)
    for rows, matrix in ((zeros, weight), (held, np.zeros_like(weight))):
        trial = Trial(observation(rows, rows), matrix, ones, "full-range", gelu=False)
        assert trial.choose_ratios(trial.choose_per_tensor()) == ()
