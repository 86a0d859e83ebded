"""The plan as data: ranges, the round trip through JSON, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.plan import PROBABILITY, LinearPlan, PlanError, ProductPlan, QuantizationPlan, Range

numbers = st.floats(-1e6, 1e6, width=32)


@given(numbers, numbers)
def test_a_range_holds_its_ends_and_zero(first: float, second: float) -> None:
    low, high = sorted((first, second))
    chosen = Range.of(low, high)

    def stored(x: float) -> float:
        return np.clip(np.rint(x / chosen.scale) + chosen.zero_point, 0, 255)

    assert stored(0.0) == chosen.zero_point  # and so zero is read back as zero
    for x in (min(low, 0.0), max(high, 0.0)):
        error = abs((stored(x) - chosen.zero_point) * chosen.scale - x)
        assert error <= chosen.scale * 1.001


@given(numbers, numbers)
def test_a_range_is_no_wider_than_needed(first: float, second: float) -> None:
    low, high = min(first, second, 0.0), max(first, second, 0.0)
    if low < high:
        assert Range.of(low, high).scale * 255 <= max((high - low) * 1.00001, 1e-9)


def test_zeros_alone_have_a_range_in_which_a_bias_can_be_stored() -> None:
    assert Range.of(0.0, 0.0) == Range.of(0.0, 1.0)


def test_scales_are_float32() -> None:
    scale = Range.of(-1.0, 2.0).scale
    assert scale == float(np.float32(scale))  # what the graph holds is what the plan says


@pytest.mark.parametrize(
    ("scale", "zero_point"), [(0.0, 0), (-1.0, 0), (float("nan"), 0), (1.0, -1), (1.0, 256)]
)
def test_impossible_ranges(scale: float, zero_point: int) -> None:
    with pytest.raises(PlanError, match=r"expected scale > 0 and zero_point in 0\.\.255"):
        Range(scale=scale, zero_point=zero_point)


@pytest.fixture
def plan() -> QuantizationPlan:
    return QuantizationPlan(
        target="any-cpu",
        linears={
            "patch_embedding": LinearPlan(precision="int8"),
            "fc1": LinearPlan(precision="int8", input=Range(scale=0.1, zero_point=7)),
            "head": LinearPlan(precision="float32"),
        },
        products={
            "mix": ProductPlan(precision="int8", left=PROBABILITY, right=Range.of(-1, 3)),
            "scores": ProductPlan(precision="float32"),
        },
    )


def test_round_trip(plan: QuantizationPlan) -> None:
    text = plan.to_json()
    again = QuantizationPlan.from_json(text)
    assert again == plan
    assert again.to_json() == text  # byte for byte
    assert again.quantized() == ["patch_embedding", "fc1"]


def test_a_line_a_layer(plan: QuantizationPlan) -> None:
    """So that two plans can be compared with diff."""
    lines = plan.to_json().splitlines()
    assert sum('"precision"' in line for line in lines) == 5
    assert not any(line.count('"precision"') > 1 for line in lines)


def test_a_plan_of_nothing() -> None:
    assert QuantizationPlan.from_json(QuantizationPlan(target="full-range").to_json()) == QuantizationPlan(
        target="full-range"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), r'"format": "vit-edge plan"'),
        (lambda d: d.update(version=99), r"expected plan version \d+, found 99"),
        (lambda d: d.update(target="gpu"), "expected target any-cpu or full-range, found 'gpu'$"),
        (lambda d: d.update(target="arm64"), "found 'arm64'; arm64 is called full-range now"),
        (
            lambda d: d["linears"]["fc1"].update(precision="int4"),
            "fc1: expected precision int8 or float16 or float32, found 'int4'",
        ),
        (lambda d: d["linears"]["fc1"].update(color=1), "fc1: expected an object with"),
        (lambda d: d["linears"].update(fc1=3), "fc1: expected an object"),
        (lambda d: d["linears"]["fc1"]["input"].update(scale=0), "expected scale > 0"),
        (lambda d: d["linears"]["fc1"]["input"].pop("scale"), "fc1: .*scale"),
        (lambda d: d["products"]["mix"].pop("precision"), "mix: expected precision"),
    ],
)
def test_what_is_no_plan(plan: QuantizationPlan, change, message: str) -> None:
    document = json.loads(plan.to_json())
    change(document)
    with pytest.raises(PlanError, match=message):
        QuantizationPlan.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"plan"', "{}"])
def test_what_is_no_document(text: str) -> None:
    with pytest.raises(PlanError, match="expected a"):
        QuantizationPlan.from_json(text)
