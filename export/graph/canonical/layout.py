"""Reshape and Transpose: shapes made constant, detours removed, tokens kept as rows of a matrix."""

from __future__ import annotations

import math
from typing import TypeGuard

import onnx_ir as ir

from calibration.graph.edit import (
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    permutation,
    replace,
    shape_constant,
    sizes,
    tidy,
)

ROW_WISE = ("LayerNormalization", "Gelu", "Tanh", "Erf", "Sigmoid", "Relu")


def static_shape(value: ir.Value) -> list[int] | None:
    """The shape as Reshape takes it, -1 for the one symbolic size; None when more than one is symbolic."""
    known = sizes(value)
    if known is None or known.count(None) > 1:
        return None
    return [-1 if size is None else size for size in known]


def make_shapes_static(model: ir.Model) -> int:
    """Reshape(x, computed shape) → Reshape(x, constant), wherever all sizes but the batch are known."""
    changes = 0
    for node in by_type(model, "Reshape"):
        shape = static_shape(node.outputs[0])
        already = constant(node.inputs[1])
        if shape is None or (already is not None and already.tolist() == shape):
            continue
        node.replace_input_with(1, shape_constant(graph_of(node), shape))
        node.attributes.pop("allowzero", None)
        changes += 1
    if changes:
        tidy(model)
    return changes


def untangle_transposes(model: ir.Model) -> int:
    """Merge chains of transposes that cancel: attention's key takes this detour in exports of torch.

    Reshape → Transpose(0, 2, 1) → Reshape around the last two axes of four becomes Transpose(0, 1, 3, 2);
    Transpose(Transpose(x)) becomes one Transpose.
    """
    changes = 0
    for node in by_type(model, "Reshape"):
        middle = node.inputs[0].producer() if node.inputs[0] else None
        if middle is None or permutation(middle) != (0, 2, 1) or middle.inputs[0] is None:
            continue
        first = middle.inputs[0].producer()
        if not _is(first, "Reshape"):
            continue
        before, after = sizes(first.inputs[0]), sizes(node.outputs[0])
        inner = sizes(first.outputs[0])
        if before is None or after is None or inner is None or len(before) != 4 or len(after) != 4:
            continue
        if inner[1:] != before[2:] or before[:2] != after[:2] or before[2:] != after[:1:-1]:
            continue
        swapped = insert(
            node, "Transpose", [first.inputs[0]], name=f"{node.name}.swapped", shape=after, perm=[0, 1, 3, 2]
        )
        replace(node.outputs[0], swapped)
        changes += 1
    changes += _merge_transposes(model)
    if changes:
        tidy(model)
    return changes


def _merge_transposes(model: ir.Model) -> int:
    changes = 0
    for node in by_type(model, "Transpose"):
        first = node.inputs[0].producer() if node.inputs[0] else None
        if not _is(first, "Transpose"):
            continue
        inner, outer = permutation(first), permutation(node)
        if len(inner) != len(outer):
            continue  # a rank that is not known
        merged = insert(
            node,
            "Transpose",
            [first.inputs[0]],
            name=f"{node.name}.merged",
            shape=sizes(node.outputs[0]),
            perm=[inner[axis] for axis in outer],
        )
        replace(node.outputs[0], merged)
        graph_of(node).remove(node, safe=True)
        changes += 1
    return changes


def keep_tokens_as_rows(model: ir.Model) -> int:
    """Move Reshapes until the token stream is one matrix `[batch · tokens, width]` from linear to linear.

    Row-wise operators (LayerNormalization, Gelu, the residual Add) do not care how rows are grouped. With the
    matrix form, every linear is a Gemm that ONNX Runtime can run in integers, and its SkipLayerNormalization
    fusion, slower than the two operators it replaces, does not match.
    """
    total = 0
    while changes := _merge_reshapes(model) + _sink_below_row_wise(model) + _sink_below_add(model):
        total += changes
        tidy(model)
    return total


def _is(node: ir.Node | None, op_type: str) -> TypeGuard[ir.Node]:
    return node is not None and node.op_type == op_type


def _rows(value: ir.Value | None) -> ir.Value | None:
    """The matrix `[rows, width]` that a Reshape only regrouped into `value`, or None."""
    node = value.producer() if value is not None else None
    if value is None or not _is(node, "Reshape"):
        return None
    source, inner, outer = node.inputs[0], sizes(node.inputs[0]), sizes(value)
    if inner is None or outer is None or len(inner) != 2 or len(outer) < 3 or inner[1] != outer[-1]:
        return None
    return source


def _merge_reshapes(model: ir.Model) -> int:
    """Reshape(Reshape(x)) → Reshape(x); a Reshape to the shape that is there already → nothing."""
    changes = 0
    for node in by_type(model, "Reshape"):
        value = node.inputs[0]
        shape = constant(node.inputs[1])
        if value is None or shape is None or (shape == 0).any():
            continue
        first, current = value.producer(), sizes(value)
        if first is not None and _is(first, "Reshape") and constant(first.inputs[1]) is not None:
            node.replace_input_with(0, first.inputs[0])
            changes += 1
        elif current is not None and len(current) == len(shape) and _same(current, shape.tolist()):
            replace(node.outputs[0], value)
            graph_of(node).remove(node, safe=True)
            changes += 1
    return changes


def _same(current: list[int | None], target: list[int]) -> bool:
    """Return whether a Reshape to `target` changes nothing; one -1 may stand for one symbolic size."""
    differing = [(have, want) for have, want in zip(current, target, strict=True) if have != want]
    return not differing or (len(differing) == 1 and differing[0][1] == -1)


def _sink_below_row_wise(model: ir.Model) -> int:
    """f(Reshape(x)) → Reshape(f(x)) for row-wise f, and the same where all readers flatten f's output."""
    changes = 0
    for node in by_type(model, *ROW_WISE):
        source, output = node.inputs[0], node.outputs[0]
        shape = sizes(output)
        if source is None or shape is None or len(shape) < 3 or shape[-1] is None:
            continue
        if node.op_type == "LayerNormalization" and attribute(node, "axis", -1) not in (-1, len(shape) - 1):
            continue
        rows = _rows(source)
        if rows is None and not all(_is(use.node, "Reshape") for use in output.uses()):
            continue
        target = static_shape(output)
        if target is None:
            continue
        if rows is None:
            rows = _as_rows(node, source)
        attributes = {name: attr.value for name, attr in node.attributes.items() if name != "axis"}
        if node.op_type == "LayerNormalization":
            attributes["axis"] = -1
        name, node.name = str(node.name), f"{node.name}.before"
        flat = insert(
            node,
            node.op_type,
            [rows, *node.inputs[1:]],
            name=name,
            shape=sizes(rows),
            **attributes,
        )
        _regroup(node, flat, target)
        changes += 1
    return changes


def _sink_below_add(model: ir.Model) -> int:
    """Add(Reshape(x), y) → Reshape(Add(x, rows of y)), for the residual connections."""
    changes = 0
    for node in by_type(model, "Add"):
        left, right = node.inputs
        target = static_shape(node.outputs[0])
        if left is None or right is None or target is None or sizes(left) != sizes(right) or len(target) < 3:
            continue
        if _rows(left) is None and _rows(right) is None:
            continue
        both = [_rows(value) or _as_rows(node, value) for value in (left, right)]
        total = insert(node, "Add", both, name=f"{node.name}.rows", shape=sizes(both[0]))
        _regroup(node, total, target)
        changes += 1
    return changes


def _as_rows(node: ir.Node, value: ir.Value) -> ir.Value:
    shape = sizes(value)
    assert shape is not None  # both callers have looked
    assert shape[-1] is not None
    outer = shape[:-1]
    rows = None if None in outer else math.prod(size for size in outer if size is not None)
    target = shape_constant(graph_of(node), [-1, shape[-1]])
    return insert(node, "Reshape", [value, target], name=f"{value.name}.as_rows", shape=[rows, shape[-1]])


def _regroup(node: ir.Node, rows: ir.Value, target: list[int]) -> None:
    """Put Reshape(rows) in the place of the node's output, and remove the node."""
    shape = shape_constant(graph_of(node), target)
    regrouped = insert(
        node, "Reshape", [rows, shape], name=f"{node.name}.grouped", shape=sizes(node.outputs[0])
    )
    replace(node.outputs[0], regrouped)
    graph_of(node).remove(node, safe=True)
