"""The plan written into the graph: standard operators only, the float graph as it was, errors with names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from calibration.graph.edit import by_type, constant
from calibration.graph.layers import LAYOUT, find_layers
from calibration.measure.verify import read_optimized_graph
from calibration.plan import PROBABILITY, LinearPlan, PlanError, ProductPlan, QuantizationPlan, Range
from calibration.weights import quantize_weight
from calibration.write import write_plan

WIDE = Range.of(-12.0, 12.0)
NAMES = ["plain", "odd", "rich"]


def full_plan(model: ir.Model, products: bool = True) -> QuantizationPlan:
    """Everything in int8 over one wide range."""
    sites = find_layers(model)
    linears = {
        name: LinearPlan(precision="int8", input=None if linear.reads_pixels else WIDE)
        for name, linear in sites.linears.items()
    }
    both = {
        name: ProductPlan(
            precision="int8" if products else "float32",
            left=PROBABILITY if product.mixes_probabilities else WIDE,
            right=WIDE,
        )
        for name, product in sites.products.items()
    }
    return QuantizationPlan(target="any-cpu", linears=linears, products=both)


def to_bytes(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


@pytest.mark.parametrize("name", NAMES)
def test_standard_operators_only(name, canonical) -> None:
    before = canonical[name].clone()
    after = write_plan(before, full_plan(before))
    assert {node.domain for node in after.graph} == {""}
    assert set(after.opset_imports) == {""}
    added = Counter(node.op_type for node in after.graph) - Counter(node.op_type for node in before.graph)
    assert set(added) <= {"QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose"}
    assert added["DequantizeLinear"] >= 2 * len(find_layers(before).linears)
    onnx.checker.check_model(onnx.load_from_string(to_bytes(after)), full_check=True)


def test_the_float_graph_stays(canonical) -> None:
    model = canonical["plain"].clone()
    before = to_bytes(model)
    write_plan(model, full_plan(model))
    assert to_bytes(model) == before


def test_the_same_plan_is_the_same_file(canonical) -> None:
    model = canonical["plain"]
    assert to_bytes(write_plan(model, full_plan(model))) == to_bytes(write_plan(model, full_plan(model)))


def test_a_plan_of_float_changes_nothing(canonical, models, logits_of, pixels_for) -> None:
    model, pixels = canonical["plain"], pixels_for(models["plain"].config)
    linears = {name: LinearPlan(precision="float32") for name in find_layers(model).linears}
    for plan in (QuantizationPlan(target="any-cpu", linears=linears), QuantizationPlan(target="any-cpu")):
        written = write_plan(model, plan)
        assert not by_type(written, "QuantizeLinear")
        assert len(by_type(written, "DequantizeLinear")) == 1  # of the pixels
        np.testing.assert_array_equal(logits_of(written, pixels), logits_of(model, pixels))


def test_a_gemm_reads_three_integers(canonical) -> None:
    """uint8 input, int8 weight by column, int32 bias: what ONNX Runtime fuses into one kernel."""
    model = write_plan(canonical["plain"], full_plan(canonical["plain"]))
    gemms = by_type(model, "Gemm")
    assert len(gemms) == 14
    for gemm in gemms:
        read = [value.producer() for value in gemm.inputs]
        while read[0].op_type in LAYOUT:  # the pixels are cut into patches behind their DequantizeLinear
            read[0] = read[0].inputs[0].producer()
        assert {node.op_type for node in read} == {"DequantizeLinear"}
        stored = [node.inputs[0].dtype for node in read]
        assert stored == [ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT32]
        scale_of = [constant(node.inputs[1]) for node in read]
        np.testing.assert_array_equal(scale_of[2], (scale_of[0] * scale_of[1]).astype(np.float32))


@pytest.mark.parametrize("value", [0, 255])
def test_pixels_lose_nothing(value, canonical, models, logits_of) -> None:
    """Only the patch embedding in int8: what is left is the rounding of its weights, for any image."""
    model, config = canonical["plain"], models["plain"].config
    plan = QuantizationPlan(target="full-range", linears={"patch_embedding": LinearPlan(precision="int8")})
    written = write_plan(model, plan)
    (dequantize,) = [
        n for n in by_type(written, "DequantizeLinear") if n.inputs[0].dtype == ir.DataType.UINT8
    ]
    assert constant(dequantize.inputs[1]) == 1.0
    assert constant(dequantize.inputs[2]) == 128
    pixels = np.full((1, *config.image_size, 3), value, np.uint8)
    exact, found = logits_of(model, pixels), logits_of(written, pixels)
    assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("name", NAMES)
def test_int8_says_the_same_as_its_definition(name, canonical, models, pixels_for, logits_of) -> None:
    """ONNX Runtime's fused kernels against the standard's own words (onnx.reference), on this CPU.

    With weights for AVX2 nothing saturates, so only float rounding remains, which may move an 8-bit step.
    """
    model = write_plan(canonical[name], full_plan(canonical[name], products=False))
    pixels = pixels_for(models[name].config, count=2)
    (expected,) = ReferenceEvaluator(onnx.load_from_string(to_bytes(model))).run(None, {"pixels": pixels})
    exact = logits_of(canonical[name], pixels)
    scale = np.abs(expected).max()
    step = np.abs(expected - exact).max() / scale  # what quantization costs in all
    found = logits_of(read_optimized_graph(to_bytes(model)), pixels)
    assert step > 1e-3
    assert np.abs(found - expected).max() / scale < step / 4


def test_unknown_layers_are_named(canonical) -> None:
    plan = QuantizationPlan(target="any-cpu", linears={"blocks.9.mlp.fc1": LinearPlan(precision="float32")})
    with pytest.raises(
        PlanError, match=r"names the linear layer 'blocks.9.mlp.fc1', the graph has: patch_emb"
    ):
        write_plan(canonical["plain"], plan)
    plan = QuantizationPlan(target="any-cpu", products={"scores": ProductPlan(precision="float32")})
    with pytest.raises(PlanError, match=r"attention product 'scores'"):
        write_plan(canonical["plain"], plan)


def test_int8_without_a_range(canonical) -> None:
    plan = QuantizationPlan(target="any-cpu", linears={"head": LinearPlan(precision="int8")})
    with pytest.raises(PlanError, match="head: the plan says int8 and gives no input range"):
        write_plan(canonical["plain"], plan)
    mix = ProductPlan(precision="int8", left=PROBABILITY)
    plan = QuantizationPlan(target="any-cpu", products={"blocks.0.attention.mix": mix})
    with pytest.raises(PlanError, match=r"blocks.0.attention.mix: .* no range for both inputs"):
        write_plan(canonical["plain"], plan)


def with_ratios(plan: QuantizationPlan, ratios: Mapping[str, Sequence[float]]) -> QuantizationPlan:
    linears = {name: replace(each, ratios=tuple(ratios.get(name, ()))) for name, each in plan.linears.items()}
    return replace(plan, linears=linears)


def check_weight(model: ir.Model, name: str, expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Integers and scales of a linear's weight, as they are in the file."""
    (gemm,) = [node for node in by_type(model, "Gemm") if node.name == name]
    for value, array in zip(gemm.inputs[1].producer().inputs, expected, strict=False):
        np.testing.assert_array_equal(constant(value), array)


@pytest.mark.parametrize("target", ["any-cpu", "full-range"])
def test_weights_are_rounded_with_the_ratios(target, canonical) -> None:
    model = canonical["plain"]
    ratios = np.linspace(1.0 if target == "any-cpu" else 0.9, 1.06, 64)
    plan = with_ratios(full_plan(model), {"blocks.0.mlp.fc1": ratios.tolist()})
    written, linears = write_plan(model, replace(plan, target=target)), find_layers(model).linears
    for name, ratio in {"blocks.0.mlp.fc1": ratios.astype(np.float32), "blocks.1.mlp.fc1": 1.0}.items():
        check_weight(written, name, quantize_weight(linears[name].weight, target, ratio=ratio))


def test_ratios_of_outputs_that_are_split_off_are_left_out(canonical) -> None:
    """Column 5 of the second linear is output 5 of the first: both are computed in float."""
    model, (first, second) = canonical["plain"], ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
    ratios = {first: np.linspace(1.0, 1.06, 64), second: np.linspace(1.06, 1.0, 32)}
    plan = with_ratios(full_plan(model), {name: each.tolist() for name, each in ratios.items()})
    split = replace(plan.linears[second], float_columns=(5, 41))
    plan = replace(plan, linears={**plan.linears, second: split})
    written, linears = write_plan(model, plan), find_layers(model).linears
    rest = np.delete(np.arange(64), (5, 41))
    left = ratios[first][rest].astype(np.float32)
    check_weight(written, first, quantize_weight(linears[first].weight[:, rest], "any-cpu", ratio=left))
    whole = ratios[second].astype(np.float32)
    check_weight(written, second, quantize_weight(linears[second].weight[rest], "any-cpu", ratio=whole))


def test_ratios_that_do_not_fit(canonical) -> None:
    plan = full_plan(canonical["plain"])
    with pytest.raises(PlanError, match=r"head: expected 10 ratios, found 3$"):
        write_plan(canonical["plain"], with_ratios(plan, {"head": [1.0] * 3}))
    clipped = with_ratios(plan, {"head": [1.0] * 9 + [0.98]})
    with pytest.raises(PlanError, match=r"head: the smallest ratio is 0.98, and target any-cpu needs 1 or"):
        write_plan(canonical["plain"], clipped)
    write_plan(canonical["plain"], replace(clipped, target="full-range"))


def test_a_bias_beyond_int32(canonical) -> None:
    plan = full_plan(canonical["plain"])
    tiny = replace(plan.linears["head"], input=Range(scale=1e-12, zero_point=0))
    plan = replace(plan, linears={**plan.linears, "head": tiny})
    with pytest.raises(PlanError, match="head: the bias does not fit int32"):
        write_plan(canonical["plain"], plan)
