"""A model that takes normalized floats → the same model taking raw pixels, its normalization in front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calibration.graph import GraphError, add_constant, attribute, insert, rename, replace, sizes, tidy
from export.passes.pixels import PIXELS


def take_raw_pixels(model: ir.Model, *, mean: Sequence[float], std: Sequence[float]) -> int:
    """Replace the float input by `pixels`, `uint8 [N, H, W, 3]`, and normalize them in the graph.

    The float input has the shape [N, 3, H, W] or [N, H, W, 3].

    Args:
        model: the graph, changed in place.
        mean: mean of each channel, for pixels scaled to 0..1.
        std: standard deviation of each channel, for pixels scaled to 0..1.

    Raises:
        GraphError: when the input is no batch of color images.
    """
    (old,) = model.graph.inputs
    shape = sizes(old)
    if shape is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise GraphError(
            f"expected an input of color images, [N, 3, H, W] or [N, H, W, 3], found {old.name!r} of "
            f"shape {shape}"
        )
    first = next(iter(model.graph))
    channels_last = shape[3] == 3
    height, width = shape[1:3] if channels_last else shape[2:]
    pixels = ir.Value(
        name=old.name,
        shape=ir.Shape(["batch" if shape[0] is None else shape[0], height, width, 3]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    model.graph.inputs[:] = [pixels]
    raw = [shape[0], height, width, 3]
    value = insert(first, "Cast", [pixels], name=f"{PIXELS}.float", shape=raw, to=ir.DataType.FLOAT)
    for op_type, name, numbers in (("Sub", "mean", mean), ("Div", "std", std)):
        operand = add_constant(model.graph, f"normalize.{name}", 255 * np.asarray(numbers, np.float32))
        value = insert(first, op_type, [value, operand], name=f"normalize.{name}.apply", shape=raw)
    if not channels_last:
        channels_first = [shape[0], 3, height, width]
        value = insert(
            first, "Transpose", [value], name=f"{PIXELS}.channels", shape=channels_first, perm=[0, 3, 1, 2]
        )
    if old.is_graph_output():
        raise GraphError(f"expected a model, found the input {old.name!r} as its output")
    _count_raw_images(old, pixels)
    replace(old, value)
    rename(model.graph, pixels, PIXELS)
    tidy(model)
    return 1


def _count_raw_images(old: ir.Value, pixels: ir.Value) -> None:
    """Shape(normalized)[0:1] → Shape(pixels)[0:1]: as many images are in either.

    The float images are then read by the patch embedding alone, and can be put in another order with it.
    """
    for use in list(old.uses()):
        node = use.node
        if node.op_type == "Shape" and (attribute(node, "start", 0), attribute(node, "end", None)) == (0, 1):
            node.replace_input_with(use.idx, pixels)
