"""Multiply-adds of each product of a graph."""

from __future__ import annotations

import math

import onnx_ir as ir

from calibration.graph.edit import Array, attribute, by_type
from calibration.graph.layers import expect_input
from calibration.graph.memory import open_graph_session


def count_multiply_adds(model: ir.Model, image: Array, *, threads: int | None = None) -> dict[str, int]:
    """Return the multiply-adds of each Gemm, MatMul and Conv for one image, by node name, in graph order.

    The shapes are read in a run, since token merging computes them: later blocks have fewer tokens.

    Args:
        model: any variant of the graph; in INT8, products read what DequantizeLinear gives.
        image: any image, `uint8 [1, H, W, 3]`; the counts do not depend on its pixels.
        threads: CPU threads; None takes every core that this process may use.
    """
    observed = model.clone()
    products = by_type(observed, "Gemm", "MatMul", "Conv")
    # The shapes alone are outputs: the tensors of a ViT-B would take 100 MB per image.
    for index, node in enumerate(products):
        read = expect_input(node, 1 if node.op_type == "Conv" else 0)
        for name, value in ((f"{index}.read", read), (f"{index}.made", node.outputs[0])):
            shape = ir.node("Shape", [value], name=f"multiply_adds.{name}")
            shape.outputs[0].name = f"multiply_adds.{name}"
            shape.outputs[0].dtype = ir.DataType.INT64
            observed.graph.append(shape)
            observed.graph.outputs.append(shape.outputs[0])
    session = open_graph_session(observed, threads=threads)
    wanted = [f"multiply_adds.{index}.{of}" for index in range(len(products)) for of in ("read", "made")]
    shapes = [found.tolist() for found in session.run(wanted, {session.get_inputs()[0].name: image})]
    pairs = zip(products, shapes[::2], shapes[1::2], strict=True)
    return {str(node.name): math.prod(made) * _terms(node, read) for node, read, made in pairs}


def _terms(node: ir.Node, read: list[int]) -> int:
    """Return how many products each output is a sum of, from the shape of the left operand (Conv: kernel)."""
    if node.op_type == "Conv":
        return math.prod(read[1:])  # [out, in / groups, height, width]
    return read[0 if attribute(node, "transA", 0) else -1]
