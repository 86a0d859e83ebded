"""Candidates that a rewrite left alone are listed with the reason, and only on demand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from export.__main__ import main
from export.graph.canonical.class_token import select_class_token
from export.graph.canonical.layout import keep_tokens_as_rows
from export.graph.canonical.linears import fold_attention_scale, fold_layer_scale, linears_to_gemm
from export.graph.canonical.token_major import tokens_before_batch
from export.graph.exporters.fuse import fuse_gelu, fuse_layer_norm
from export.graph.exporters.qkv import split_qkv
from export.graph.exporters.simplify import drop_nan_guards, plain_moves
from export.graph.skipped import collect_skipped, name_rewrite, skip
from tests.support.small_graphs import build

ONES = np.ones((4, 4), np.float32)
CONSTANTS = {
    "w": ONES,
    "wide": np.ones((2, 4, 4), np.float32),
    "b": np.ones(4, np.float32),
    "by_token": np.ones((3, 1), np.float32),
    "by_head": np.ones((2, 1, 1), np.float32),
    "epsilon": np.float32(1e-5),
    "half": np.float32(0.5),
    "axis": [1],
    "last": [-1],
    "zero": [0],
    "two": [2],
    "first": 0,
    "mask": np.zeros(3, np.float32),
    "image": [4, 1],
    "block": [2, 1],
    "rows": [6, 4],
    "flat": [4, 2, 3],
}
SCORES = "t = Transpose <perm = [0, 2, 1]> (x) s = MatMul(x, t)"


def reasons(rewrite: Callable[[ir.Model], int], lines: str) -> list[str]:
    """The reasons of a rewrite that changes nothing of a graph, by node."""
    model = build(lines, CONSTANTS, inputs="float[2, 3, 4] x", outputs="float[] y")
    with collect_skipped() as skipped:
        name_rewrite(rewrite.__name__)
        assert rewrite(model) == 0
    return [f"{node.name}: {reason}" for (_, node), reason in skipped.reasons.items()]


@pytest.mark.parametrize(
    ("rewrite", "lines", "expected"),
    [
        (linears_to_gemm, "y = MatMul(x, wide)", "y: its weight has 3 axes"),
        (fold_layer_scale, "r = Reshape(x, rows) p = Gemm(r, w, b) y = Mul(p, half)", "y: its factors"),
        (fold_attention_scale, f"{SCORES} m = Mul(s, by_head) y = Softmax(m)", "y: .* differs per head"),
        (fold_attention_scale, f"{SCORES} m = Mul(s, half) n = Add(m, mask) y = Softmax(n)", "y: a mask"),
        (fold_attention_scale, f"{SCORES} m = Mul(s, half) y = Softmax(m)", "y: its query is not"),
        (select_class_token, "n = CumSum(x, first) y = Gather <axis = 1> (n, zero)", "y: .* above CumSum"),
        (fuse_gelu, "a = Erf(x) b_ = Add(a, half) y = Mul(a, b_)", "a: .* values of a GELU"),
        (
            fuse_layer_norm,
            "m = ReduceMean(x, axis) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axis) "
            "e = Add(v, epsilon) r = Sqrt(e) y = Div(d, r)",
            "r: .* standard deviation over the last axis",
        ),
        (
            split_qkv,
            "p = MatMul(x, w) a = Slice(p, zero, axis, last) c = Slice(p, axis, two, last) y = Add(a, c)",
            "p: the parts of its features leave some out",
        ),
        (
            drop_nan_guards,
            f"{SCORES} n = Add(s, mask) p = Softmax(n) g = IsNaN(p) y = Where(g, half, p)",
            "y: a mask can leave a row",
        ),
        (
            plain_moves,
            "z = Reshape(x, flat) y = Col2Im <strides = [1, 1]> (z, image, block)",
            "y: its blocks overlap",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_candidate_that_stays_has_a_reason(
    rewrite: Callable[[ir.Model], int], lines: str, expected: str
) -> None:
    (found,) = reasons(rewrite, lines)
    assert re.match(expected, found), found


@pytest.mark.parametrize(
    ("rewrite", "lines"),
    [
        (linears_to_gemm, f"{SCORES} y = Relu(s)"),
        (fold_layer_scale, "y = Mul(x, b)"),
        (fold_attention_scale, f"{SCORES} y = Softmax(s)"),
        (select_class_token, "y = Gather <axis = 2> (x, zero)"),
        (fuse_gelu, "y = Tanh(x)"),
        (fuse_layer_norm, "y = Sqrt(x)"),
        (keep_tokens_as_rows, "a = Relu(x) y = Abs(a)"),
        (tokens_before_batch, "y = Relu(x)"),
        (split_qkv, "p = MatMul(x, w) y = Relu(p)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_plainly_something_else_is_not_listed(rewrite: Callable[[ir.Model], int], lines: str) -> None:
    assert reasons(rewrite, lines) == []


def test_nothing_is_collected_outside_and_a_node_that_is_gone_is_not_listed() -> None:
    model = build("a = Relu(x) y = Abs(a)", {})
    relu, last = model.graph
    assert skip(relu, "outside") is False
    with collect_skipped(wanted=False) as nothing:
        skip(relu, "not wanted")
    assert nothing.reasons == {}
    with collect_skipped() as skipped:
        name_rewrite("some_rewrite")
        skip(relu, "will be replaced")
        skip(last, "first reason")
        skip(last, "last reason")
    last.replace_input_with(0, relu.inputs[0])
    model.graph.remove(relu, safe=True)
    assert skipped.lines()[2:] == ["some_rewrite: y (Abs) stays as it is: last reason"]


def test_verbose_lists_the_layers_of_an_onnx_model_that_stay(
    other_onnx: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(other_onnx("transformers eager", 17, 1))
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    scale = np.array([1.5, 0.5, 1.0], np.float32).reshape(3, 1, 1)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(scale, "by_head"))
    index = list(proto.graph.node).index(softmax)
    scaled = onnx.helper.make_node("Mul", [softmax.input[0], "by_head"], ["scaled"], name="scaled")
    softmax.input[0] = "scaled"
    proto.graph.node.insert(index, scaled)
    model, spec = tmp_path / "model.onnx", tmp_path / "spec.json"
    onnx.save(proto, model)
    description = {"preprocess": {"size": [16, 16]}, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    spec.write_text(json.dumps(description), encoding="utf-8")
    (tmp_path / "photos").mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    command = ["--onnx", str(model), "--preprocess", str(spec), "--evaluate", str(tmp_path / "photos")]
    command += ["--out", str(tmp_path / "out")]
    assert main([*command, "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = lines[lines.index("Left alone by the rewrites:") + 1 :]
    assert any("fold_attention_scale: " in line and "differs per head" in line for line in listed), listed
    assert main(command) == 0
    assert "Left alone" not in capsys.readouterr().out
