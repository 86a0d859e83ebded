"""The search within a budget, on a small random model and a plan with one layer spoiled on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from calibration.measure.drift import Drift, measure_drift
from calibration.plan import QuantizationPlan, Range
from calibration.quantize_model import apply_plan, quantize
from calibration.search import (
    Budget,
    BudgetError,
    LayerSensitivity,
    _search_linears,
    return_to_float,
    search_plan,
)
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
    assert len(found.returned) < len(spoiled.int8_linears()) / 2
    worst = min(found.returned, key=lambda layer: layer.sqnr)
    assert worst.name == SPOILED
    assert set(spoiled.int8_linears()) - set(found.plan.int8_linears()) == {
        each.name for each in found.returned
    }
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
    assert len(steps) > 2 * len(spoiled.int8_linears())


def test_a_plan_with_float_layers(plan) -> None:
    assert SPOILED not in return_to_float(plan, [SPOILED]).int8_linears()
    assert SPOILED in plan.int8_linears()


class Scripted:
    """Trials whose drift is known: so many images lost with so many layers in float32."""

    def __init__(self, *lost: int, images: int = 40) -> None:
        self.lost, self.images = lost, images

    def rank_layers(self) -> list[LayerSensitivity]:
        names = enumerate(self.lost)
        return [LayerSensitivity(name=f"l{i}", sqnr=20.0, cost=1 / (2 * len(self.lost))) for i, _ in names][
            1:
        ]

    def measure(self, layers) -> Drift:
        lost = self.lost[len(layers)]
        share = 100 * lost / self.images
        return Drift(
            images=self.images, agreement=100 - share, sqnr=20.0, max_error=0.1, float_top1=90.0,
            top1=90.0 - share, top1_drop=share, lost=lost, gained=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("lost", "returned"),
    [
        ((0, 0, 0, 0, 0), 0),
        ((2, 1, 0, 0, 0), 2),  # until the figure itself keeps the limit, while that is possible
        ((1, 1, 1, 1, 1), 0),  # one label by chance: all stays INT8, and the report decides
        ((9, 8, 1, 1, 1), 2),  # what is missed for sure is mended
    ],
)
@pytest.mark.parametrize("limit", [{"max_drift": 0.5}, {"min_agreement": 99.5}])
def test_one_label_by_chance_gives_up_no_speed(plan, lost, returned: int, limit: dict) -> None:
    found = _search_linears(Scripted(*lost), plan, Budget(**limit))  # type: ignore[arg-type]
    assert len(found.returned) == returned
    assert found.after.lost == lost[returned]


def test_what_is_missed_for_sure_with_half_in_float_is_an_error(plan) -> None:
    with pytest.raises(BudgetError, match="half of their cost"):
        _search_linears(Scripted(9, 9, 9, 9), plan, Budget(max_drift=0.5))  # type: ignore[arg-type]
