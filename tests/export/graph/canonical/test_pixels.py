"""The way in: a normalization goes into the convolution, and the convolution becomes a Gemm on bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError, constant, sizes
from export.graph.canonical.pixels import dequantize_pixels, fold_normalization, patches_as_gemm
from tests.support.small_graphs import build, node, op_types

TYPES = {"inputs": "uint8[N, 4, 6, 3] pixels", "outputs": "float[] y"}
CONV = "y = Conv <strides = [2, 2]> ({}, w, b)"
EMBEDDING = """
    f = Cast <to = 1> (pixels)
    t = Transpose <perm = [0, 3, 1, 2]> (f)
    p = Conv <strides = [2, 2]> (t, w, b)
    r = Reshape(p, flat)
    y = Transpose <perm = [0, 2, 1]> (r)
"""


@pytest.fixture
def graph(random):
    def make(lines: str, **constants: Any) -> ir.Model:
        channels = {
            "mean": np.array([10.0, 20.0, 30.0], np.float32),
            "std": np.array([2.0, 4.0, 5.0], np.float32),
            "number": np.float32(0.5),
            "w": random(5, 3, 2, 2),
            "b": random(5),
            "flat": [-1, 5, 6],
        }
        channels |= {f"{name}_first": channels[name].reshape(3, 1, 1) for name in ("mean", "std")}
        return build(lines, channels | constants, **TYPES)

    return make


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)


def before_conv(steps: str) -> str:
    """Nodes from `f`, which is [N, H, W, 3], to `x`, then a Transpose and the convolution."""
    return f"f = Cast <to = 1> (pixels) {steps} t = Transpose <perm = [0, 3, 1, 2]> (x) {CONV.format('t')}"


def test_another_reader_keeps_its_normalization(graph, pixels, rewrite) -> None:
    """Two branches: one cuts patches, one works on the normalized image itself, as CrossViT does."""
    model = graph(
        """
        f = Cast <to = 1> (pixels) s = Sub(f, mean) x = Div(s, std)
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        p = Conv <strides = [2, 2]> (t, w, b)
        a = GlobalAveragePool(p)
        c = Relu(t)
        d = Conv(c, w, b)
        e = GlobalMaxPool(d)
        y = Add(a, e)
        """
    )
    assert rewrite(fold_normalization, model, pixels) == 1
    conv = node(model, "p")
    assert [
        each.op_type for each in (conv.inputs[0].producer(), conv.inputs[0].producer().inputs[0].producer())
    ] == [
        "Transpose",
        "Cast",
    ]


@pytest.mark.parametrize(
    ("steps", "gain", "offset"),
    [
        ("s = Sub(f, mean) x = Div(s, std)", [1 / 2, 1 / 4, 1 / 5], [-5, -5, -6]),
        ("s = Div(f, std) x = Sub(s, mean)", [1 / 2, 1 / 4, 1 / 5], [-10, -20, -30]),
        ("s = Mul(f, number) x = Add(s, mean)", [0.5, 0.5, 0.5], [10, 20, 30]),
        ("s = Mul(number, f) x = Add(mean, s)", [0.5, 0.5, 0.5], [10, 20, 30]),
        (
            "a = Mul(f, number) b_ = Sub(a, mean) c = Div(b_, std) x = Mul(c, number)",
            [1 / 8, 1 / 16, 1 / 20],
            [-2.5, -2.5, -3],
        ),
        ("x = Add(f, number)", [1, 1, 1], [0.5, 0.5, 0.5]),
    ],
)
def test_each_form_of_a_normalization_goes(
    steps: str, gain: list[float], offset: list[float], graph, pixels, random, rewrite
) -> None:
    model = graph(before_conv(steps))
    assert rewrite(fold_normalization, model, pixels) == 1
    assert op_types(model) == ["Cast", "Transpose", "Conv"]
    weight, conv = random(5, 3, 2, 2), node(model, "y")
    np.testing.assert_allclose(
        constant(conv.inputs[1]), weight * np.array(gain)[:, None, None], rtol=1e-5, atol=1e-7
    )
    shift = (weight * np.array(offset)[:, None, None]).sum((1, 2, 3))
    np.testing.assert_allclose(constant(conv.inputs[2]), random(5) + shift, rtol=1e-4, atol=1e-5)


def test_it_may_stand_behind_the_transpose_and_the_convolution_may_have_no_bias(
    graph, pixels, rewrite
) -> None:
    model = graph(
        "f = Cast <to = 1> (pixels) t = Transpose <perm = [0, 3, 1, 2]> (f) s = Sub(t, mean_first)"
        " x = Div(s, std_first) y = Conv <strides = [2, 2]> (x, w)"
    )
    assert rewrite(fold_normalization, model, pixels) == 1
    assert op_types(model) == ["Cast", "Transpose", "Conv"]


@pytest.mark.parametrize(
    "lines",
    [
        before_conv("x = Identity(f)").replace(" x = Identity(f)", "").replace("(x)", "(f)"),
        before_conv("x = Sub(f, mean)").replace("strides = [2, 2]", "strides = [2, 2], pads = [1, 1, 1, 1]"),
        before_conv("x = Sub(f, mean)").replace("[2, 2]>", '[2, 2], auto_pad = "SAME_UPPER">'),
        before_conv("x = Sub(f, mean)").replace("strides = [2, 2]", "strides = [1, 1]"),
        before_conv("x = Sub(f, mean)").replace("strides = [2, 2]", "strides = [2, 1]"),
        before_conv("x = Sub(f, mean)").replace("(t, w, b)", "(t, oblong, b)"),
        before_conv("x = Sub(f, mean)").replace("<strides = [2, 2]>", ""),
    ],
    ids=[
        "no normalization",
        "padding",
        "automatic padding",
        "overlap",
        "overlap one way",
        "oblong",
        "no strides",
    ],
)
def test_only_patches_that_do_not_overlap_take_it(lines: str, graph, pixels, random, rewrite) -> None:
    """At the border of an image padding adds zeros, which are no pixels: the offset would be wrong there."""
    assert rewrite(fold_normalization, graph(lines, oblong=random(5, 3, 2, 1)), pixels) == 0


@pytest.mark.parametrize(
    "steps",
    [
        "x = Relu(f)",
        "x = Sub(mean, f)",
        "x = Div(number, f)",
        "x = Mul(f, f)",
        "x = Sub(f, by_row)",
        "s = Relu(f) x = Sub(s, mean)",
    ],
)
def test_what_else_stands_before_the_patches_is_refused(steps: str, graph, random) -> None:
    with pytest.raises(GraphError, match="before the patch embedding"):
        fold_normalization(graph(before_conv(steps), by_row=random(4, 1, 1)))


def test_patches_are_cut_from_bytes(graph, pixels, rewrite, random) -> None:
    model = graph(EMBEDDING)
    assert rewrite(patches_as_gemm, model, pixels) == 1
    assert op_types(model) == ["Reshape", "Transpose", "Reshape", "Cast", "Gemm", "Reshape"]
    gemm = node(model, "p")
    assert gemm.op_type == "Gemm"
    weight = constant(gemm.inputs[1])
    assert weight is not None
    expected = random(5, 3, 2, 2).transpose(2, 3, 1, 0)  # row, column, channel
    np.testing.assert_array_equal(weight.reshape(2, 2, 3, 5), expected)
    assert sizes(gemm.inputs[0]) == [None, 12]
    assert all(each.outputs[0].dtype == ir.DataType.UINT8 for each in list(model.graph)[:3])


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("t = Transpose <perm = [0, 3, 1, 2]> (f)", "t = Transpose <perm = [0, 3, 1, 2]> (f)"),
        (
            "f = Cast <to = 1> (pixels) t = Transpose <perm = [0, 3, 1, 2]> (f)",
            "f = Transpose <perm = [0, 3, 1, 2]> (pixels) t = Cast <to = 1> (f)",
        ),
        (", b)", ")"),
    ],
    ids=["as it is", "turned before it is cast", "without a bias"],
)
def test_each_form_of_an_embedding_becomes_a_gemm(was: str, now: str, graph, pixels, rewrite) -> None:
    lines = " ".join(EMBEDDING.split())
    assert was in lines
    model = graph(lines.replace(was, now))
    assert rewrite(patches_as_gemm, model, pixels) == 1
    assert "Conv" not in op_types(model)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (
            "t = Transpose <perm = [0, 3, 1, 2]> (f)",
            "n = Sub(f, mean) t = Transpose <perm = [0, 3, 1, 2]> (n)",
        ),
        ("perm = [0, 2, 1]> (r)", "perm = [1, 0, 2]> (r)"),
        ("y = Transpose <perm = [0, 2, 1]> (r)", "y = Relu(r)"),
        (
            "y = Transpose <perm = [0, 2, 1]> (r)",
            "q = Transpose <perm = [0, 2, 1]> (r) s = Add(r, r) "
            "z = Transpose <perm = [0, 2, 1]> (s) y = Add(q, z)",
        ),
        ("r = Reshape(p, flat)", "q = Relu(p) r = Reshape(q, flat)"),
        ("strides = [2, 2]", "strides = [1, 1]"),
        ("strides = [2, 2]", "strides = [2, 2], dilations = [2, 2]"),
        ("r = Reshape(p, flat)", "r = Reshape(p, mixed)"),
    ],
    ids=[
        "a normalization is left",
        "another order",
        "no tokens",
        "read twice",
        "an activation",
        "overlap",
        "pixels apart",
        "features and tokens mixed",
    ],
)
def test_another_way_in_stays(was: str, now: str, graph, pixels, rewrite) -> None:
    lines = " ".join(EMBEDDING.split())
    assert was in lines
    constants = {"mixed": [-1, 6, 5]} | ({"flat": [-1, 5, 15]} if "[1, 1]" in now else {})
    constants |= {"flat": [-1, 5, 2]} if "dilations" in now else {}
    assert rewrite(patches_as_gemm, graph(lines.replace(was, now), **constants), pixels) == 0


@pytest.mark.parametrize(("height", "width"), [(5, 6), (4, 7), (5, 7)])
def test_pixels_that_fill_no_patch_are_left_out(height: int, width: int, rewrite, random) -> None:
    """As a convolution leaves them out: SigLIP reads 384 pixels in patches of 14."""
    constants = {"w": random(5, 3, 2, 2), "b": random(5), "flat": [-1, 5, 6]}
    inputs = f"uint8[N, {height}, {width}, 3] pixels"
    model = build(EMBEDDING, constants, inputs=inputs, outputs="float[] y")
    image = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    assert rewrite(patches_as_gemm, model, image) == 1
    assert op_types(model)[:2] == ["Slice", "Reshape"]


def test_a_constant_along_the_width_is_no_normalization(rewrite, random) -> None:
    """Three pixels wide, so that it could be taken for one number per channel."""
    lines = before_conv("x = Sub(f, by_column)").replace("[2, 2]", "[1, 1]")
    constants = {"w": random(5, 3, 1, 1), "b": random(5), "by_column": random(3, 1)}
    with pytest.raises(GraphError, match="one constant per channel"):
        fold_normalization(build(lines, constants, inputs="uint8[N, 4, 3, 3] pixels", outputs="float[] y"))


def test_a_size_that_is_not_known_stays(graph, pixels, rewrite, random) -> None:
    constants = {"w": random(5, 3, 2, 2), "b": random(5), "flat": [0, 5, -1]}
    model = build(EMBEDDING, constants, inputs="uint8[N, H, 6, 3] pixels", outputs="float[] y")
    assert rewrite(patches_as_gemm, model, pixels) == 0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("y = Cast <to = 1> (pixels)", ["DequantizeLinear"]),
        (
            "c = Reshape(pixels, cut) t = Transpose <perm = [1, 0]> (c) y = Cast <to = 1> (t)",
            ["DequantizeLinear", "Reshape", "Transpose"],
        ),
        ("c = Reshape(pixels, cut) f = Cast <to = 7> (c) y = Cast <to = 1> (f)",
         ["DequantizeLinear", "Reshape", "Cast", "Cast"]),
        # What others read as bytes stays bytes.
        (
            "c = Reshape(pixels, cut) t = Transpose <perm = [1, 0]> (c) f = Cast <to = 1> (t)"
            " m = Max(c, c) g = Cast <to = 1> (m) h = Transpose <perm = [1, 0]> (g) y = Add(f, h)",
            ["Reshape", "DequantizeLinear", "Transpose", "Max", "DequantizeLinear", "Transpose", "Add"],
        ),
    ],
    ids=["alone", "behind moves", "to integers", "bytes read twice"],
)  # fmt: skip
def test_no_byte_is_cast(lines: str, expected: list[str], graph, pixels, rewrite) -> None:
    model = graph(lines, cut=[-1, 6])
    assert rewrite(dequantize_pixels, model, pixels) == lines.count("Cast") - lines.count("to = 7")
    assert op_types(model) == expected
    for read in (each for each in model.graph if each.op_type == "DequantizeLinear"):
        assert read.inputs[0] is not None
        assert read.inputs[0].dtype == ir.DataType.UINT8
        assert [constant(value) for value in read.inputs[1:]] == [1, 0]


def test_a_cast_of_other_numbers_stays(graph, pixels, rewrite) -> None:
    lines = "s = Shape(pixels) f = Cast <to = 1> (s) y = Sqrt(f)"
    assert rewrite(dequantize_pixels, graph(lines), pixels) == 0
