"""Every linear layer, however it is written, becomes a plain Gemm; what only looks like one does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import attribute, constant, sizes
from calibration.graph.layers import read_linear
from export.graph.canonical.linears import (
    SCOPES,
    linears_to_gemm,
    name_parameters,
    name_products,
)
from tests.support.small_graphs import build, node, op_types

TYPES = {"inputs": "float[N, 3, 4] x", "outputs": "float[] y"}


@pytest.fixture
def parameters(random) -> dict[str, Any]:
    return {
        "w": random(4, 6),
        "wide": random(2, 4, 6),
        "square": random(4, 4),
        "b": random(6),
        "c": random(4),
    }


def gemm(model: ir.Model) -> ir.Node:
    (found,) = [each for each in model.graph if each.op_type == "Gemm"]
    return found


@pytest.mark.parametrize(
    ("lines", "bias"),
    [
        ("y = MatMul(x, w)", False),
        ("p = MatMul(x, w) y = Add(p, b)", True),
        ("p = MatMul(x, w) y = Add(b, p)", True),
    ],
)
def test_a_matmul_becomes_a_gemm_on_rows(lines: str, bias: bool, parameters, random, rewrite) -> None:
    model = build(lines, parameters, **TYPES)
    assert rewrite(linears_to_gemm, model, random(2, 3, 4)) == 1
    assert op_types(model) == ["Reshape", "Gemm", "Reshape"]
    made = gemm(model)
    assert made.name == ("p" if bias else "y")
    assert sizes(made.inputs[0]) == [None, 4]
    np.testing.assert_array_equal(constant(made.inputs[1]), parameters["w"])
    np.testing.assert_array_equal(constant(made.inputs[2]), parameters["b"] if bias else np.zeros(6))


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("p = MatMul(x, square) y = Add(p, x)", "a residual"),
        ("p = MatMul(x, w) y = Add(p, table)", "an offset for each token"),
        ("p = MatMul(x, w) y = Add(p, number)", "a number"),
        ("p = MatMul(x, w) q = Add(p, b) y = Mul(q, p)", "a product that something else reads"),
    ],
)
def test_a_sum_that_is_no_bias_stays(lines: str, kept: str, parameters, random, rewrite) -> None:
    model = build(lines, parameters | {"table": random(3, 6), "number": np.float32(2)}, **TYPES)
    assert rewrite(linears_to_gemm, model, random(2, 3, 4)) == 1
    assert not np.any(constant(gemm(model).inputs[2])), kept
    assert "Add" in op_types(model)


def test_an_offset_for_each_token_is_no_bias_when_there_are_as_many_tokens_as_features(
    random, rewrite
) -> None:
    constants = {"w": random(4, 3), "by_token": random(3, 1)}
    model = build("p = MatMul(x, w) y = Add(p, by_token)", constants, **TYPES)
    assert rewrite(linears_to_gemm, model, random(2, 3, 4)) == 1
    assert "Add" in op_types(model)


@pytest.mark.parametrize(
    ("lines", "types"),
    [
        ("y = MatMul(x, x2)", "float[2, 3, 4] x, float[2, 4, 5] x2"),
        ("y = MatMul(square, x2)", "float[2, 3, 4] x, float[2, 4, 5] x2"),
        ("y = MatMul(x, wide)", "float[2, 3, 4] x, float[1] x2"),
        ("y = Gemm <transA = 1> (x2, w)", "float[1] x, float[4, 2] x2"),
        ("y = Gemm(x2, x)", "float[4, 6] x, float[3, 4] x2"),
        ("y = Gemm(x2, w, x)", "float[6] x, float[3, 4] x2"),
        ("y = Gemm(x2, w, by_row)", "float[1] x, float[6, 4] x2"),
        ("y = Gemm(x2, w, by_cell)", "float[1] x, float[6, 4] x2"),
        ("y = Gemm(x2, w, b)", "float[1] x, float[3, 4] x2"),
    ],
    ids=[
        "two tensors",
        "a constant on the left",
        "a weight for each image",
        "transposed input",
        "a computed weight",
        "a computed bias",
        "a bias for each row",
        "a bias for each cell",
        "plain already",
    ],
)
def test_what_is_no_linear_or_is_plain_already_stays(
    lines: str, types: str, parameters, random, rewrite
) -> None:
    constants = parameters | {"by_row": random(6, 1), "by_cell": random(6, 6)}
    model = build(lines, constants, inputs=types, outputs="float[] y")
    arrays = [
        random(*[int(size) for size in each.split("]")[0].split("[")[1].split(",")])
        for each in types.replace("x, ", "x; ").split("; ")
    ]
    before = [(each.op_type, dict(each.attributes)) for each in model.graph]
    assert rewrite(linears_to_gemm, model, *arrays) == 0
    assert [(each.op_type, dict(each.attributes)) for each in model.graph] == before


@pytest.mark.parametrize(
    "attributes",
    ["", "<transB = 1>", "<alpha = 0.5>", "<beta = 3.0>", "<transB = 1, alpha = 2.0, beta = 0.5>"],
)
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()], ids=str)
def test_what_a_gemm_may_say_goes_into_its_constants(
    attributes: str, bias: tuple[int, ...] | None, random, rewrite
) -> None:
    weight = random(6, 4) if "transB" in attributes else random(4, 6)
    constants = {"w": weight} | ({} if bias is None else {"b": random(*bias)})
    third = "" if bias is None else ", b"
    types = {"inputs": "float[3, 4] x", "outputs": "float[3, 6] y"}
    model = build(f"y = Gemm {attributes} (x, w{third})", constants, **types)
    plain = not attributes and bias == (6,)
    assert rewrite(linears_to_gemm, model, random(3, 4)) == (0 if plain else 1)
    made = gemm(model)
    assert not any(attribute(made, name, None) for name in ("transB", "alpha", "beta"))
    found = read_linear(made)
    assert found is not None
    assert (found.weight.shape, found.bias.shape) == ((4, 6), (6,))


def test_a_shared_weight_stays_for_its_other_reader(random, rewrite) -> None:
    constants = {"w": random(4, 4), "b": random(4)}
    lines = "p = Gemm <transB = 1> (x, w, b) y = Gemm(p, w, b)"
    model = build(lines, constants, inputs="float[3, 4] x", outputs="float[3, 4] y")
    assert rewrite(linears_to_gemm, model, random(3, 4)) == 1
    np.testing.assert_array_equal(constant(node(model, "y").inputs[1]), constants["w"])
    np.testing.assert_array_equal(constant(node(model, "p").inputs[1]), constants["w"].T)


def test_parameters_of_what_is_no_plain_gemm_are_none(random) -> None:
    types = {"inputs": "float[4, 4] x", "outputs": "float[4, 4] y"}
    constants = {"w": random(4, 4), "b": random(4)}
    for lines in (
        "y = Gemm <transB = 1> (x, w, b)",
        "y = Gemm <transA = 1> (x, w, b)",
        "y = Gemm(x, w)",
        "y = Gemm(x, x, b)",
        "y = Gemm(x, w, x)",
        "y = MatMul(x, w)",
    ):
        model = build(lines, constants, **types)
        assert read_linear(node(model, "y")) is None, lines
    found = read_linear(node(build("y = Gemm(x, w, b)", constants, **types), "y"))
    assert found is not None
    np.testing.assert_array_equal(found.weight, constants["w"])
    np.testing.assert_array_equal(found.bias, constants["b"])


def named(lines: str, renamed: dict[str, str], scopes: dict[str, str] | None = None) -> dict[str, str]:
    """The names that the products get whose constants or nodes are called so."""
    ones = {name: np.ones((4, 4), np.float32) for name in ("w", "v")} | {"b": np.ones(4, np.float32)}
    model = build(lines, ones, **TYPES)
    for each in model.graph:
        if each.name in (scopes or {}):
            each.metadata_props[SCOPES] = (scopes or {})[each.name]
        each.name = renamed.get(str(each.name), each.name)
    for name in ("w", "v", "b"):
        if name in renamed:
            model.graph.initializers[name].name = renamed[name]
    name_products(model)
    return {str(each.outputs[0].name): str(each.name) for each in model.graph}


def test_a_linear_is_named_after_its_module() -> None:
    torch = {"y": "['', 'blocks.0', 'blocks.0.mlp.fc1', 'linear_3']"}
    assert named("y = MatMul(x, w)", {"w": "other.weight"}, torch)["y"] == "blocks.0.mlp.fc1"
    assert named("y = MatMul(x, w)", {"w": "blocks.0.fc1.weight"})["y"] == "blocks.0.fc1"
    assert named("p = MatMul(x, w) y = Add(p, b)", {"b": "blocks.0.fc1.bias"})["p"] == "blocks.0.fc1"
    assert named("p = MatMul(x, w) y = Add(b, p)", {"b": "blocks.0.fc1.bias"})["p"] == "blocks.0.fc1"
    assert named("y = MatMul(x, w)", {"y": "/blocks.0/fc1/MatMul"})["y"] == "blocks.0.fc1"
    assert named("y = MatMul(x, w)", {"y": ""})["y"] == "linear"


def test_two_of_one_name_are_told_apart() -> None:
    found = named("p = MatMul(x, w) q = MatMul(p, w) y = MatMul(q, w)", {"w": "shared.weight"})
    assert found == {"p": "shared", "q": "shared#2", "y": "shared#3"}


def test_attentions_products_are_named_after_what_they_do() -> None:
    lines = "t = Transpose <perm = [0, 2, 1]> (x) s = MatMul(x, t) p = Softmax(s) y = MatMul(p, x)"
    scopes = {name: "['', 'attention', 'matmul']" for name in ("s", "y")}
    found = named(lines, {}, scopes)
    assert (found["s"], found["y"]) == ("attention.scores", "attention.mix")


def test_parameters_get_the_name_of_their_linear(random, rewrite) -> None:
    constants = {"w": random(4, 4), "b": random(4), "v": random(4, 4), "unread": random(1)}
    lines = "first = Gemm(x, w, b) y = Gemm(first, v, b)"
    model = build(lines, constants, inputs="float[3, 4] x", outputs="float[3, 4] y")
    assert rewrite(name_parameters, model, random(3, 4)) == 2
    # A bias that two linears read belongs to neither.
    assert set(model.graph.initializers) == {"first.weight", "y.weight", "b"}


def test_a_name_that_is_taken_is_not_given_twice(random, rewrite) -> None:
    constants = {"w": random(4, 4), "b": random(4), "first_weight": random(4)}
    lines = "first = Gemm(x, w, b) y = Add(first, first_weight)"
    model = build(lines, constants, inputs="float[3, 4] x", outputs="float[3, 4] y")
    model.graph.initializers["first_weight"].name = "first.weight"
    assert rewrite(name_parameters, model, random(3, 4)) == 1
    assert set(model.graph.initializers) == {"first.weight", "w", "first.bias"}
