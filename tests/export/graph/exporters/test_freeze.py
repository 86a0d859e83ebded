"""Computed shapes become constants, and an If on shapes the branch that is taken."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.graph.edit import GraphError
from export.graph.exporters.batch import free_batch
from export.graph.exporters.freeze import freeze_shapes, take_branches
from export.graph.exporters.simplify import drop_no_ops
from tests.support.small_graphs import build, op_types, run

INT = np.int64


def test_computed_shapes_become_constants() -> None:
    lines = (
        "s = Shape(x) n = Gather(s, first) m = Identity(n) t = Concat<axis = 0>(m, rest) r = Reshape(x, t)"
        " f = ConstantOfShape(t) g = Cast<to = 1>(f) y = Add(r, g)"
    )
    constants = {"first": [0], "rest": [12]}
    model = build(lines, constants, inputs="float[n, 3, 4] x", outputs="float[n, 12] y")
    assert freeze_shapes(model, (2, 3, 4)) > 0
    assert op_types(model) == ["Reshape", "Add"]
    assert free_batch(model) == 2  # the target, and the zeros that were spread over the batch
    x = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    np.testing.assert_array_equal(run(model, x), x.reshape(5, 12))


def test_a_computed_scalar_stays_one() -> None:
    """Gather by a scalar drops the axis, by a vector of one element it keeps it."""
    lines = "s = Shape(x) n = Gather(s, second) z = Sub(n, three) y = Gather<axis = 1>(x, z)"
    constants = {"second": np.array(1), "three": np.array(3)}
    model = build(lines, constants, inputs="float[n, 3, 4] x", outputs="float[n, 4] y")
    freeze_shapes(model, (2, 3, 4))
    assert op_types(model) == ["Gather"]
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(run(model, x), x[:, 0])


def branching(condition: list[onnx.NodeProto]) -> ir.Model:
    """y = x · 2 where the condition holds, else x · 3; the factors are initializers of the branches."""

    def branch(name: str, factor: float) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)
        weight = numpy_helper.from_array(np.float32(factor), "factor")
        return helper.make_graph(
            [helper.make_node("Mul", ["x", "factor"], [f"{name}.out"])], name, [], [out], [weight]
        )

    nodes = [
        *condition,
        helper.make_node(
            "If", ["c"], ["y"], then_branch=branch("then", 2.0), else_branch=branch("else", 3.0)
        ),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    one = [
        numpy_helper.from_array(np.array([4], INT), "four"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    proto = helper.make_graph(nodes, "branching", [x], [y], one)
    return ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize(("compare", "factor"), [("Equal", 2), ("Less", 3)])
def test_the_branch_that_the_shape_chooses_is_taken(compare: str, factor: int) -> None:
    shape = helper.make_node("Shape", ["x"], ["size"], start=1)
    model = branching([shape, helper.make_node(compare, ["size", "four"], ["c"])])
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    freeze_shapes(model, (2, 4))
    free_batch(model)
    drop_no_ops(model)
    assert "If" not in {node.op_type for node in model.graph}
    np.testing.assert_array_equal(run(model, x), factor * x)


def test_a_branch_that_pixels_choose_is_refused() -> None:
    total = helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
    model = branching([total, helper.make_node("Less", ["total", "zero"], ["c"])])
    with pytest.raises(GraphError, match=r"found If \(.*\) whose condition does"):
        take_branches(model)


@pytest.mark.parametrize(("condition", "factor"), [(True, 2), (False, 3)])
def test_a_constant_condition_chooses_its_branch(condition: bool, factor: int) -> None:
    model = branching([])
    model.graph.register_initializer(ir.Value(name="c", const_value=ir.tensor(np.array(condition), name="c")))
    for node in model.graph:
        node.replace_input_with(0, model.graph.initializers["c"])
    assert take_branches(model) == 1
    drop_no_ops(model)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(run(model, x), factor * x)
