"""The search within a budget, on a small random model and a plan with one layer spoiled on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from calibration.measure.drift import measure_drift
from calibration.plan import QuantizationPlan, Range
from calibration.quantize import apply_plan, quantize
from calibration.search import Budget, BudgetError, search_plan, with_float
from runtime.session import open_session

SPOILED = "blocks.1.mlp.fc2"


def logits(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
    session = open_session(ir.to_proto(model).SerializeToString(), device="cpu", threads=1, target="any-cpu")
    return np.concatenate([session.run(None, {"pixels": one[None]})[0] for one in pixels])


@pytest.fixture(scope="module")
def images(models, pixels_for) -> np.ndarray:
    return pixels_for(models["plain"].config, count=48, seed=5)


@pytest.fixture(scope="module")
def plan(models, canonical, pixels_for) -> QuantizationPlan:
    seen = pixels_for(models["plain"].config, count=24, seed=1)
    return quantize(canonical["plain"], [seen], target="any-cpu", single_rows="int8").plan


@pytest.fixture
def spoiled(plan) -> QuantizationPlan:
    """One layer gets a range that is far too wide; all others are good."""
    layer = plan.linears[SPOILED]
    wide = replace(layer, input=Range.of(-500.0, 500.0), per_token=None, float_columns=(), correction=())
    return replace(plan, linears={**plan.linears, SPOILED: wide})


def test_a_budget_that_is_met_takes_nothing_back(canonical, plan, images) -> None:
    found = search_plan(canonical["plain"], plan, [images], Budget(min_agreement=50))
    assert found.returned == ()
    assert found.plan == plan
    assert found.before == found.after
    assert found.after.images == len(images)


def test_what_hurts_goes_back_to_float(canonical, plan, spoiled, images) -> None:
    exact = logits(canonical["plain"], images)
    good, bad = (
        measure_drift(exact, logits(apply_plan(canonical["plain"], each).model, images)).agreement
        for each in (plan, spoiled)
    )
    assert bad < good  # else there is nothing to find
    budget = Budget(min_agreement=good)
    found = search_plan(canonical["plain"], spoiled, [images[:20], images[20:]], budget)
    assert found.before.agreement == pytest.approx(bad)
    assert not budget.misses(found.after)
    assert SPOILED in [layer.name for layer in found.returned]
    assert len(found.returned) < len(spoiled.quantized()) / 2
    worst = min(found.returned, key=lambda layer: layer.sqnr)
    assert worst.name == SPOILED
    assert set(spoiled.quantized()) - set(found.plan.quantized()) == {each.name for each in found.returned}
    measured = measure_drift(exact, logits(apply_plan(canonical["plain"], found.plan).model, images))
    assert measured.agreement == pytest.approx(found.after.agreement)


def test_the_share_of_the_cost_is_told(canonical, spoiled, images) -> None:
    found = search_plan(canonical["plain"], spoiled, [images], Budget(min_agreement=99))
    assert 0 < sum(layer.cost for layer in found.returned) <= 0.5


def test_top1_is_a_budget_too(canonical, spoiled, images) -> None:
    targets = logits(canonical["plain"], images).argmax(axis=1)  # float is right everywhere
    budget = Budget(max_drift=0.0)
    found = search_plan(canonical["plain"], spoiled, [images], budget, targets=targets)
    assert found.before.top1_drop is not None
    assert found.after.top1_drop is not None
    assert found.before.top1_drop > 0 >= found.after.top1_drop


def test_a_budget_that_cannot_be_met_is_an_error(canonical, plan, images) -> None:
    with pytest.raises(
        BudgetError, match=r"\(minimum: 101 %\) on 48 images of the search.*half of their cost"
    ):
        search_plan(canonical["plain"], plan, [images], Budget(min_agreement=101))


def test_it_repeats_and_reports_each_trial(canonical, spoiled, images) -> None:
    steps: list[int] = []
    first, second = (
        search_plan(
            canonical["plain"],
            spoiled,
            [images],
            Budget(min_agreement=99),
            threads=1,
            progress=steps.append,
        )
        for _ in range(2)
    )
    assert first.plan.to_json() == second.plan.to_json()
    assert len(steps) > 2 * len(spoiled.quantized())


def test_a_plan_with_float_layers(plan) -> None:
    assert SPOILED not in with_float(plan, [SPOILED]).quantized()
    assert SPOILED in plan.quantized()
