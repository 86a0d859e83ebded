"""Where the batch goes in operators that compute: a table of operators, rule and formula.

In the formulas n is the index of an image, and c whatever is the same for every image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    GraphError,
    add_constant,
    attribute,
    constant,
    graph_of,
    insert,
    replace,
    shape_constant,
)

# --- Where the batch lies in each value of a graph, while a graph for one batch becomes one for any bat---


SYMBOL = "batch"


@dataclass(frozen=True)
class Place:
    """Where the batch lies in a shape: in which axis, and after how many steps of what shares that axis.

    In `[tokens, N, width]` it is axis 1 with 1 before, in `[tokens · N, width]` axis 0 with `tokens`.
    """

    axis: int
    before: int = 1


class Walk:
    """State of a walk from the input: the place of the batch in each value. All shapes are static.

    Attributes:
        pixels: the graph's input.
        size: the number of images that the graph was fixed to.
        places: the place of each value that holds the batch; the others are the same for every image.
        changes: how many places of the graph were changed so far.
    """

    def __init__(self, model: ir.Model) -> None:
        (self.pixels,) = model.graph.inputs
        self.size = shape_of(self.pixels)[0]
        self.places: dict[ir.Value, Place] = {self.pixels: Place(0)}
        self.changes = 0

    def place(self, node: ir.Node, index: int) -> Place | None:
        """Return the place of an input; None where it is absent or the same for every image."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.places.get(value)

    def of_first(self, node: ir.Node) -> Place:
        """Return the place in the data input; the batch must not come in by another one."""
        place = self.place(node, 0)
        if place is None or any(value in self.places for value in node.inputs[1:] if value is not None):
            raise self.lost(node)
        return place

    def lost(self, node: ir.Node) -> GraphError:
        """Return the error for a node behind which the batch cannot be followed."""
        return GraphError(
            f"expected to follow the batch through the graph, lost it at {node.op_type} ({node.name}); "
            "export the model with a dynamic batch and the usual operators of a Vision Transformer"
        )

    def narrow(self, node: ir.Node, axis: int) -> None:
        """Cut the constants that were spread over the batch to one image's part, which broadcasts.

        Args:
            node: reads the constants.
            axis: of the batch, counted from the end.
        """
        for index, value in enumerate(node.inputs):
            if value is None or value in self.places:
                continue
            shape = shape_of(value)
            if len(shape) >= -axis and shape[axis] != 1:
                node.replace_input_with(index, self.one_image(node, value, axis))

    def one_image(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """Return one image's part of a constant that is the same for every image."""
        array = constant(value)
        one = None if array is None else repeated(array, axis, self.size)
        if one is None or array is None or array.shape[axis] != self.size:
            raise self.lost(node)
        self.changes += 1
        return add_constant(graph_of(node), str(value.name), one)

    def regrouped(self, node: ir.Node, source: ir.Value, shape: Sequence[int], place: Place) -> ir.Value:
        """Insert Reshape(source, shape) before the node; `shape[place.axis]` is computed, for any batch."""
        target = shape_constant(graph_of(node), [-1 if i == place.axis else n for i, n in enumerate(shape)])
        value = insert(node, "Reshape", [source, target], name=f"{node.name}.regrouped", shape=shape)
        self.places[value] = place
        return value

    def stands_for(self, new: ir.Value, old: ir.Value) -> None:
        """Let the readers of `old` read `new`, whose place is known."""
        replace(old, new)
        self.changes += 1


def repeated(array: Array, axis: int, times: int) -> Array | None:
    """Return the first of `times` equal parts along the axis, `[…, size / times, …]`; None if they differ."""
    axis %= array.ndim
    part, rest = divmod(array.shape[axis], times)
    if rest:
        return None
    split = array.reshape(*array.shape[:axis], times, part, *array.shape[axis + 1 :])
    one = np.take(split, [0], axis=axis)
    if not np.array_equal(np.broadcast_to(one, split.shape), split):
        return None
    return np.asarray(one.reshape(*array.shape[:axis], part, *array.shape[axis + 1 :]))


def shape_of(value: ir.Value | None) -> list[int]:
    """Return the static shape of a value.

    Raises:
        GraphError: where it is not known.
    """
    if value is None or value.shape is None or not value.shape.is_static():
        raise GraphError(
            f"expected the shape of {value.name if value else 'an input'!r} to be known, found none"
        )
    return [int(size) for size in value.shape.numpy()]


def rank_of(value: ir.Value | None) -> int:
    """Return the number of axes of a value."""
    return len(shape_of(value))


def axes_of(node: ir.Node) -> Sequence[int] | None:
    """Return the axes of a reduction or a squeeze: the attribute (older opsets), or the second input."""
    found: Array | None = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    listed: Sequence[int] | None = (
        attribute(node, "axes", None) if found is None else found.reshape(-1).tolist()
    )
    return listed


# --- Where the batch goes in operators that compute: a table of operators, rule and formula ---


Rule = Callable[[Walk, ir.Node], Place]


def element_wise(walk: Walk, node: ir.Node) -> Place:
    """Follow broadcasting: axes are counted from the end, and all inputs must agree on the batch."""
    (output,) = node.outputs
    rank = rank_of(output)
    batched = [value for value in node.inputs if value is not None and value in walk.places]
    found = {
        Place(walk.places[value].axis + rank - rank_of(value), walk.places[value].before) for value in batched
    }
    if len(found) != 1:
        raise walk.lost(node)
    (place,) = found
    axis = place.axis - rank
    if not any(shape_of(value)[axis] == shape_of(output)[axis] for value in batched):
        raise walk.lost(node)
    if not _by_windows(walk, node, place):
        walk.narrow(node, axis)
    return place


def _by_windows(walk: Walk, node: ir.Node, place: Place) -> bool:
    """f(x, c) with c spread over `[N · windows, …]` → f on `[N, windows, …]` with one image's c.

    A mask for each window of an image, or a query that is repeated for each image's heads.
    """
    shape = shape_of(node.outputs[0])
    axis = place.axis - len(shape)
    windows, rest = divmod(shape[axis], walk.size)
    if place.before != 1 or rest or windows == 1 or len(node.inputs) != 2:
        return False
    index, other = (0, 1) if walk.place(node, 0) is None else (1, 0)
    spread, source = node.inputs[index], node.inputs[other]
    array = constant(spread)
    if array is None or source is None or spread is None or walk.place(node, other) is None:
        return False
    inner = shape_of(source)
    if array.ndim < -axis or array.shape[axis] != shape[axis] or inner[axis] != shape[axis]:
        return False
    one = repeated(array, axis, walk.size)
    if one is None:
        return False
    at = len(inner) + axis
    grouped = walk.regrouped(node, source, [*inner[:at], walk.size, *_split(inner, at, windows)], Place(at))
    before = array.ndim + axis
    single = one.reshape(*array.shape[:before], 1, windows, *array.shape[before + 1 :])
    inputs = [grouped, grouped]
    inputs[index] = add_constant(graph_of(node), f"{spread.name}.one", single)
    wide = [*shape[: place.axis], walk.size, *_split(shape, place.axis, windows)]
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    result = insert(node, node.op_type, inputs, name=f"{node.name}.by_windows", shape=wide, dtype=dtype)
    walk.places[result] = Place(place.axis)
    walk.stands_for(walk.regrouped(node, result, shape, place), node.outputs[0])
    return True


def _split(shape: list[int], axis: int, windows: int) -> list[int]:
    return [windows, *shape[axis + 1 :]]


def first_axis(walk: Walk, node: ir.Node) -> Place:
    """Keep the first axis, which must be the batch's."""
    place = walk.of_first(node)
    if place.axis != 0:
        raise walk.lost(node)
    return place


def gemm(walk: Walk, node: ir.Node) -> Place:
    """Keep the rows of the first matrix."""
    if attribute(node, "transA", 0):
        raise walk.lost(node)
    return first_axis(walk, node)


def matmul(walk: Walk, node: ir.Node) -> Place:
    """Keep the batch among the leading axes or the rows; it must not be summed over."""
    rank, found = rank_of(node.outputs[0]), set()
    for index, value in enumerate(node.inputs):
        place = walk.place(node, index)
        if value is None or place is None:
            continue
        inner = rank_of(value)
        contracted = inner - 1 if index == 0 else inner - 2
        if place.axis == contracted or (index == 1 and place.axis == inner - 1):
            raise walk.lost(node)
        found.add(Place(place.axis + rank - inner, place.before))
    if len(found) != 1:
        raise walk.lost(node)
    (place,) = found
    if place.axis < rank - 2 and not _by_windows(walk, node, place):
        walk.narrow(node, place.axis - rank)
    return place


def einsum(walk: Walk, node: ir.Node) -> Place:
    """Follow the letter of the batch, which must stand in the output."""
    terms, _, result = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    letters, found = terms.split(","), set()
    if "." in terms or not result:
        raise walk.lost(node)
    for index, term in enumerate(letters):
        if (place := walk.place(node, index)) is not None:
            found.add((term[place.axis], place.before))
    if len(found) != 1:
        raise walk.lost(node)
    ((letter, before),) = found
    spread = any(letter in term and walk.place(node, i) is None for i, term in enumerate(letters))
    if letter not in result or spread:
        raise walk.lost(node)
    return Place(result.index(letter), before)


def other_axis(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; the one axis that is worked along must not be the batch's."""
    place, rank = walk.of_first(node), rank_of(node.inputs[0])
    if place.axis == attribute(node, "axis", -1) % rank:
        raise walk.lost(node)
    return place


def later_axes(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; the axes from `axis` on are worked over and must not hold the batch."""
    place, rank = walk.of_first(node), rank_of(node.outputs[0])
    if place.axis >= attribute(node, "axis", -1) % rank:
        raise walk.lost(node)
    return place


def cumulated(walk: Walk, node: ir.Node) -> Place:
    """Keep the place; the axis of the running sum is an input."""
    place, axis = walk.of_first(node), constant(node.inputs[1])
    if axis is None or place.axis == int(axis.reshape(())) % rank_of(node.inputs[0]):
        raise walk.lost(node)
    return place


def reduced(walk: Walk, node: ir.Node) -> Place:
    """Count the axes that fall away in front; the batch must not be among them."""
    inner = rank_of(node.inputs[0])
    arg = node.op_type.startswith("Arg")
    listed = [attribute(node, "axis", 0)] if arg else axes_of(node)
    axes = {axis % inner for axis in listed or range(inner)}
    place = walk.of_first(node)
    if place.axis in axes:
        raise walk.lost(node)
    gone = 0 if attribute(node, "keepdims", 1) else sum(axis < place.axis for axis in axes)
    return Place(place.axis - gone, place.before)


def resized(walk: Walk, node: ir.Node) -> Place:
    """Name the axes that change, so that the sizes or scales no longer say how many images there are."""
    place = first_axis(walk, node)
    old, new = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if attribute(node, "axes", None) is not None:
        return place
    if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise walk.lost(node)
    axes = [axis for axis, (size, other) in enumerate(zip(old, new, strict=True)) if size != other]
    if 0 in axes:
        raise walk.lost(node)
    axes = axes or [len(old) - 1]
    for index in (2, 3):
        array = constant(node.inputs[index]) if index < len(node.inputs) else None
        if array is not None and array.size:
            chosen = add_constant(graph_of(node), f"{node.name}.by_axes", np.asarray(array)[axes])
            node.replace_input_with(index, chosen)
    node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    walk.changes += 1
    return place


SAME = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast "
    "CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg "
    "Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum "
    "Swish Tan Tanh ThresholdedRelu Where Xor"
)
REDUCTIONS = (
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceProd ReduceLogSum ReduceLogSumExp "
    "ReduceSumSquare ArgMax ArgMin"
)
CONVOLUTIONS = (
    "Conv ConvTranspose Col2Im MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool "
    "BatchNormalization InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth"
)

ARITHMETIC: tuple[tuple[str, Rule, str], ...] = (
    (SAME, element_wise, "f(x, c)[n] = f(x[n], c)"),
    (CONVOLUTIONS, first_axis, "f(x)[n] = f(x[n])"),
    ("Gemm", gemm, "(x W + b)[n] = x[n] W + b"),
    ("MatMul", matmul, "(x y)[n] = x[n] y[n], (x W)[n] = x[n] W, (W x)[n] = W x[n]"),
    ("Einsum", einsum, "einsum(ni…, nj… -> nk…)[n] = einsum(i…, j… -> k…)"),
    ("Softmax LogSoftmax Hardmax LpNormalization", other_axis, "f(x, axis)[n] = f(x[n], axis)"),
    ("LayerNormalization RMSNormalization", later_axes, "f(x, from axis)[n] = f(x[n], from axis)"),
    ("CumSum", cumulated, "f(x, axis)[n] = f(x[n], axis)"),
    (REDUCTIONS, reduced, "Σ over axes of x [n] = Σ over axes of x[n]"),
    ("Resize", resized, "f(x, sizes [N, …])[n] = f(x[n], sizes […])"),
)
