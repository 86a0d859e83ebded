"""The last block computes only what the class token needs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from calibration.graph import (
    add_constant,
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    replace,
    shape_constant,
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
        if source is None or index is None or index.size != 1 or shape is None or len(shape) != 3:
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
    if node.op_type == "MatMul" and axis == rank - 2:
        return {0: axis}
    if node.op_type == "Transpose":
        return {0: list(attribute(node, "perm", range(rank)[::-1]))[axis]}
    if node.op_type == "Reshape" and constant(node.inputs[1]) is not None:
        inner = sizes(node.inputs[0])
        kept = inner is not None and inner[: axis + 1] == shape[: axis + 1] and len(inner) > axis
        if axis == 0 and shape[0] is None:  # both unknown, and not the same: tokens, and tokens · batch
            kept = False
        return {0: axis} if kept else None
    return None


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
        index = graph.initializers.get(name) or add_constant(graph, name, np.array([self.index], np.int64))
        return insert(
            self.before, "Gather", [value, index], name=f"{value.name}.class_token", shape=shape, axis=axis
        )
