"""LayerScale: one factor for each feature directly behind a linear, and nothing else, is folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import constant
from export.graph.canonical.linears import fold_layer_scale
from tests.support.small_graphs import build, node, op_types

FACTORS = np.array([0.5, -2.0, 0.0, 3.0], np.float32)


@pytest.fixture
def graph(random):
    """A linear of four features and what follows it."""

    def make(lines: str, **constants: Any) -> ir.Model:
        parameters = {"w": random(6, 4), "b": random(4), "grouped": [1, 4, 4], "g": FACTORS}
        return build(
            f"p = Gemm(x, w, b) {lines}", parameters | constants, inputs="float[4, 6] x", outputs="float[] y"
        )

    return make


@pytest.mark.parametrize(
    ("lines", "constants"),
    [
        ("y = Mul(p, g)", {}),
        ("y = Mul(g, p)", {}),
        ("r = Reshape(p, grouped) y = Mul(r, g)", {"g": FACTORS.reshape(1, 1, 4)}),
        ("r = Reshape(p, grouped) y = Mul(r, g)", {}),
        ("r = Reshape(p, grouped) y = Mul(g, r)", {"g": FACTORS.reshape(1, 4)}),
    ],
    ids=["behind", "in front", "with axes", "regrouped", "both"],
)
def test_the_factors_go_into_the_linear(
    lines: str, constants: dict[str, Any], graph, random, rewrite
) -> None:
    model = graph(lines, **constants)
    assert rewrite(fold_layer_scale, model, random(4, 6)) == 1
    assert "Mul" not in op_types(model)
    np.testing.assert_allclose(constant(node(model, "p").inputs[1]), random(6, 4) * FACTORS, rtol=1e-6)
    np.testing.assert_allclose(constant(node(model, "p").inputs[2]), random(4) * FACTORS, rtol=1e-6)


def test_two_in_a_row_both_go(graph, random, rewrite) -> None:
    assert rewrite(fold_layer_scale, graph("q = Mul(p, g) y = Mul(q, g)"), random(4, 6)) == 2


@pytest.mark.parametrize(
    ("lines", "constants"),
    [
        ("y = Mul(p, g)", {"g": FACTORS.reshape(4, 1)}),  # one for each row, of which there are as many
        ("y = Mul(p, g)", {"g": np.float32(2)}),
        ("y = Mul(p, g)", {"g": np.ones((4, 4), np.float32)}),
        ("y = Mul(p, p)", {}),
        ("y = Add(p, g)", {}),
        ("q = Mul(p, g) y = Add(p, q)", {}),
        ("a = Abs(p) y = Mul(a, g)", {}),
        ("t = Transpose <perm = [1, 0]> (p) y = Mul(t, g)", {}),
        ("r = Reshape(p, grouped) y = Mul(r, g)", {"grouped": [8, 2], "g": FACTORS[:2]}),
        ("r = Reshape(p, grouped) q = Mul(r, g) y = Add(q, r)", {}),
        ("y = Mul(p, g)", {"b": np.ones((4, 4), np.float32)}),
        ("y = Mul(p, g)", {"g": FACTORS.reshape(1, 1, 4)}),
    ],
    ids=[
        "rows",
        "a number",
        "a matrix",
        "itself",
        "a sum",
        "read twice",
        "another operator",
        "transposed",
        "features cut apart",
        "read twice, regrouped",
        "a bias for each row",
        "an axis more",
    ],
)
def test_what_is_no_layer_scale_stays(lines: str, constants: dict[str, Any], graph, random, rewrite) -> None:
    assert rewrite(fold_layer_scale, graph(lines, **constants), random(4, 6)) == 0


def test_a_product_that_leaves_the_graph_keeps_its_scale(graph, random, rewrite) -> None:
    model = graph("y = Mul(p, g)")
    model.graph.outputs.append(node(model, "p").outputs[0])
    assert rewrite(fold_layer_scale, model, random(4, 6)) == 0
