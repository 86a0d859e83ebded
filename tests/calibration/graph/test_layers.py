"""Layers of a graph: what counts as a linear layer, and inputs that must be there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError
from calibration.graph.layers import expect_input, find_layers, read_linear
from tests.support.small_graphs import ATTENTION, MLP, block, build, run


def test_a_block_has_linears_and_products_in_graph_order() -> None:
    layers = find_layers(block(lines=ATTENTION + MLP))
    assert list(layers.linears) == ["query", "key", "value", "proj", "fc1", "fc2"]
    assert list(layers.products) == ["scores", "mix"]
    assert [each.mixes_probabilities for each in layers.products.values()] == [False, True]
    assert len(set(layers.activations)) == len(layers.activations)


def test_another_operator_is_no_linear() -> None:
    assert read_linear(ir.node("Relu", [ir.Value(name="x")])) is None


PATCHES = "f = DequantizeLinear(pixels, one) c = Reshape(f, cut) t = Transpose <perm = [1, 0]> (c)"
PIXELS = {"inputs": "uint8[N, 2, 3] pixels", "outputs": "float[] y"}


def pixel_graph(end: str) -> ir.Model:
    numbers = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    constants = {"one": np.float32(1), "cut": [6, -1], "w": numbers[0], "b": numbers[1, 0]}
    return build(f"{PATCHES} {end}", constants, **PIXELS)


def test_the_layer_that_reads_pixels_can_read_them_centered() -> None:
    model = pixel_graph("y = Gemm(t, w, b)")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 3), np.uint8)
    (linear,) = find_layers(model).linears.values()
    assert linear.reads_pixels
    assert find_layers(model).activations == []
    before = run(model, pixels)
    bias = linear.center_pixels(np.array(1, np.float32))
    np.testing.assert_allclose(run(model, pixels) - linear.bias + bias, before, rtol=1e-4)
    assert linear.reads_pixels


@pytest.mark.parametrize(
    "end", ["n = Relu(t) g = Gemm(n, w, b) y = Relu(g)", "g = Gemm(t, w, b) r = Relu(t) y = ReduceMax(r)"]
)
def test_pixels_that_others_compute_with_are_not_the_input_of_one_layer(end: str) -> None:
    for linear in find_layers(pixel_graph(end)).linears.values():
        assert not linear.reads_pixels
        with pytest.raises(GraphError, match="expected 'g' to read the pixels, found another input"):
            linear.center_pixels(np.array(1, np.float32))


@pytest.mark.parametrize("inputs", [[], [None]])
def test_an_input_that_is_left_out_is_named(inputs: list[None]) -> None:
    with pytest.raises(GraphError, match=r"expected input 0 of node 'move' \(Transpose\), found none"):
        expect_input(ir.node("Transpose", inputs, name="move"), 0)
