"""Operators that do nothing, or move numbers in an unusual way, go; what only looks like one stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import ArrayLike

from export.graph.exporters.simplify import drop_nan_guards, drop_no_ops, plain_moves
from tests.support.small_graphs import build, op_types, run

X = np.random.default_rng(0).normal(scale=3, size=(2, 3, 4)).astype(np.float32)


def built(lines: str, constants: Mapping[str, ArrayLike], output: str, x: str = "float[2, 3, 4]") -> ir.Model:
    """A graph x → y with shapes."""
    return build(lines, constants, inputs=f"{x} x", outputs=f"{output} y")


def count(model: ir.Model) -> Counter[str]:
    return Counter(op_types(model))


def test_a_guard_of_masked_rows_stays() -> None:
    lines = "a = MatMul(x, w) {} p = Softmax(s) g = IsNaN(p) y = Where(g, nought, p)"
    constants = {
        "w": np.eye(4, dtype=np.float32),
        "m": np.full(4, -np.inf, np.float32),
        "nought": np.float32(0),
    }
    masked = built(lines.format("s = Add(a, m)"), constants, "float[2, 3, 4]")
    assert drop_nan_guards(masked) == 0
    free = built(lines.format("s = Mul(a, scale)"), {**constants, "scale": np.float32(2)}, "float[2, 3, 4]")
    assert drop_nan_guards(free) == 1
    assert count(free) == {"MatMul": 1, "Mul": 1, "Softmax": 1}


FOLD = "y = Col2Im <strides = [{}]> (x, image, block)"


@pytest.mark.parametrize(("strides", "changed"), [("2, 3", 1), ("1, 1", 0)])
def test_blocks_that_do_not_overlap_are_moved(strides, changed) -> None:
    places = 2 * 2 if changed else 3 * 4  # down and across
    source = np.random.default_rng(0).normal(size=(2, 5 * 6, places)).astype(np.float32)
    constants = {"image": [4, 6], "block": [2, 3]}
    model = built(FOLD.format(strides), constants, "float[2, 5, 4, 6]", x=f"float[2, 30, {places}]")
    expected = run(model, source)
    assert plain_moves(model) == changed
    assert ("Col2Im" in count(model)) != bool(changed)
    np.testing.assert_array_equal(run(model, source), expected)


def test_an_assignment_to_everything_is_what_was_assigned() -> None:
    lines = "a = Mul(x, x) y = ScatterND(x, places, a)"
    whole = np.stack(np.meshgrid(range(2), range(3), indexing="ij"), -1)
    model = built(lines, {"places": whole}, "float[2, 3, 4]")
    assert plain_moves(model) == 1
    np.testing.assert_array_equal(run(model, X), X * X)
    for other in (whole[:, ::-1], np.zeros_like(whole)):  # another order; one place many times
        assert plain_moves(built(lines, {"places": other}, "float[2, 3, 4]")) == 0
    some = built("a = Slice(x, nought, one) y = ScatterND(x, places, a)",
                 {"places": whole[:1], "nought": [0], "one": [1]}, "float[2, 3, 4]")  # fmt: skip
    assert plain_moves(some) == 0


def test_no_ops_go_and_lookalikes_stay() -> None:
    lines = "a = Add(x, nought) b = Mul(one, a) c = Identity(b) y = Mul(c, {})"
    constants = {
        "nought": np.zeros(4, np.float32),
        "one": np.float32(1),
        "spread": np.ones((5, 1, 1, 4), np.float32),
    }
    model = built(lines.format("one"), constants, "float[2, 3, 4]")
    assert drop_no_ops(model) >= 3
    assert len(list(model.graph)) <= 1  # the last one carries the input to the output
    spreading = built(lines.format("spread"), constants, "float[5, 2, 3, 4]")
    drop_no_ops(spreading)
    assert count(spreading) == {"Mul": 1}
