"""Quantizable layers of a canonical float graph: its linear layers and its attention products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from calibration.graph.edit import Array, GraphError, attribute, by_type, constant

LAYOUT = ("Reshape", "Transpose")  # operators that move numbers and change none


@dataclass(frozen=True)
class Linear:
    """A Gemm with constant parameters: `weight [in, out]`, `bias [out]`."""

    name: str
    node: ir.Node
    weight: Array
    bias: Array

    @property
    def input(self) -> ir.Value:
        """The activations, `float32 [rows, in]`."""
        return expect_input(self.node, 0)

    @property
    def reads_pixels(self) -> bool:
        """True if the input is the image itself, which has 8 bits already."""
        cast = self.input.producer()
        source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
        return source is not None and source.dtype == ir.DataType.UINT8


@dataclass(frozen=True)
class Product:
    """A MatMul of two computed tensors: attention's scores (q kᵀ) or its mix (probabilities · v)."""

    name: str
    node: ir.Node

    @property
    def left(self) -> ir.Value:
        """The queries, or the probabilities."""
        return expect_input(self.node, 0)

    @property
    def right(self) -> ir.Value:
        """The keys, or the values."""
        return expect_input(self.node, 1)

    @property
    def mixes_probabilities(self) -> bool:
        """True for the mix, False for the scores."""
        above = self.left.producer()
        return above is not None and above.op_type == "Softmax"


@dataclass(frozen=True)
class GraphLayers:
    """Linear layers and attention products of one graph, by name, in graph order."""

    linears: Mapping[str, Linear]
    products: Mapping[str, Product]

    @property
    def activations(self) -> list[str]:
        """The names of the tensors whose range a plan needs: each once, in graph order."""
        values = [linear.input for linear in self.linears.values() if not linear.reads_pixels]
        values += [value for product in self.products.values() for value in (product.left, product.right)]
        return list(dict.fromkeys(str(value.name) for value in values))


def find_layers(model: ir.Model) -> GraphLayers:
    """Find the linear layers and attention products of a graph.

    Args:
        model: a graph in the form of `export.graph.canonical.canonicalize`.

    Returns:
        the layers, with the weights that they have now: call it again after a change of weights.

    Raises:
        GraphError: when there is nothing to quantize.
    """
    linears, products = {}, {}
    for node in by_type(model, "Gemm", "MatMul"):
        name = str(node.name)
        if (linear := read_linear(node)) is not None:
            linears[name] = linear
        elif node.op_type == "MatMul" and all(constant(value) is None for value in node.inputs):
            products[name] = Product(name, node)
    if not linears:
        raise GraphError(
            "expected linear layers (Gemm with constant weights) in the graph, found none to quantize"
        )
    return GraphLayers(linears, products)


def read_linear(node: ir.Node) -> Linear | None:
    """Return the linear layer that a node is: a plain Gemm with constant parameters.

    Args:
        node: any node.

    Returns:
        None where the node is something else, or scales or transposes an operand.
    """
    if node.op_type != "Gemm":
        return None
    weight = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    # Any other shape of bias is one number for all features, or one per row.
    if weight is None or bias is None or bias.shape != weight.shape[1:]:
        return None
    # A weight in another layout or scale than its array's would be quantized as it is not multiplied.
    transposed = attribute(node, "transA", 0) or attribute(node, "transB", 0)
    if transposed or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return None
    return Linear(str(node.name), node, weight, bias)


def expect_input(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the operator cannot do without.

    Raises:
        GraphError: where it is left out.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise GraphError(f"expected input {index} of node {node.name!r} ({node.op_type}), found none")
    return value
