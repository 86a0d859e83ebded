"""Layers of a graph: what counts as a linear layer, and inputs that must be there."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError
from calibration.graph.layers import expect_input, find_layers, read_linear
from tests.support.small_graphs import ATTENTION, MLP, block


def test_a_block_has_linears_and_products_in_graph_order() -> None:
    layers = find_layers(block(lines=ATTENTION + MLP))
    assert list(layers.linears) == ["query", "key", "value", "proj", "fc1", "fc2"]
    assert list(layers.products) == ["scores", "mix"]
    assert [each.mixes_probabilities for each in layers.products.values()] == [False, True]
    assert len(set(layers.activations)) == len(layers.activations)


def test_another_operator_is_no_linear() -> None:
    assert read_linear(ir.node("Relu", [ir.Value(name="x")])) is None


@pytest.mark.parametrize("inputs", [[], [None]])
def test_an_input_that_is_left_out_is_named(inputs: list[None]) -> None:
    with pytest.raises(GraphError, match=r"expected input 0 of node 'move' \(Transpose\), found none"):
        expect_input(ir.node("Transpose", inputs, name="move"), 0)
