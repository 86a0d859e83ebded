"""The way in: raw uint8 pixels, the normalization inside the weights, the patch embedding as one Gemm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    GraphError,
    add_constant,
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    only_reader,
    permutation,
    rename,
    replace,
    shape_constant,
    sizes,
    tidy,
)

# --- The way in: raw uint8 pixels, the normalization inside the weights, the patch embedding as one Gem---


PIXELS = "pixels"


def fold_normalization(model: ir.Model) -> int:
    """conv(W, (x - mean) / std) + b → conv(W', x) + b', exact since a patch embedding has no padding."""
    for conv in _patch_embeddings(model):
        chain = _chain_to_input(conv)
        steps = {node: operand for node, operand in chain.items() if operand is not None}
        if not steps:
            continue
        gain, offset = np.ones(3), np.zeros(3)
        for node, operand in steps.items():
            if node.op_type in ("Sub", "Add"):
                offset = offset + (operand if node.op_type == "Add" else -operand)
            else:
                factor = operand if node.op_type == "Mul" else 1.0 / operand
                gain, offset = gain * factor, offset * factor
        weight, bias = _conv_parameters(conv)
        graph, name = graph_of(conv), str(conv.name)
        folded = weight * gain[None, :, None, None]
        shifted = bias + np.einsum("dchw,c->d", weight, offset)
        conv.resize_inputs(3)
        conv.replace_input_with(1, add_constant(graph, f"{name}.weight", folded.astype(np.float32)))
        conv.replace_input_with(2, add_constant(graph, f"{name}.bias", shifted.astype(np.float32)))
        _read_raw(conv, list(chain), list(steps))
        tidy(model)
        return 1
    return 0


def _read_raw(conv: ir.Node, chain: list[ir.Node], steps: list[ir.Node]) -> None:
    """Let the convolution read the pixels without the normalization, which others may go on to read.

    CrossViT's second branch resizes the normalized image; counting images needs no normalization.
    """
    inside = {*chain, conv}
    readers = [use.node for node in chain for use in node.outputs[0].uses() if use.node not in inside]
    if all(reader.op_type == "Shape" for reader in readers):
        for node in steps:
            replace(node.outputs[0], _data(node))
            graph_of(conv).remove(node, safe=True)
        return
    value = _data(chain[0])
    for node in chain:
        if node not in steps:
            attributes = {key: attr.value for key, attr in node.attributes.items()}
            shape = sizes(node.outputs[0])
            value = insert(conv, node.op_type, [value], name=f"{node.name}.raw", shape=shape, **attributes)
    conv.replace_input_with(0, value)


def _data(node: ir.Node) -> ir.Value:
    """The input that is computed."""
    (source,) = [value for value in node.inputs if value is not None and constant(value) is None]
    return source


def patches_as_gemm(model: ir.Model) -> int:
    """Transpose → Conv (stride = kernel) → features last → patches cut in uint8, then one Gemm.

    The patches do not overlap, so the convolution is a linear layer on each of them. As a Gemm its float
    result comes straight out of the integer kernel, already as rows of tokens.
    """
    pixels = model.graph.inputs[0]
    for conv in _patch_embeddings(model):
        chain, last = _chain_to_input(conv), _tokens_behind(conv)
        shape = sizes(pixels)
        if [node.op_type for node in chain] not in (["Cast", "Transpose"], ["Transpose", "Cast"]):
            continue
        if last is None or shape is None or shape[1] is None or shape[2] is None or shape[3] != 3:
            continue
        weight, bias = _conv_parameters(conv)
        width, patch = weight.shape[0], weight.shape[2]
        down, across = shape[1] // patch, shape[2] // patch
        graph, name, features = graph_of(conv), str(conv.name), patch * patch * 3
        cut = _cut_patches(pixels, last, (down, across), patch)
        rows = insert(
            last, "Cast", [cut], name=f"{PIXELS}.float", shape=[None, features], to=ir.DataType.FLOAT
        )
        matrix = weight.transpose(2, 3, 1, 0).reshape(features, width)  # (row, column, channel) as pixels lie
        conv.name = f"{name}.conv"
        parameters = [
            add_constant(graph, f"{name}.weight", matrix.astype(np.float32)),
            add_constant(graph, f"{name}.bias", bias.astype(np.float32)),
        ]
        tokens = insert(last, "Gemm", [rows, *parameters], name=name, shape=[None, width])
        as_grid = len(sizes(last.outputs[0]) or ()) == 4
        grid = [down, across] if as_grid else [down * across]
        tokens_shape = shape_constant(graph, [-1, *grid, width])
        grouped = insert(
            last, "Reshape", [tokens, tokens_shape], name=f"{name}.grouped", shape=sizes(last.outputs[0])
        )
        replace(last.outputs[0], grouped)
        tidy(model)
        return 1
    return 0


def _cut_patches(pixels: ir.Value, before: ir.Node, grid: tuple[int, int], patch: int) -> ir.Value:
    """Cut uint8 pixels [N, H, W, 3] into rows of one patch each, [N · down · across, patch² · 3].

    A row of a patch stays together: the Transpose then moves whole runs of patch · 3 bytes. Pixels that fill
    no patch, below and on the right, are left out, as a convolution leaves them out.
    """
    down, across = grid
    cut, graph = pixels, graph_of(before)
    whole = [down * patch, across * patch]
    if (sizes(pixels) or [])[1:3] != whole:
        parts = [shape_constant(graph, each) for each in ([0, 0], whole, [1, 2])]
        cut = insert(before, "Slice", [cut, *parts], name=f"{PIXELS}.whole", shape=[None, *whole, 3])
    patches, rows = [-1, down, patch, across, patch * 3], [-1, patch * patch * 3]
    shape = [None, *patches[1:]]
    cut = insert(before, "Reshape", [cut, shape_constant(graph, patches)], name=f"{PIXELS}.cut", shape=shape)
    ordered = [None, down, across, patch, patch * 3]
    cut = insert(before, "Transpose", [cut], name=f"{PIXELS}.ordered", shape=ordered, perm=[0, 1, 3, 2, 4])
    target = shape_constant(graph, rows)
    return insert(before, "Reshape", [cut, target], name=f"{PIXELS}.rows", shape=[None, rows[1]])


def _tokens_behind(conv: ir.Node) -> ir.Node | None:
    """The Transpose that puts the features last: of `[N, width, down · across]`, or of the grid itself."""
    after = only_reader(conv.outputs[0])
    if permutation(after) == (0, 2, 3, 1):
        return after
    grid, flat = sizes(conv.outputs[0]), sizes(after.outputs[0]) if after is not None else None
    if after is None or after.op_type != "Reshape" or grid is None or flat is None or None in grid[1:]:
        return None
    last = only_reader(after.outputs[0])
    width, *places = [size or 0 for size in grid[1:]]
    return last if flat[1:] == [width, math.prod(places)] and permutation(last) == (0, 2, 1) else None


def _patch_embeddings(model: ir.Model) -> list[ir.Node]:
    """Convolutions over three channels whose patches do not overlap and have no padding."""
    found = []
    for node in by_type(model, "Conv"):
        weight = constant(node.inputs[1])
        if weight is None or weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3]:
            continue
        plain = not any(attribute(node, "pads", ())) and attribute(node, "auto_pad", "NOTSET") in (
            "NOTSET",
            "VALID",
        )
        apart = list(attribute(node, "strides", (1, 1))) == list(weight.shape[2:])
        if plain and apart and set(attribute(node, "dilations", (1,))) == {1}:
            found.append(node)
    return found


def _chain_to_input(conv: ir.Node) -> dict[ir.Node, Array | None]:
    """The nodes between the graph's input and the convolution, first to last.

    Returns:
        Each node with the constant of a step of normalization, `float64 [1]` or `[3]`, None for layout.

    Raises:
        GraphError: when something stands there that is neither normalization nor layout.
    """
    chain: dict[ir.Node, Array | None] = {}
    value, channels = conv.inputs[0], 1  # the axis of the channels, of four
    while value is not None and (node := value.producer()) is not None:
        operand = None
        if node.op_type in ("Sub", "Div", "Mul", "Add"):
            operand, value = _operand(node, channels), _data(node)
        elif node.op_type == "Cast" or len(permutation(node)) == 4:
            value = node.inputs[0]
            channels = permutation(node)[channels] if node.op_type == "Transpose" else channels
        else:
            raise GraphError(
                f"expected normalization or layout before the patch embedding, found {node.op_type} "
                f"({node.name})"
            )
        chain[node] = operand
    return dict(reversed(chain.items()))


def _operand(node: ir.Node, channels: int) -> Array:
    """The constant of a normalization step: one number, or one per channel, along this axis of four."""
    constants = [array for value in node.inputs if (array := constant(value)) is not None]
    is_right = constant(node.inputs[1]) is not None
    spread = (1, 1, 1, 1, *(constants[0].shape if constants else ()))[-4:]
    one_each = tuple(3 if axis == channels else 1 for axis in range(4))
    if (
        len(constants) != 1
        or (constants[0].size != 1 and spread != one_each)
        or (node.op_type in ("Sub", "Div") and not is_right)
    ):
        raise GraphError(
            f"expected {node.op_type} ({node.name}) before the patch embedding to have one constant "
            "per channel"
        )
    return np.asarray(constants[0], np.float64).reshape(-1)


def _conv_parameters(conv: ir.Node) -> tuple[Array, Array]:
    weight = constant(conv.inputs[1])
    assert weight is not None  # _patch_embeddings has looked
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    return weight.astype(np.float64), np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)


# --- A model that takes normalized floats → the same model taking raw pixels, its normalization in fron---


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
