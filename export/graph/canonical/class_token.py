"""The last block computes only what the class token needs."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from calibration.graph.edit import (
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    permutation,
    replace,
    shape_constant,
    shared_constant,
    sizes,
    tidy,
)

ELEMENT_WISE = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Gelu",
    "Tanh",
    "Erf",
    "Sigmoid",
    "Relu",
    "Sqrt",
    "Pow",
    "Identity",
)


def select_class_token(model: ir.Model) -> int:
    """Gather(f(x), token 0) → f(Gather(x, token 0)), for as far up as f treats every token alike.

    In the last block the query, the projection, the residual and the MLP then run for one token instead of
    all; the keys and values still see every token. The logits stay the same, 5 to 7 % of the work goes.
    """
    total = 0
    while changes := _move_selections(model):
        total += changes
        # Two readers of one residual each got a selection of their own: merged, they can move on together.
        CommonSubexpressionEliminationPass()(model)
        tidy(model)
    return total


def _move_selections(model: ir.Model) -> int:
    changes = 0
    for node in by_type(model, "Gather"):
        index = constant(node.inputs[1])
        source, shape = node.inputs[0], sizes(node.inputs[0])
        if source is None or index is None or index.size != 1 or index.ndim > 1:
            continue
        if shape is None or len(shape) != 3:
            continue
        if attribute(node, "axis", 0) != 1 or not _selectable(source, 1):
            continue
        selected = _Selection(node, int(index.reshape(()))).of(source, 1)
        target = [-1, shape[2] or 0] if index.ndim == 0 else [-1, 1, shape[2] or 0]
        if 0 in target:
            continue
        reshape = [selected, shape_constant(graph_of(node), target)]
        replace(
            node.outputs[0],
            insert(node, "Reshape", reshape, name=f"{node.name}.selected", shape=sizes(node.outputs[0])),
        )
        changes += 1
    return changes


def _selectable(value: ir.Value, axis: int) -> bool:
    """Return whether the selection can move above the node: only the selection reads it, by rows."""
    return len(value.uses()) == 1 and _inputs_to_select(value, axis) is not None


def _inputs_to_select(value: ir.Value, axis: int) -> dict[int, int] | None:
    """Which inputs of the producer the selection moves to, as input index → axis; None where it must stay."""
    node, shape = value.producer(), sizes(value)
    if node is None or shape is None or len(node.outputs) != 1:
        return None
    rank = len(shape)
    if node.op_type in ELEMENT_WISE:
        return {
            index: axis - (rank - len(inner))
            for index, each in enumerate(node.inputs)
            if (inner := sizes(each)) is not None
            and axis >= rank - len(inner)
            and inner[axis - (rank - len(inner))] == shape[axis]
        }
    if node.op_type in ("LayerNormalization", "Softmax") and axis != rank - 1:
        return {0: axis} if attribute(node, "axis", -1) in (-1, rank - 1) else None
    inner = sizes(node.inputs[0])
    if node.op_type == "MatMul" and axis == rank - 2 and inner is not None and len(inner) > 1:
        return {0: len(inner) - 2}
    if node.op_type == "Transpose":
        return {0: permutation(node)[axis]}
    if node.op_type == "Reshape" and constant(node.inputs[1]) is not None and inner is not None:
        return {0: axis} if _keeps(inner, shape, axis) else None
    return None


def _keeps(inner: list[int | None], outer: list[int | None], axis: int) -> bool:
    """Return whether a Reshape leaves an axis and those in front of it as they are."""
    if inner[: axis + 1] != outer[: axis + 1] or len(inner) <= axis or inner[axis] is None:
        return False
    if None not in inner[:axis]:
        return True
    # Two sizes that are not known are the same where as many numbers stand behind them.
    behind = inner[axis + 1 :], outer[axis + 1 :]
    counts = [math.prod(size or 0 for size in each) for each in behind]
    return None not in behind[0] + behind[1] and counts[0] == counts[1]


class _Selection:
    """Build the graph of one selected position beside the old one, which falls away unread."""

    def __init__(self, before: ir.Node, index: int) -> None:
        self.before, self.index = before, index

    def of(self, value: ir.Value, axis: int) -> ir.Value:
        node, moved = value.producer(), _inputs_to_select(value, axis)
        if node is None or not moved or len(value.uses()) != 1:
            return self._gather(value, axis)
        inputs = [
            self.of(each, moved[i]) if i in moved and each else each for i, each in enumerate(node.inputs)
        ]
        shape = sizes(value)
        assert shape is not None  # _inputs_to_select has looked
        shape[axis] = 1
        if node.op_type == "Reshape":
            target = [-1 if size is None else size for size in shape]
            inputs[1] = shape_constant(graph_of(self.before), target)
        name, node.name = str(node.name), f"{node.name}.all_tokens"
        attributes = {key: attr.value for key, attr in node.attributes.items()}
        return insert(self.before, node.op_type, inputs, name=name, shape=shape, **attributes)

    def _gather(self, value: ir.Value, axis: int) -> ir.Value:
        shape = sizes(value)
        assert shape is not None  # the axis was found in it
        shape[axis] = 1
        graph = graph_of(self.before)
        name = f"class_token.index.{self.index}"
        index = shared_constant(graph, name, np.array([self.index], np.int64))
        return insert(
            self.before, "Gather", [value, index], name=f"{value.name}.class_token", shape=shape, axis=axis
        )
