"""Operators that only move numbers → Reshape and Transpose, through which the batch can be followed."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from calibration.graph import (
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    replace,
    shape_constant,
    sizes,
    tidy,
)


def plain_moves(model: ir.Model) -> int:
    """Col2Im of blocks that do not overlap, and ScatterND that writes every place once, in order.

    What `torch.nn.functional.fold` (MobileViTv2) and `x[...] = y` (MViTv2) become. All sizes are known here.
    """
    changes = sum(_unfold(node) for node in by_type(model, "Col2Im"))
    changes += sum(_overwrite(node) for node in by_type(model, "ScatterND"))
    if changes:
        tidy(model)
    return changes


def _unfold(node: ir.Node) -> bool:
    """[N, C · rows · columns, down · across] → [N, C, down · rows, across · columns], block by block."""
    image, block = (constant(value) for value in node.inputs[1:3])
    source = sizes(node.inputs[0])
    if image is None or block is None or source is None or None in source or len(block) != 2:
        return False
    strides, ones = attribute(node, "strides", [1, 1]), [1, 1]
    if list(strides) != block.tolist() or any(attribute(node, "pads", ())) or (image % block).any():
        return False
    if list(attribute(node, "dilations", ones)) != ones:
        return False
    (height, width), (rows, columns) = image.tolist(), block.tolist()
    count = source[0] or 0
    channels = (source[1] or 0) // (rows * columns)
    known = [count, channels, rows, columns, height // rows, width // columns]
    turned = [known[axis] for axis in (0, 1, 4, 2, 5, 3)]
    graph, name = graph_of(node), str(node.name)
    value = insert(
        node, "Reshape", [node.inputs[0], shape_constant(graph, known)], name=f"{name}.apart", shape=known
    )
    value = insert(node, "Transpose", [value], name=f"{name}.turned", shape=turned, perm=[0, 1, 4, 2, 5, 3])
    whole = [count, channels, height, width]
    target = shape_constant(graph, whole)
    replace(node.outputs[0], insert(node, "Reshape", [value, target], name=f"{name}.whole", shape=whole))
    return True


def _overwrite(node: ir.Node) -> bool:
    """ScatterND(data, indices, updates) → updates, in the shape of the data."""
    shape, indices = sizes(node.inputs[0]), constant(node.inputs[1])
    if shape is None or None in shape or indices is None or attribute(node, "reduction", "none") != "none":
        return False
    known = [size or 0 for size in shape]
    places = known[: indices.shape[-1]]
    flat = indices.reshape(-1, indices.shape[-1])
    if len(flat) != math.prod(places) or not np.array_equal(
        flat, np.indices(places).reshape(len(places), -1).T
    ):
        return False
    inputs = [node.inputs[2], shape_constant(graph_of(node), known)]
    replace(node.outputs[0], insert(node, "Reshape", inputs, name=f"{node.name}.all", shape=known))
    return True
