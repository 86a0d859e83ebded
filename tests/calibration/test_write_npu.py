"""A model for an NPU: its graph, what it computes on a CPU, and plans that are refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import constant, producer
from calibration.graph.layers import find_layers
from calibration.graph.memory import open_graph_session
from calibration.measure.drift import measure_drift
from calibration.measure.per_layer import measure_clipping, measure_layer_drift
from calibration.measure.verify import FallbackError, verify_npu_graph
from calibration.npu_graph import (
    LOWEST_OF_GELU,
    find_gelu_inputs,
    find_narrow_layers,
    group_tensors,
    prepare_for_npu,
)
from calibration.plan import PlanError, QuantizationPlan, Range
from calibration.quantize_model import QuantizedModel, apply_plan, quantize
from calibration.search import Budget, BudgetError, search_plan
from calibration.write import write_plan

LEAST = 30  # dB, of small models with random weights; found: 35 to 42


def run(model: ir.Model, pixels: np.ndarray, target: str = "npu") -> np.ndarray:
    session = open_graph_session(model, threads=1, target=target)  # type: ignore[arg-type]
    return np.concatenate([session.run(None, {"pixels": each[None]})[0] for each in pixels])


@pytest.fixture(scope="module")
def pixels(models, pixels_for) -> tuple[np.ndarray, np.ndarray]:
    config = models["plain"].config
    return pixels_for(config, count=24, seed=1), pixels_for(config, count=16, seed=2)


@pytest.fixture(scope="module")
def made(canonical, pixels) -> QuantizedModel:
    return quantize(canonical["plain"], [pixels[0]], target="npu", threads=1)


def test_every_operator_is_between_pairs_of_static_shapes(made: QuantizedModel) -> None:
    for node in made.model.graph:
        for value in (*node.inputs, *node.outputs):
            assert value is not None
            assert value.shape is not None, value.name
            assert all(isinstance(size, int) for size in value.shape), value.name
    assert {domain for domain in made.model.opset_imports if made.model.opset_imports[domain]} == {""}
    assert [output.name for output in made.model.graph.outputs] == ["logits"]
    assert (made.model.graph.inputs[0].dtype, made.model.graph.outputs[0].dtype) == (
        ir.DataType.UINT8,
        ir.DataType.FLOAT,
    )
    kinds = Counter(node.op_type for node in made.model.graph)
    assert not kinds.keys() & {"Shape", "Expand", "Cast"}


def test_weights_have_8_bits_factors_of_a_norm_are_uint8_and_biases_int32(made: QuantizedModel) -> None:
    stored = {"Gemm": (np.int8, np.int32), "LayerNormalization": (np.uint8, np.int32)}
    found = 0
    for node in made.model.graph:
        for index, dtype in enumerate(stored.get(node.op_type, ()), start=1):
            read = producer(node.inputs[index], "DequantizeLinear")
            assert read is not None
            assert constant(read.inputs[0]).dtype == dtype  # type: ignore[union-attr]
            found += 1
    assert found == 2 * (len(made.plan.linears) + 5)


def test_the_right_operand_of_a_product_has_8_bits_all_others_16(made: QuantizedModel) -> None:
    for name, product in find_layers_between_pairs(made.model).items():
        widths = [producer(value, "DequantizeLinear").inputs[0].dtype for value in product.inputs]  # type: ignore
        assert widths == [ir.DataType.UINT16, ir.DataType.UINT8], name


def find_layers_between_pairs(model: ir.Model) -> dict[str, ir.Node]:
    found = {str(node.name): node for node in model.graph if node.op_type == "MatMul"}
    assert len(found) == 4  # of two blocks
    return found


def test_what_moves_numbers_reads_and_gives_one_range(made: QuantizedModel) -> None:
    checked = 0
    for node in made.model.graph:
        if node.op_type in ("Reshape", "Transpose", "Gather"):
            read = producer(node.inputs[0], "DequantizeLinear")
            (use,) = node.outputs[0].uses()
            assert read is not None
            for one, other in zip(read.inputs[1:], use.node.inputs[1:], strict=True):
                assert constant(one) == constant(other), node.name
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("name", ["plain", "odd", "rich"])
def test_it_answers_as_float_on_a_cpu(canonical, models, pixels_for, name: str) -> None:
    config = models[name].config
    calibration, others = pixels_for(config, count=24, seed=1), pixels_for(config, count=16, seed=2)
    made = quantize(canonical[name], [calibration], target="npu", threads=1)
    exact = run(canonical[name], others, "any-cpu")
    assert measure_drift(exact, run(made.model, others)).sqnr > LEAST


def test_the_graph_for_an_npu_computes_the_same(canonical, pixels, made: QuantizedModel) -> None:
    exact = run(canonical["plain"], pixels[1], "any-cpu")
    assert len(made.plan.balance) == 4  # keys and values of two blocks
    found = run(prepare_for_npu(canonical["plain"], made.plan.balance), pixels[1])
    np.testing.assert_allclose(found, exact, atol=1e-4 * np.abs(exact).max())


def test_factors_of_a_norm_are_exact_in_8_bits(canonical) -> None:
    prepared = prepare_for_npu(canonical["plain"])
    norms = [node for node in prepared.graph if node.op_type == "LayerNormalization"]
    assert len(norms) == 5
    for node in norms:
        factors = np.abs(constant(node.inputs[1]))  # type: ignore[arg-type]
        levels = factors / (factors.max() / 127)
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
        assert not np.any(constant(node.inputs[2]))  # in the bias of the next layers


def test_a_new_image_may_be_half_as_large_again(canonical, pixels, made: QuantizedModel) -> None:
    shares = measure_clipping(canonical["plain"], made.plan, [pixels[1]], threads=1)
    assert set(shares) == set(made.plan.linears)
    assert max(each.share for each in shares.values()) == 0
    groups = group_tensors(prepare_for_npu(canonical["plain"]))
    name = groups[str(find_layers(prepare_for_npu(canonical["plain"])).linears["head"].input.name)]
    tight = made.plan.activations[name]
    small = Range(scale=tight.scale / 100, zero_point=tight.zero_point, bits=16)
    plan = QuantizationPlan(target="npu", activations={**made.plan.activations, name: small})
    assert measure_clipping(canonical["plain"], plan, [pixels[1]], threads=1)["head"].share > 0.1


def test_a_gelu_has_no_levels_for_what_it_turns_into_zero(canonical, pixels) -> None:
    """An NPU reads it from a table over that range: a wide one cost a ViT-B/16 seven decibels."""
    wide = canonical["plain"].clone()
    first = find_layers(wide).linears["blocks.0.mlp.fc1"].node
    weight = first.inputs[1].const_value.numpy()
    first.graph.initializers[first.inputs[1].name].const_value = ir.tensor(weight * 40)
    plan = quantize(wide, [pixels[0]], target="npu", threads=1).plan
    read = find_gelu_inputs(prepare_for_npu(wide))
    assert len(read) == len([name for name in plan.linears if name.endswith("fc1")])
    lowest = {name: -plan.activations[name].zero_point * plan.activations[name].scale for name in read}
    assert min(lowest.values()) >= LOWEST_OF_GELU - 1e-3
    assert max(each.zero_point * each.scale for each in plan.activations.values()) > -2 * LOWEST_OF_GELU


def test_each_layer_is_near_float(canonical, pixels, made: QuantizedModel) -> None:
    found = measure_layer_drift(canonical["plain"], made.model, made.plan, [pixels[1]], threads=1)
    assert set(found) == set(made.plan.linears)
    assert min(found.values()) > LEAST  # queries and keys in their own units, too


def test_a_plan_is_read_as_it_was_written(canonical, pixels, made: QuantizedModel) -> None:
    text = made.plan.to_json()
    assert QuantizationPlan.from_json(text) == made.plan
    assert '"bits": 8' not in text
    again = apply_plan(canonical["plain"], QuantizationPlan.from_json(text))
    np.testing.assert_array_equal(run(again.model, pixels[1]), run(made.model, pixels[1]))


def test_an_operator_outside_of_pairs_is_named(made: QuantizedModel) -> None:
    broken = made.model.clone()
    node = next(node for node in broken.graph if node.op_type == "Softmax")
    read = producer(node.inputs[0], "DequantizeLinear")
    assert read is not None
    above = producer(read.inputs[0], "QuantizeLinear")
    assert above is not None
    node.replace_input_with(0, above.inputs[0])
    with pytest.raises(FallbackError, match=f"found none around .*{node.name} .Softmax."):
        verify_npu_graph(broken, made.plan)


def change(**fields: object):
    def apply(document: dict) -> None:
        for key, (name, value) in fields.items():
            if value is None:
                del document[key][name]
            else:
                document[key][name] = value

    return apply


RIGHT = {"precision": "int8", "right": {"scale": 0.01, "zero_point": 128}}


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change(linears=("head", {"precision": "float32"})), "head: target npu has every linear"),
        (change(linears=("tail", {"precision": "int8"})), "found a difference: 'tail'"),
        (change(linears=("head", None)), "found a difference: 'head'"),
        (change(products=("blocks.0.attention.mix", None)), "found a difference: 'blocks.0.attention.mix'"),
        (change(products=("blocks.0.attention.mix", {"precision": "int8"})), "8 bits for the right operand"),
        (change(products=("blocks.0.attention.mix", {**RIGHT, "left": RIGHT["right"]})), "operand alone"),
        (change(balance=("head", {"strength": 1, "scales": [1.0]})), "expected scales for the features"),
        (change(activations=("logits", None)), "no range for the tensor 'logits'"),
        (change(activations=("elsewhere", {"scale": 1, "zero_point": 0})), "a range for 'elsewhere'"),
        (change(activations=("logits", {"scale": 1, "zero_point": 256})), r"zero_point in 0\.\.255"),
        (change(activations=("logits", {"scale": 1, "zero_point": 0, "bits": 12})), "expected bits 8 or 16"),
        (lambda document: document.update(merging={"blocks.0": 2}), "target npu merges no tokens"),
    ],
)  # fmt: skip
def test_a_plan_that_no_npu_runs_is_refused(canonical, made: QuantizedModel, apply, message: str) -> None:
    document = json.loads(made.plan.to_json())
    apply(document)
    with pytest.raises(PlanError, match=message):
        write_plan(canonical["plain"], QuantizationPlan.from_json(json.dumps(document)))


def test_layers_in_float_are_refused(canonical, pixels) -> None:
    with pytest.raises(PlanError, match="target npu has every layer in int8"):
        quantize(canonical["plain"], [pixels[0]], target="npu", keep_float=["head"])


def test_a_search_returns_no_layer_to_float(canonical, pixels, made: QuantizedModel) -> None:
    with pytest.raises(BudgetError, match="target npu returns no layer to float"):
        search_plan(canonical["plain"], made.plan, [pixels[1]], Budget(min_sqnr=90), threads=1)
    found = search_plan(canonical["plain"], made.plan, [pixels[1]], Budget(min_sqnr=LEAST), threads=1)
    assert found.plan == made.plan


def test_keys_whose_features_are_in_another_order_are_left_alone(canonical) -> None:
    model = canonical["plain"].clone()
    found = find_narrow_layers(prepare_for_npu(model))
    assert [each.by_input for each in found] == [False, True, False, True]
    scores = find_layers(model).products["blocks.0.attention.scores"]
    move = producer(scores.left, "Transpose")
    assert move is not None
    reshape = producer(move.inputs[0], "Reshape")
    assert reshape is not None
    target = constant(reshape.inputs[1])
    assert target is not None
    # The last two axes change their places: other features meet.
    swapped = ir.Value(name="swapped", const_value=ir.Tensor(target[[0, 2, 1]]))
    swapped.shape, swapped.type = ir.Shape([3]), ir.TensorType(ir.DataType.INT64)
    model.graph.register_initializer(swapped)
    reshape.replace_input_with(1, swapped)
    move.attributes["perm"] = ir.AttrInt64s("perm", [2, 0, 1])
    names = [each.linear.name for each in find_narrow_layers(prepare_for_npu(model))]
    assert "blocks.0.attention.key" not in names
    assert len(names) == 3
