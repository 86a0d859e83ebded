"""Make the fixed batch of a graph dynamic: no Reshape target or constant contains the number of images.

`batch_rules.py` explains how the batch is followed from the input down. Here are the rules for operators
that move values, as the second table, and the walk itself.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common.unused_removal import RemoveUnusedNodesPass

from calibration.graph.edit import (
    add_constant,
    attribute,
    graph_of,
    input_constant,
    insert,
    permutation,
    shape_constant,
)
from export.graph.exporters.batch_rules import (
    ARITHMETIC,
    SYMBOL,
    BatchAxis,
    BatchWalk,
    Rule,
    axes_of,
    keep_axis,
    keep_first_axis,
    rank_of,
    shape_of,
)

# --- Rules for operators that move values ---


def _follow_transpose(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Find the batch's axis in the permutation."""
    batch = walk.of_first(node)
    return BatchAxis(permutation(node).index(batch.axis), batch.before)


def _follow_gather(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Count the axes that the indices add or remove; indices into the batch's own axis are strides."""
    batch = walk.of_first(node)
    axis = attribute(node, "axis", 0) % rank_of(node.inputs[0])
    if axis == batch.axis:
        return _follow_strides(walk, node, batch)
    return BatchAxis(batch.axis + (rank_of(node.inputs[1]) - 1 if axis < batch.axis else 0), batch.before)


def _follow_strides(walk: BatchWalk, node: ir.Node, batch: BatchAxis) -> BatchAxis:
    """Gather(x `[N · k]`, n · k + i) → Gather(x `[N, k]`, i): torch's as_strided, flattened."""
    source, index, shape = node.inputs[0], input_constant(node, 1), shape_of(node.inputs[0])
    each, rest = divmod(shape[0], walk.size)
    if source is None or index is None or batch != BatchAxis(0) or rest or not index.ndim:
        raise walk.error_at(node)
    # The indices of image n are those of image 0, k further on for each image, and none is of another image.
    steps = each * np.arange(walk.size).reshape(-1, *[1] * (index.ndim - 1))
    walk.expect(node, index.shape[0] == walk.size and np.array_equal(index, index[:1] + steps))
    walk.expect(node, index[0].max() < each)
    by_image = walk.insert_reshape(node, source, [walk.size, each, *shape[1:]], BatchAxis(0))
    inside = add_constant(graph_of(node), f"{node.name}.inside", np.asarray(index[0], np.int64))
    name, outer = f"{node.name}.by_image", shape_of(node.outputs[0])
    value = insert(node, "Gather", [by_image, inside], name=name, shape=outer, axis=1)
    walk.axes[value] = BatchAxis(0)
    walk.replace(node.outputs[0], value)
    return BatchAxis(0)


def _follow_concat(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Keep the axis; what is the same for every image is expanded to the batch."""
    found = {batch for index in range(len(node.inputs)) if (batch := walk.of_input(node, index))}
    walk.expect(node, len(found) == 1)
    (batch,) = found
    walk.expect(node, attribute(node, "axis", 0) % rank_of(node.outputs[0]) != batch.axis)
    for index, value in enumerate(node.inputs):
        if value is not None and value not in walk.axes:
            node.replace_input_with(index, _expand_to_batch(walk, node, value, batch))
    return batch


def _expand_to_batch(walk: BatchWalk, node: ir.Node, value: ir.Value, batch: BatchAxis) -> ir.Value:
    """Expand one image's part of a constant beside the batch, such as the class token."""
    walk.expect(node, batch.before == 1)
    graph, shape, integer = graph_of(node), shape_of(value), ir.DataType.INT64
    one = walk.add_one_image(node, value, batch.axis)
    count = insert(node, "Shape", [walk.pixels], name=SYMBOL, shape=[1], dtype=integer, start=0, end=1)
    # One part for each axis, so that tokens_before_batch can put them in another order.
    parts = [count if axis == batch.axis else shape_constant(graph, [n]) for axis, n in enumerate(shape)]
    name = f"{value.name}.shape"
    target = insert(node, "Concat", parts, name=name, shape=[len(shape)], dtype=integer, axis=0)
    expanded = insert(node, "Expand", [one, target], name=f"{value.name}.expanded", shape=shape)
    walk.axes[expanded] = batch
    return expanded


@keep_axis
def _keep_whole_axis(node: ir.Node, axis: int) -> bool:
    return shape_of(node.inputs[0])[axis] == shape_of(node.outputs[0])[axis]


@keep_axis
def _follow_split(node: ir.Node, axis: int) -> bool:
    return bool(axis != attribute(node, "axis", 0) % rank_of(node.inputs[0]))


@keep_axis
def _follow_pad(node: ir.Node, axis: int) -> bool:
    pads, axes, rank = input_constant(node, 1), input_constant(node, 3), rank_of(node.inputs[0])
    listed = [int(each) % rank for each in (range(rank) if axes is None else axes.reshape(-1))]
    # First what is added in front of each axis, then what is added behind it.
    return pads is not None and all(not pad for at, pad in zip(listed * 2, pads, strict=True) if at == axis)


def _follow_expand(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Count the axes that are added in front; the target no longer contains the number of images."""
    batch, inner, outer = walk.of_first(node), shape_of(node.inputs[0]), shape_of(node.outputs[0])
    moved = BatchAxis(batch.axis + len(outer) - len(inner), batch.before)
    target = [1 if axis == moved.axis else size for axis, size in enumerate(outer)]
    node.replace_input_with(1, shape_constant(graph_of(node), target))
    return moved


def _follow_unsqueeze(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Count the axes that are added in front."""
    batch, rank = walk.of_first(node), rank_of(node.outputs[0])
    new = {axis % rank for axis in axes_of(node) or ()}
    kept = [axis for axis in range(rank) if axis not in new]
    return BatchAxis(kept[batch.axis], batch.before)


def _follow_squeeze(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Subtract the axes in front that are removed; the batch must not be among them."""
    batch, inner, axes = walk.of_first(node), shape_of(node.inputs[0]), axes_of(node)
    ones = {index for index, size in enumerate(inner) if size == 1}
    gone = {axis % len(inner) for axis in axes} if axes else ones
    walk.expect(node, batch.axis not in gone)
    return BatchAxis(batch.axis - sum(axis < batch.axis for axis in gone), batch.before)


def _follow_reshape(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Find the batch in the new shape, and let Reshape compute the size of its axis."""
    batch = _follow_flatten(walk, node)
    target = [-1 if axis == batch.axis else size for axis, size in enumerate(shape_of(node.outputs[0]))]
    node.replace_input_with(1, shape_constant(graph_of(node), target))
    node.attributes.pop("allowzero", None)
    walk.changes += 1
    return batch


def _follow_flatten(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Find the axis of the new shape with as many elements before the batch as in the old one.

    Neither operator moves a number. `before` positions of the axes up to the batch lie in front of an image
    and its successor alike. An axis of the new shape holds the images if it has whole `steps` for that:
    `before` over the product of the axes in front of it.
    """
    batch = walk.of_first(node)
    inner, outer = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    before, last = math.prod(inner[: batch.axis]) * batch.before, len(outer) - 1
    found = []
    for axis, size in enumerate(outer):
        steps, rest = divmod(before, math.prod(outer[:axis]))
        if steps and not rest and size % (steps * walk.size) == 0:
            # For a batch of one several axes may fit: the features, last, never hold it, and an axis of its
            # own is likeliest.
            found.append((axis == last, size != walk.size, steps != 1, axis != batch.axis, axis, steps))
    walk.expect(node, bool(found))
    return BatchAxis(*min(found)[-2:])


# --- The table ---


LAYOUT: tuple[tuple[str, Rule, str], ...] = (
    ("Transpose", _follow_transpose, "x[…, n, …] → y[…, n, …] with n at perm.index(axis)"),
    ("Gather", _follow_gather, "x[n][…, i, …]; x.flat[n · k + i] = x.reshape(N, k)[n, i]"),
    ("Concat", _follow_concat, "[c, x][n] = [c, x[n]]"),
    ("Slice", _keep_whole_axis, "x[n][…, a:b, …]"),
    ("Split", _follow_split, "x[n] in parts"),
    ("Pad", _follow_pad, "pad(x)[n] = pad(x[n])"),
    ("Tile", _keep_whole_axis, "tile(x)[n] = tile(x[n])"),
    ("Expand", _follow_expand, "expand(x, [N, …])[n] = expand(x[n], […])"),
    ("Unsqueeze", _follow_unsqueeze, "x[n] with axes of one"),
    ("Squeeze", _follow_squeeze, "x[n] without axes of one"),
    ("Reshape", _follow_reshape, "x.reshape(N, …)[n] = x[n].reshape(…)"),
    ("Flatten", _follow_flatten, "x.reshape(a, b): n where as many elements come before it"),
    ("Trilu", keep_first_axis, "f(x)[n] = f(x[n])"),
)
RULES: dict[str, Rule] = {name: rule for names, rule, _ in (*ARITHMETIC, *LAYOUT) for name in names.split()}


# --- The walk ---


def free_batch(model: ir.Model) -> int:
    """Let Reshape targets, class tokens and repeated constants no longer contain the number of images.

    All shapes of the model are static, and the batch is the first axis of its input.

    Raises:
        GraphError: naming the node where the batch could not be followed.
    """
    walk = BatchWalk(model)
    for node in list(model.graph):
        if not any(value in walk.axes for value in node.inputs if value is not None):
            continue
        rule = RULES.get(node.op_type)
        if rule is None:
            raise walk.error_at(node)
        batch = rule(walk, node)
        for output in node.outputs:
            walk.axes[output] = batch
    for value, batch in walk.axes.items():
        shape: list[int | str | None] = list(shape_of(value))
        # An axis that holds more than the images has a size without a name.
        shape[batch.axis] = SYMBOL if batch.before == 1 and shape[batch.axis] == walk.size else None
        value.shape = ir.Shape(shape)
    RemoveUnusedNodesPass()(model)  # nodes that were replaced still read constants for the fixed batch
    return walk.changes
