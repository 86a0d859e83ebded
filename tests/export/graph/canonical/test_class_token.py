"""The selection of one token moves up as far as each token is treated alike, and no further."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import sizes
from export.graph.canonical.class_token import select_class_token
from tests.support.small_graphs import build, node, op_types

TYPES = {"inputs": "float[N, 3, 4] x", "outputs": "float[] y"}


@pytest.fixture
def graph(random):
    def make(lines: str, **constants: np.ndarray) -> ir.Model:
        known = {
            "first": 0,
            "second": [1],
            "both": [0, 2],
            "w": random(4, 5),
            "g": random(4),
            "table": random(1, 3, 4),
            "by_token": random(3, 1),
            "by_feature": random(4),
            "number": np.float32(2),
            "apart": [-1, 3, 2, 2],
            "together": [-1, 3, 4],
            "flat": [-1, 12],
        }
        return build(lines, known | constants, **TYPES)

    return make


def rank(model: ir.Model, name: str) -> list[int | None] | None:
    return sizes(node(model, name).outputs[0])


@pytest.mark.parametrize(
    ("lines", "moved"),
    [
        ("n = LayerNormalization <axis = -1> (x, g, g) y = Gather <axis = 1> (n, first)", ["n"]),
        ("n = LayerNormalization <axis = 2> (x, g, g) y = Gather <axis = 1> (n, first)", ["n"]),
        ("n = Softmax <axis = -1> (x) y = Gather <axis = 1> (n, first)", ["n"]),
        ("a = Gelu(x) b = MatMul(a, w) c = Tanh(b) y = Gather <axis = 1> (c, first)", ["a", "b", "c"]),
        ("a = Add(x, table) y = Gather <axis = 1> (a, first)", ["a"]),
        ("a = Add(x, table) y = Gather <axis = 1> (a, second)", ["a"]),
        ("a = Mul(x, by_token) y = Gather <axis = 1> (a, second)", ["a"]),
        ("a = Div(x, by_feature) b = Sub(a, number) y = Gather <axis = 1> (b, first)", ["a", "b"]),
        (
            "t = Transpose <perm = [0, 2, 1]> (x) u = Relu(t) v = Transpose <perm = [0, 2, 1]> (u)"
            " y = Gather <axis = 1> (v, second)",
            ["t", "u", "v"],
        ),
        (
            "r = Reshape(x, apart) s = Softmax <axis = -1> (r) v = Reshape(s, together)"
            " y = Gather <axis = 1> (v, second)",
            ["r", "s", "v"],
        ),
    ],
)
def test_what_treats_tokens_alike_runs_for_one(lines: str, moved: list[str], graph, random, rewrite) -> None:
    model = graph(lines)
    assert rewrite(select_class_token, model, random(2, 3, 4)) > 0
    assert op_types(model)[0] in ("Gather", "Reshape")
    for name in moved:
        assert 3 not in (rank(model, name) or [])[1:], name


@pytest.mark.parametrize(
    "lines",
    [
        "n = LayerNormalization <axis = 1> (x, norm_all, norm_all) y = Gather <axis = 1> (n, first)",
        "n = Softmax <axis = 1> (x) y = Gather <axis = 1> (n, first)",
        "n = Gelu(x) y = Gather <axis = 1> (n, both)",
        "n = Gelu(x) y = Gather <axis = 2> (n, first)",
        "n = Gelu(x) y = Gather <axis = 0> (n, first)",
        "n = Gelu(x) s = Gather <axis = 1> (n, first) m = ReduceMean <keepdims = 0> (n, axis) y = Add(s, m)",
        "n = Concat <axis = 1> (x, x) y = Gather <axis = 1> (n, first)",
        "n = CumSum(x, first_axis) y = Gather <axis = 1> (n, second)",
        "r = Reshape(x, mixed) y = Gather <axis = 1> (r, first)",
        "r = Reshape(x, flat) n = Gelu(r) y = Gather <axis = 1> (n, first)",
        "y = Gather <axis = 1> (x, first)",
        "n = Gelu(x) y = Gather <axis = 1> (n, square)",
        "n = Gelu(x) r = Reshape(n, windows) y = Gather <axis = 1> (r, first)",
    ],
    ids=[
        "norm over tokens",
        "softmax over tokens",
        "two tokens",
        "a feature",
        "an image",
        "all of it read too",
        "tokens put together",
        "a sum over tokens",
        "features and tokens mixed",
        "no tokens",
        "nothing above",
        "an axis more",
        "more images than before",
    ],
)
def test_where_tokens_meet_the_selection_stays(lines: str, graph, random, rewrite) -> None:
    constants = {"norm_all": random(3, 4), "axis": [1], "first_axis": 1, "mixed": [-1, 2, 6]}
    constants |= {"square": [[0]], "windows": [-1, 3, 2]}
    assert rewrite(select_class_token, graph(lines, **constants), random(2, 3, 4)) == 0


def test_a_residual_moves_with_what_is_added_to_it(graph, random, rewrite) -> None:
    """Two readers of one tensor each get a selection; merged, they move on together."""
    lines = """
        a = Tanh(x)
        n = LayerNormalization <axis = -1> (a, g, g)
        m = MatMul(n, square)
        s = Add(a, m)
        y = Gather <axis = 1> (s, second)
    """
    model = graph(lines, square=random(4, 4))
    assert rewrite(select_class_token, model, random(2, 3, 4)) > 0
    assert op_types(model).count("Gather") == 1
    for name in ("a", "n", "m", "s"):
        assert rank(model, name) == [None, 1, 4]


def test_keys_and_values_see_every_token(graph, random, rewrite) -> None:
    lines = """
        q = MatMul(x, square)
        k = Transpose <perm = [0, 2, 1]> (x)
        s = MatMul(q, k)
        p = Softmax <axis = -1> (s)
        m = MatMul(p, x)
        y = Gather <axis = 1> (m, first)
    """
    model = graph(lines, square=random(4, 4))
    assert rewrite(select_class_token, model, random(2, 3, 4)) > 0
    found = {name: rank(model, name) for name in ("q", "k", "s", "p", "m")}
    assert found == {
        "q": [None, 1, 4],
        "k": [None, 4, 3],
        "s": [None, 1, 3],
        "p": [None, 1, 3],
        "m": [None, 1, 4],
    }


def test_a_mixture_of_tokens_is_computed_for_one(graph, random, rewrite) -> None:
    """Its weights stand on the left and have an axis less: one of their rows is taken."""
    model = graph("m = MatMul(mixture, x) y = Gather <axis = 1> (m, second)", mixture=random(3, 3))
    assert rewrite(select_class_token, model, random(2, 3, 4)) > 0
    assert rank(model, "m") == [None, 1, 4]


def test_a_key_that_is_selected_from_is_not_the_rows_of_the_left(graph, random, rewrite) -> None:
    """Of a product, the rows are those of its left input alone: a column is all of the rows."""
    model = graph("p = MatMul(w2, x) y = Gather <axis = 2> (p, first)", w2=random(2, 3, 3))
    assert rewrite(select_class_token, model, random(2, 3, 4)) == 0
