"""Quantizable layers of a canonical float graph: its linear layers and its attention products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    input_constant,
    insert,
    only_reader,
    producer,
    sizes,
)

LAYOUT = ("Reshape", "Transpose")  # operators that move numbers and change none
MOVES = (*LAYOUT, "Slice")  # the same, or they leave some out
PIXEL_CENTER = 128


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
        return producer(expect_input(self._first_move, 0), "DequantizeLinear") is not None

    @property
    def _first_move(self) -> ir.Node:
        first = self.node
        while (above := find_move(first)) is not None:
            first = above
        return first

    def center_pixels(self, scale: Array) -> Array:
        """Let the layer read (pixel - 128) · scale, and return the bias for that: float64 [out].

        128 is as exact as 0, and the rounding errors of the weights are not multiplied by it.

        Args:
            scale: float32 or float16 []; its reciprocal is for the caller to put into the weights.
        """
        first, graph = self._first_move, graph_of(self.node)
        read = producer(expect_input(first, 0), "DequantizeLinear")
        if read is None:
            raise GraphError(f"expected {self.name!r} to read the pixels, found another input")
        parameters = {"scale": scale, "zero_point": np.array(PIXEL_CENTER, np.uint8)}
        added = [add_constant(graph, f"pixels.centered.{name}", each) for name, each in parameters.items()]
        dtype, shape = ir.DataType.from_numpy(scale.dtype), sizes(read.outputs[0])
        inputs, name = [expect_input(read, 0), *added], "pixels.centered"
        value = insert(first, "DequantizeLinear", inputs, name=name, shape=shape, dtype=dtype)
        first.replace_input_with(0, value)
        return np.asarray(self.bias + PIXEL_CENTER * self.weight.astype(np.float64).sum(axis=0))


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
        return producer(self.left, "Softmax") is not None


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
    """Return the linear layers and attention products of a graph, with the weights that they have now.

    Args:
        model: a graph in the form of `export.graph.canonicalize.canonicalize`.

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
        node: any node; one that is something else, or scales or transposes an operand, gives None.
    """
    found = match_linear(node) if node.op_type == "Gemm" else None
    if found is None or found.bias is None or not found.is_plain:
        return None
    return Linear(str(node.name), node, found.weight, found.bias)


def find_move(node: ir.Node) -> ir.Node | None:
    """Return the operator that moves the numbers of a node's first input, for this node alone; None for none.

    Args:
        node: of any operator.
    """
    move = producer(node.inputs[0], *MOVES)
    return move if move is not None and only_reader(move.outputs[0]) is not None else None


def expect_input(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the operator cannot do without; a GraphError where it is left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise GraphError(f"expected input {index} of node {node.name!r} ({node.op_type}), found none")
    return value


# --- Linear layers, however they are written ---


@dataclass(frozen=True)
class MatchedLinear:
    """A linear layer, x W + b."""

    product: ir.Node  # the MatMul or the Gemm
    weight: Array  # float32 [in, out]; transB and alpha are applied
    bias: Array | None  # float32 [out]; beta is applied
    is_plain: bool = False  # a Gemm whose parameters are these arrays


def match_linear(last: ir.Node) -> MatchedLinear | None:
    """Return the linear layer that ends in a node: MatMul, MatMul and Add, or Gemm.

    Args:
        last: gives None unless it ends a product with a constant matrix [in, out] on the right, and adds at
            most constants that are the same in every row. For an Add, nothing else may read the product.
    """
    if last.op_type == "Add":
        return _match_sum(last)
    weight = input_constant(last, 1)
    if last.op_type not in ("MatMul", "Gemm") or weight is None or weight.ndim != 2:
        return None
    return MatchedLinear(last, weight, None) if last.op_type == "MatMul" else _match_gemm(last, weight)


def _match_sum(last: ir.Node) -> MatchedLinear | None:
    computed = [value for value in last.inputs if value is not None and constant(value) is None]
    product = producer(computed[0], "MatMul") if len(computed) == 1 else None
    linear = None if product is None or only_reader(computed[0]) is not last else match_linear(product)
    bias = next((array for value in last.inputs if (array := constant(value)) is not None), None)
    if linear is None or bias is None or not is_per_channel(bias, linear.weight.shape[1]):
        return None
    return MatchedLinear(linear.product, linear.weight, bias.reshape(-1))


def _match_gemm(node: ir.Node, weight: Array) -> MatchedLinear | None:
    """Gemm is alpha · x W + beta · c (ONNX operators, Gemm); transB says that W is stored as [out, in]."""
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    matrix = weight.T if attribute(node, "transB", 0) else weight
    bias, features = input_constant(node, 2), matrix.shape[1:]
    added = node.inputs[2] if len(node.inputs) > 2 else None
    # With transA rows are features; a computed summand is a residual, not a bias.
    if attribute(node, "transA", 0) or (added is not None and bias is None):
        return None
    # Gemm broadcasts c to [rows, out]: one number and one per feature are biases, one per row is none.
    if bias is not None and bias.size != 1 and not is_per_channel(bias, *features):
        return None
    if matrix is weight and alpha == beta == 1.0 and bias is not None and bias.shape == features:
        return MatchedLinear(node, weight, bias, is_plain=True)
    vector = None if bias is None else np.broadcast_to(bias.reshape(-1), features) * np.float32(beta)
    return MatchedLinear(node, matrix if alpha == 1.0 else matrix * np.float32(alpha), vector)


def is_per_channel(array: Array, features: int) -> bool:
    """Return whether an array holds one number per output feature, not one per row.

    Args:
        array: a bias, or factors, of any shape.
        features: of the output.
    """
    return array.ndim > 0 and array.size == array.shape[-1] == features
