"""Where the batch lies behind each operator that computes: the state of the analysis, and a table of rules.

A graph that was exported for 2 images contains this 2 in shapes, Reshape targets, masks and class tokens.
The analysis walks from the input down and notes for each value in which axis the images lie; a rule per
operator says how its output follows from its inputs. With 17 tokens of width 48:

    [2, 17, 48]                           axis 0
    Transpose(1, 0, 2) → [17, 2, 48]      axis 1
    Reshape → [34, 48]                    axis 0, with 17 tokens in front of the next image
    [2, 17, 48] → Reshape → [17, 96]      an error: no axis holds whole images

A value that is not noted is the same for every image. Where a constant repeats one image's part for each of
the two, the rule takes one part, which broadcasts. `batch.py` has the rules for operators that move values,
and runs all of them.

In the formulas of the tables n is the index of an image, and c whatever is the same for every image.
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
    input_constant,
    insert,
    insert_reshape,
    replace,
)

# --- The state of the analysis ---


SYMBOL = "batch"


@dataclass(frozen=True)
class BatchAxis:
    """Where the images lie in a shape: an axis, and what is in front of the next image in that axis.

    `before` is 1 in `[tokens, N, width]` with axis 1, `tokens` in `[tokens · N, width]` with axis 0.
    """

    axis: int
    before: int = 1


class BatchWalk:
    """State of the walk from the input down. All shapes are static."""

    def __init__(self, model: ir.Model) -> None:
        (self.pixels,) = model.graph.inputs
        self.size = shape_of(self.pixels)[0]  # the number of images that the graph was fixed to
        # Where each value holds the images; values that are not in it are the same for every image.
        self.axes: dict[ir.Value, BatchAxis] = {self.pixels: BatchAxis(0)}
        self.changes = 0  # places of the graph

    def of_input(self, node: ir.Node, index: int) -> BatchAxis | None:
        """Return where an input holds the images; None if it is left out or the same for every image."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.axes.get(value)

    def of_first(self, node: ir.Node) -> BatchAxis:
        """Return where the first input holds the images, which no other one may."""
        batch = self.of_input(node, 0)
        if batch is None or any(self.of_input(node, index) for index in range(1, len(node.inputs))):
            raise self.error_at(node)
        return batch

    def expect(self, node: ir.Node, fits: bool) -> None:
        """Raise the error of a node that does not fit its rule."""
        if not fits:
            raise self.error_at(node)

    def error_at(self, node: ir.Node) -> GraphError:
        """Return the error for a node behind which the batch cannot be followed."""
        return GraphError(
            f"expected to follow the batch through the graph, lost it at {node.op_type} ({node.name}); "
            "export the model with a dynamic batch and the usual operators of a Vision Transformer"
        )

    def narrow_constants(self, node: ir.Node, axis: int) -> None:
        """Replace the constants that repeat one image's part by that part; the axis counts from the end."""
        for index, value in enumerate(node.inputs):
            shape = [] if value is None or value in self.axes else shape_of(value)
            if value is not None and len(shape) >= -axis and shape[axis] != 1:
                node.replace_input_with(index, self.add_one_image(node, value, axis))

    def add_one_image(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """Add a constant with one image's part of one that repeats it for each image."""
        array = constant(value)
        one = None if array is None else take_one_part(array, axis, self.size)
        if one is None or array is None or array.shape[axis] != self.size:
            raise self.error_at(node)
        self.changes += 1
        return add_constant(graph_of(node), str(value.name), one)

    def insert_reshape(
        self, node: ir.Node, source: ir.Value, shape: Sequence[int], batch: BatchAxis
    ) -> ir.Value:
        """Insert Reshape(source, shape) before the node; `shape[batch.axis]` is computed, for any batch."""
        target = [-1 if axis == batch.axis else size for axis, size in enumerate(shape)]
        value = insert_reshape(node, source, target, name=f"{node.name}.regrouped", shape=shape)
        self.axes[value] = batch
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let the readers of `old` read `new`, whose axis is noted."""
        replace(old, new)
        self.changes += 1


def take_one_part(array: Array, axis: int, times: int) -> Array | None:
    """Return the first of `times` equal parts along the axis, `[…, size / times, …]`; None if they differ."""
    axis %= array.ndim
    parts = [] if array.shape[axis] % times else np.split(array, times, axis)
    if not parts or not all(np.array_equal(each, parts[0]) for each in parts):
        return None
    return np.asarray(parts[0])


def shape_of(value: ir.Value | None) -> list[int]:
    """Return the static shape of a value; GraphError where it is not known."""
    if value is None or value.shape is None or not value.shape.is_static():
        name = value.name if value else "an input"
        raise GraphError(f"expected the shape of {name!r} to be known, found none")
    return [int(size) for size in value.shape.numpy()]


def rank_of(value: ir.Value | None) -> int:
    """Return the number of axes of a value."""
    return len(shape_of(value))


def axes_of(node: ir.Node) -> Sequence[int] | None:
    """Return the axes of a reduction or a squeeze: the attribute (older opsets), or the second input."""
    found = input_constant(node, 1)
    listed: Sequence[int] | None = attribute(node, "axes", None)
    return listed if found is None else found.reshape(-1).tolist()


# --- Rules for operators that compute ---


Rule = Callable[[BatchWalk, ir.Node], BatchAxis]


def _follow_element_wise(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Follow broadcasting: axes are counted from the end, and all inputs must agree on the batch."""
    outer = shape_of(node.outputs[0])
    rank = len(outer)
    batched = {value: walk.axes[value] for value in node.inputs if value is not None and value in walk.axes}
    found = {BatchAxis(each.axis + rank - rank_of(value), each.before) for value, each in batched.items()}
    walk.expect(node, len(found) == 1)
    (batch,) = found
    axis = batch.axis - rank
    # A constant that is longer than the batch's axis would multiply the images.
    walk.expect(node, any(shape_of(value)[axis] == outer[axis] for value in batched))
    if not _split_windows(walk, node, batch):
        walk.narrow_constants(node, axis)
    return batch


def _split_windows(walk: BatchWalk, node: ir.Node, batch: BatchAxis) -> bool:
    """f(x, c) with c for each of `[N · windows, …]` → f on `[N, windows, …]` with one image's c.

    A mask for each window of an image (Swin), or a query that is repeated for each image's heads.
    """
    shape = shape_of(node.outputs[0])
    axis = batch.axis - len(shape)
    windows, rest = divmod(shape[axis], walk.size)
    if batch.before != 1 or rest or windows == 1 or len(node.inputs) != 2:
        return False
    index = 0 if walk.of_input(node, 0) is None else 1
    repeated, source = node.inputs[index], node.inputs[1 - index]
    array, inner = constant(repeated), shape_of(source)
    if array is None or source is None or repeated is None or array.ndim < -axis:
        return False
    fits = array.shape[axis] == inner[axis] == shape[axis]
    one = take_one_part(array, axis, walk.size) if fits else None
    if one is None:
        return False

    def split(sizes: Sequence[int], count: int) -> list[int]:
        at = len(sizes) + axis
        return [*sizes[:at], count, windows, *sizes[at + 1 :]]

    grouped = walk.insert_reshape(node, source, split(inner, walk.size), BatchAxis(len(inner) + axis))
    inputs = [grouped, grouped]
    inputs[index] = add_constant(graph_of(node), f"{repeated.name}.one", one.reshape(split(array.shape, 1)))
    dtype, name = node.outputs[0].dtype or ir.DataType.FLOAT, f"{node.name}.by_windows"
    result = insert(node, node.op_type, inputs, name=name, shape=split(shape, walk.size), dtype=dtype)
    walk.axes[result] = BatchAxis(batch.axis)
    walk.replace(node.outputs[0], walk.insert_reshape(node, result, shape, batch))
    return True


def keep_axis(fits: Callable[[ir.Node, int], bool]) -> Rule:
    """Make a rule of a condition `fits(node, axis)`, under which an operator keeps the batch's axis."""

    def rule(walk: BatchWalk, node: ir.Node) -> BatchAxis:
        batch = walk.of_first(node)
        walk.expect(node, fits(node, batch.axis))
        return batch

    return rule


keep_first_axis = keep_axis(lambda _, axis: axis == 0)
_follow_gemm = keep_axis(lambda node, axis: axis == 0 and not attribute(node, "transA", 0))


@keep_axis
def _keep_other_axis(node: ir.Node, axis: int) -> bool:
    return bool(axis != attribute(node, "axis", -1) % rank_of(node.inputs[0]))


@keep_axis
def _keep_earlier_axis(node: ir.Node, axis: int) -> bool:
    return bool(axis < attribute(node, "axis", -1) % rank_of(node.outputs[0]))


@keep_axis
def _follow_cumsum(node: ir.Node, axis: int) -> bool:
    summed = input_constant(node, 1)
    return summed is not None and axis != int(summed.reshape(())) % rank_of(node.inputs[0])


def _follow_matmul(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Keep the batch among the leading axes or the rows; it must not be summed over."""
    rank, found = rank_of(node.outputs[0]), set()
    for index, value in enumerate(node.inputs):
        if (batch := walk.of_input(node, index)) is not None:
            inner = rank_of(value)
            # Columns of the second matrix become columns of the output, which hold features.
            walk.expect(node, batch.axis < inner - 1 - index)
            found.add(BatchAxis(batch.axis + rank - inner, batch.before))
    walk.expect(node, len(found) == 1)
    (batch,) = found
    if batch.axis < rank - 2 and not _split_windows(walk, node, batch):
        walk.narrow_constants(node, batch.axis - rank)
    return batch


def _follow_einsum(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Follow the letter of the batch, which must stand in the output."""
    terms, _, result = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    letters, found = terms.split(","), set()
    walk.expect(node, "." not in terms and bool(result))
    for index, term in enumerate(letters):
        if (batch := walk.of_input(node, index)) is not None:
            found.add((term[batch.axis], batch.before))
    walk.expect(node, len(found) == 1)
    ((letter, before),) = found
    # A constant with the letter would have to be narrowed, and its letter with it.
    repeated = any(letter in term and walk.of_input(node, i) is None for i, term in enumerate(letters))
    walk.expect(node, letter in result and not repeated)
    return BatchAxis(result.index(letter), before)


def _follow_reduction(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Subtract the axes in front that are reduced; the batch must not be among them."""
    inner = rank_of(node.inputs[0])
    listed = [attribute(node, "axis", 0)] if node.op_type.startswith("Arg") else axes_of(node)
    axes = {axis % inner for axis in listed or range(inner)}
    batch = walk.of_first(node)
    walk.expect(node, batch.axis not in axes)
    gone = 0 if attribute(node, "keepdims", 1) else sum(axis < batch.axis for axis in axes)
    return BatchAxis(batch.axis - gone, batch.before)


def _follow_resize(walk: BatchWalk, node: ir.Node) -> BatchAxis:
    """Name the axes that change, so that sizes or scales no longer contain the number of images."""
    batch = keep_first_axis(walk, node)
    old, new = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if attribute(node, "axes", None) is not None:
        return batch
    # The region that is cropped has a start and an end for every axis.
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    axes = [axis for axis, (size, other) in enumerate(zip(old, new, strict=True)) if size != other]
    walk.expect(node, mode != "tf_crop_and_resize" and 0 not in axes)
    axes = axes or [len(old) - 1]
    for index in (2, 3):
        array = input_constant(node, index)
        if array is not None and array.size:
            chosen = add_constant(graph_of(node), f"{node.name}.by_axes", np.asarray(array)[axes])
            node.replace_input_with(index, chosen)
    node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    walk.changes += 1
    return batch


# --- The table ---


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
    (SAME, _follow_element_wise, "f(x, c)[n] = f(x[n], c)"),
    (CONVOLUTIONS, keep_first_axis, "f(x)[n] = f(x[n])"),
    ("Gemm", _follow_gemm, "(x W + b)[n] = x[n] W + b"),
    ("MatMul", _follow_matmul, "(x y)[n] = x[n] y[n], (x W)[n] = x[n] W, (W x)[n] = W x[n]"),
    ("Einsum", _follow_einsum, "einsum(ni…, nj… -> nk…)[n] = einsum(i…, j… -> k…)"),
    ("Softmax LogSoftmax Hardmax LpNormalization", _keep_other_axis, "f(x, axis)[n] = f(x[n], axis)"),
    ("LayerNormalization RMSNormalization", _keep_earlier_axis, "f(x, from axis)[n] = f(x[n], from axis)"),
    ("CumSum", _follow_cumsum, "f(x, axis)[n] = f(x[n], axis)"),
    (REDUCTIONS, _follow_reduction, "Σ over axes of x [n] = Σ over axes of x[n]"),
    ("Resize", _follow_resize, "f(x, sizes [N, …])[n] = f(x[n], sizes […])"),
)
