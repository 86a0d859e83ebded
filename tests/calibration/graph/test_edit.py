"""The small verbs on graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import (
    GraphError,
    add_constant,
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    only_reader,
    replace,
    scalar,
    shape_constant,
    sizes,
    tidy,
)


@pytest.fixture
def model() -> ir.Model:
    """y = relu(x + 2) · 3"""
    x = ir.Value(name="x", shape=ir.Shape(["batch", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="g")
    two, three = (add_constant(graph, "two", np.float32(2)), add_constant(graph, "three", np.float32(3)))
    add = ir.node("Add", [x, two], name="add")
    relu = ir.node("Relu", [add.outputs[0]], name="relu")
    mul = ir.node("Mul", [relu.outputs[0], three], name="mul")
    graph.extend([add, relu, mul])
    mul.outputs[0].name = "y"
    graph.outputs.append(mul.outputs[0])
    built = ir.Model(graph, ir_version=10)
    tidy(built)
    return built


def test_constants(model: ir.Model) -> None:
    add, relu, _ = model.graph
    assert scalar(add.inputs[1]) == 2.0
    assert constant(relu.inputs[0]) is None
    assert scalar(relu.inputs[0]) is None
    assert constant(None) is None
    assert scalar(add_constant(model.graph, "vector", np.zeros(2, np.float32))) is None
    # Range accepts no vector of one element where the shapes are known.
    for array in (np.array(2), np.arange(6).reshape(2, 3).T):
        added = add_constant(model.graph, "as it is", array)
        assert sizes(added) == list(array.shape)
        np.testing.assert_array_equal(constant(added), array)


def test_names_are_unique(model: ir.Model) -> None:
    assert add_constant(model.graph, "two", np.float32(5)).name == "two.1"
    assert add_constant(model.graph, "two", np.float32(6)).name == "two.2"
    relu = by_type(model, "Relu")[0]
    outputs = [insert(relu, "Abs", [model.graph.inputs[0]], name="relu") for _ in range(2)]
    assert len({value.name for value in outputs}) == 2
    names = [node.name for node in model.graph]
    assert len(names) == len(set(names))


def test_one_constant_a_shape(model: ir.Model) -> None:
    first = shape_constant(model.graph, [-1, 4])
    assert shape_constant(model.graph, [-1, 4]) is first
    assert shape_constant(model.graph, [4, -1]) is not first
    assert constant(first).tolist() == [-1, 4]


def test_insert_and_replace_keep_the_output_name(model: ir.Model) -> None:
    mul = by_type(model, "Mul")[0]
    doubled = insert(mul, "Add", [mul.inputs[0], mul.inputs[0]], name="doubled", shape=["batch", 4])
    assert sizes(doubled) == [None, 4]
    replace(mul.outputs[0], doubled)
    tidy(model)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [node.op_type for node in model.graph] == ["Add", "Relu", "Add"]  # nobody reads the product


def test_only_reader(model: ir.Model) -> None:
    add, relu, mul = model.graph
    assert only_reader(add.outputs[0]) is relu
    assert only_reader(mul.outputs[0]) is None  # it leaves the graph
    insert(mul, "Abs", [add.outputs[0]], name="second")
    assert only_reader(add.outputs[0]) is None


def test_shapes_and_attributes(model: ir.Model) -> None:
    assert sizes(model.graph.inputs[0]) == [None, 4]
    assert sizes(ir.Value(name="unknown")) is None
    assert sizes(None) is None
    node = ir.node("Softmax", [model.graph.inputs[0]], {"axis": 1})
    assert attribute(node, "axis", -1) == 1
    assert attribute(node, "other", 5) == 5


def test_by_type_is_of_the_standard_domain(model: ir.Model) -> None:
    custom = ir.node("Relu", [model.graph.inputs[0]], domain="com.microsoft")
    model.graph.insert_before(model.graph[0], custom)
    assert [node.name for node in by_type(model, "Relu", "Mul")] == ["relu", "mul"]


def test_a_node_without_a_graph() -> None:
    with pytest.raises(GraphError, match="stands in no graph"):
        graph_of(ir.node("Relu", [ir.Value(name="x")], name="lost"))
