"""Hidden features in float: which MLPs can be split, and that the output stays whichever features go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.graph.edit import constant, sizes, tidy
from calibration.graph.layers import find_layers
from calibration.split import MlpLayers, find_mlp_to_split, split_float_columns
from tests.support.small_graphs import ATTENTION, MLP, block, node, op_types, run

HIDDEN = 16
X = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
columns = st.sets(st.integers(0, HIDDEN - 1), min_size=1, max_size=HIDDEN - 1).map(sorted)


def mlp_of(model: ir.Model) -> MlpLayers:
    sites = find_layers(model)
    hidden = find_mlp_to_split(sites, sites.linears["fc2"])
    assert hidden is not None
    return hidden


def test_the_mlp_is_its_two_linears_and_the_activation() -> None:
    model = block()
    hidden = mlp_of(model)
    assert (hidden.first.name, hidden.second.name) == ("fc1", "fc2")
    assert hidden.activation is node(model, "gelu")
    sites = find_layers(model)
    others = set(sites.linears) - {"fc2"}
    assert {find_mlp_to_split(sites, sites.linears[name]) for name in others} == {None}


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("gelu = Gelu(fc1)", "gelu = Relu(fc1)"),
        ("y = Add(residual, fc2)", "beside = ReduceMax <keepdims = 0> (gelu) y = Add(beside, fc2)"),
        ("y = Add(residual, fc2)", "beside = ReduceMax <keepdims = 0> (fc1) y = Add(beside, fc2)"),
        ("gelu = Gelu(fc1)", "shifted = Abs(fc1) gelu = Gelu(shifted)"),
        ("gelu = Gelu(fc1)", "shifted = Mul(fc1, fc1) gelu = Gelu(shifted)"),
    ],
    ids=["another activation", "its output read twice", "its input read twice", "no linear", "a gate"],
)
def test_an_mlp_that_cannot_be_split(was: str, now: str) -> None:
    lines = ATTENTION + MLP
    assert lines.count(was) == 1
    sites = find_layers(block(lines=lines.replace(was, now)))
    assert find_mlp_to_split(sites, sites.linears["fc2"]) is None


@pytest.mark.parametrize("name", ["gelu", "fc1"])
def test_hidden_features_that_leave_the_graph_stay_whole(name: str) -> None:
    model = block()
    model.graph.outputs.append(node(model, name).outputs[0])
    sites = find_layers(model)
    assert find_mlp_to_split(sites, sites.linears["fc2"]) is None


@given(st.integers(0, 5), columns, st.sampled_from(["none", "tanh"]))
@settings(max_examples=25)
def test_the_output_stays_whichever_features_go(seed: int, chosen: list[int], form: str) -> None:
    model = block(seed=seed)
    node(model, "gelu").attributes["approximate"] = ir.AttrString("approximate", form)
    expected = run(model, X)
    split_float_columns(mlp_of(model), chosen)
    tidy(model)
    np.testing.assert_allclose(run(model, X), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@given(columns)
@settings(max_examples=20)
def test_the_features_that_go_are_the_ones_that_were_named(chosen: list[int]) -> None:
    model = block()
    hidden = mlp_of(model)
    first, second = hidden.first, hidden.second
    split_float_columns(hidden, chosen)
    rest = [index for index in range(HIDDEN) if index not in chosen]
    expected = {
        "fc1": (first.weight[:, rest], first.bias[rest]),
        "fc2": (second.weight[rest], second.bias),
        "fc1.columns": (first.weight[:, chosen], first.bias[chosen]),
    }
    for name, (weight, bias) in expected.items():
        gemm = node(model, name)
        np.testing.assert_array_equal(constant(gemm.inputs[1]), weight, err_msg=name)
        np.testing.assert_array_equal(constant(gemm.inputs[2]), bias, err_msg=name)
    few, rest_of_it = node(model, "fc2.columns"), node(model, "fc2")
    np.testing.assert_array_equal(constant(few.inputs[1]), second.weight[chosen])
    assert few.inputs[2] is rest_of_it.outputs[0]


def test_what_is_left_can_be_quantized_and_the_float_path_is_beside_it() -> None:
    model = block()
    node(model, "gelu").attributes["approximate"] = ir.AttrString("approximate", "tanh")
    was = op_types(model)
    split_float_columns(mlp_of(model), [3, 5])
    now = op_types(model)
    assert {kind: now.count(kind) - was.count(kind) for kind in set(now)} == {
        kind: {"Gemm": 2, "Gelu": 1}.get(kind, 0) for kind in set(was)
    }
    few = node(model, "fc1.columns.gelu")
    assert few.inputs[0] is node(model, "fc1.columns").outputs[0]
    assert node(model, "fc1.columns").inputs[0] is node(model, "fc1").inputs[0]
    assert few.attributes["approximate"].value == "tanh"
    # The last Gemm adds the two; whoever read the MLP's output reads the sum, under the old name.
    total = node(model, "fc2.columns")
    assert total.inputs[0] is few.outputs[0]
    assert node(model, "y").inputs[1] is total.outputs[0]
    assert total.outputs[0].name == "fc2"
    constants = [
        each.name for name in ("fc1.columns", "fc2.columns", "fc1") for each in node(model, name).inputs
    ]
    assert constants == [
        "norm2",
        "fc1.columns.weight",
        "fc1.columns.bias",
        "fc1.columns.gelu",
        "fc2.columns.weight",
        "fc2.part",
        "norm2",
        "fc1.rest.weight",
        "fc1.rest.bias",
    ]
    assert sizes(few.outputs[0]) == [None, 2]
    expected = {"fc1": [None, 14], "gelu": [None, 14], "fc1.columns": [None, 2], "fc2.columns": [5, 8]}
    assert {name: sizes(node(model, name).outputs[0]) for name in expected} == expected


def test_a_second_mlp_keeps_its_own_features() -> None:
    """Two MLPs in one graph: the names do not run into one another."""
    again = MLP.replace("residual", "y1").replace("y = ", "y2 = ")
    for name in ("norm2 =", "fc1 =", "gelu =", "fc2 ="):
        again = again.replace(name, f"other_{name}")
    again = again.replace("Gemm(norm2,", "Gemm(other_norm2,").replace("Gelu(fc1)", "Gelu(other_fc1)")
    again = again.replace("Gemm(gelu,", "Gemm(other_gelu,").replace("y1, fc2)", "y1, other_fc2)")
    lines = ATTENTION + MLP.replace("y = ", "y1 = ") + again.replace("y2 = ", "y = ")
    model = block(lines=lines)
    expected = run(model, X)
    for name, chosen in {"fc2": [0, 1], "other_fc2": [15]}.items():
        sites = find_layers(model)
        hidden = find_mlp_to_split(sites, sites.linears[name])
        assert hidden is not None
        split_float_columns(hidden, chosen)
    tidy(model)
    np.testing.assert_allclose(run(model, X), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
