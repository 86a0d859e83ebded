"""Operators that do nothing here, or the same as a plainer one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    add_constant,
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

NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}


def drop_no_ops(model: ir.Model) -> int:
    """Identity, Dropout; Cast, Slice, Expand, Reshape, + 0 and · 1 that change nothing → their input.

    An Identity that carries a constant to the output stays.
    """
    changes = 0
    for node in list(model.graph):
        source = _data_input(node)
        if source is None or node.domain not in ("", "ai.onnx") or not _is_no_op(node, source):
            continue
        output = node.outputs[0]
        if output.is_graph_output() and (source.producer() is None or source.is_graph_output()):
            continue
        replace(output, source)
        changes += 1
    if changes:
        tidy(model)
    return changes


def _data_input(node: ir.Node) -> ir.Value | None:
    """The first input, or the computed one of a sum or product with a constant on its left."""
    if node.op_type in ("Add", "Mul") and constant(node.inputs[0]) is not None:
        return node.inputs[1]
    return node.inputs[0] if node.inputs else None


def _is_no_op(node: ir.Node, source: ir.Value) -> bool:
    output = node.outputs[0]
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        return not node.outputs[1:] or not node.outputs[1].uses()
    if node.op_type == "Cast":
        return source.dtype is not None and source.dtype == ir.DataType(attribute(node, "to", 0))
    shape = sizes(source)
    if node.op_type in ("Slice", "Expand", "Reshape", *NEUTRAL) and (
        shape is None or None in shape or shape != sizes(output)
    ):
        return False
    if node.op_type == "Slice":
        step = constant(node.inputs[4]) if len(node.inputs) > 4 else None
        return step is None or bool((step > 0).all())
    if (neutral := NEUTRAL.get(node.op_type)) is not None:
        operands = [constant(value) for value in node.inputs if value is not source]
        return len(operands) == 1 and operands[0] is not None and bool((operands[0] == neutral).all())
    return node.op_type in ("Expand", "Reshape") or (
        node.op_type in ("Sum", "Concat") and len(node.inputs) == 1
    )


def drop_nan_guards(model: ir.Model) -> int:
    """Where(IsNaN(p), 0, p) → p for a softmax p: guards rows emptied by a mask, where there is no mask."""
    changes = 0
    for node in by_type(model, "Where"):
        guard, softmax = node.inputs[0], node.inputs[2]
        test = guard.producer() if guard is not None else None
        source = softmax.producer() if softmax is not None else None
        if test is None or source is None or softmax is None or test.op_type != "IsNaN":
            continue
        if source.op_type != "Softmax" or test.inputs[0] is not softmax or _masked(source.inputs[0]):
            continue
        replace(node.outputs[0], softmax)
        changes += 1
    if changes:
        tidy(model)
    return changes


def _masked(value: ir.Value | None) -> bool:
    """Return whether anything but scalings stands between a product and its softmax."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Mul", "Div", "Reshape"):
        value = next((each for each in node.inputs if each is not None and constant(each) is None), None)
        node = value.producer() if value is not None else None
    return node is None or node.op_type != "MatMul"


def plain_layout(model: ir.Model) -> int:
    """Turn Squeeze, Unsqueeze and Flatten into Reshape, and a Slice of one position into Gather."""
    changes = 0
    rules: dict[str, Callable[[ir.Node], bool]] = {
        "Squeeze": _to_reshape,
        "Unsqueeze": _to_reshape,
        "Flatten": _to_reshape,
        "Slice": _to_gather,
    }
    for node in by_type(model, *rules):
        changes += rules[node.op_type](node)
    if changes:
        tidy(model)
    return changes


def _to_reshape(node: ir.Node) -> bool:
    shape = sizes(node.outputs[0])
    if shape is None or shape.count(None) > 1:
        return False
    target = shape_constant(graph_of(node), [-1 if size is None else size for size in shape])
    inputs, name = [node.inputs[0], target], f"{node.name}.reshape"
    replace(node.outputs[0], insert(node, "Reshape", inputs, name=name, shape=shape))
    return True


def _to_gather(node: ir.Node) -> bool:
    arrays = [constant(each) for each in node.inputs[1:]]
    inner, outer = sizes(node.inputs[0]), sizes(node.outputs[0])
    if len(arrays) < 3 or inner is None or outer is None:
        return False
    if any(array is None or array.size != 1 for array in arrays):
        return False
    start, axis = (int(array.reshape(())) for array in (arrays[0], arrays[2]) if array is not None)
    axis %= len(inner)
    size = inner[axis]
    if size is None or outer[axis] != 1:
        return False
    position = start + size if start < 0 else start
    index = add_constant(graph_of(node), f"position.{position}", np.array([position], np.int64))
    inputs = [node.inputs[0], index]
    replace(
        node.outputs[0], insert(node, "Gather", inputs, name=f"{node.name}.gather", shape=outer, axis=axis)
    )
    return True


def drop_unit_axes(model: ir.Model) -> int:
    """Reshape → Transpose → Reshape with axes of one in between → the same without them.

    What is left of `[N, tokens, 3, heads, width]` when query, key and value are apart; two Transposes that
    such axes kept from meeting can then become one.
    """
    changes = 0
    for node in by_type(model, "Transpose"):
        inner, outer = sizes(node.inputs[0]), sizes(node.outputs[0])
        above = node.inputs[0].producer() if node.inputs[0] is not None else None
        readers = [use.node.op_type for use in node.outputs[0].uses()]
        if inner is None or outer is None or 1 not in inner or inner.count(None) > 1:
            continue
        if above is None or above.op_type != "Reshape" or set(readers) != {"Reshape"}:
            continue
        perm = permutation(node)
        kept = [axis for axis, size in enumerate(inner) if size != 1]
        squeezed = [inner[axis] for axis in kept]
        moved = [kept.index(axis) for axis in perm if axis in kept]
        graph, name = graph_of(node), str(node.name)
        target = shape_constant(graph, [-1 if size is None else size for size in squeezed])
        value = insert(node, "Reshape", [node.inputs[0], target], name=f"{name}.squeezed", shape=squeezed)
        if moved != sorted(moved):
            squeezed = [squeezed[axis] for axis in moved]
            value = insert(node, "Transpose", [value], name=f"{name}.plain", shape=squeezed, perm=moved)
        for reader in [use.node for use in node.outputs[0].uses()]:
            if sizes(reader.outputs[0]) == squeezed:
                replace(reader.outputs[0], value)  # it took the ones away, which now are not there
            else:
                reader.replace_input_with(0, value)
        changes += 1
    if changes:
        tidy(model)
    return changes
