"""The plan as data: ranges, the round trip through JSON, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.plan import (
    PROBABILITY,
    BalancePlan,
    LinearPlan,
    PlanError,
    ProductPlan,
    QuantizationPlan,
    Range,
    read_plan,
)

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
    assert again.int8_linears() == ["patch_embedding", "fc1"]


def test_a_round_trip_of_every_field() -> None:
    again = QuantizationPlan.from_json(FULL.to_json())
    assert again == FULL
    assert again.linears["fc1"].ratios == (0.93, 1.0)


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
        (lambda d: d.update(target="gpu"), "expected target any-cpu, full-range or npu, found 'gpu'$"),
        (lambda d: d.update(target="arm64"), "found 'arm64'; arm64 is called full-range now"),
        (
            lambda d: d["linears"]["fc1"].update(precision="int4"),
            "fc1: expected precision int8 or float16 or float32, found 'int4'",
        ),
        (lambda d: d["linears"]["fc1"].update(color=1), "fc1: expected an object with"),
        (
            lambda d: d["linears"]["fc1"].update(ratios=[1.0, 0]),
            r"fc1: ratios: expected a list of numbers above 0, found \[1.0, 0\]",
        ),
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


FULL = QuantizationPlan(
    target="any-cpu",
    linears={
        "fc1": LinearPlan(
            precision="int8",
            input=Range(scale=0.1, zero_point=7),
            rule="mse",
            per_token=0.5,
            float_columns=(1, 2),
            correction=(0.25, -0.5),
            ratios=(0.93, 1.0),
        )
    },
    products={"mix": ProductPlan(precision="int8", left=PROBABILITY, right=Range.of(-1, 3))},
    balance={"norm1": BalancePlan(strength=0.5, scales=(1.0, 2.0))},
    merging={"blocks.0": 2},
)
# Of every kind; none of them belongs anywhere in a plan.
NONSENSE = [True, -1.5, float("nan"), float("inf"), "", "x", [], ["x"], [None], [float("nan")], {"a": 1}]
TOO_SMALL_OR_LARGE = [1e-50, 1e-300, 1e300, 10**400, -(10**400), [1e300], [10**400]]
FITTING = {  # values of those lists that a field may hold
    "rule": ("", "x"),
    "float_columns": ([], [10**400]),
    "correction": ([],),
    "ratios": ([],),
    "scales": ([],),
    "strength": (-1.5, 1e-50, 1e-300),
    "merging": ({"a": 1},),  # a block that there is not; the graph knows
    "blocks.0": (10**400,),
}


def places(document: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


@pytest.mark.parametrize("place", list(places(json.loads(FULL.to_json()))), ids="/".join)
def test_no_field_takes_nonsense(place: tuple[str, ...]) -> None:
    """Neither another exception nor a graph with such numbers in it."""
    for value in (*NONSENSE, *TOO_SMALL_OR_LARGE):
        document = json.loads(FULL.to_json())
        *above, last = place
        entry = document
        for key in above:
            entry = entry[key]
        entry[last] = value
        if value in FITTING.get(last, ()):
            QuantizationPlan.from_json(json.dumps(document))
            continue
        with pytest.raises(PlanError) as refused:
            QuantizationPlan.from_json(json.dumps(document))
        if len(place) > 1:  # the entry is named
            assert place[1] in str(refused.value)


def test_null_is_as_good_as_absent() -> None:
    document = json.loads(FULL.to_json())
    document["linears"]["fc1"] |= dict.fromkeys(
        ("per_token", "rule", "float_columns", "correction", "ratios")
    )
    found = QuantizationPlan.from_json(json.dumps(document)).linears["fc1"]
    assert found == LinearPlan(precision="int8", input=Range(scale=0.1, zero_point=7))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": ' + "1" * 5000 + "}"])
def test_json_that_python_cannot_hold(text: str) -> None:
    with pytest.raises(PlanError, match="expected a plan in JSON"):
        QuantizationPlan.from_json(text)


def test_a_plan_that_an_editor_saved_with_a_mark_in_front(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(FULL.to_json(), encoding="utf-8-sig")
    assert read_plan(file) == FULL
