"""Tokens before images: the whole graph turns, or none of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import sizes
from export.graph.canonical.token_major import tokens_before_batch
from tests.support.small_graphs import build, node, op_types

# Four patches of 2 × 2 and a class token of width 4, two heads of two; one block of attention.
LINES = """
    cut = Reshape(pixels, cut_shape)
    ordered = Transpose <perm = [0, 1, 3, 2, 4]> (cut)
    patches = Reshape(ordered, patch_rows)
    float = Cast <to = 1> (patches)
    embedding = Gemm(float, patch_weight, bias)
    grouped = Reshape(embedding, patch_tokens)
    batch = Shape <start = 0, end = 1> (pixels)
    token_shape = Concat <axis = 0> (batch, one, width)
    token = Expand(class_token, token_shape)
    all = Concat <axis = 1> (token, grouped)
    tokens = Add(all, position)
    rows = Reshape(tokens, width_rows)
    query = Gemm(rows, weight, bias)
    key = Gemm(rows, weight2, bias)
    query_heads = Reshape(query, heads)
    key_heads = Reshape(key, heads)
    query_first = Transpose <perm = [0, 2, 1, 3]> (query_heads)
    key_first = Transpose <perm = [0, 2, 3, 1]> (key_heads)
    value_first = Transpose <perm = [0, 2, 1, 3]> (key_heads)
    scores = MatMul(query_first, key_first)
    probabilities = Softmax <axis = -1> (scores)
    mix = MatMul(probabilities, value_first)
    tokens_first = Transpose <perm = [0, 2, 1, 3]> (mix)
    joined = Reshape(tokens_first, width_rows)
    residual = Add(joined, rows)
    back = Reshape(residual, all_tokens)
    first = Gather <axis = 1> (back, zero)
    y = Gemm(first, weight, bias)
"""


@pytest.fixture
def graph(random):
    def make(was: str = "", now: str = "", **extra: Any) -> ir.Model:
        constants: dict[str, Any] = {
            "cut_shape": [-1, 2, 2, 2, 6],
            "patch_rows": [-1, 12],
            "patch_tokens": [-1, 4, 4],
            "one": [1],
            "width": [4],
            "class_token": random(1, 1, 4),
            "position": random(1, 5, 4),
            "width_rows": [-1, 4],
            "heads": [-1, 5, 2, 2],
            "all_tokens": [-1, 5, 4],
            "zero": 0,
            "patch_weight": random(12, 4) / 99,
            "weight": random(4, 4),
            "weight2": random(4, 4, seed=2),
            "bias": random(4),
        }
        lines = " ".join(LINES.split())
        assert was in lines
        types = {"inputs": "uint8[N, 4, 4, 3] pixels", "outputs": "float[N, 4] y"}
        return build(lines.replace(was, now), constants | extra, **types)

    return make


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)


def perm(model: ir.Model, name: str) -> list[int]:
    return list(node(model, name).attributes["perm"].value)


def test_rows_are_in_the_order_of_tokens(graph, pixels, rewrite) -> None:
    model = graph()
    assert rewrite(tokens_before_batch, model, pixels) > 0
    assert perm(model, "ordered") == [1, 3, 0, 2, 4]
    assert perm(model, "query_first") == perm(model, "value_first") == [1, 0, 2]
    assert perm(model, "key_first") == [1, 2, 0]
    shapes = {
        name: sizes(node(model, name).outputs[0])
        for name in ("tokens", "query_heads", "query_first", "scores")
    }
    assert shapes == {
        "tokens": [5, None, 4],
        "query_heads": [5, None, 2],
        "query_first": [None, 5, 2],
        "scores": [None, 5, 5],
    }
    assert node(model, "all").attributes["axis"].value == 0
    assert node(model, "first").attributes["axis"].value == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_outputs_stay_for_any_batch(count: int, graph, rewrite) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), np.uint8)
    assert rewrite(tokens_before_batch, graph(), pixels) > 0


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("tokens = Add(all, position)", "tokens = Mul(all, by_feature)"),
        ("tokens = Add(all, position)", "tokens = Sub(all, number)"),
        ("tokens = Add(all, position)", "tokens = Div(all, flat_position)"),
        ("tokens = Add(all, position)", "tokens = LayerNormalization <axis = 2> (all, bias, bias)"),
        ("tokens = Add(all, position)", "moved = Gelu(all) tokens = Add(moved, all)"),
    ],
)
def test_what_is_alike_for_all_or_known_by_token_turns(
    was: str, now: str, graph, random, pixels, rewrite
) -> None:
    extra = {"by_feature": random(4), "number": np.float32(2), "flat_position": np.abs(random(5, 4)) + 1}
    assert rewrite(tokens_before_batch, graph(was, now, **extra), pixels) > 0


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("tokens = Add(all, position)", "tokens = CumSum(all, one_axis)"),
        ("tokens = Add(all, position)", "tokens = LayerNormalization <axis = 1> (all, table, table)"),
        ("tokens = Add(all, position)", "tokens = Softmax <axis = 1> (all)"),
        ("tokens = Add(all, position)", "mean = ReduceMean(all, one) tokens = Add(all, mean)"),
        (
            "probabilities = Softmax <axis = -1> (scores)",
            "masked = Add(scores, mask) probabilities = Softmax <axis = -1> (masked)",
        ),
        ("probabilities = Softmax <axis = -1> (scores)", "probabilities = Softmax <axis = 2> (scores)"),
        (
            "first = Gather <axis = 1> (back, zero) y = Gemm(first, weight, bias)",
            "turned = Transpose <perm = [0, 2, 1]> (back) first = Gather <axis = 2> (turned, zero)"
            " y = Gemm(first, weight, bias)",
        ),
        (
            "first = Gather <axis = 1> (back, zero) y =",
            "flat = Reshape(back, whole) first = Slice(flat, zeros, fours, one) y =",
        ),
    ],
    ids=[
        "a sum over tokens",
        "a norm over tokens",
        "a softmax over tokens",
        "a mean of tokens",
        "a mask by head",
        "a softmax over rows",
        "a transpose of tokens",
        "an image in one row",
    ],
)
def test_one_node_that_cannot_turn_keeps_the_whole_graph(
    was: str, now: str, graph, random, pixels, rewrite
) -> None:
    extra = {
        "one_axis": 1,
        "table": random(5, 4),
        "mask": random(1, 2, 1, 5),
        "whole": [-1, 20],
        "zeros": [0],
        "fours": [4],
    }
    assert rewrite(tokens_before_batch, graph(was, now, **extra), pixels) == 0


def test_a_transpose_in_two_steps_turns_as_well(graph, pixels, rewrite) -> None:
    was, now = (
        "key_first = Transpose <perm = [0, 2, 3, 1]> (key_heads)",
        "swapped = Transpose <perm = [0, 2, 1, 3]> (key_heads)"
        " key_first = Transpose <perm = [0, 1, 3, 2]> (swapped)",
    )
    assert rewrite(tokens_before_batch, graph(was, now), pixels) > 0


def test_without_heads_there_is_nothing_to_gain(random, rewrite, pixels) -> None:
    lines = """
        cut = Reshape(pixels, cut_shape)
        ordered = Transpose <perm = [0, 1, 3, 2, 4]> (cut)
        patches = Reshape(ordered, patch_rows)
        float = Cast <to = 1> (patches)
        grouped = Reshape(float, tokens)
        y = Gather <axis = 1> (grouped, zero)
    """
    constants = {"cut_shape": [-1, 2, 2, 2, 6], "patch_rows": [-1, 12], "tokens": [-1, 4, 12], "zero": 2}
    types = {"inputs": "uint8[N, 4, 4, 3] pixels", "outputs": "float[N, 12] y"}
    assert rewrite(tokens_before_batch, build(lines, constants, **types), pixels) == 0


ATTENTION = """
    rows = Reshape(x, width_rows)
    heads_ = Reshape(rows, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (heads_)
    k = Transpose <perm = [0, 2, 3, 1]> (heads_)
    s = MatMul(q, k)
    m = MatMul(s, q)
    b = Transpose <perm = [0, 2, 1, 3]> (m)
    j = Reshape(b, width_rows)
"""


def test_bytes_that_are_tokens_before_they_are_numbers_keep_their_order(random, rewrite) -> None:
    """Each row of the image is a token: no Transpose cuts patches, and so none can order them."""
    constants = {"width_rows": [-1, 4], "heads": [-1, 3, 2, 2], "tokens": [-1, 3, 4], "zero": 0}
    lines = f"b_ = Reshape(pixels, tokens) x = Cast <to = 1> (b_) {ATTENTION}"
    lines += "t = Reshape(j, tokens) y = Gather <axis = 1> (t, zero)"
    types = {"inputs": "uint8[N, 2, 2, 3] pixels", "outputs": "float[] y"}
    pixels = np.random.default_rng(0).integers(0, 9, (2, 2, 2, 3), np.uint8)
    assert rewrite(tokens_before_batch, build(lines, constants, **types), pixels) == 0


@pytest.mark.parametrize(
    "end", ["y = Reshape(j, tokens)", "t = Reshape(j, tokens) y = Gather <axis = 1> (t, zero)"]
)
def test_tokens_that_come_from_outside_or_leave_the_graph_keep_their_order(end: str, random, rewrite) -> None:
    constants = {"width_rows": [-1, 4], "heads": [-1, 3, 2, 2], "tokens": [-1, 3, 4], "zero": 0}
    model = build(ATTENTION + end, constants, inputs="float[N, 3, 4] x", outputs="float[] y")
    assert "MatMul" in op_types(model)
    assert rewrite(tokens_before_batch, model, random(2, 3, 4)) == 0
