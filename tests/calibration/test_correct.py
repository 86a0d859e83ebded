"""Corrected biases: each linear's mean output is the float model's, with the layers before it in INT8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.correct import _cut, _run, correct_biases
from calibration.decide import decide_plan
from calibration.graph.layers import find_layers
from calibration.observe import observe_activations, run_each
from calibration.plan import BalancePlan, LinearPlan, QuantizationPlan, Range
from calibration.write import write_plan
from tests.support.small_graphs import build

NAMES = ["plain", "odd", "rich"]
VALUE = "blocks.0.attention.value"


def decided(model: ir.Model, images: np.ndarray, **options: Any) -> QuantizationPlan:
    """The plan of `quantize` before its biases are corrected; the values of a block are balanced."""
    layers = find_layers(model)
    observed = observe_activations(model, layers.activations, [images], threads=1)
    plan = decide_plan(layers, observed, **{"target": "any-cpu", "single_rows": "int8", **options})
    scales = tuple(np.linspace(0.5, 2.0, len(layers.linears[VALUE].bias)).tolist())
    return replace(plan, balance={**plan.balance, VALUE: BalancePlan(strength=0.5, scales=scales)})


def split(images: np.ndarray) -> list[np.ndarray]:
    return np.split(images, len(images))


def without_judges(images: np.ndarray) -> list[np.ndarray]:
    return [image for index, image in enumerate(split(images)) if index % 4 != 3]


def mean_outputs(
    model: ir.Model, outputs: Mapping[str, str], images: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The mean of each linear's output over all rows of all images."""
    found = [
        [tensor.reshape(-1, tensor.shape[-1]).mean(axis=0, dtype=np.float64) for tensor in tensors]
        for tensors in run_each(model, list(outputs.values()), images, threads=1)
    ]
    return {name: np.mean(each, axis=0) for name, each in zip(outputs, zip(*found, strict=True), strict=True)}


def errors_of(model: ir.Model, plan: QuantizationPlan, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """By how much the mean output of each linear is off in the INT8 graph, in that graph's units."""
    layers, written = find_layers(model), write_plan(model, plan)
    outputs = {name: str(each.node.outputs[0].name) for name, each in layers.linears.items()}
    exact, found = (mean_outputs(each, outputs, images) for each in (model, written))
    scales = {name: np.array(each.scales) for name, each in plan.balance.items()}
    return {name: found[name] - exact[name] / scales.get(name, 1.0) for name in outputs}


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_each_corrected_linear_is_the_float_models(name, canonical, images) -> None:
    model, (pixels, _) = canonical[name], images(name)
    plan = decided(model, pixels)
    corrected = correct_biases(model, plan, split(pixels), threads=1)
    before, after = (errors_of(model, each, without_judges(pixels)) for each in (plan, corrected))
    names = [each for each, entry in corrected.linears.items() if entry.correction]
    assert len(names) > len(plan.linears) / 2
    for each in names:
        # What is left: biases rounded to int32, which moves a few activations to the next of 256 levels.
        assert np.linalg.norm(after[each]) < 0.2 * np.linalg.norm(before[each]), each
    bare = {each: replace(entry, correction=()) for each, entry in corrected.linears.items()}
    assert replace(corrected, linears=bare) == plan


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_compute_what_the_whole_graph_computes(name, canonical, images) -> None:
    model, pixels = canonical[name], split(images(name)[0])[:3]
    plan = decided(model, images(name)[0], quantize_products=True)
    linears, written = find_layers(model).linears, write_plan(model, plan)
    outputs = {each: str(linear.node.outputs[0].name) for each, linear in linears.items()}
    inputs = {each: str(linear.input.name) for each, linear in linears.items()}
    whole = [
        dict(zip(outputs, tensors, strict=True))
        for tensors in run_each(written, list(outputs.values()), pixels, threads=1)
    ]
    live, reached = [{"pixels": image} for image in pixels], []
    for piece in _cut(written, outputs, inputs):
        live = _run(piece, live, plan, 1)
        reached += piece.linears
        for tensors, expected in zip(live, whole, strict=True):
            assert set(tensors) == set(piece.live)
            for each in piece.linears:
                np.testing.assert_allclose(
                    tensors[outputs[each]], expected[each], atol=1e-5 * np.abs(expected[each]).max()
                )
    assert reached == list(outputs)
    assert [list(tensors) for tensors in live] == [["logits"]] * 3


STEP = Range(scale=0.5, zero_point=128)
INT8 = LinearPlan(precision="int8", input=STEP)


def chain(*, end: str = "Neg(second)") -> ir.Model:
    """Two linears, the second behind an operator that is not linear."""
    random = np.random.default_rng(0)
    constants = {
        "w": random.normal(size=(4, 6)).astype(np.float32),
        "v": random.normal(size=(6, 3)).astype(np.float32),
        "b": random.normal(size=6).astype(np.float32),
        "c": random.normal(size=3).astype(np.float32),
    }
    lines = f"first = Gemm(x, w, b) active = Relu(first) second = Gemm(active, v, c) y = {end}"
    return build(lines, constants, inputs="float[N, 4] x", outputs="float[N, 3] y")


def rows(count: int = 12) -> list[np.ndarray]:
    """Images of four numbers, each a little above one of the steps: all are rounded down."""
    random = np.random.default_rng(1)
    above = random.uniform(0.1, 0.2, (count, 4))
    return split((0.5 * random.integers(-3, 4, (count, 4)) + above).astype(np.float32))


def plan_of_chain(model: ir.Model) -> QuantizationPlan:
    """Both round coarsely; the second clips as well."""
    assert list(find_layers(model).linears) == ["first", "second"]
    clipped = replace(INT8, input=Range.of(0.0, 1.0))
    return QuantizationPlan(target="full-range", linears={"first": INT8, "second": clipped})


def corrections_of(model: ir.Model, images: Sequence[np.ndarray]) -> dict[str, tuple[float, ...]]:
    corrected = correct_biases(model, plan_of_chain(model), images, threads=1)
    return {name: each.correction for name, each in corrected.linears.items()}


def test_a_later_linear_is_corrected_with_the_earlier_ones_in() -> None:
    model, inputs = chain(), rows()
    plan, found = plan_of_chain(model), corrections_of(model, inputs)
    fit = [x for index, x in enumerate(inputs) if index % 4 != 3]
    alone = errors_of(model, plan, fit)
    np.testing.assert_allclose(found["first"], -alone["first"], rtol=1e-3, atol=1e-5)
    first = replace(plan, linears={**plan.linears, "first": replace(INT8, correction=found["first"])})
    second = errors_of(model, first, fit)["second"]
    np.testing.assert_allclose(found["second"], -second, rtol=1e-3, atol=1e-3)
    assert np.abs(second - alone["second"]).max() > 0.02
    assert all(float(f"{number:.6g}") == number for each in found.values() for number in each)


def test_the_order_of_a_plan_and_corrections_that_it_has_do_not_matter() -> None:
    model, inputs = chain(), rows()
    plan = correct_biases(model, plan_of_chain(model), inputs, threads=1)
    assert correct_biases(model, plan, inputs, threads=1) == plan
    turned = replace(plan, linears=dict(reversed(plan.linears.items())))
    assert correct_biases(model, turned, inputs, threads=1) == plan


@pytest.mark.parametrize(("held", "corrected"), [(0.24, True), (0.26, False)])
def test_a_shift_that_the_held_out_images_contradict_is_dropped(held: float, corrected: bool) -> None:
    """Of 0.24, rounded to 0, the output lacks something; of 0.26, rounded to 0.5, it has as much too much."""
    model = chain()
    inputs = [np.full((1, 4), value, np.float32) for value in (0.24, 0.24, 0.24, held)]
    assert bool(corrections_of(model, inputs)["first"]) == corrected


def test_the_images_are_as_many_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor has six float32; eight images are taken however large they are."""
    model, inputs = chain(), rows(16)
    every, ten, eight = (corrections_of(model, inputs[:count]) for count in (16, 10, 8))
    for most, expected in ((16 * 24, every), (10 * 24, ten), (10 * 24 + 23, ten), (24, eight)):
        monkeypatch.setattr("calibration.correct.MOST_KEPT", most)
        assert corrections_of(model, inputs) == expected
    assert len({str(each) for each in (every, ten, eight)}) == 3


def test_a_single_image_judges_itself() -> None:
    model, inputs = chain(), rows(1)
    found = corrections_of(model, inputs)
    np.testing.assert_allclose(
        found["first"], -errors_of(model, plan_of_chain(model), inputs)["first"], rtol=1e-3, atol=1e-5
    )


def test_a_linear_that_gives_the_output_of_the_graph() -> None:
    model = chain()
    end = model.graph.node("y")
    model.graph.outputs[0] = end.inputs[0]
    model.graph.remove(end, safe=True)
    assert corrections_of(model, rows()) == corrections_of(chain(), rows())


def test_balanced_values_are_corrected_in_the_units_of_the_written_graph(canonical, images) -> None:
    """Their output is divided by the scales, and so is its error."""
    model, (pixels, _) = canonical["plain"], images("plain")
    layers = find_layers(model)
    linears = {VALUE: replace(INT8, input=Range.of(-12.0, 0.5))}  # so narrow that it clips
    plain = QuantizationPlan(target="full-range", linears=linears)
    scales = (4.0,) * 32  # a power of two changes no rounding
    balanced = replace(plain, balance={VALUE: BalancePlan(strength=0.5, scales=scales)})
    one, other = (
        np.array(correct_biases(model, each, split(pixels), threads=1).linears[VALUE].correction)
        for each in (plain, balanced)
    )
    assert len(one) == len(layers.linears[VALUE].bias)
    np.testing.assert_allclose(other, one / 4, rtol=1e-3, atol=1e-6)


def test_a_linear_with_outputs_that_were_split_off_has_none(canonical, images) -> None:
    model, (pixels, _) = canonical["plain"], images("plain")
    plan = decided(model, pixels)
    second = replace(plan.linears["blocks.0.mlp.fc2"], float_columns=(1, 5))
    plan = replace(plan, linears={**plan.linears, "blocks.0.mlp.fc2": second})
    found = correct_biases(model, plan, split(pixels), threads=1).linears
    assert found["blocks.0.mlp.fc1"].correction == ()
    assert found["blocks.0.mlp.fc2"].correction
    assert found["blocks.1.mlp.fc1"].correction


def test_linears_in_float_have_none() -> None:
    """Not even for the error of the layers before them."""
    model, in_float, (one, other) = chain(), LinearPlan(precision="float32"), rows(2)
    # Half of the images that judge are `one`, and half of the others.
    inputs = [one, other, one, one, other, one, other, other]
    clipped = replace(INT8, input=Range.of(0.0, 2.0))
    plan = QuantizationPlan(target="full-range", linears={"first": clipped, "second": in_float})
    corrected = correct_biases(model, plan, inputs, threads=1)
    assert {name for name, each in corrected.linears.items() if each.correction} == {"first"}
    assert np.abs(errors_of(model, corrected, inputs)["second"]).max() > 0.05
    nothing = replace(plan, linears={"first": in_float})
    assert correct_biases(model, nothing, inputs, threads=1) == nothing
