"""The scale of attention, wherever an exporter writes it, moves into the query."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import constant
from export.graph.canonical.linears import fold_attention_scale
from tests.support.small_graphs import ATTENTION, MLP, block, node, op_types

CONSTANTS = {
    "scale": np.float32(0.5),
    "root": np.array([0.8], np.float32),
    "two": np.array([[[2.0]]], np.float32),
    "by_head": np.array([[[0.5]], [[2.0]]], np.float32),
    "zero": np.float32(0),
}


def attention(**nodes: str) -> ir.Model:
    """A block in which tensors go through other nodes first: `scores="Mul(scores, scale)"`."""
    lines = ATTENTION + MLP
    readers = {
        "scores": "Softmax <axis = -1> (scores)",
        "query_first": "MatMul(query_first,",
        "key_first": "MatMul(query_first, key_first)",
        "query_heads": "(query_heads)",
        "query": "Reshape(query, heads)",
    }
    for name, operation in nodes.items():
        old = readers[name]
        assert lines.count(old) == 1, name
        start = lines.rindex("\n", 0, lines.index(old))
        new = lines[start:].replace(old, old.replace(name, f"{name}_scaled"), 1)
        lines = f"{lines[:start]}\n    {name}_scaled = {operation}{new}"
        readers = {key: value.replace(f"{name},", f"{name}_scaled,") for key, value in readers.items()}
    return block(lines=lines, extra=CONSTANTS)


@pytest.fixture
def x(random) -> np.ndarray:
    return random(5, 8)


@pytest.mark.parametrize(
    ("nodes", "factor"),
    [
        ({"scores": "Mul(scores, scale)"}, 0.5),
        ({"scores": "Mul(scale, scores)"}, 0.5),
        ({"scores": "Div(scores, two)"}, 0.5),
        ({"query_first": "Mul(query_first, scale)"}, 0.5),
        ({"query_heads": "Mul(query_heads, scale)"}, 0.5),
        ({"query": "Div(query, two)"}, 0.5),
        ({"query_first": "Mul(query_first, root)", "key_first": "Mul(key_first, root)"}, 0.64),
        ({"scores": "Mul(scores, root)", "query": "Mul(query, scale)"}, 0.4),
    ],
    ids=str,
)
def test_the_scale_goes_into_the_query(nodes: dict[str, str], factor: float, x, rewrite) -> None:
    model = attention(**nodes)
    before = {name: [constant(node(model, name).inputs[i]) for i in (1, 2)] for name in ("query", "key")}
    assert rewrite(fold_attention_scale, model, x) == 1
    assert not {"Mul", "Div"} & set(op_types(model))
    for index, part in enumerate(before["query"], start=1):
        np.testing.assert_allclose(constant(node(model, "query").inputs[index]), part * factor, rtol=1e-6)
    for index, part in enumerate(before["key"], start=1):
        np.testing.assert_array_equal(constant(node(model, "key").inputs[index]), part)


@pytest.mark.parametrize(
    "nodes",
    [
        {},
        {"scores": "Mul(scores, by_head)"},
        {"scores": "Mul(scores, scores)"},
        {"scores": "Div(two, scores)"},
        {"scores": "Add(scores, scale)"},
        {"scores": "Div(scores, zero)"},
        {"query": "Relu(query)", "scores": "Mul(scores, scale)"},
    ],
    ids=str,
)
def test_what_is_no_scale_stays(nodes: dict[str, str], x, rewrite) -> None:
    model = attention(**nodes)
    assert fold_attention_scale(model.clone()) == 0
    if "Div(scores, zero)" not in nodes.values():  # whose outputs are not finite
        assert rewrite(fold_attention_scale, model, x) == 0


def test_a_scale_of_zero_is_not_lost(x, rewrite) -> None:
    """Every token then listens to all others alike."""
    assert rewrite(fold_attention_scale, attention(scores="Mul(scores, zero)"), x) == 1


def test_scores_that_something_else_reads_keep_their_scale(x, rewrite) -> None:
    lines = ATTENTION.replace("Softmax <axis = -1> (scores)", "Softmax <axis = -1> (scaled)")
    lines = lines.replace("probabilities =", "scaled = Mul(scores, scale) probabilities =")
    seen = "first = ReduceMean <keepdims = 0> (scores) shifted = Add(residual, first)"
    lines += seen + MLP.replace("residual", "shifted")
    model = block(lines=lines, extra=CONSTANTS)
    assert rewrite(fold_attention_scale, model, x) == 0


def test_a_scaled_query_that_something_else_reads_keeps_its_scale(x, rewrite) -> None:
    lines = (ATTENTION + MLP).replace("MatMul(query_first,", "MatMul(scaled,")
    lines = lines.replace("scores =", "scaled = Mul(query_first, scale) scores =")
    seen = "first = ReduceMean <keepdims = 0> (scaled) joined_ = Add(joined, first) proj = Gemm(joined_"
    model = block(lines=lines.replace("proj = Gemm(joined", seen), extra=CONSTANTS)
    assert rewrite(fold_attention_scale, model, x) == 0


def test_a_query_whose_gemm_something_else_reads_is_not_scaled(x, rewrite) -> None:
    lines = (ATTENTION + MLP).replace("MatMul(query_first,", "MatMul(scaled,")
    lines = lines.replace("scores =", "scaled = Mul(query_first, scale) scores =")
    seen = "joined_ = Add(joined, query) proj = Gemm(joined_"
    model = block(lines=lines.replace("proj = Gemm(joined", seen), extra=CONSTANTS)
    assert rewrite(fold_attention_scale, model, x) == 0
