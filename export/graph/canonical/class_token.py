"""The last block computes only what the class token needs: its selection moves up in the graph."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from calibration.graph.edit import (
    attribute,
    by_type,
    copy_attributes,
    graph_of,
    input_constant,
    insert,
    insert_reshape,
    permutation,
    producer,
    replace,
    reuse_constant,
    shape_constant,
    sizes,
    tidy,
)
from export.graph.skipped import skip

ELEMENT_WISE = (
    "Add", "Sub", "Mul", "Div", "Gelu", "Tanh", "Erf", "Sigmoid", "Relu", "Sqrt", "Pow", "Identity",
)  # fmt: skip
_MOVED = ".class_token"  # in the name of a Gather that was moved


def select_class_token(model: ir.Model) -> int:
    """Gather(f(x), token 0) → f(Gather(x, token 0)), for as far up as f treats every token alike.

    In the last block the query, the projection, the residual and the MLP then run for one token instead of
    all; the keys and values still see every token. The logits stay the same, 5 to 7 % of the work goes.
    """
    total = 0
    while changes := sum(_move_up(node) for node in by_type(model, "Gather")):
        total += changes
        # Two readers of one residual each got a selection of their own: merged, they can move on together.
        CommonSubexpressionEliminationPass()(model)
        tidy(model)
    return total


def _move_up(node: ir.Node) -> bool:
    index, source, shape = input_constant(node, 1), node.inputs[0], sizes(node.inputs[0])
    if source is None or index is None or index.size != 1 or index.ndim > 1:
        return False
    # [N, tokens, width], of which one token is selected
    if shape is None or len(shape) != 3 or attribute(node, "axis", 0) != 1:
        return False
    width = shape[2]
    if len(source.uses()) > 1 or width is None or _find_inputs_to_select(source, 1) is None:
        above = producer(source)
        if above is not None and _MOVED not in str(node.name):
            reads = "something else reads all tokens" if len(source.uses()) > 1 else "it may mix tokens"
            skip(node, f"it cannot move above {above.op_type} ({above.name}): {reads}")
        return False
    value = _select(source, 1, int(index.reshape(())), node)
    target = [-1, *[1] * index.ndim, width]
    name, shape = f"{node.name}.selected", sizes(node.outputs[0])
    replace(node.outputs[0], insert_reshape(node, value, target, name=name, shape=shape))
    return True


def _find_inputs_to_select(value: ir.Value, axis: int) -> dict[int, int] | None:
    """Which inputs of the producer the selection moves to, as input index → axis; None where it must stay."""
    node, shape = value.producer(), sizes(value)
    if node is None or shape is None or len(node.outputs) != 1:
        return None
    rank = len(shape)
    if node.op_type in ELEMENT_WISE:
        # Broadcasting counts axes from the end; an input without the axis, or with 1 there, stays whole.
        inputs = {
            index: inner for index, each in enumerate(node.inputs) if (inner := sizes(each)) is not None
        }
        moved = {index: axis - rank + len(inner) for index, inner in inputs.items()}
        return {index: at for index, at in moved.items() if at >= 0 and inputs[index][at] == shape[axis]}
    if node.op_type in ("LayerNormalization", "Softmax") and axis != rank - 1:
        return {0: axis} if attribute(node, "axis", -1) in (-1, rank - 1) else None
    inner = sizes(node.inputs[0])
    # The rows of a product are the rows of its left input.
    if node.op_type == "MatMul" and axis == rank - 2 and inner is not None and len(inner) > 1:
        return {0: len(inner) - 2}
    if node.op_type == "Transpose":
        return {0: permutation(node)[axis]}
    if node.op_type == "Reshape" and input_constant(node, 1) is not None and inner is not None:
        return {0: axis} if _keeps_axis(inner, shape, axis) else None
    return None


def _keeps_axis(inner: list[int | None], outer: list[int | None], axis: int) -> bool:
    """Return whether a Reshape leaves an axis and those in front of it as they are."""
    if inner[: axis + 1] != outer[: axis + 1] or len(inner) <= axis or inner[axis] is None:
        return False
    # Two sizes that are not known are the same where as many numbers stand behind them.
    behind = inner[axis + 1 :], outer[axis + 1 :]
    counts = {math.prod(size or 0 for size in each) for each in behind}
    return None not in inner[:axis] or (None not in behind[0] + behind[1] and len(counts) == 1)


def _select(value: ir.Value, axis: int, index: int, before: ir.Node) -> ir.Value:
    """Build the graph of one position of the value's axis beside the old one, which nothing reads then."""
    node, moved = value.producer(), _find_inputs_to_select(value, axis)
    shape = [1 if each == axis else size for each, size in enumerate(sizes(value) or [])]
    # What else reads the value needs all positions: they are computed anyway.
    if node is None or not moved or len(value.uses()) != 1:
        name = f"class_token.index.{index}"
        indices = reuse_constant(graph_of(before), name, np.array([index], np.int64))
        name = f"{value.name}{_MOVED}"
        return insert(before, "Gather", [value, indices], name=name, shape=shape, axis=axis)
    inputs = [
        _select(each, moved[i], index, before) if i in moved and each else each
        for i, each in enumerate(node.inputs)
    ]
    if node.op_type == "Reshape":
        inputs[1] = shape_constant(graph_of(before), [-1 if size is None else size for size in shape])
    name, node.name = str(node.name), f"{node.name}.all_tokens"
    return insert(before, node.op_type, inputs, name=name, shape=shape, **copy_attributes(node))
