"""The search for the most merging within a budget, on made-up drifts and on a small random model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from calibration.measure.drift import Drift
from calibration.plan import PlanError, QuantizationPlan
from calibration.quantize_model import quantize
from calibration.search import Budget, search_plan
from calibration.token_merging.merge_schedule import schedule_middle_blocks, search_merging

DENSE = Drift(images=10, agreement=100, sqnr=30, max_error=0.1)


@pytest.fixture(scope="module")
def model(canonical) -> ir.Model:
    """16 patches and two blocks, of which the first can merge: 1 to 8 tokens."""
    return canonical["plain"]


@pytest.fixture(scope="module")
def images(models, pixels_for) -> np.ndarray:
    return pixels_for(models["plain"].config, count=12, seed=5)


@pytest.fixture(scope="module")
def plan(model, images) -> QuantizationPlan:
    return quantize(model, [images], target="any-cpu").plan


def falling(merging: Mapping[str, int]) -> Drift:
    """1.5 dB less for each token."""
    return replace(DENSE, sqnr=30 - 1.5 * sum(merging.values()))


@pytest.mark.parametrize(
    ("floor", "merged"), [(31.0, 0), (29.0, 0), (28.5, 1), (20.0, 6), (17.9, 8), (0.0, 8)]
)
def test_bisection_finds_the_most(floor, merged, model) -> None:
    budget = Budget(min_sqnr=floor)
    found = search_merging(model, falling, budget.misses, DENSE)
    assert found.merged == merged
    assert found.merging == ({"blocks.0": merged} if merged else {})
    assert found.most == 8
    kept = [trial for trial in found.trials if not trial.misses]
    assert max((trial.merged for trial in kept), default=0) == merged
    assert len(found.trials) == (0 if floor > 30 else 4 if merged == 8 else len(found.trials))
    assert len(found.trials) <= 4
    for trial in found.trials:
        assert bool(trial.misses) == (trial.merged > merged)


def test_a_search_of_a_real_plan_keeps_its_floor(model, plan, images) -> None:
    budget = Budget(min_sqnr=1.0)
    found = search_plan(model, plan, [images], Budget(), merge_within=budget, threads=1)
    assert found.merging is not None
    assert found.plan.merging == found.merging.merging
    chosen = {trial.merged: trial for trial in found.merging.trials}.get(found.merging.merged)
    if chosen is not None:
        assert chosen.drift.sqnr >= 1.0
    assert found.merging.dense == found.after
    again = search_plan(model, plan, [images], Budget(), merge_within=budget, threads=1)
    assert again.plan.to_json() == found.plan.to_json()
    assert found.to_dict()["merging"]["merged_per_block"] == found.merging.merged
    # The strictest floor that one token per block keeps is kept; a stricter one merges nothing.
    (one,) = [trial for trial in found.merging.trials if trial.merged == 1] or [None]
    if one is not None:
        stricter = search_plan(
            model, plan, [images], Budget(), merge_within=Budget(min_sqnr=one.drift.sqnr + 0.1), threads=1
        )
        assert stricter.plan.merging == {}


def test_nothing_merges_unasked(model, plan, images) -> None:
    found = search_plan(model, plan, [images], Budget(min_sqnr=0.0), threads=1)
    assert found.merging is None
    assert found.plan.merging == {}
    assert "merging" not in found.to_dict()


def test_a_number_of_tokens(model) -> None:
    assert schedule_middle_blocks(model, 8) == {"blocks.0": 8}
    with pytest.raises(PlanError, match="16 patches left and can merge 1 to 8 of them, found 9"):
        schedule_middle_blocks(model, 9)


def test_a_floor_is_a_limit_of_the_linears_too(model, plan, images) -> None:
    assert Budget(min_sqnr=3).limits
    assert Budget(min_sqnr=31).misses(DENSE) == ["SQNR is 30.0 dB (minimum: 31 dB)"]
    before = search_plan(model, plan, [images], Budget(), threads=1).before
    found = search_plan(model, plan, [images], Budget(min_sqnr=before.sqnr + 1), threads=1)
    assert found.returned
    assert found.after.sqnr >= before.sqnr + 1
