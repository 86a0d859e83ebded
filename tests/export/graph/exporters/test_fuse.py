"""GELU and LayerNorm are recognized by their values, however they are written out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import ArrayLike

from calibration.graph.edit import attribute
from export.graph.exporters.fuse import fuse_gelu, fuse_layer_norm
from tests.support.small_graphs import build, op_types, run

X = np.random.default_rng(0).normal(scale=3, size=(2, 3, 4)).astype(np.float32)


def built(lines: str, constants: Mapping[str, ArrayLike], output: str, x: str = "float[2, 3, 4]") -> ir.Model:
    """A graph x → y with shapes."""
    return build(lines, constants, inputs=f"{x} x", outputs=f"{output} y")


def count(model: ir.Model) -> Counter[str]:
    return Counter(op_types(model))


GELUS = {
    "division first": ("a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)", "none"),
    "half first": ("h = Mul(half, x) a = Div(x, root2) b = Erf(a) c = Add(one, b) y = Mul(c, h)", "none"),
    "half inside": (
        "a = Div(x, root2) b = Erf(a) c = Mul(b, half) d = Add(c, half) y = Mul(x, d)",
        "none",
    ),
    "tanh": (
        "p = Pow(x, three) q = Mul(p, k) s = Add(x, q) t = Mul(s, rootpi) u = Tanh(t) v = Add(u, one)"
        " h = Mul(x, half) y = Mul(h, v)",
        "tanh",
    ),
    "tanh by products": (
        "x2 = Mul(x, x) q = Mul(x2, k) r = Add(q, one) s = Mul(x, r) t = Mul(s, rootpi) u = Tanh(t)"
        " v = Add(u, one) w = Mul(x, v) y = Mul(w, half)",
        "tanh",
    ),
}
NUMBERS = {
    "root2": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "three": np.float32(3),
    "k": np.float32(0.044715), "rootpi": np.float32((2 / np.pi) ** 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", GELUS)
def test_gelu_is_known_by_its_values(name) -> None:
    lines, approximate = GELUS[name]
    model = built(lines, NUMBERS, "float[2, 3, 4]")
    expected = run(model, X)
    assert fuse_gelu(model) == 1
    assert count(model) == {"Gelu": 1}
    assert attribute(next(iter(model.graph)), "approximate", "none") == approximate
    np.testing.assert_allclose(run(model, X), expected, atol=2e-6)


@pytest.mark.parametrize(
    "changed", [{"root2": np.float32(1.5)}, {"half": np.float32(1)}, {"one": np.float32(0.9)}]
)
def test_what_is_nearly_a_gelu_stays(changed) -> None:
    model = built(GELUS["division first"][0], {**NUMBERS, **changed}, "float[2, 3, 4]")
    assert fuse_gelu(model) == 0
    assert count(model)["Erf"] == 1


NORMS = {
    "division": "m = ReduceMean(x, last) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, last)"
    " e = Add(v, eps) s = Sqrt(e) n = Div(d, s) w = Mul(n, weight) y = Add(w, bias)",
    "reciprocal": "m = ReduceMean(x, last) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last)"
    " e = Add(eps, v) s = Sqrt(e) r = Reciprocal(s) n = Mul(d, r) w = Mul(weight, n) y = Add(bias, w)",
    "power": "m = ReduceMean(x, last) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last) e = Add(v, eps)"
    " s = Pow(e, minus) n = Mul(s, d) w = Mul(n, weight) y = Add(w, bias)",
    "two differences": "m = ReduceMean(x, last) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, last)"
    " e = Add(v, eps) s = Sqrt(e) f = Sub(x, m) n = Div(f, s) w = Mul(n, weight) y = Add(w, bias)",
    "no parameters": "m = ReduceMean(x, last) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, last)"
    " e = Add(v, eps) s = Sqrt(e) y = Div(d, s)",
}
PARAMETERS = {
    "last": [-1], "two": np.float32(2), "eps": np.float32(1e-3), "minus": np.float32(-0.5),
    "weight": np.array([1, -2, 3, 0.5], np.float32), "bias": np.array([0.1, 2, -3, 0], np.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_layer_norm_is_one_node(name) -> None:
    model = built(NORMS[name], PARAMETERS, "float[2, 3, 4]")
    expected = run(model, X)
    assert fuse_layer_norm(model) == 1
    assert count(model) == {"LayerNormalization": 1}
    np.testing.assert_allclose(run(model, X), expected, atol=1e-5)


def test_a_norm_over_another_axis_stays() -> None:
    model = built(NORMS["division"], {**PARAMETERS, "last": [1]}, "float[2, 3, 4]")
    assert fuse_layer_norm(model) == 0
