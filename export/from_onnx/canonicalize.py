"""The passes in front of `canonicalize` for a graph that another exporter wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from calibration.graph import GraphError, by_type, sizes, tidy
from export.from_onnx.passes.batch import free_batch
from export.from_onnx.passes.blocks import plain_moves
from export.from_onnx.passes.freeze import BATCH, freeze_shapes
from export.from_onnx.passes.fuse import fuse_gelu, fuse_layer_norm
from export.from_onnx.passes.qkv import split_qkv
from export.from_onnx.passes.raw_pixels import take_raw_pixels
from export.from_onnx.passes.simplify import drop_nan_guards, drop_no_ops, drop_unit_axes, plain_layout
from export.passes import Pass, canonicalize

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


def canonicalize_foreign(
    model: ir.Model, *, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Mapping[str, int]:
    """Bring a foreign float graph into the form of our own exports, in place; the changes by pass.

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
