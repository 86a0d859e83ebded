"""The parts of a value that Split, Slice and Gather take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph import Array, attribute, constant, sizes

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
