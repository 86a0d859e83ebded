"""Operators that do nothing here, or the same as a plainer one: they are removed or replaced."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    add_constant,
    attribute,
    constant,
    graph_of,
    input_constant,
    insert,
    insert_reshape,
    permutation,
    producer,
    replace,
    reshape_target,
    rewrite_each,
    scalar,
    sizes,
    tidy,
)
from export.graph.skipped import skip

# --- Operators that do nothing ---


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
        # A graph output must be computed by a node, and one value cannot be two outputs.
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
    if node.op_type == "Dropout":  # its second output is the mask, which is computed for who reads it
        return not node.outputs[1:] or not node.outputs[1].uses()
    if node.op_type == "Cast":
        return source.dtype == ir.DataType(attribute(node, "to", 0))
    shape = sizes(source)
    # A sum may broadcast, and a Slice or Expand may change a size that is not known.
    if node.op_type in ("Slice", "Expand", "Reshape", *NEUTRAL) and (
        shape is None or None in shape or shape != sizes(output)
    ):
        return False
    if node.op_type == "Slice":  # with a negative step it reverses what it keeps
        step = input_constant(node, 4)
        return step is None or bool((step > 0).all())
    if (neutral := NEUTRAL.get(node.op_type)) is not None:
        operands = [constant(value) for value in node.inputs if value is not source]
        return len(operands) == 1 and operands[0] is not None and bool((operands[0] == neutral).all())
    alone = node.op_type in ("Sum", "Concat") and len(node.inputs) == 1
    return alone or node.op_type in ("Expand", "Reshape")


def drop_nan_guards(model: ir.Model) -> int:
    """Where(IsNaN(p), 0, p) → p for a softmax p without a mask.

    The guard is for rows that a mask emptied: softmax of only -inf is NaN, of finite scores it never is.
    """
    return rewrite_each(model, {"Where": _drop_nan_guard})


def _drop_nan_guard(node: ir.Node) -> bool:
    guarded = node.inputs[2]
    test, softmax = producer(node.inputs[0], "IsNaN"), producer(guarded, "Softmax")
    if test is None or softmax is None or guarded is None or test.inputs[0] is not guarded:
        return False
    if _is_masked(softmax.inputs[0]):
        return skip(node, "a mask can leave a row of its softmax empty, which gives NaN")
    replace(node.outputs[0], guarded)
    return True


def _is_masked(value: ir.Value | None) -> bool:
    """Return whether anything but scalings stands between a product and its softmax."""
    node = producer(value)
    while node is not None and node.op_type in ("Mul", "Div", "Reshape"):
        computed = (each for each in node.inputs if each is not None and constant(each) is None)
        node = producer(next(computed, None))
    return node is None or node.op_type != "MatMul"


# --- Operators that only move numbers → Reshape, Transpose and Gather, which later rewrites know ---


def plain_moves(model: ir.Model) -> int:
    """Col2Im of blocks that do not overlap, and ScatterND that writes every place once, in order → Reshape.

    What `torch.nn.functional.fold` (MobileViTv2) and `x[...] = y` (MViTv2) become. All sizes are known here.
    """
    return rewrite_each(model, {"Col2Im": _fold_blocks, "ScatterND": _overwrite})


def _fold_blocks(node: ir.Node) -> bool:
    """[N, C · rows · columns, down · across] → [N, C, down · rows, across · columns], block by block."""
    image, block, source = input_constant(node, 1), input_constant(node, 2), sizes(node.inputs[0])
    if image is None or block is None or source is None or None in source or len(block) != 2:
        return skip(node, "the sizes of its image and blocks are not known, or it has not two axes")
    # Where blocks overlap, Col2Im adds; with padding or dilation they do not lie side by side.
    padded = any(attribute(node, "pads", ())) or set(attribute(node, "dilations", [1])) != {1}
    if list(attribute(node, "strides", [1, 1])) != block.tolist() or padded or (image % block).any():
        return skip(node, "its blocks overlap, are padded or dilated, or do not fill the image")
    (height, width), (rows, columns) = image.tolist(), block.tolist()
    count, channels = source[0] or 0, (source[1] or 0) // (rows * columns)
    apart = [count, channels, rows, columns, height // rows, width // columns]
    perm = [0, 1, 4, 2, 5, 3]  # down, rows, across, columns
    ordered = [apart[axis] for axis in perm]
    value = insert_reshape(node, node.inputs[0], apart, name=f"{node.name}.apart", shape=apart)
    value = insert(node, "Transpose", [value], name=f"{node.name}.turned", shape=ordered, perm=perm)
    whole = [count, channels, height, width]
    replace(node.outputs[0], insert_reshape(node, value, whole, name=f"{node.name}.whole", shape=whole))
    return True


def _overwrite(node: ir.Node) -> bool:
    """ScatterND(data, indices, updates) → updates, in the shape of the data."""
    shape, indices = reshape_target(sizes(node.inputs[0])), input_constant(node, 1)
    if shape is None or -1 in shape or indices is None or attribute(node, "reduction", "none") != "none":
        return skip(node, "its shape or its indices are not known, or it adds to what is there")
    places = shape[: indices.shape[-1]]
    flat = indices.reshape(-1, indices.shape[-1])
    every = np.indices(places).reshape(len(places), -1).T  # every place once, in the order of Reshape
    if len(flat) != math.prod(places) or not np.array_equal(flat, every):
        return skip(node, "it does not write every place once and in order")
    whole = insert_reshape(node, node.inputs[2], shape, name=f"{node.name}.all", shape=shape)
    replace(node.outputs[0], whole)
    return True


def plain_layout(model: ir.Model) -> int:
    """Turn Squeeze, Unsqueeze and Flatten into Reshape, and a Slice of one position into Gather."""
    return rewrite_each(model, {"Squeeze Unsqueeze Flatten Slice": _to_plain_layout})


def _to_plain_layout(node: ir.Node) -> bool:
    if node.op_type == "Slice":
        return _to_gather(node)
    shape = sizes(node.outputs[0])
    target = reshape_target(shape)
    if target is None:
        return skip(node, "more than one size of its output is not known")
    value = insert_reshape(node, node.inputs[0], target, name=f"{node.name}.reshape", shape=shape)
    replace(node.outputs[0], value)
    return True


def read_slice(node: ir.Node) -> list[int]:
    """Return start, end, axis and, if any, step of a Slice along one axis; [] for any other Slice."""
    numbers = [int(number) for value in node.inputs[1:] if (number := scalar(value)) is not None]
    return numbers if len(numbers) == len(node.inputs) - 1 >= 3 else []


def _to_gather(node: ir.Node) -> bool:
    numbers, inner, outer = read_slice(node), sizes(node.inputs[0]), sizes(node.outputs[0])
    if not numbers or inner is None or outer is None:
        return False
    start, axis = numbers[0], numbers[2] % len(inner)
    size = inner[axis]
    if size is None or outer[axis] != 1:
        return False
    position = start + size if start < 0 else start
    index = add_constant(graph_of(node), f"position.{position}", np.array([position], np.int64))
    inputs, name = [node.inputs[0], index], f"{node.name}.gather"
    replace(node.outputs[0], insert(node, "Gather", inputs, name=name, shape=outer, axis=axis))
    return True


def drop_unit_axes(model: ir.Model) -> int:
    """Reshape → Transpose → Reshape with axes of one in between → the same without them.

    What is left of `[N, tokens, 3, heads, width]` when query, key and value are split; two Transposes that
    such axes kept from meeting can then become one.
    """
    return rewrite_each(model, {"Transpose": _drop_unit_axes_of})


def _drop_unit_axes_of(node: ir.Node) -> bool:
    inner = sizes(node.inputs[0])
    if inner is None or sizes(node.outputs[0]) is None or 1 not in inner or inner.count(None) > 1:
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    # Only a Reshape can take the shorter shape, on either side.
    if producer(node.inputs[0], "Reshape") is None or {each.op_type for each in readers} != {"Reshape"}:
        return skip(node, "what stands before or behind it is no Reshape and needs the axes of one")
    kept = [axis for axis, size in enumerate(inner) if size != 1]
    shape = [inner[axis] for axis in kept]
    perm = [kept.index(axis) for axis in permutation(node) if axis in kept]
    target = reshape_target(shape) or []
    value = insert_reshape(node, node.inputs[0], target, name=f"{node.name}.squeezed", shape=shape)
    if perm != sorted(perm):
        shape = [shape[axis] for axis in perm]
        value = insert(node, "Transpose", [value], name=f"{node.name}.plain", shape=shape, perm=perm)
    for reader in readers:
        if sizes(reader.outputs[0]) == shape:
            replace(reader.outputs[0], value)  # it removed the axes, which now are not there
        else:
            reader.replace_input_with(0, value)
    return True
