"""Scales moved from a tensor's features into the next weights, exactly: an outlier feature then costs less.

SmoothQuant (arXiv 2211.10438) and RepQ-ViT (arXiv 2212.08254) fold such scales into a LayerNorm. The values
of attention can carry them as well: the mix is linear in each of them, so value → projection is a place too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, add_constant, constant, graph_of
from calibration.graph.layers import LAYOUT, Linear, Sites

STRENGTHS = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Group:
    """A producer whose output features can be divided by scales, and the linears that multiply them back."""

    name: str  # the producer: a LayerNormalization, or the value linear
    kind: Literal["norm", "value"]
    producer: ir.Node
    linears: tuple[Linear, ...]


def find_groups(sites: Sites) -> list[Group]:
    """Every place where scales can move, in graph order."""
    found = []
    by_node = {linear.node: linear for linear in sites.linears.values()}
    producers: dict[ir.Node, None] = {}
    for linear in sites.linears.values():
        producer = _above_layout(linear.input)
        if producer is not None and producer.op_type == "LayerNormalization":
            producers.setdefault(producer)
    for producer in producers:
        readers = _readers(producer.outputs[0])
        if leaves_graph(producer.outputs[0]):  # an embedding: scales would reach whoever reads it
            continue
        if constant(producer.inputs[1]) is not None and all(node in by_node for node in readers):
            linears = tuple(by_node[node] for node in dict.fromkeys(readers))
            found.append(Group(str(producer.name), "norm", producer, linears))
    for product in sites.products.values():
        value = _above_layout(product.right)
        readers = _readers(product.node.outputs[0])
        alone = (
            value in by_node and _readers(value.outputs[0]) == [product.node] if value is not None else False
        )
        if product.mixes_probabilities and value is not None and alone and len(readers) == 1:
            reader = by_node.get(readers[0])
            if reader is not None and reader.weight.shape[0] == by_node[value].weight.shape[1]:
                found.append(Group(by_node[value].name, "value", value, (reader,)))
    return found


def leaves_graph(value: ir.Value) -> bool:
    """Return whether the numbers are an output of the graph, through layout and selection too."""
    moved = [use.node.outputs[0] for use in value.uses() if use.node.op_type in (*LAYOUT, "Gather")]
    return value.is_graph_output() or any(map(leaves_graph, moved))


def scales_for(low: Array, high: Array, strength: float) -> Array:
    """Divisor of each feature: its range to the power `strength`, `float32 [features]`."""
    reach = np.maximum(np.maximum(-low, high), 1e-12).astype(np.float64)
    reach = np.maximum(reach, reach.max() * 1e-3)  # a feature that never moves must not blow up its weight
    scales = reach**strength
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float32)


def apply_scales(group: Group, scales: Array) -> None:
    """Divide the producer's output by `scales`, multiply the next weights by them: the same logits."""
    graph, producer = graph_of(group.producer), group.producer
    for index in (1, 2):
        if index < len(producer.inputs) and (array := constant(producer.inputs[index])) is not None:
            name = f"{producer.name}.{('weight', 'bias')[index - 1]}.balanced"
            producer.replace_input_with(index, add_constant(graph, name, (array / scales).astype(np.float32)))
    for linear in group.linears:
        weight = constant(linear.node.inputs[1])  # as it is by now: a value linear is scaled on both sides
        assert weight is not None  # a Linear has a constant weight
        scaled = (weight * scales[:, None]).astype(np.float32)
        name = f"{linear.name}.weight.balanced"
        linear.node.replace_input_with(1, add_constant(graph_of(linear.node), name, scaled))


def _above_layout(value: ir.Value | None) -> ir.Node | None:
    """The node that computed the numbers, behind Reshape, Transpose and the selection of the class token."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in (*LAYOUT, "Gather"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _readers(value: ir.Value) -> list[ir.Node]:
    """Who reads the numbers, through layout and selection."""
    found: list[ir.Node] = []
    for use in value.uses():
        moves = use.node.op_type in (*LAYOUT, "Gather") and use.idx == 0
        found += _readers(use.node.outputs[0]) if moves else [use.node]
    return found
