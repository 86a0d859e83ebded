"""The order of all rewrites: those for graphs of other exporters, then the canonical ones for every model.

A rewrite is a function `model -> number of places changed`, in place; the logits before and after are the
same to rounding. A new one is added as one line of a list below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from calibration.graph.edit import GraphError, by_type, sizes, tidy
from export.graph.canonical.class_token import select_class_token
from export.graph.canonical.layout import keep_tokens_as_rows, make_shapes_static, untangle_transposes
from export.graph.canonical.linears import (
    fold_attention_scale,
    fold_layer_scale,
    linears_to_gemm,
    name_parameters,
    name_products,
)
from export.graph.canonical.pixels import (
    dequantize_pixels,
    fold_normalization,
    patches_as_gemm,
    take_raw_pixels,
)
from export.graph.canonical.token_major import tokens_before_batch
from export.graph.exporters.batch import free_batch
from export.graph.exporters.freeze import BATCH, freeze_shapes
from export.graph.exporters.fuse import fuse_gelu, fuse_layer_norm
from export.graph.exporters.qkv import split_qkv
from export.graph.exporters.simplify import (
    drop_nan_guards,
    drop_no_ops,
    drop_unit_axes,
    plain_layout,
    plain_moves,
)
from export.graph.skipped import name_rewrite

Rewrite = Callable[[ir.Model], int]

# For graphs of other exporters, while the batch is fixed and every shape is known; the last one frees it.
FIXED_BATCH_REWRITES: tuple[Rewrite, ...] = (
    drop_no_ops,
    drop_nan_guards,
    plain_moves,
    fuse_layer_norm,
    fuse_gelu,
    split_qkv,
    free_batch,
)
# For graphs of other exporters, for any batch.
ANY_BATCH_REWRITES: tuple[Rewrite, ...] = (plain_layout, drop_unit_axes)
# For every graph that reads raw pixels.
CANONICAL_REWRITES: tuple[Rewrite, ...] = (
    name_products,
    make_shapes_static,
    untangle_transposes,
    fold_normalization,
    patches_as_gemm,
    select_class_token,
    linears_to_gemm,
    fold_layer_scale,
    keep_tokens_as_rows,
    fold_attention_scale,
    tokens_before_batch,
    name_parameters,
    dequantize_pixels,
)
_OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def canonicalize(model: ir.Model) -> Mapping[str, int]:
    """Bring a graph that reads `pixels`, uint8 [N, H, W, 3], into the form that quantizes well, in place.

    Returns:
        the number of places that each rewrite changed, by its name.

    Raises:
        GraphError: when an operator before the patch embedding is neither normalization nor layout.
    """
    tidy(model)
    changes = _run(model, CANONICAL_REWRITES)
    CommonSubexpressionEliminationPass()(model)
    tidy(model)
    return changes


def canonicalize_onnx(
    model: ir.Model, *, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Mapping[str, int]:
    """Bring a float graph of another exporter into the same form, in place.

    Args:
        model: its one float input of images becomes `pixels`, uint8 [N, H, W, 3] for any N.
        size: height and width of the images, pixels.
        mean: mean of each channel, for pixels scaled to 0..1; `std` likewise.
        std: standard deviation.

    Returns:
        the number of places that each rewrite changed, by its name.

    Raises:
        GraphError: when the graph is no image classifier that these rewrites understand.
    """
    changes = {"freeze_shapes": freeze_shapes(model, _choose_fixed_shape(model, size))}
    _check_float32(model)
    # Exporters write the same value twice; a pattern of two values that should be one is not recognized.
    changes |= _run(model, FIXED_BATCH_REWRITES, before=CommonSubexpressionEliminationPass())
    changes |= _run(model, ANY_BATCH_REWRITES)
    changes["take_raw_pixels"] = take_raw_pixels(model, mean=mean, std=std)
    tidy(model)
    return {**changes, **canonicalize(model)}


def _run(
    model: ir.Model, rewrites: Iterable[Rewrite], before: Callable[[ir.Model], object] = lambda _: None
) -> dict[str, int]:
    changes = {}
    for each in rewrites:
        before(model)
        name_rewrite(each.__name__)
        changes[each.__name__] = each(model)
    return changes


def _check_float32(model: ir.Model) -> None:
    """Refuse a model that multiplies in float16 or double: its weights are not those of the float32 model."""
    for node in by_type(model, "Conv", "MatMul", "Gemm"):
        for value in node.inputs:
            if value is not None and value.dtype in _OTHER_FLOATS:
                found = f"{value.dtype.name} in {node.op_type} ({node.name})"
                advice = "give the model before its conversion, or export it again in float32"
                raise GraphError(f"expected products in float32, found {found}; {advice}")


def _choose_fixed_shape(model: ir.Model, size: tuple[int, int]) -> tuple[int, ...]:
    """Return the input's shape with a fixed batch: the model's own, or `BATCH` where it is free."""
    (pixels,) = model.graph.inputs
    shape = sizes(pixels)
    found = f"found {pixels.name!r} of shape {shape}"
    if shape is None or len(shape) != 4:
        raise GraphError(f"expected images [N, 3, H, W] as input, {found}")
    if shape[1] not in (3, None) and shape[3] not in (3, None):
        raise GraphError(f"expected color images as input, {found}")
    channels_last = shape[3] == 3 and shape[1] != 3
    expected = [None, *size, 3] if channels_last else [None, 3, *size]
    if any(None not in pair and pair[0] != pair[1] for pair in zip(shape[1:], expected[1:], strict=True)):
        wanted = f"an input of height and width {list(size)} as in the preprocessing"
        raise GraphError(f"expected {wanted}, {found}; correct the size in the preprocessing")
    batch = BATCH if shape[0] is None else shape[0]
    return (batch, *size, 3) if channels_last else (batch, 3, *size)
