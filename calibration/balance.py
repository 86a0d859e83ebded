"""Scales moved from a tensor's features into the next weights, exactly: an outlier feature then costs less.

SmoothQuant (arXiv 2211.10438, equations 3 and 4) divides the input features of a linear layer by scales and
folds them into the LayerNorm before it; RepQ-ViT (arXiv 2212.08254) does so for ViTs. The values
of attention can carry them as well: the mix is linear in each of them, so the scales of the projection's
input are folded into the value linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, add_constant, constant, graph_of
from calibration.graph.layers import LAYOUT, GraphLayers, Linear

STRENGTHS = (0.0, 0.25, 0.5, 0.75)
MOVES = (*LAYOUT, "Gather")  # layout, and the selection of the class token: the features stay the last axis


@dataclass(frozen=True)
class BalanceGroup:
    """A producer whose output features can be divided by scales, and the linears that multiply them back."""

    name: str  # the producer: a LayerNormalization, or the value linear
    producer: ir.Node
    linears: tuple[Linear, ...]


def find_balance_groups(layers: GraphLayers) -> list[BalanceGroup]:
    """Return every place where scales can move: the norms, then the values, each in graph order."""
    by_node = {linear.node: linear for linear in layers.linears.values()}
    return [*_find_norms(layers, by_node), *_find_values(layers, by_node)]


def _find_norms(layers: GraphLayers, by_node: dict[ir.Node, Linear]) -> Iterator[BalanceGroup]:
    for producer in dict.fromkeys(_find_producer(linear.input) for linear in layers.linears.values()):
        if producer is None or producer.op_type != "LayerNormalization":
            continue
        # An embedding: whoever reads it outside the graph would read it divided.
        if leaves_graph(producer.outputs[0]):
            continue
        readers = _find_readers(producer.outputs[0])
        # Every reader must multiply the scales back, and the norm's factors must be constants to hold them.
        if constant(producer.inputs[1]) is not None and all(node in by_node for node in readers):
            linears = tuple(by_node[node] for node in dict.fromkeys(readers))
            yield BalanceGroup(str(producer.name), producer, linears)


def _find_values(layers: GraphLayers, by_node: dict[ir.Node, Linear]) -> Iterator[BalanceGroup]:
    for product in layers.products.values():
        value = _find_producer(product.right)
        readers = _find_readers(product.node.outputs[0])
        if not product.mixes_probabilities or value not in by_node or len(readers) != 1:
            continue
        # A second reader of the values would read them divided.
        if _find_readers(value.outputs[0]) != [product.node]:
            continue
        reader = by_node.get(readers[0])
        # With other widths the features do not match one to one, and a scale has no row to multiply.
        if reader is not None and reader.weight.shape[0] == by_node[value].weight.shape[1]:
            yield BalanceGroup(by_node[value].name, value, (reader,))


def leaves_graph(value: ir.Value) -> bool:
    """Return whether the numbers are an output of the graph, through layout and selection too."""
    moved = [use.node.outputs[0] for use in value.uses() if use.node.op_type in MOVES]
    return value.is_graph_output() or any(map(leaves_graph, moved))


def compute_balance_scales(low: Array, high: Array, strength: float) -> Array:
    """Return the divisor of each feature (SmoothQuant, equation 4, without the weights' factor).

    `low`, `high` and the result are `float32 [features]`, the result with a geometric mean of 1. `strength`
    is the exponent of the feature's range, 0 to 1: SmoothQuant's migration strength.
    """
    reach = np.maximum(np.maximum(-low, high), 1e-12).astype(np.float64)
    reach = np.maximum(reach, reach.max() * 1e-3)  # a feature that never moves must not blow up its weight
    scales = reach**strength
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float32)


def apply_balance_scales(group: BalanceGroup, scales: Array) -> None:
    """Divide the producer's output and multiply the next weights by `scales` (SmoothQuant, equation 3)."""
    graph, producer = graph_of(group.producer), group.producer
    for index, part in ((1, "weight"), (2, "bias")):
        if index < len(producer.inputs) and (array := constant(producer.inputs[index])) is not None:
            name = f"{producer.name}.{part}.balanced"
            producer.replace_input_with(index, add_constant(graph, name, (array / scales).astype(np.float32)))
    for linear in group.linears:
        # Read again: a value linear that follows a norm is scaled on both sides.
        weight = constant(linear.node.inputs[1])
        assert weight is not None  # a Linear has a constant weight
        scaled = (weight * scales[:, None]).astype(np.float32)
        name = f"{linear.name}.weight.balanced"
        linear.node.replace_input_with(1, add_constant(graph_of(linear.node), name, scaled))


def _find_producer(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computed the numbers, above layout and selection."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in MOVES:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _find_readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read the numbers, below layout and selection."""
    found: list[ir.Node] = []
    for use in value.uses():
        moves = use.node.op_type in MOVES and use.idx == 0
        found += _find_readers(use.node.outputs[0]) if moves else [use.node]
    return found
