"""Reshape and Transpose: computed shapes become constants, detours go, tokens stay rows of one matrix."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.graph.edit import constant, sizes
from export.graph.canonical.layout import keep_tokens_as_rows, make_shapes_static, untangle_transposes
from tests.support.small_graphs import build, node, op_types

TYPES = {"inputs": "float[N, 3, 4] x", "outputs": "float[] y"}


def perms(model) -> list[list[int]]:
    return [list(each.attributes["perm"].value) for each in model.graph if each.op_type == "Transpose"]


def test_a_computed_shape_becomes_a_constant(random, rewrite) -> None:
    lines = """
        shape = Shape <start = 0, end = 1> (x)
        target = Concat <axis = 0> (shape, rest)
        y = Reshape(x, target)
    """
    model = build(lines, {"rest": [2, 6]}, inputs="float[N, 3, 4] x", outputs="float[N, 2, 6] y")
    assert rewrite(make_shapes_static, model, random(2, 3, 4)) == 1
    assert op_types(model) == ["Reshape"]
    target = constant(node(model, "y").inputs[1])
    assert target is not None
    assert target.tolist() == [-1, 2, 6]


def test_zeros_of_a_shape_become_sizes(random, rewrite) -> None:
    model = build("y = Reshape(x, target)", {"target": [0, 0, 2, 2]}, **TYPES)
    assert rewrite(make_shapes_static, model, random(2, 3, 4)) == 1
    target = constant(node(model, "y").inputs[1])
    assert target is not None
    assert target.tolist() == [-1, 3, 2, 2]


@pytest.mark.parametrize(
    ("target", "source"), [([-1, 12], "float[N, 3, 4] x"), ([0, 0, 2, 2], "float[N, T, 4] x")]
)
def test_a_shape_that_is_constant_or_not_known_stays(target: list[int], source: str, random, rewrite) -> None:
    model = build("y = Reshape(x, target)", {"target": target}, inputs=source, outputs="float[] y")
    assert rewrite(make_shapes_static, model, random(2, 3, 4)) == 0


DETOUR = "a = Reshape(x, flat) t = Transpose <perm = [0, 2, 1]> (a) y = Reshape(t, apart)"


@pytest.mark.parametrize("heads", [2, 3])
def test_the_detour_of_attentions_key_is_one_transpose(heads: int, random, rewrite) -> None:
    """[N, H, T, d] → [N · H, T, d] → [N · H, d, T] → [N, H, d, T]."""
    constants = {"flat": [-1, 5, 4], "apart": [-1, heads, 4, 5]}
    types = {"inputs": f"float[N, {heads}, 5, 4] x", "outputs": f"float[N, {heads}, 4, 5] y"}
    model = build(DETOUR, constants, **types)
    assert rewrite(untangle_transposes, model, random(2, heads, 5, 4)) == 1
    assert op_types(model) == ["Transpose"]
    assert perms(model) == [[0, 1, 3, 2]]


@pytest.mark.parametrize(
    ("lines", "apart"),
    [
        (DETOUR, [-1, 2, 5, 4]),  # the rows and columns are mixed, not swapped
        (DETOUR, [-1, 4, 4, 5]),  # other heads
        (DETOUR.replace("[0, 2, 1]", "[1, 0, 2]"), [-1, 2, 5, 4]),
        (DETOUR.replace("Transpose <perm = [0, 2, 1]>", "Relu"), [-1, 2, 5, 4]),
    ],
)
def test_other_ways_through_three_axes_stay(lines: str, apart: list[int], random, rewrite) -> None:
    constants = {"flat": [-1, 5, 4], "apart": apart}
    model = build(lines, constants, inputs="float[N, 2, 5, 4] x", outputs="float[] y")
    assert rewrite(untangle_transposes, model, random(2, 2, 5, 4)) == 0


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [([2, 0, 1], [2, 0, 1], [1, 2, 0]), ([1, 0, 2], [1, 2, 0], [0, 2, 1]), ([0, 2, 1], [1, 0, 2], [2, 0, 1])],
)
def test_two_transposes_are_one(
    first: list[int], second: list[int], merged: list[int], random, rewrite
) -> None:
    lines = f"t = Transpose <perm = {first}> (x) y = Transpose <perm = {second}> (t)"
    model = build(lines, {}, inputs="float[2, 3, 4] x", outputs="float[] y")
    assert rewrite(untangle_transposes, model, random(2, 3, 4)) == 1
    assert perms(model) == [merged]


@pytest.mark.parametrize("which", ["first", "second", "both"])
def test_without_a_permutation_a_transpose_reverses_the_axes(which: str, random, rewrite) -> None:
    lines = "t = Transpose <perm = [0, 2, 1]> (x) y = Transpose <perm = [1, 2, 0]> (t)"
    for perm in ["<perm = [0, 2, 1]> "] * (which != "second") + ["<perm = [1, 2, 0]> "] * (which != "first"):
        lines = lines.replace(perm, "")
    assert rewrite(untangle_transposes, build(lines, {}, outputs="float[] y"), random(2, 3, 4)) == 1


def test_what_is_moved_keeps_its_type(random, rewrite) -> None:
    lines = """
        whole = Cast <to = 7> (x)
        t = Transpose <perm = [0, 2, 1]> (whole)
        u = Transpose <perm = [2, 0, 1]> (t)
        y = Cast <to = 1> (u)
    """
    assert rewrite(untangle_transposes, build(lines, {}, outputs="float[] y"), random(2, 3, 4)) == 1


def test_a_transpose_that_something_else_reads_stays_for_it(random, rewrite) -> None:
    lines = """
        t = Transpose <perm = [0, 2, 1]> (x)
        back = Transpose <perm = [0, 2, 1]> (t)
        r = Relu(t)
        z = MatMul(back, r)
        y = MatMul(z, x)
    """
    model = build(lines, {}, inputs="float[2, 3, 4] x", outputs="float[] y")
    assert rewrite(untangle_transposes, model, random(2, 3, 4)) == 1
    assert [0, 2, 1] in perms(model)


def test_the_rows_of_an_mlp_stay_rows(random, rewrite) -> None:
    """Gemm → [N, T, …] → norm, activation, sum → rows → Gemm, as exporters write it."""
    constants = {
        "w": random(4, 4),
        "b": random(4),
        "g": random(4),
        "rows": [-1, 4],
        "grouped": [-1, 3, 4],
    }
    lines = """
        r1 = Reshape(x, rows)      p1 = Gemm(r1, w, b)   t1 = Reshape(p1, grouped)
        n = LayerNormalization <axis = -1> (t1, g, b)
        r2 = Reshape(n, rows)      p2 = Gemm(r2, w, b)   t2 = Reshape(p2, grouped)
        a = Gelu(t2)
        r3 = Reshape(a, rows)      p3 = Gemm(r3, w, b)   t3 = Reshape(p3, grouped)
        s = Add(t1, t3)
        r4 = Reshape(s, rows)      p4 = Gemm(r4, w, b)   y = Reshape(p4, grouped)
    """
    model = build(lines, constants, **TYPES)
    assert rewrite(keep_tokens_as_rows, model, random(2, 3, 4)) > 0
    assert op_types(model) == [
        "Reshape",
        "Gemm",
        "LayerNormalization",
        "Gemm",
        "Gelu",
        "Gemm",
        "Add",
        "Gemm",
        "Reshape",
    ]
    assert all(len(sizes(each.outputs[0]) or ()) == 2 for each in model.graph if each.op_type != "Reshape")
    assert node(model, "n").op_type == "LayerNormalization"  # plans speak of it by this name


@pytest.mark.parametrize("operator", ["Gelu", "Tanh", "Erf", "Sigmoid", "Relu"])
def test_each_operator_that_works_number_by_number_sinks(operator: str, random, rewrite) -> None:
    model = build(
        f"t = Reshape(x, grouped) y = {operator}(t)",
        {"grouped": [-1, 3, 4]},
        inputs="float[R, 4] x",
        outputs="float[] y",
    )
    assert rewrite(keep_tokens_as_rows, model, random(6, 4)) == 1
    assert op_types(model) == [operator, "Reshape"]


@pytest.mark.parametrize(
    "lines",
    [
        "t = Reshape(x, grouped) y = LayerNormalization <axis = 1> (t, table, table)",
        "t = Reshape(x, grouped) y = LayerNormalization <axis = -2> (t, table, table)",
        "t = Reshape(x, cut) y = LayerNormalization <axis = -1> (t, pair, pair)",
        "t = Reshape(x, grouped) y = Softmax <axis = -1> (t)",
        "t = Reshape(x, grouped) y = Add(t, table)",
        "t = Reshape(x, grouped) y = Add(t, number)",
        "t = Transpose <perm = [1, 0]> (x) y = Gelu(t)",
        "t = Reshape(x, grouped) s = Softmax <axis = 1> (t) y = Gelu(s)",
    ],
    ids=[
        "norm over tokens",
        "norm over tokens, from behind",
        "features cut apart",
        "softmax",
        "one offset for each token",
        "a number",
        "a matrix already",
        "not made by a Reshape",
    ],
)
def test_what_looks_at_more_than_a_row_stays(lines: str, random, rewrite) -> None:
    constants = {
        "grouped": [-1, 3, 4],
        "cut": [-1, 2, 2],
        "table": random(3, 4),
        "pair": random(2),
        "number": np.float32(2),
    }
    lines = f"{lines.replace('y =', 'last =')} y = Abs(last)"
    model = build(lines, constants, inputs="float[6, 4] x", outputs="float[] y")
    assert rewrite(keep_tokens_as_rows, model, random(6, 4)) == 0


def test_a_reshape_to_the_same_shape_goes_and_one_of_a_reshape_is_merged(random, rewrite) -> None:
    lines = (
        "a = Reshape(x, same) b = Reshape(a, flat) c = Reshape(b, same) r = Softmax(c) y = Reshape(r, flat)"
    )
    model = build(lines, {"same": [-1, 3, 4], "flat": [-1, 12]}, **TYPES)
    assert rewrite(keep_tokens_as_rows, model, random(2, 3, 4)) > 0
    assert op_types(model) == ["Softmax", "Reshape"]


def test_a_reshape_that_copies_sizes_is_not_merged(random, rewrite) -> None:
    """A 0 means the size of the input, which would be another one."""
    lines = "a = Reshape(x, turned) y = Reshape(a, copied)"
    model = build(
        lines, {"turned": [4, 3, -1], "copied": [0, -1]}, inputs="float[2, 3, 4] x", outputs="float[] y"
    )
    assert rewrite(keep_tokens_as_rows, model, random(2, 3, 4)) == 0
