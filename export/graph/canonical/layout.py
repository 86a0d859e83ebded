"""Reshape and Transpose: shapes made constant, detours removed, tokens kept as rows of a matrix."""

from __future__ import annotations

import math
from typing import Literal

import onnx_ir as ir

from calibration.graph.edit import (
    attribute,
    constant,
    copy_attributes,
    graph_of,
    input_constant,
    insert,
    insert_reshape,
    permutation,
    producer,
    replace,
    replace_node,
    reshape_target,
    rewrite_each,
    shape_constant,
    sizes,
)
from export.graph.skipped import skip

ROW_WISE = ("LayerNormalization", "Gelu", "Tanh", "Erf", "Sigmoid", "Relu")

# --- Constant shapes, no detours ---


def make_shapes_static(model: ir.Model) -> int:
    """Reshape(x, computed shape) → Reshape(x, constant), wherever all sizes but the batch are known."""
    return rewrite_each(model, {"Reshape": _make_shape_static})


def _make_shape_static(node: ir.Node) -> bool:
    shape, current = reshape_target(sizes(node.outputs[0])), input_constant(node, 1)
    if current is not None and (shape is None or current.tolist() == shape):
        return False
    if shape is None:
        return skip(node, "more than one size of its output is not known")
    node.replace_input_with(1, shape_constant(graph_of(node), shape))
    node.attributes.pop("allowzero", None)  # for a target with 0, which there is none of any more
    return True


def untangle_transposes(model: ir.Model) -> int:
    """Merge chains of transposes that cancel: attention's key takes this detour in exports of torch.

    Reshape → Transpose(0, 2, 1) → Reshape around the last two axes of four becomes Transpose(0, 1, 3, 2);
    Transpose(Transpose(x)) becomes one Transpose.
    """
    return rewrite_each(model, {"Reshape": _shorten_detour, "Transpose": _merge_transposes})


def _shorten_detour(node: ir.Node) -> bool:
    """[N, H, a, b] → [N · H, a, b] → [N · H, b, a] → [N, H, b, a]: one swap of the last two axes."""
    swap = producer(node.inputs[0], "Transpose")
    merge = producer(swap.inputs[0], "Reshape") if swap is not None else None
    if merge is None or permutation(swap) != (0, 2, 1):
        return False
    start, merged, end = sizes(merge.inputs[0]), sizes(merge.outputs[0]), sizes(node.outputs[0])
    if start is None or merged is None or end is None or len(start) != 4 or len(end) != 4:
        return False
    if merged[1:] != start[2:] or end != [*start[:2], start[3], start[2]]:
        return skip(node, "the two Reshapes around the Transpose do not merge and restore the same axes")
    name, source = f"{node.name}.swapped", merge.inputs[0]
    replace(node.outputs[0], insert(node, "Transpose", [source], name=name, shape=end, perm=[0, 1, 3, 2]))
    return True


def _merge_transposes(node: ir.Node) -> bool:
    first = producer(node.inputs[0], "Transpose")
    if first is None:
        return False
    inner, outer = permutation(first), permutation(node)
    if len(inner) != len(outer):
        return skip(node, "the rank of a Transpose is not known")
    name, shape, perm = f"{node.name}.merged", sizes(node.outputs[0]), [inner[axis] for axis in outer]
    replace_node(node, insert(node, "Transpose", [first.inputs[0]], name=name, shape=shape, perm=perm))
    return True


# --- Tokens as rows of a matrix ---


def keep_tokens_as_rows(model: ir.Model) -> int:
    """Move Reshapes until the token stream is one matrix `[batch · tokens, width]` from linear to linear.

    Row-wise operators (LayerNormalization, Gelu, the residual Add) do not depend on how rows are grouped.
    With the matrix form, every linear is a Gemm that ONNX Runtime can run in integers, and its
    SkipLayerNormalization fusion, slower than the two operators it replaces, does not match.
    """
    rules = {"Reshape": _merge_reshape, " ".join(ROW_WISE): _sink_below_row_wise, "Add": _sink_below_add}
    total = 0
    while changes := rewrite_each(model, rules):
        total += changes
    return total


def _find_rows(value: ir.Value | None) -> ir.Value | None:
    """The matrix `[rows, width]` that a Reshape only regrouped into `value`, or None."""
    source = node.inputs[0] if (node := producer(value, "Reshape")) is not None else None
    inner, outer = sizes(source) or (), sizes(value) or ()
    return source if len(inner) == 2 and len(outer) > 2 and inner[1] == outer[-1] else None


def _merge_reshape(node: ir.Node) -> bool:
    """Reshape(Reshape(x)) → Reshape(x); a Reshape to the shape that is there already → nothing."""
    value, shape = node.inputs[0], input_constant(node, 1)
    if value is None or shape is None or (shape == 0).any():  # 0 takes the size of the input
        return False
    first, current, target = producer(value, "Reshape"), sizes(value), shape.tolist()
    if first is not None and constant(first.inputs[1]) is not None:
        node.replace_input_with(0, first.inputs[0])
        return True
    if current is None or len(current) != len(target):
        return False
    differing = [want for have, want in zip(current, target, strict=True) if have != want]
    if differing not in ([], [-1]):  # one -1 may stand for one symbolic size
        return False
    replace_node(node, value)
    return True


def _sink_below_row_wise(node: ir.Node) -> bool:
    """f(Reshape(x)) → Reshape(f(x)) for row-wise f, and the same where all readers flatten f's output."""
    source, output = node.inputs[0], node.outputs[0]
    shape = sizes(output)
    if source is None or shape is None or len(shape) < 3 or shape[-1] is None:
        return False
    is_norm = node.op_type == "LayerNormalization"
    if is_norm and attribute(node, "axis", -1) not in (-1, len(shape) - 1):
        return skip(node, "it normalizes over more than the last axis")
    rows, target = _find_rows(source), reshape_target(shape)
    readers = {use.node.op_type for use in output.uses()}
    if rows is None and readers - {"Reshape"}:
        if "Reshape" in readers or producer(source, "Reshape") is not None:
            skip(node, "its input is no matrix that was regrouped, and not all that reads it makes one")
        return False
    if target is None:
        return skip(node, "more than one size of its output is not known")
    rows, attributes = rows or _insert_rows(node, source), copy_attributes(node)
    if is_norm:  # the axes are counted from the front, and there are fewer now
        attributes.pop("axis", None)
        attributes["axis"] = -1
    name, node.name = str(node.name), f"{node.name}.before"
    inputs = [rows, *node.inputs[1:]]
    flat = insert(node, node.op_type, inputs, name=name, shape=sizes(rows), **attributes)
    return _regroup(node, flat, target)


def _sink_below_add(node: ir.Node) -> bool:
    """Add(Reshape(x), y) → Reshape(Add(x, rows of y)), for the residual connections."""
    left, right = node.inputs
    target = reshape_target(sizes(node.outputs[0]))
    # A sum that broadcasts, with a position embedding for example, needs the tokens of one image.
    if left is None or right is None or target is None or sizes(left) != sizes(right) or len(target) < 3:
        return False
    if _find_rows(left) is None and _find_rows(right) is None:
        if producer(left, "Reshape") is not None or producer(right, "Reshape") is not None:
            skip(node, "neither of its inputs is a matrix of rows that was regrouped")
        return False
    rows = [_find_rows(value) or _insert_rows(node, value) for value in (left, right)]
    return _regroup(node, insert(node, "Add", rows, name=f"{node.name}.rows", shape=sizes(rows[0])), target)


def _insert_rows(node: ir.Node, value: ir.Value) -> ir.Value:
    """Insert the Reshape to `[rows, width]`, whose width is known."""
    *outer, width = sizes(value) or [None]
    rows = None if None in outer else math.prod(size for size in outer if size is not None)
    name = f"{value.name}.as_rows"
    return insert_reshape(node, value, [-1, width or 0], name=name, shape=[rows, width])


def _regroup(node: ir.Node, rows: ir.Value, target: list[int]) -> Literal[True]:
    """Put Reshape(rows) in the place of the node."""
    shape, name = sizes(node.outputs[0]), f"{node.name}.grouped"
    replace_node(node, insert_reshape(node, rows, target, name=name, shape=shape))
    return True
