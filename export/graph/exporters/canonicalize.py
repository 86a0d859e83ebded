"""The passes in front of `canonicalize` for a graph that another exporter wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from calibration.graph.edit import (
    GraphError,
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
from export.graph.canonical import Pass, canonicalize
from export.graph.canonical.pixels import take_raw_pixels
from export.graph.exporters.batch import free_batch
from export.graph.exporters.freeze import BATCH, freeze_shapes
from export.graph.exporters.fuse import fuse_gelu, fuse_layer_norm
from export.graph.exporters.qkv import split_qkv
from export.graph.exporters.simplify import drop_nan_guards, drop_no_ops, drop_unit_axes, plain_layout

# --- Operators that only move numbers → Reshape and Transpose, through which the batch can be followed ---


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


# --- The passes in front of `canonicalize` for a graph that another exporter wrote ---


OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
# While the batch is fixed, every shape is known.
FIXED_PASSES: tuple[Pass, ...] = (
    drop_no_ops,
    drop_nan_guards,
    plain_moves,
    fuse_layer_norm,
    fuse_gelu,
    split_qkv,
    free_batch,
)


def canonicalize_onnx(
    model: ir.Model, *, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Mapping[str, int]:
    """Bring another exporter's float graph into the form of our own exports, in place; the changes by pass.

    The input becomes `pixels` uint8 [N, H, W, 3] for any N; the logits stay the same to rounding.

    Raises:
        GraphError: when the graph is no image classifier that these passes understand.
    """
    changes: dict[str, int] = {"freeze_shapes": freeze_shapes(model, _fixed_sizes(model, size))}
    _expect_float32(model)
    for each in FIXED_PASSES:
        CommonSubexpressionEliminationPass()(model)
        changes[each.__name__] = each(model)
    changes["plain_layout"] = plain_layout(model)
    changes["drop_unit_axes"] = drop_unit_axes(model)
    changes["take_raw_pixels"] = take_raw_pixels(model, mean=mean, std=std)
    tidy(model)
    return {**changes, **canonicalize(model)}


def _expect_float32(model: ir.Model) -> None:
    """Refuse a model that multiplies in float16 or double: its weights are no longer, or not yet, float32."""
    for node in by_type(model, "Conv", "MatMul", "Gemm"):
        for value in node.inputs:
            if value is not None and value.dtype in OTHER_FLOATS:
                raise GraphError(
                    f"expected products in float32, found {value.dtype.name} in {node.op_type} "
                    f"({node.name}); give the model before its conversion, or export it again in float32"
                )


def _fixed_sizes(model: ir.Model, size: tuple[int, int]) -> tuple[int, ...]:
    """The input's shape with a batch that is fixed, of the model's own choice where it has one."""
    (pixels,) = model.graph.inputs
    shape = sizes(pixels)
    if shape is None or len(shape) != 4:
        raise GraphError(f"expected images [N, 3, H, W] as input, found {pixels.name!r} of shape {shape}")
    if shape[1] not in (3, None) and shape[3] not in (3, None):
        raise GraphError(f"expected color images as input, found {pixels.name!r} of shape {shape}")
    channels_last = shape[3] == 3 and shape[1] != 3
    expected = [None, *size, 3] if channels_last else [None, 3, *size]
    if any(None not in pair and pair[0] != pair[1] for pair in zip(shape[1:], expected[1:], strict=True)):
        raise GraphError(
            f"expected an input of height and width {list(size)} as in the preprocessing, found "
            f"{pixels.name!r} of shape {shape}; correct the size in the preprocessing"
        )
    batch = BATCH if shape[0] is None else shape[0]
    return (batch, *size, 3) if channels_last else (batch, 3, *size)
