"""Kinds of values in a graph: tokens by image, or the rows of heads."""

from __future__ import annotations

import onnx_ir as ir

from calibration.graph import GraphError, permutation, sizes

SCALED = ("Add", "Sub", "Mul", "Div")


def by_image(value: ir.Value | None) -> bool:
    """[N, T, …] with a known T: the order that this pass is there to change."""
    shape = sizes(value)
    if shape is None or len(shape) < 3 or shape[0] is not None or None in shape[1:]:
        return False
    return not of_heads(value)


def of_heads(value: ir.Value | None) -> bool:
    """[N · H, T, …] out of [T, N · H, …]: torch's own attention, which orders its rows so already."""
    node, shape = value.producer() if value is not None else None, sizes(value)
    if node is None or shape is None or len(shape) != 3 or shape[0] is not None:
        return False
    if permutation(node) in ((1, 0, 2), (1, 2, 0)):
        rows = node.inputs[0].producer() if node.inputs[0] is not None else None
        before = sizes(rows.inputs[0]) if rows is not None and rows.op_type == "Reshape" else None
        features = shape[2] if permutation(node)[1] == 0 else shape[1]
        # Heads are narrower than the rows that they were cut from; [T, N, w] is as wide.
        return before is not None and features != before[-1]
    passed_on = ("MatMul", "Softmax", "Transpose", *SCALED)
    return node.op_type in passed_on and any(of_heads(each) for each in node.inputs)


def concerned(node: ir.Node) -> bool:
    """Return whether the node handles tokens by image, or cuts the pixels into them."""
    if node.inputs and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8:
        cast = node.outputs[0].dtype != ir.DataType.UINT8 and by_image(node.outputs[0])
        return node.op_type == "Transpose" or cast
    return any(by_image(value) for value in (*node.inputs, *node.outputs))


def rank(value: ir.Value | None) -> int:
    return len(sizes(value) or ())


def swaps(node: ir.Node) -> bool:
    """[N, T, w] → [T, N, w] or back, in front of and behind torch's own attention."""
    return permutation(node) == (1, 0, 2)


def splits_heads(value: ir.Value) -> bool:
    """[N, T, H, d] rather than [N, H, T, d]: a Reshape made it, or a Reshape takes it."""
    above = value.producer()
    return above is not None and (
        above.op_type == "Reshape" or any(use.node.op_type == "Reshape" for use in value.uses())
    )


def new_shape(shape: list[int | None], *, heads: bool) -> list[int | None]:
    """[N, T, width] → [T, N, width]; [N, T, H, d] → [T, N · H, d]; [N, H, …, …] → [N · H, …, …]."""
    if len(shape) == 3:
        return [shape[1], None, shape[2]]
    return [shape[1], None, shape[3]] if heads else [None, *shape[2:]]


def source_of(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise GraphError(f"expected {node.op_type} ({node.name}) to have an input, found none")
    return value
