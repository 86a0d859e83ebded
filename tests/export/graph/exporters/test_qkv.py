"""One linear layer for query, key and value becomes three, and only where every feature is taken once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import ArrayLike

from export.graph.exporters.qkv import split_qkv
from tests.support.small_graphs import build, run

X = np.random.default_rng(0).normal(scale=3, size=(2, 3, 4)).astype(np.float32)


def built(lines: str, constants: Mapping[str, ArrayLike], output: str, x: str = "float[2, 3, 4]") -> ir.Model:
    """A graph x → y with shapes."""
    return build(lines, constants, inputs=f"{x} x", outputs=f"{output} y")


def test_a_head_that_reads_features_apart_is_no_qkv() -> None:
    """Two slices that leave a feature out, or take one twice: nothing may be split."""
    for stop, split in ((4, True), (5, False), (3, False)):
        model = built(
            "a = MatMul(x, w) low = Slice(a, zero, stop, axis) high = Slice(a, four, eight, axis)"
            " y = Concat<axis = 2>(low, high)",
            {
                "w": np.ones((4, 8), np.float32),
                "zero": [0], "stop": [stop], "four": [4], "eight": [8], "axis": [2],
            },
            f"float[2, 3, {stop + 4}]",
        )  # fmt: skip
        assert split_qkv(model) == split


QKV = "m = MatMul(x, w) s = Add(m, b) r = Reshape(s, apart) q = Reshape(r, parts) " + " ".join(
    f"v{index} = Gather <axis = {{axis}}> (q, part{index})" for index in range(3)
)


@pytest.mark.parametrize(("parts", "axis"), [([2, 3, 3, 2, 2], 2), ([2, 3, 2, 3, 2], 3)])
def test_parts_may_be_taken_behind_two_reshapes(parts: list[int], axis: int) -> None:
    random = np.random.default_rng(0)
    constants: dict[str, object] = {f"part{index}": index for index in range(3)}
    constants |= {"apart": [2, 3, 6, 2], "parts": parts}
    constants |= {"w": random.normal(size=(4, 12)).astype(np.float32), "b": np.arange(12, dtype=np.float32)}
    lines = QKV.replace("{axis}", str(axis)) + " a = Mul(v0, v1) y = Sub(a, v2)"
    model = built(lines, constants, "float[2, 3, 2, 2]")
    before = run(model, X)
    assert split_qkv(model) == 1
    np.testing.assert_allclose(run(model, X), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("linear", "source"),
    [("m = MatMul(x, w) s = Add(m, b)", "float[2, 3, 4]"), ("s = Gemm(x, w, b)", "float[3, 4]")],
)
def test_a_bias_of_each_row_is_not_split(linear: str, source: str) -> None:
    lines = f"{linear} p, q, r = Split <axis = -1, num_outputs = 3> (s) a = Mul(p, q) y = Sub(a, r)"
    constants = {"w": np.ones((4, 3), np.float32), "b": np.arange(3, dtype=np.float32).reshape(3, 1)}
    assert split_qkv(built(lines, constants, source.replace("4", "1"), source)) == 0
