"""A graph for one fixed number of images → the same graph for any number of them."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common.unused_removal import RemoveUnusedNodesPass

from calibration.graph.edit import (
    add_constant,
    attribute,
    constant,
    graph_of,
    insert,
    permutation,
    shape_constant,
)
from export.graph.exporters.batch_rules import (
    ARITHMETIC,
    SYMBOL,
    Place,
    Rule,
    Walk,
    axes_of,
    first_axis,
    rank_of,
    shape_of,
)

# --- Where the batch goes in operators that move values: a table of operators, rule and formula ---


def transposed(walk: Walk, node: ir.Node) -> Place:
    """Find the batch's axis in the permutation."""
    place = walk.of_first(node)
    return Place(permutation(node).index(place.axis), place.before)


def gathered(walk: Walk, node: ir.Node) -> Place:
    """Count the axes that the indices add or take; indices into the batch's own axis are strides."""
    place = walk.of_first(node)
    axis = attribute(node, "axis", 0) % rank_of(node.inputs[0])
    if axis == place.axis:
        return _strided(walk, node, place)
    return Place(place.axis + (rank_of(node.inputs[1]) - 1 if axis < place.axis else 0), place.before)


def _strided(walk: Walk, node: ir.Node, place: Place) -> Place:
    """Gather(x `[N · k]`, n · k + i) → Gather(x `[N, k]`, i): torch's as_strided, flattened."""
    index, shape = constant(node.inputs[1]), shape_of(node.inputs[0])
    each, rest = divmod(shape[0], walk.size)
    source = node.inputs[0]
    if source is None or index is None or place != Place(0) or rest or not index.ndim:
        raise walk.lost(node)
    steps = each * np.arange(walk.size).reshape(-1, *[1] * (index.ndim - 1))
    if index.shape[0] != walk.size or not np.array_equal(index, index[:1] + steps) or index[0].max() >= each:
        raise walk.lost(node)
    by_image = walk.regrouped(node, source, [walk.size, each, *shape[1:]], Place(0))
    inside = add_constant(graph_of(node), f"{node.name}.inside", np.asarray(index[0], np.int64))
    name = f"{node.name}.by_image"
    outer = shape_of(node.outputs[0])
    value = insert(node, "Gather", [by_image, inside], name=name, shape=outer, axis=1)
    walk.places[value] = Place(0)
    walk.stands_for(value, node.outputs[0])
    return Place(0)


def joined(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; what is the same for every image is expanded to the batch."""
    found = {walk.places[value] for value in node.inputs if value is not None and value in walk.places}
    rank = rank_of(node.outputs[0])
    if len(found) != 1 or attribute(node, "axis", 0) % rank == next(iter(found)).axis:
        raise walk.lost(node)
    (place,) = found
    for index, value in enumerate(node.inputs):
        if value is not None and value not in walk.places:
            node.replace_input_with(index, _spread(walk, node, value, place))
    return place


def _spread(walk: Walk, node: ir.Node, value: ir.Value, place: Place) -> ir.Value:
    """A constant beside the batch, such as the class token: one image's part, expanded to the batch."""
    if place.before != 1:
        raise walk.lost(node)
    graph, name, rest = graph_of(node), str(value.name), shape_of(value)
    one = walk.one_image(node, value, place.axis)
    axes = dict.fromkeys(("start", "end"), 0) | {"end": 1}
    batch = insert(node, "Shape", [walk.pixels], name=SYMBOL, shape=[1], dtype=ir.DataType.INT64, **axes)
    # One part for each axis, so that tokens_before_batch can put them in another order.
    parts = [batch if axis == place.axis else shape_constant(graph, [n]) for axis, n in enumerate(rest)]
    name = f"{name}.shape"
    target = insert(node, "Concat", parts, name=name, shape=[len(rest)], dtype=ir.DataType.INT64, axis=0)
    spread = insert(node, "Expand", [one, target], name=f"{value.name}.expanded", shape=rest)
    walk.places[spread] = place
    return spread


def sliced(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; the batch's axis must stay whole."""
    place = walk.of_first(node)
    if shape_of(node.inputs[0])[place.axis] != shape_of(node.outputs[0])[place.axis]:
        raise walk.lost(node)
    return place


def split(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; the axis that is split must be another."""
    place = walk.of_first(node)
    if attribute(node, "axis", 0) % rank_of(node.inputs[0]) == place.axis:
        raise walk.lost(node)
    return place


def padded(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; nothing is added along the batch's axis."""
    place, pads = walk.of_first(node), constant(node.inputs[1])
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if pads is None:
        raise walk.lost(node)
    rank = rank_of(node.inputs[0])
    listed = [int(axis) % rank for axis in (range(rank) if axes is None else axes.reshape(-1))]
    added = {axis for axis, pad in zip(listed * 2, pads.tolist(), strict=True) if pad}
    if place.axis in added:
        raise walk.lost(node)
    return place


def tiled(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; the batch's axis is taken once."""
    place, repeats = walk.of_first(node), constant(node.inputs[1])
    if repeats is None or repeats[place.axis] != 1:
        raise walk.lost(node)
    return place


def expanded(walk: Walk, node: ir.Node) -> Place:
    """Count the axes that are added in front; the target no longer says how many images there are."""
    place, inner, outer = walk.of_first(node), shape_of(node.inputs[0]), shape_of(node.outputs[0])
    shifted = Place(place.axis + len(outer) - len(inner), place.before)
    target = [1 if axis == shifted.axis else size for axis, size in enumerate(outer)]
    node.replace_input_with(1, shape_constant(graph_of(node), target))
    return shifted


def unsqueezed(walk: Walk, node: ir.Node) -> Place:
    """Count the axes that are added in front."""
    place, rank = walk.of_first(node), rank_of(node.outputs[0])
    new = {axis % rank for axis in axes_of(node) or ()}
    kept = [axis for axis in range(rank) if axis not in new]
    return Place(kept[place.axis], place.before)


def squeezed(walk: Walk, node: ir.Node) -> Place:
    """Count the axes that fall away in front; the batch must not be among them."""
    place, inner, axes = walk.of_first(node), shape_of(node.inputs[0]), axes_of(node)
    ones = {index for index, size in enumerate(inner) if size == 1}
    gone = {axis % len(inner) for axis in axes} if axes else ones
    if place.axis in gone:
        raise walk.lost(node)
    return Place(place.axis - sum(axis < place.axis for axis in gone), place.before)


def reshaped(walk: Walk, node: ir.Node) -> Place:
    """Find the batch in the new shape; the size of its axis is computed from now on."""
    place = flattened(walk, node)
    target = [-1 if axis == place.axis else size for axis, size in enumerate(shape_of(node.outputs[0]))]
    node.replace_input_with(1, shape_constant(graph_of(node), target))
    node.attributes.pop("allowzero", None)
    walk.changes += 1
    return place


def flattened(walk: Walk, node: ir.Node) -> Place:
    """Find the axis of the new shape with as many elements before the batch as in the old one."""
    place = walk.of_first(node)
    inner, outer = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    before = math.prod(inner[: place.axis]) * place.before
    found = []
    for axis, size in enumerate(outer):
        steps, rest = divmod(before, math.prod(outer[:axis]))
        if steps and not rest and size % (steps * walk.size) == 0:
            found.append(Place(axis, steps))
    if not found:
        raise walk.lost(node)
    # For a batch of one several axes may fit: the features, last, never hold it, and an axis of its own is
    # likeliest.
    last = len(outer) - 1
    return min(
        found,
        key=lambda each: (
            each.axis == last,
            outer[each.axis] != walk.size,
            each.before != 1,
            each.axis != place.axis,
            each.axis,
        ),
    )


LAYOUT: tuple[tuple[str, Rule, str], ...] = (
    ("Transpose", transposed, "x[…, n, …] → y[…, n, …] with n at perm.index(axis)"),
    ("Gather", gathered, "x[n][…, i, …]; x.flat[n · k + i] = x.reshape(N, k)[n, i]"),
    ("Concat", joined, "[c, x][n] = [c, x[n]]"),
    ("Slice", sliced, "x[n][…, a:b, …]"),
    ("Split", split, "x[n] in parts"),
    ("Pad", padded, "pad(x)[n] = pad(x[n])"),
    ("Tile", tiled, "tile(x)[n] = tile(x[n])"),
    ("Expand", expanded, "expand(x, [N, …])[n] = expand(x[n], […])"),
    ("Unsqueeze", unsqueezed, "x[n] with axes of one"),
    ("Squeeze", squeezed, "x[n] without axes of one"),
    ("Reshape", reshaped, "x.reshape(N, …)[n] = x[n].reshape(…)"),
    ("Flatten", flattened, "x.reshape(a, b): n where as many elements come before it"),
    ("Trilu", first_axis, "f(x)[n] = f(x[n])"),
)


# --- A graph for one fixed number of images → the same graph for any number of them ---


RULES: dict[str, Rule] = {name: rule for names, rule, _ in (*ARITHMETIC, *LAYOUT) for name in names.split()}


def free_batch(model: ir.Model) -> int:
    """Reshape targets, class tokens and the like no longer name the number of images.

    The batch is followed from the input through every operator, by the rules of `batch_rules` and
    `batch_layout`; each says where the batch lies in an operator's output.

    Raises:
        GraphError: naming the node where the batch could not be followed.
    """
    walk = Walk(model)
    for node in list(model.graph):
        if not any(value in walk.places for value in node.inputs if value is not None):
            continue
        rule = RULES.get(node.op_type)
        if rule is None:
            raise walk.lost(node)
        place = rule(walk, node)
        for output in node.outputs:
            walk.places[output] = place
    for value, place in walk.places.items():
        value.shape = _freed(value, place, walk.size)
    RemoveUnusedNodesPass()(model)  # what was replaced, and still reads constants for the fixed batch
    return walk.changes


def _freed(value: ir.Value, place: Place, size: int) -> ir.Shape:
    shape: list[int | str | None] = list(shape_of(value))
    pure = place.before == 1 and shape[place.axis] == size
    shape[place.axis] = SYMBOL if pure else None
    return ir.Shape(shape)
