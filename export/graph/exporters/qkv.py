"""Split the one linear layer for query, key and value into three linear layers.

    x [N, T, w] → Gemm [N, T, 3w] → Reshape [N, T, 3, H, d] → Transpose → Gather 0, 1, 2 of the axis of 3

Each Gather is followed up through the layout to the columns of the weight that it reads: a mask over the 3w
features. Where the masks take every feature once, each of them makes a linear layer of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    add_constant,
    attribute,
    copy_attributes,
    graph_of,
    input_constant,
    insert,
    insert_reshape,
    only_reader,
    permutation,
    replace,
    rewrite_each,
    sizes,
)
from calibration.graph.layers import MatchedLinear, match_linear
from export.graph.exporters.simplify import read_slice
from export.graph.skipped import skip

LAYOUT = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten")
NAMES = {3: ("query", "key", "value"), 2: ("key", "value")}
Mask = Array  # bool, one for each position of an axis: which ones are selected

# --- What Split, Slice and Gather select ---


@dataclass(frozen=True)
class Selection:
    """One output of a Split, Slice or Gather: the positions of one axis that it takes."""

    node: ir.Node
    output: ir.Value
    axis: int
    mask: Mask
    drops_axis: bool = False


def _read_selections(node: ir.Node, value: ir.Value) -> list[Selection]:
    """Return what a node selects of a value that it reads, in the order of its outputs; [] if nothing."""
    shape, numbers = sizes(value), read_slice(node) if node.op_type == "Slice" else []
    if shape is None or node.inputs[0] is not value or not (numbers or node.op_type in ("Gather", "Split")):
        return []
    axis = (numbers[2] if numbers else attribute(node, "axis", 0)) % len(shape)
    size = shape[axis]
    if size is None or numbers[3:] not in ([], [1]):
        return []
    if numbers:
        mask = _make_mask(size, range(*slice(*numbers[:2]).indices(size)))
        return [Selection(node, node.outputs[0], axis, mask)]
    if node.op_type == "Gather":
        index = input_constant(node, 1)
        if index is None or index.size != 1 or index.ndim > 1:
            return []
        mask = _make_mask(size, [int(index.reshape(()))])
        return [Selection(node, node.outputs[0], axis, mask, drops_axis=index.ndim == 0)]
    lengths = [part[axis] for output in node.outputs if (part := sizes(output)) is not None]
    if len(lengths) != len(node.outputs) or None in lengths:
        return []
    ends = np.cumsum([0, *lengths])
    return [
        Selection(node, output, axis, _make_mask(size, range(ends[i], ends[i + 1])))
        for i, output in enumerate(node.outputs)
    ]


def _make_mask(size: int, chosen: Sequence[int]) -> Mask:
    mask = np.zeros(size, bool)
    mask[np.asarray(chosen, np.int64)] = True
    return mask


# --- One linear layer for query, key and value together → three linear layers ---


@dataclass(frozen=True)
class _Branch:
    """Query, key or value: its selection, and what that takes of the output of the linear layer.

    Attributes:
        steps: the changes of layout in between, each with the axis of the selection and its size in one part.
        axis: of the linear layer's output.
        mask: along that axis.
    """

    selection: Selection
    steps: list[tuple[ir.Node, int, int]]
    axis: int
    mask: Mask


def split_qkv(model: ir.Model) -> int:
    """select_i(layout(x W + b)) → layout(x W[:, i] + b[i]) for i in query, key and value.

    The layout is any run of Reshape and Transpose, the selection a Split, Slices or Gathers that together
    take every feature once. Three linears can be quantized with ranges of their own, and the query of the
    last block can be computed for the class token alone.
    """
    return rewrite_each(model, {"Add MatMul Gemm": _split})


def _split(last: ir.Node) -> bool:
    linear = match_linear(last)
    # A bias with more axes than the product adds axes that a linear layer of its own would not have.
    if linear is None or len(sizes(last.outputs[0]) or ()) != len(sizes(linear.product.outputs[0]) or ()):
        return False
    branches, base = _find_branches(last), _choose_name(last, linear.product)
    names = NAMES.get(len(branches), tuple(f"part{i}" for i in range(len(branches))))
    for branch, name in zip(branches, names, strict=True):
        _replace_branch(last, linear, branch, f"{base}.{name}")
    return bool(branches)


def _find_branches(last: ir.Node) -> list[_Branch]:
    """Return what is selected behind the layout, in the order of the features; [] if it cannot be split."""
    (value,) = last.outputs
    end, shape = value, sizes(value) or [None]
    while (reader := only_reader(end)) is not None and reader.op_type in LAYOUT and reader.inputs[0] is end:
        end = reader.outputs[0]
    by_reader = [_read_selections(use.node, end) for use in end.uses()]
    selections = [each for found in by_reader for each in found]
    if len(selections) < 2 or shape[-1] is None:
        return []
    if not all(by_reader):
        skip(last, "parts of its features are selected, and something else reads all of them")
        return []
    branches = []
    for branch in (_follow_up(selection, end, value) for selection in selections):
        if branch is None:
            skip(last, "its features cannot be followed through the Reshapes behind it")
            return []
        if branch.axis != len(shape) - 1:  # a selection of tokens or images, not of features
            return []
        branches.append(branch)
    if (np.sum([each.mask for each in branches], axis=0) != 1).any():
        skip(last, "the parts of its features leave some out, or take some twice")
        return []
    return sorted(branches, key=lambda each: int(np.argmax(each.mask)))


def _follow_up(selection: Selection, end: ir.Value, linear: ir.Value) -> _Branch | None:
    """Carry a selection from the end of the layout up to the linear layer's output."""
    value, axis, mask, steps = end, selection.axis, selection.mask, list[tuple[ir.Node, int, int]]()
    while value is not linear:
        node = value.producer()
        moved = None if node is None else _move_above(node, axis, mask)
        if node is None or moved is None or node.inputs[0] is None:
            return None
        steps.append((node, axis, int(mask.sum())))
        value, (axis, mask) = node.inputs[0], moved
    return _Branch(selection, steps[::-1], axis, mask)


def _move_above(node: ir.Node, axis: int, mask: Mask) -> tuple[int, Mask] | None:
    """Return the axis and the mask of the same selection on the input of a change of layout.

    All but Transpose keep the order of the numbers. One position of the output's axis then is a run of
    `behind` numbers, the product of the sizes after the axis, and one of an input's axis a run of `after`.
    If each run of the output is `behind / after` whole runs of the input, the mask repeats each position as
    often, and all of it as often as the input's axis has room: the axis was cut from a longer one.
    """
    inner, outer = sizes(node.inputs[0]), sizes(node.outputs[0])
    if inner is None or outer is None:
        return None
    if node.op_type == "Transpose":
        return permutation(node)[axis], mask
    # Runs are counted from the end, so that an unknown batch in front does not matter.
    behind = _count(outer[axis + 1 :])
    for source, size in enumerate(inner):
        after = _count(inner[source + 1 :])
        # An axis of one has the runs of the axis in front of it, and no room for a selection.
        if behind is None or after is None or size is None or size < 2 or behind % after:
            continue
        runs = behind // after
        if size % (runs * len(mask)) == 0:
            return source, np.tile(np.repeat(mask, runs), size // (runs * len(mask)))
    return None


def _count(shape: Sequence[int | None]) -> int | None:
    return None if None in shape else math.prod(size or 0 for size in shape)


# --- The new nodes ---


def _choose_name(last: ir.Node, product: ir.Node) -> str:
    """Return the name of the module, as the weight, the bias or torch's in_proj_bias has it."""
    for name in [value.name or "" for value in (*product.inputs, *last.inputs) if value is not None]:
        if name.endswith((".weight", ".bias")):
            return name.rsplit(".", 1)[0]
        if name.endswith("in_proj_bias"):
            return name.removesuffix("_bias")
    return str(product.name)


def _replace_branch(last: ir.Node, linear: MatchedLinear, branch: _Branch, name: str) -> None:
    """Let the readers of a selection read the layout of a linear layer of these features alone."""
    value, selection = _insert_linear(last, linear, branch.mask, name), branch.selection
    for node, axis, size in branch.steps:  # the same change of layout of one part, whose axis is shorter
        shape = list(sizes(node.outputs[0]) or [])
        shape[axis], inner = size, f"{node.name}.{value.name}"
        if node.op_type == "Reshape":
            target = [-1 if each is None else each for each in shape]
            value = insert_reshape(last, value, target, name=inner, shape=shape)
        else:
            inputs, attributes = [value, *node.inputs[1:]], copy_attributes(node)
            value = insert(last, node.op_type, inputs, name=inner, shape=shape, **attributes)
    if selection.drops_axis:
        axes = add_constant(graph_of(last), "axes", np.array([selection.axis], np.int64))
        shape = [size for axis, size in enumerate(sizes(value) or []) if axis != selection.axis]
        value = insert(selection.node, "Squeeze", [value, axes], name=f"{name}.part", shape=shape)
    replace(selection.output, value)


def _insert_linear(last: ir.Node, linear: MatchedLinear, features: Mask, name: str) -> ir.Value:
    graph, source = graph_of(last), linear.product.inputs[0]
    shape = [*(sizes(last.outputs[0]) or [])[:-1], int(features.sum())]
    parameters = [add_constant(graph, f"{name}.weight", linear.weight[:, features].astype(np.float32))]
    if linear.bias is not None:
        parameters.append(add_constant(graph, f"{name}.bias", linear.bias[features].astype(np.float32)))
    if linear.product.op_type == "Gemm":
        return insert(last, "Gemm", [source, *parameters], name=name, shape=shape)
    value = insert(last, "MatMul", [source, parameters[0]], name=name, shape=shape)
    for bias in parameters[1:]:
        value = insert(last, "Add", [value, bias], name=f"{name}.sum", shape=shape)
    return value
