"""Where the batch goes in operators that compute: a table of operators, rule and formula.

In the formulas n is the index of an image, and c whatever is the same for every image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from calibration.graph import add_constant, attribute, constant, graph_of, insert
from export.from_onnx.passes.places import Place, Walk, axes_of, rank_of, repeated, shape_of

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
