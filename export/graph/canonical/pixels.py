"""The image input: raw uint8 pixels, normalization inside the weights, the patch embedding as one Gemm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    GraphError,
    add_constant,
    attribute,
    by_type,
    constant,
    copy_attributes,
    graph_of,
    input_constant,
    insert,
    insert_reshape,
    only_reader,
    permutation,
    rename,
    replace,
    replace_node,
    reshape_target,
    reuse_constant,
    shape_constant,
    sizes,
    tidy,
)
from calibration.graph.layers import expect_input, find_move
from export.graph.skipped import skip

PIXELS = "pixels"

# --- The patch embedding ---


def _find_patch_embeddings(model: ir.Model) -> Iterator[tuple[ir.Node, Array, Array]]:
    """Yield the convolutions over three channels whose patches do not overlap and have no padding.

    Each with its weight, float64 [width, 3, patch, patch], and its bias, float64 [width].
    """
    for node in by_type(model, "Conv"):
        weight, bias = input_constant(node, 1), input_constant(node, 2)
        if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
            continue
        padded = any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "").startswith("SAME")
        # Padding adds zeros behind the normalization; folded, they would be pixels of another color.
        if padded or weight.shape[2] != weight.shape[3] or set(attribute(node, "dilations", (1,))) != {1}:
            skip(node, "its patches are padded, not square, or dilated")
        elif list(attribute(node, "strides", (1, 1))) != list(weight.shape[2:]):
            skip(node, "its patches overlap, or there are pixels between them")
        else:
            shift = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
            yield node, weight.astype(np.float64), shift


def _walk_to_input(conv: ir.Node) -> dict[ir.Node, Array | None]:
    """The nodes between the graph's input and the convolution, first to last.

    Each with the constant of a step of normalization, `float64 [1]` or `[3]`, None for layout.
    """
    chain: dict[ir.Node, Array | None] = {}
    value, channels = conv.inputs[0], 1  # the axis of the channels, of four
    while value is not None and (node := value.producer()) is not None:
        chain[node] = None
        if node.op_type in ("Sub", "Div", "Mul", "Add"):
            chain[node], value = _read_operand(node, channels), _find_computed_input(node)
        elif node.op_type == "Cast" or len(permutation(node)) == 4:
            value = node.inputs[0]
            channels = permutation(node)[channels] if node.op_type == "Transpose" else channels
        else:
            found = f"{node.op_type} ({node.name})"
            raise GraphError(f"expected normalization or layout before the patch embedding, found {found}")
    return dict(reversed(chain.items()))


def _read_operand(node: ir.Node, channels: int) -> Array:
    """The constant of a normalization step: one number, or one per channel, along this axis of four."""
    left, right = map(constant, node.inputs)
    array = right if left is None else left
    # Broadcasting counts axes from the end: [3] is one per channel for channels last, [3, 1, 1] for first.
    one_each = [3 if axis == channels else 1 for axis in range(4)]
    misplaced = left is not None and (right is not None or node.op_type in ("Sub", "Div"))
    if array is None or misplaced or (array.size != 1 and [1, 1, 1, 1, *array.shape][-4:] != one_each):
        step = f"{node.op_type} ({node.name}) before the patch embedding"
        raise GraphError(f"expected {step} to have one constant per channel")
    return np.asarray(array, np.float64).reshape(-1)


def _find_computed_input(node: ir.Node) -> ir.Value:
    (source,) = [value for value in node.inputs if value is not None and constant(value) is None]
    return source


# --- The normalization moves into the weights ---


def fold_normalization(model: ir.Model) -> int:
    """conv(W, g x + o) + b → conv(W', x) + b' with W' = g W and b' = b + Σ W o, by channel.

    The normalization (x - mean) / std has g = 1 / std and o = -mean / std. Exact, since a patch embedding has
    no padding.
    """
    for conv, weight, bias in _find_patch_embeddings(model):
        chain = _walk_to_input(conv)
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
        bias = bias + np.einsum("dchw,c->d", weight, offset)
        parameters = _add_parameters(conv, weight * gain[None, :, None, None], bias)
        conv.resize_inputs(3)
        for index, value in enumerate(parameters, start=1):
            conv.replace_input_with(index, value)
        _read_raw(conv, list(chain), list(steps))
        tidy(model)
        return 1
    return 0


def _add_parameters(conv: ir.Node, weight: Array, bias: Array) -> list[ir.Value]:
    arrays = {f"{conv.name}.weight": weight, f"{conv.name}.bias": bias}
    return [add_constant(graph_of(conv), name, array.astype(np.float32)) for name, array in arrays.items()]


def _read_raw(conv: ir.Node, chain: list[ir.Node], steps: list[ir.Node]) -> None:
    """Let the convolution read the pixels without the normalization, which may have other readers.

    CrossViT's second branch resizes the normalized image; a Shape that counts images needs no normalization.
    """
    inside = {*chain, conv}
    readers = [use.node for node in chain for use in node.outputs[0].uses() if use.node not in inside]
    if all(reader.op_type == "Shape" for reader in readers):
        for node in steps:
            replace_node(node, _find_computed_input(node))
        return
    value = _find_computed_input(chain[0])
    for node in chain:
        if node not in steps:
            name, shape = f"{node.name}.raw", sizes(node.outputs[0])
            value = insert(conv, node.op_type, [value], name=name, shape=shape, **copy_attributes(node))
    conv.replace_input_with(0, value)


# --- The convolution becomes a Gemm ---


def patches_as_gemm(model: ir.Model) -> int:
    """Transpose → Conv (stride = kernel) → features last → patches cut in uint8, then one Gemm.

    The patches do not overlap, so the convolution is a linear layer on each of them. As a Gemm its float
    result comes directly out of the integer kernel, already as rows of tokens.
    """
    pixels = model.graph.inputs[0]
    for conv, weight, bias in _find_patch_embeddings(model):
        chain, last, shape = _walk_to_input(conv), _find_tokens(conv), sizes(pixels)
        if sorted(node.op_type for node in chain) != ["Cast", "Transpose"]:
            skip(conv, "more than a Cast and a Transpose stands between the pixels and it")
        elif last is None:
            skip(conv, "no Transpose right behind it makes tokens, [N, tokens, width], of its output")
        elif shape is None or shape[1] is None or shape[2] is None or shape[3] != 3:
            skip(conv, f"expected pixels [N, H, W, 3] of known height and width, found {shape}")
        else:
            width, _, patch, _ = weight.shape
            rows = _cut_patches(pixels, last, shape[1] // patch, shape[2] // patch, patch)
            matrix = weight.transpose(2, 3, 1, 0).reshape(-1, width)  # (row, column, channel) as pixels lie
            name, parameters = str(conv.name), _add_parameters(conv, matrix, bias)
            conv.name = f"{name}.conv"  # which stays until `tidy`, and leaves its name to the Gemm
            tokens = insert(last, "Gemm", [rows, *parameters], name=name, shape=[None, width])
            grouped, name = sizes(last.outputs[0]), f"{name}.grouped"
            target = reshape_target(grouped) or []
            replace(last.outputs[0], insert_reshape(last, tokens, target, name=name, shape=grouped))
            tidy(model)
            return 1
    return 0


def _cut_patches(pixels: ir.Value, before: ir.Node, down: int, across: int, patch: int) -> ir.Value:
    """Cut uint8 pixels [N, H, W, 3] into rows of one patch each, float32 [N · down · across, patch² · 3].

    A row of a patch stays together: the Transpose then moves whole runs of patch · 3 bytes. Pixels that fill
    no patch, below and on the right, are left out, as a convolution leaves them out.
    """
    cut, run, whole = pixels, patch * 3, [down * patch, across * patch]
    if (sizes(pixels) or [])[1:3] != whole:
        bounds = [shape_constant(graph_of(before), each) for each in ([0, 0], whole, [1, 2])]
        cut = insert(before, "Slice", [cut, *bounds], name=f"{PIXELS}.whole", shape=[None, *whole, 3])
    lines = [down, patch, across, run]
    cut = insert_reshape(before, cut, [-1, *lines], name=f"{PIXELS}.cut", shape=[None, *lines])
    ordered = [None, down, across, patch, run]
    cut = insert(before, "Transpose", [cut], name=f"{PIXELS}.ordered", shape=ordered, perm=[0, 1, 3, 2, 4])
    rows: list[int | None] = [None, patch * run]
    cut = insert_reshape(before, cut, [-1, patch * run], name=f"{PIXELS}.rows", shape=rows)
    return insert(before, "Cast", [cut], name=f"{PIXELS}.float", shape=rows, to=ir.DataType.FLOAT)


def _find_tokens(conv: ir.Node) -> ir.Node | None:
    """The Transpose that puts the features last: of `[N, width, down · across]`, or of the grid itself."""
    after = only_reader(conv.outputs[0])
    if permutation(after) == (0, 2, 3, 1):
        return after
    grid = sizes(conv.outputs[0])
    if after is None or after.op_type != "Reshape" or grid is None or None in grid[1:]:
        return None
    last, flat = only_reader(after.outputs[0]), sizes(after.outputs[0]) or []
    width, *places = [size or 0 for size in grid[1:]]
    return last if flat[1:] == [width, math.prod(places)] and permutation(last) == (0, 2, 1) else None


# --- A model that reads normalized floats → the same model reading raw pixels ---


def take_raw_pixels(model: ir.Model, *, mean: Sequence[float], std: Sequence[float]) -> int:
    """Replace the float input by `pixels`, `uint8 [N, H, W, 3]`, and normalize them in the graph.

    The float input is `[N, 3, H, W]` or `[N, H, W, 3]` for any N; `mean` and `std` of each channel are for
    pixels scaled to 0..1.
    """
    (old,) = model.graph.inputs
    shape, first = sizes(old) or [], next(iter(model.graph))
    raw = shape if shape[3] == 3 else [None, *shape[2:], 3]
    byte = ir.TensorType(ir.DataType.UINT8)
    pixels = ir.Value(name=old.name, shape=ir.Shape(["batch", *raw[1:]]), type=byte)
    model.graph.inputs[:] = [pixels]
    value = insert(first, "Cast", [pixels], name=f"{PIXELS}.float", shape=raw, to=ir.DataType.FLOAT)
    for op_type, name, numbers in (("Sub", "mean", mean), ("Div", "std", std)):
        # mean and std are of pixels in 0..1: (x / 255 - mean) / std = (x - 255 mean) / (255 std)
        operand = add_constant(model.graph, f"normalize.{name}", 255 * np.asarray(numbers, np.float32))
        value = insert(first, op_type, [value, operand], name=f"normalize.{name}.apply", shape=raw)
    if shape != raw:
        name = f"{PIXELS}.channels"
        value = insert(first, "Transpose", [value], name=name, shape=shape, perm=[0, 3, 1, 2])
    if old.is_graph_output():
        raise GraphError(f"expected a model, found the input {old.name!r} as its output")
    # Shape(normalized)[0:1] → Shape(pixels)[0:1], as many images: the float images are then read by the patch
    # embedding alone, and can be put in another order with it.
    for node in [use.node for use in old.uses() if use.node.op_type == "Shape"]:
        if (attribute(node, "start", 0), attribute(node, "end", None)) == (0, 1):
            node.replace_input_with(0, pixels)
    replace(old, value)
    rename(model.graph, pixels, PIXELS)
    tidy(model)
    return 1


# --- No operator casts bytes ---


def dequantize_pixels(model: ir.Model) -> int:
    """move(Cast(uint8)) and Cast(move(uint8)) → move(DequantizeLinear(uint8, scale 1, zero point 0)), exact.

    A Cast makes 0 and 1 of bytes on Qualcomm's NPU, and no move of bytes that are no numbers runs there. On a
    CPU the moves stay moves of bytes: ONNX Runtime puts them in front again, which the pairs of an INT8 file
    need as well.
    """
    casts = [cast for cast in by_type(model, "Cast") if expect_input(cast, 0).dtype == ir.DataType.UINT8]
    for cast in casts:
        scale = reuse_constant(model.graph, f"{PIXELS}.scale", np.array(1, np.float32))
        zero_point = reuse_constant(model.graph, f"{PIXELS}.zero_point", np.array(0, np.uint8))
        first = cast
        while (above := find_move(first)) is not None:
            first = above
            first.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        inputs, shape = [first.inputs[0], scale, zero_point], sizes(first.inputs[0])
        value = insert(first, "DequantizeLinear", inputs, name=f"{PIXELS}.float", shape=shape)
        first.replace_input_with(0, value)
        if attribute(cast, "to", None) == ir.DataType.FLOAT:
            replace_node(cast, expect_input(cast, 0))
    return len(casts)
