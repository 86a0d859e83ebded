"""One linear for query, key and value together → three linears."""

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
    by_type,
    constant,
    graph_of,
    insert,
    only_reader,
    permutation,
    replace,
    shape_constant,
    sizes,
    tidy,
)
from export.graph.canonical.linears import is_one_per_feature

# --- The parts of a value that Split, Slice and Gather take ---


Mask = Array  # bool, one for each position of an axis: which ones are selected


@dataclass(frozen=True)
class Part:
    """One selection of the features of a linear: by Split, Slice or Gather, behind changes of layout."""

    output: ir.Value
    source: ir.Value
    node: ir.Node
    axis: int
    mask: Mask
    drops_axis: bool


def is_selection(node: ir.Node, value: ir.Value) -> bool:
    return bool(selections(node, value))


def selections(node: ir.Node, value: ir.Value) -> list[Part]:
    shape = sizes(value)
    if shape is None or node.inputs[0] is not value:
        return []
    if node.op_type == "Gather":
        axis = attribute(node, "axis", 0) % len(shape)
        index = constant(node.inputs[1])
        if index is None or index.size != 1 or index.ndim > 1 or shape[axis] is None:
            return []
        return [
            Part(
                node.outputs[0],
                value,
                node,
                axis,
                _mask(shape[axis], [int(index.reshape(()))]),
                index.ndim == 0,
            )
        ]
    if node.op_type == "Split":
        axis = attribute(node, "axis", 0) % len(shape)
        parts = [sizes(output) for output in node.outputs]
        lengths = [part[axis] for part in parts if part is not None]
        if shape[axis] is None or len(lengths) != len(parts) or None in lengths:
            return []
        starts = np.cumsum([0, *lengths])
        return [
            Part(output, value, node, axis, _mask(shape[axis], range(starts[i], starts[i + 1])), False)
            for i, output in enumerate(node.outputs)
        ]
    return _slices(node, value, shape) if node.op_type == "Slice" else []


def _slices(node: ir.Node, value: ir.Value, shape: list[int | None]) -> list[Part]:
    arrays = [constant(each) for each in node.inputs[1:]]
    if any(array is None or array.size != 1 for array in arrays) or len(arrays) < 3:
        return []
    start, stop, axis, *step = [int(array.reshape(())) for array in arrays if array is not None]
    axis %= len(shape)
    size = shape[axis]
    if size is None or (step and step[0] != 1):
        return []
    return [
        Part(node.outputs[0], value, node, axis, _mask(size, range(*slice(start, stop).indices(size))), False)
    ]


def _mask(size: int | None, chosen: Sequence[int]) -> Mask:
    mask = np.zeros(size or 0, bool)
    mask[np.asarray(chosen, np.int64)] = True
    return mask


# --- One linear for query, key and value together → three linears ---


LAYOUT = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten")
Parameters = tuple[ir.Node, Array, Array | None]  # product, weight [in, out], bias [out] or None
PARTS = {3: ("query", "key", "value"), 2: ("key", "value")}


@dataclass(frozen=True)
class _Step:
    """A change of layout between the linear and the selection, with what is selected in its output."""

    node: ir.Node
    axis: int
    size: int  # of the axis, in one part


def split_qkv(model: ir.Model) -> int:
    """select_i(layout(x W + b)) → layout(x W[:, i] + b[i]) for i in query, key and value.

    The layout is any run of Reshape and Transpose, the selection a Split, Slices or Gathers that together
    take every feature once. Three linears can be quantized with ranges of their own, and the query of the
    last block can be computed for the class token alone.
    """
    changes = 0
    for add_or_product in by_type(model, "Add", "MatMul", "Gemm"):
        value = add_or_product.outputs[0]
        parameters = None if add_or_product.graph is None else _parameters(add_or_product)
        if parameters is None:
            continue
        parts = _parts_of(value)
        if parts:
            _replace_parts(add_or_product, parameters, parts)
            changes += 1
    if changes:
        tidy(model)
    return changes


def _parameters(last: ir.Node) -> Parameters | None:
    """(product, weight [in, out], bias [out] or None) of a linear that ends in this node."""
    if last.op_type == "Add":
        computed = [value for value in last.inputs if value is not None and constant(value) is None]
        product = computed[0].producer() if len(computed) == 1 else None
        bias = next((array for value in last.inputs if (array := constant(value)) is not None), None)
        if product is None or product.op_type != "MatMul" or only_reader(computed[0]) is not last:
            return None
        weight = constant(product.inputs[1])
        if weight is None or bias is None or weight.ndim != 2:
            return None
        if not is_one_per_feature(bias, weight.shape[1]) or bias.ndim > len(sizes(computed[0]) or ()):
            return None
        return product, weight, bias.reshape(-1)
    weight = constant(last.inputs[1])
    if weight is None or weight.ndim != 2:
        return None
    if last.op_type == "MatMul":
        return last, weight, None
    plain = attribute(last, "alpha", 1.0) == 1.0 and attribute(last, "beta", 1.0) == 1.0
    bias = constant(last.inputs[2]) if len(last.inputs) > 2 else None
    if not plain or attribute(last, "transA", 0) or (len(last.inputs) > 2 and bias is None):
        return None
    matrix = weight.T if attribute(last, "transB", 0) else weight
    if bias is not None and bias.size != 1 and not is_one_per_feature(bias, matrix.shape[1]):
        return None
    return last, matrix, None if bias is None else np.broadcast_to(bias.reshape(-1), matrix.shape[1:])


def _parts_of(value: ir.Value) -> list[tuple[Part, list[_Step], Mask]]:
    """The selections at the end of the layout, each with its steps and its features; or nothing."""
    shape = sizes(value)
    if shape is None or shape[-1] is None:
        return []
    end = value
    while (reader := only_reader(end)) is not None and reader.op_type in LAYOUT and reader.inputs[0] is end:
        end = reader.outputs[0]
    chosen = [part for use in end.uses() for part in selections(use.node, end)]
    if len(chosen) < 2 or not all(is_selection(use.node, end) for use in end.uses()):
        return []
    found = []
    for part in chosen:
        walked = _walk_up(part, value)
        if walked is None:
            return []
        steps, axis, mask = walked
        if axis != len(shape) - 1:
            return []
        found.append((part, steps, mask))
    covered = np.sum([mask for _, _, mask in found], axis=0)
    # Each feature once. A selection of tokens, not of features, has ended at another axis.
    return sorted(found, key=lambda each: int(np.argmax(each[2]))) if (covered == 1).all() else []


def _walk_up(part: Part, linear: ir.Value) -> tuple[list[_Step], int, Mask] | None:
    """The selection carried up to the linear's output: the steps passed (downwards), its axis and mask."""
    value, axis, mask, steps = part.source, part.axis, part.mask, list[_Step]()
    while value is not linear:
        node = value.producer()
        if node is None:
            return None
        steps.append(_Step(node, axis, int(mask.sum())))
        moved = _moved(node, axis, mask)
        if moved is None or node.inputs[0] is None:
            return None
        axis, mask = moved
        value = node.inputs[0]
    return steps[::-1], axis, mask


def _moved(node: ir.Node, axis: int, mask: Mask) -> tuple[int, Mask] | None:
    """The same selection on the node's input."""
    inner, outer = sizes(node.inputs[0]), sizes(node.outputs[0])
    if inner is None or outer is None:
        return None
    if node.op_type == "Transpose":
        return permutation(node)[axis], mask
    # Counted from the end, so that an unknown batch in front does not matter.
    behind = _count(outer[axis + 1 :])
    for source, size in enumerate(inner):
        after = _count(inner[source + 1 :])
        if None in (behind, after, size) or behind is None or after is None or size is None:
            continue
        if behind % after == 0 and size % (steps := behind // after * len(mask)) == 0 and size > 1:
            return source, np.tile(np.repeat(mask, behind // after), size // steps)
    return None


def _count(shape: Sequence[int | None]) -> int | None:
    known = [size for size in shape if size is not None]
    return math.prod(known) if len(known) == len(shape) else None


def _replace_parts(
    last: ir.Node, parameters: Parameters, parts: list[tuple[Part, list[_Step], Mask]]
) -> None:
    product, weight, bias = parameters
    base = _base_name(last, product)
    names = PARTS.get(len(parts), tuple(f"part{i}" for i in range(len(parts))))
    for (part, steps, mask), name in zip(parts, names, strict=True):
        value = _linear(
            last, product, f"{base}.{name}", weight[:, mask], None if bias is None else bias[mask]
        )
        for step in steps:
            value = _again(step, value, last)
        if part.drops_axis:
            axes = add_constant(graph_of(last), "axes", np.array([part.axis], np.int64))
            shape = [size for axis, size in enumerate(sizes(value) or []) if axis != part.axis]
            value = insert(part.node, "Squeeze", [value, axes], name=f"{base}.{name}.part", shape=shape)
        replace(part.output, value)


def _base_name(last: ir.Node, product: ir.Node) -> str:
    for node in (product, last):
        for value in node.inputs:
            if value is not None and value.name and value.name.endswith((".weight", ".bias")):
                return value.name.rsplit(".", 1)[0]
            if value is not None and value.name and value.name.endswith("in_proj_bias"):
                return value.name.removesuffix("_bias")
    return str(product.name)


def _linear(last: ir.Node, product: ir.Node, name: str, weight: Array, bias: Array | None) -> ir.Value:
    graph, shape = graph_of(last), list(sizes(last.outputs[0]) or [])
    shape[-1] = weight.shape[1]
    matrix = add_constant(graph, f"{name}.weight", weight.astype(np.float32))
    vector = None if bias is None else add_constant(graph, f"{name}.bias", bias.astype(np.float32))
    if product.op_type == "Gemm":
        inputs = [product.inputs[0], matrix, *([vector] if vector is not None else [])]
        return insert(last, "Gemm", inputs, name=name, shape=shape)
    multiplied = insert(last, "MatMul", [product.inputs[0], matrix], name=name, shape=shape)
    if vector is None:
        return multiplied
    return insert(last, "Add", [multiplied, vector], name=f"{name}.sum", shape=shape)


def _again(step: _Step, value: ir.Value, before: ir.Node) -> ir.Value:
    """The same change of layout on the part, whose selected axis has become shorter."""
    node, shape = step.node, list(sizes(step.node.outputs[0]) or [])
    shape[step.axis] = step.size
    inputs: list[ir.Value | None] = [value, *node.inputs[1:]]
    if node.op_type == "Reshape":
        inputs[1] = shape_constant(graph_of(node), [-1 if each is None else each for each in shape])
    attributes = {key: attr.value for key, attr in node.attributes.items() if key != "allowzero"}
    return insert(before, node.op_type, inputs, name=f"{node.name}.{value.name}", shape=shape, **attributes)
