"""A float16 copy of a canonical float graph, for GPUs: half the bytes, standard operators only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    GraphError,
    add_constant,
    by_type,
    constant,
    graph_of,
    insert,
    sizes,
    tidy,
)
from calibration.graph.layers import read_linear

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Operators that run in float16. LayerNormalization takes its statistics in float32 there (stash_type 1);
# Softmax and whatever is not listed stay in float32.
IN_HALF = frozenset({
    "Gemm", "MatMul", "Conv", "LayerNormalization", "Gelu", "Add", "Sub", "Mul", "Div", "Tanh", "Sigmoid",
    "Relu", "Reshape", "Transpose", "Concat", "Expand", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze",
})  # fmt: skip
SPREAD = 64  # (pixel - 128) / 64 is exact in float16, and about as large as normalized pixels


def to_float16(model: ir.Model) -> ir.Model:
    """Return a copy with weights and most operators in float16; pixels uint8 in, logits float32 out.

    Softmax, and the head with what follows it, stay in float32: that costs nothing and keeps classes with
    nearly equal logits in their order. An output `embedding` is float32 too. The canonical float32 graph
    stays as it is.

    Raises:
        GraphError: when a weight is beyond float16's range.
    """
    half = model.clone()
    _center_pixels(half)
    exact = _find_head(half)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(half.graph):
        if node.op_type in ("Cast", "DequantizeLinear"):
            continue
        wanted = HALF if node.op_type in IN_HALF and node not in exact else FLOAT
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, HALF) and value.dtype != wanted:
                node.replace_input_with(index, _convert(value, wanted, node, casts))
        for output in node.outputs:
            if output.dtype == FLOAT:
                output.type = ir.TensorType(wanted)  # a new one: the clone shares the old with its source
    _cast_embedding(half, casts)
    for output in half.graph.outputs:
        if output.dtype != FLOAT:
            raise GraphError(f"expected the logits in float32, found {output.name!r} in {output.dtype}")
    tidy(half)
    return half


def _center_pixels(model: ir.Model) -> None:
    """W x + b → (64 W) ((x - 128) / 64) + (b + 128 Σ W): weights for bytes are small and lose digits."""
    for node in by_type(model, "Gemm"):
        linear = read_linear(node)
        if linear is None or not linear.reads_pixels:
            continue
        bias = linear.center_pixels(np.array(1 / SPREAD, np.float16)).astype(np.float32)
        centered = {"weight": linear.weight * np.float32(SPREAD), "bias": bias}
        for index, (part, array) in enumerate(centered.items(), start=1):
            node.replace_input_with(
                index, add_constant(graph_of(node), f"{node.name}.{part}.centered", array)
            )
    tidy(model)


def _find_head(model: ir.Model) -> set[ir.Node]:
    """Return the last product and everything after it."""
    found: set[ir.Node] = set()
    queue = [value.producer() for value in model.graph.outputs if value.name != "embedding"]
    for node in queue:
        if node is not None and node not in found:
            found.add(node)
            if node.op_type not in ("Gemm", "MatMul"):
                queue += [value.producer() for value in node.inputs if value is not None]
    return found


def _cast_embedding(half: ir.Model, casts: Mapping[tuple[ir.Value, ir.DataType], ir.Value]) -> None:
    """Make the embedding a float32 output: the Cast in front of the head, or a new one without a head."""
    for index, output in enumerate(half.graph.outputs):
        if output.name != "embedding" or output.dtype != HALF:
            continue
        if (cast := casts.get((output, FLOAT))) is None:
            node = ir.node("Cast", [output], {"to": int(FLOAT)}, name="embedding.float32")
            half.graph.append(node)
            cast = node.outputs[0]
            cast.type, cast.shape = ir.TensorType(FLOAT), output.shape
        output.name, cast.name = "embedding.float16", "embedding"
        half.graph.outputs[index] = cast


def _convert(
    value: ir.Value, dtype: ir.DataType, node: ir.Node, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]
) -> ir.Value:
    """Return the value in the other precision: a converted constant, or a Cast, one for all readers."""
    if (value, dtype) not in casts:
        array = constant(value)
        if array is None:
            name = f"{value.name}.{dtype.name.lower()}"
            cast = insert(node, "Cast", [value], name=name, shape=sizes(value), dtype=dtype, to=dtype)
        else:
            name = str(value.name)
            converted = _to_half(array, name) if dtype == HALF else array.astype(np.float32)
            cast = add_constant(graph_of(node), name, converted)
        casts[value, dtype] = cast
    return casts[value, dtype]


def _to_half(array: Array, name: str) -> Array:
    if (largest := np.abs(array).max(initial=0)) > np.finfo(np.float16).max:
        found = f"found {largest:.3g} in {name!r}; this model has no float16 variant"
        raise GraphError(f"expected weights within float16's range, {found}")
    return array.astype(np.float16)
