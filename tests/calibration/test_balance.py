"""Balancing: the scales follow the range of each feature, and moving them changes no output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.balance import (
    STRENGTHS,
    BalanceGroup,
    apply_balance_scales,
    compute_balance_scales,
    find_balance_groups,
)
from calibration.graph.edit import constant
from calibration.graph.layers import find_layers
from tests.support.small_graphs import ATTENTION, MLP, block, build, node, run

X = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
ranges = hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(0.0078125, 100, width=32))
strengths = st.sampled_from(STRENGTHS)


def groups(model: ir.Model) -> dict[str, BalanceGroup]:
    return {group.name: group for group in find_balance_groups(find_layers(model))}


def test_a_strength_of_zero_is_among_the_choices_and_comes_first() -> None:
    """The first of equal choices wins, and a plan without scales is the simpler one."""
    assert STRENGTHS[0] == 0.0
    assert list(STRENGTHS) == sorted(set(STRENGTHS))
    assert STRENGTHS[-1] < 1


@given(ranges, strengths, st.integers(0, 99))
def test_scales_are_the_ranges_to_the_power_of_the_strength(
    reach: np.ndarray, strength: float, seed: int
) -> None:
    reach = np.maximum(reach, reach.max() / 900)  # above the floor, which has a test of its own
    one_sided = np.random.default_rng(seed).random(len(reach)) < 0.5
    other = reach * np.float32(0.25)
    low, high = -np.where(one_sided, reach, other), np.where(one_sided, other, reach)
    scales = compute_balance_scales(low, high, strength)
    assert scales.dtype == np.float32
    expected = (reach / reach[0]).astype(np.float64) ** strength
    np.testing.assert_allclose(scales / scales[0], expected, rtol=1e-5)
    assert np.exp(np.log(scales.astype(np.float64)).mean()) == pytest.approx(1.0, rel=1e-5)


@given(ranges)
def test_a_strength_of_one_makes_all_features_equal_and_of_zero_leaves_them(reach: np.ndarray) -> None:
    reach = np.maximum(reach, reach.max() / 900)
    np.testing.assert_array_equal(compute_balance_scales(-reach, reach, 0.0), np.ones(len(reach), np.float32))
    np.testing.assert_allclose(
        np.ptp(reach / compute_balance_scales(-reach, reach, 1.0)), 0, atol=1e-3 * reach.max()
    )


def test_a_feature_that_never_moves_is_scaled_as_if_it_had_a_thousandth_of_the_range() -> None:
    low, high = np.array([-2.0, 0.0, -1e-9], np.float32), np.array([1.0, 0.0, 0.0], np.float32)
    found = compute_balance_scales(low, high, 0.5)
    np.testing.assert_allclose(found[0] / found[1:], 1000**0.5, rtol=1e-5)
    assert np.isfinite(compute_balance_scales(np.zeros(3), np.zeros(3), 0.75)).all()


def test_a_range_beside_zero_counts_by_its_larger_end() -> None:
    low, high = np.array([3.0, -5.0], np.float32), np.array([4.0, -1.0], np.float32)
    np.testing.assert_allclose(np.divide(*compute_balance_scales(low, high, 0.5)), (4 / 5) ** 0.5, rtol=1e-5)


def test_the_places_are_the_norms_and_the_value_linear() -> None:
    model = block()
    found = {
        name: (group.producer, [linear.name for linear in group.linears])
        for name, group in groups(model).items()
    }
    assert found == {
        "norm1": (node(model, "norm1"), ["query", "key", "value"]),
        "norm2": (node(model, "norm2"), ["fc1"]),
        "value": (node(model, "value"), ["proj"]),
    }


scale_vectors = st.lists(st.floats(0.125, 8, width=32), min_size=8, max_size=8)


@given(st.integers(0, 5), st.sampled_from(["norm1", "norm2", "value"]), scale_vectors)
@settings(max_examples=25)
def test_moving_scales_leaves_the_output(seed: int, name: str, scales: list[float]) -> None:
    model = block(seed=seed)
    expected = run(model, X)
    apply_balance_scales(groups(model)[name], np.array(scales, np.float32))
    np.testing.assert_allclose(run(model, X), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@given(st.integers(0, 5), scale_vectors, scale_vectors)
@settings(max_examples=15)
def test_a_value_linear_is_scaled_on_both_sides(seed: int, into: list[float], out_of: list[float]) -> None:
    """Its rows by what its input was divided by, its columns by what its output is: both at once."""
    model = block(seed=seed)
    expected = run(model, X)
    before = constant(node(model, "value").inputs[1])
    assert before is not None
    found = groups(model)
    for name, scales in {"norm1": into, "value": out_of}.items():
        apply_balance_scales(found[name], np.array(scales, np.float32))
    weight = constant(node(model, "value").inputs[1])
    np.testing.assert_allclose(weight, before * np.array(into)[:, None] / np.array(out_of), rtol=1e-5)
    np.testing.assert_allclose(run(model, X), expected, rtol=0, atol=3e-5 * np.abs(expected).max())


def test_what_the_producer_gives_is_divided() -> None:
    model = block()
    scales = np.linspace(0.5, 4, 8, dtype=np.float32)
    before = {
        name: constant(node(model, "norm1").inputs[index]) for index, name in ((1, "scale"), (2, "bias"))
    }
    apply_balance_scales(groups(model)["norm1"], scales)
    norm = node(model, "norm1")
    for index, name in ((1, "scale"), (2, "bias")):
        now = constant(norm.inputs[index])
        assert now is not None
        assert now.dtype == np.float32
        np.testing.assert_allclose(now, before[name] / scales, rtol=1e-6)
    names = [value.name for value in (*norm.inputs[1:], node(model, "query").inputs[1])]
    assert names == ["norm1.weight.balanced", "norm1.bias.balanced", "query.weight.balanced"]


def test_a_norm_without_a_bias_is_a_place_too() -> None:
    model = block()
    node(model, "norm2").resize_inputs(2)
    expected = run(model, X)
    apply_balance_scales(groups(model)["norm2"], np.linspace(0.5, 4, 8, dtype=np.float32))
    assert len(node(model, "norm2").inputs) == 2
    np.testing.assert_allclose(run(model, X), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def without(name: str, was: str, now: str) -> dict[str, BalanceGroup]:
    """The places of a block in which one node reads something else."""
    lines = ATTENTION + MLP
    assert lines.count(was) == 1, name
    return groups(block(lines=lines.replace(was, now)))


def test_a_norm_that_something_else_reads_is_no_place() -> None:
    assert "norm2" not in without("the residual", "y = Add(residual, fc2)", "y = Add(norm2, fc2)")
    lines = (ATTENTION + MLP).replace("(residual, norm2_scale,", "(residual, computed,")
    computed = "computed = ReduceMean <keepdims = 0> (x, first_axis)"
    assert list(groups(block(lines=computed + lines, extra={"first_axis": [0]}))) == ["norm1", "value"]


def test_a_value_that_something_else_reads_is_no_place() -> None:
    assert "value" not in without("the residual", "residual = Add(x, proj)", "residual = Add(value, proj)")
    assert "value" not in without("the mix", "residual = Add(x, proj)", "residual = Add(joined, proj)")


def test_only_what_a_softmax_weighs_is_a_value() -> None:
    """A product of two other tensors is not known to be linear in its right one alone."""
    assert "value" not in without("softmax", "Softmax <axis = -1> (scores)", "Sigmoid(scores)")


def test_a_value_is_no_place_when_what_reads_the_mix_is_not_a_linear() -> None:
    was, now = "proj = Gemm(joined, proj_weight, proj_bias)", "proj = Relu(joined)"
    assert list(without("relu", was, now)) == ["norm1", "norm2"]


def test_heads_that_share_a_value_are_no_place() -> None:
    """The reader has more input features than the value has output features."""
    constants = {
        "w": np.ones((4, 2), np.float32),
        "b": np.ones(2, np.float32),
        "w2": np.ones((4, 4), np.float32),
        "b2": np.ones(4, np.float32),
        "rows": [3, 4],
        "heads": [1, 3, 2],
    }
    lines = """
        v = Gemm(x, w, b)
        one = Reshape(v, heads)
        p = Softmax(scores)
        m = MatMul(p, one)
        t = Transpose <perm = [1, 0, 2]> (m)
        j = Reshape(t, rows)
        y = Gemm(j, w2, b2)
    """
    model = build(lines, constants, inputs="float[3, 4] x, float[2, 3, 3] scores", outputs="float[3, 4] y")
    assert run(model, X[:3, :4], np.zeros((2, 3, 3), np.float32)).shape == (3, 4)
    assert groups(model) == {}
    alone = build(
        "v = Gemm(x, w2, b2) one = Reshape(v, heads) p = Softmax(scores) m = MatMul(p, one)"
        " j = Reshape(m, rows) y = Gemm(j, w2, b2)",
        constants | {"heads": [1, 3, 4]},
        inputs="float[3, 4] x, float[1, 3, 3] scores",
        outputs="float[3, 4] y",
    )
    assert list(groups(alone)) == ["v"]


def test_a_selected_token_is_read_through() -> None:
    """The class token alone goes on to the head: the norm in front of the selection carries scales."""
    constants = {
        "g": np.ones(4, np.float32),
        "b": np.ones(4, np.float32),
        "w": np.ones((4, 2), np.float32),
        "c": np.ones(2, np.float32),
        "first": 0,
    }
    model = build(
        "n = LayerNormalization <axis = -1> (x, g, b) t = Gather <axis = 1> (n, first) y = Gemm(t, w, c)",
        constants,
        inputs="float[2, 3, 4] x",
        outputs="float[2, 2] y",
    )
    (group,) = groups(model).values()
    assert (group.name, [linear.name for linear in group.linears]) == ("n", ["y"])


@pytest.mark.parametrize("output", ["n", "first_of_n", "row_of_n"])
def test_a_norm_that_leaves_the_graph_is_no_place_and_those_after_it_are(output: str) -> None:
    """As an embedding does, whole or selected: whoever reads it would find the scales in it."""
    constants = {
        "g": np.ones(4, np.float32),
        "b": np.ones(4, np.float32),
        "w": np.ones((4, 4), np.float32),
        "first": 0,
        "row": [-1, 4],
    }
    model = build(
        """
        n = LayerNormalization <axis = -1> (x, g, b)
        first_of_n = Gather <axis = 0> (n, first)
        row_of_n = Reshape(first_of_n, row)
        fc = Gemm(n, w, b)
        n2 = LayerNormalization <axis = -1> (fc, g, b)
        y = Gemm(n2, w, b)
        """,
        constants,
        inputs="float[3, 4] x",
        outputs="float[3, 4] y",
    )
    assert list(groups(model)) == ["n", "n2"]
    (value,) = node(model, output).outputs
    model.graph.outputs.append(value)
    assert list(groups(model)) == ["n2"]


def test_the_values_of_attention_are_a_place_before_a_narrow_linear() -> None:
    constants = {
        "v_weight": np.ones((4, 4), np.float32),
        "y_weight": np.ones((4, 2), np.float32),
        "v_bias": np.ones(4, np.float32),
        "y_bias": np.ones(2, np.float32),
    }
    model = build(
        "v = Gemm(x, v_weight, v_bias) p = Softmax(scores) m = MatMul(p, v) y = Gemm(m, y_weight, y_bias)",
        constants,
        inputs="float[3, 4] x, float[3, 3] scores",
        outputs="float[3, 2] y",
    )
    assert list(groups(model)) == ["v"]
