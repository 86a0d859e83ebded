"""Where a canonical float graph can be quantized: its linear layers and its attention products."""

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
        value = self.node.inputs[0]
        assert value is not None  # a Gemm has its first input
        return value

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
        return self._input(0)

    @property
    def right(self) -> ir.Value:
        return self._input(1)

    @property
    def mixes_probabilities(self) -> bool:
        above = self.left.producer()
        return above is not None and above.op_type == "Softmax"

    def _input(self, index: int) -> ir.Value:
        value = self.node.inputs[index]
        assert value is not None  # a MatMul has two inputs
        return value


@dataclass(frozen=True)
class Sites:
    """All places of one graph, by name, in graph order."""

    linears: Mapping[str, Linear]
    products: Mapping[str, Product]

    def observed(self) -> list[str]:
        """The names of the tensors whose range a plan needs: each once, in graph order."""
        values = [site.input for site in self.linears.values() if not site.reads_pixels]
        values += [v for site in self.products.values() for v in (site.left, site.right)]
        return list(dict.fromkeys(str(value.name) for value in values))


def find_sites(model: ir.Model) -> Sites:
    """The linears and products of a graph in the form of `export.graph.canonical.canonicalize`.

    Raises:
        GraphError: when there is nothing to quantize.
    """
    linears, products = {}, {}
    for node in by_type(model, "Gemm", "MatMul"):
        name = str(node.name)
        if (linear := linear_of(node)) is not None:
            linears[name] = linear
        elif node.op_type == "MatMul" and all(constant(value) is None for value in node.inputs):
            products[name] = Product(name, node)
    if not linears:
        raise GraphError(
            "expected linear layers (Gemm with constant weights) in the graph, found none to quantize"
        )
    return Sites(linears, products)


def linear_of(node: ir.Node) -> Linear | None:
    """The linear layer that a node is, or None: only a plain Gemm with constant parameters is one."""
    if node.op_type != "Gemm":
        return None
    weight = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or bias is None or not _plain(node, weight, bias):
        return None
    return Linear(str(node.name), node, weight, bias)


def _plain(node: ir.Node, weight: Array, bias: Array) -> bool:
    if bias.shape != weight.shape[1:]:  # one number for all, or one for each row
        return False
    transposed = attribute(node, "transA", 0) or attribute(node, "transB", 0)
    return not transposed and attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
