"""Graphs of other exporters, all the way to integer kernels: the logits stay those of the original file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError, attribute, sizes
from export.graph.exporters.batch import free_batch
from export.graph.exporters.canonicalize import plain_moves
from export.graph.exporters.freeze import freeze_shapes
from export.graph.exporters.fuse import fuse_gelu, fuse_layer_norm
from export.graph.exporters.qkv import split_qkv
from export.graph.exporters.simplify import drop_nan_guards, drop_no_ops
from export.sources.onnx_description import OnnxDescription
from export.sources.onnx_file import read_onnx_file
from export.sources.source import Source
from export.write_artifact import model_bytes
from runtime.images.preprocess import Preprocess
from runtime.session import open_session
from tests.support.small_graphs import run as as_it_stands

SIDE, DEPTH = 16, 2
SPEC = OnnxDescription(Preprocess(size=(SIDE, SIDE)), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), None)
PARITY = 1e-5  # of the logits' scale; found: 1e-6

GRAPHS = [  # model, exporter (an opset means the older one), batch
    ("transformers eager", "dynamo", 2),
    ("transformers sdpa", "dynamo", "free"),
    ("transformers eager", 14, "free"),
    ("transformers sdpa", 14, 1),
    ("transformers eager", 17, 1),
    ("transformers sdpa", 20, "free"),
    ("timm unbind", "dynamo", 1),
    ("timm unbind", 17, "free"),
    ("timm fused attention", 17, 3),
    ("qkv index", 14, "free"),
    ("qkv chunk", 17, 1),
    ("qkv slice, layer scale", 17, "free"),
    ("qkv heads first", 17, "free"),
    ("torchvision", 17, "free"),
    ("torchvision", 14, 1),
    ("written out", 14, "free"),
    ("gelu tanh", 17, "free"),
    ("quick gelu", 17, 1),
    ("distilled", 17, "free"),
    ("mean of tokens", 17, 1),
]


@pytest.fixture(scope="session")
def read_other(other_onnx: Callable[..., Path]) -> Callable[..., Source]:
    found: dict[tuple[object, ...], Source] = {}

    def make(*key: object) -> Source:
        if key not in found:
            found[key] = read_onnx_file(other_onnx(*key), SPEC)
        return found[key]

    return make


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def logits(model: ir.Model, batch: np.ndarray) -> np.ndarray:
    session = open_session(model_bytes(model), device="cpu", threads=1)
    assert [each.name for each in session.get_inputs()] == ["pixels"]
    return np.asarray(session.run(["logits"], {"pixels": batch})[0])


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("key", GRAPHS, ids=str)
def test_rows_are_ordered_token_by_token(key, read_other) -> None:
    found = read_other(*key).exported
    assert found.passes["tokens_before_batch"] > 0
    heads = [sizes(node.inputs[0]) for node in found.model.graph if node.op_type == "Softmax"]
    assert len(heads) == DEPTH
    assert all(shape is not None and len(shape) == 3 and shape[0] is None for shape in heads)  # [N · H, T, T]


@pytest.mark.parametrize("key", GRAPHS, ids=str)
def test_logits_are_those_of_the_original_for_any_batch(key, read_other) -> None:
    model = read_other(*key)
    for number in (1, 3, 5):
        expected = model.reference(pixels(number))
        assert expected.std(axis=0).min() > 0 or number == 1  # the images matter
        found = logits(model.exported.model, pixels(number))
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < PARITY * np.abs(expected).max()


@pytest.mark.parametrize("key", GRAPHS, ids=str)
def test_every_linear_becomes_a_gemm_and_the_rest_single_nodes(key, read_other) -> None:
    model = read_other(*key)
    found = count(model.exported.model)
    heads = 2 if key[0] == "distilled" else 1
    assert found["Gemm"] == 1 + 6 * DEPTH + heads  # the patch embedding, the blocks, the head
    assert found["MatMul"] == 2 * DEPTH
    assert found["LayerNormalization"] == 2 * DEPTH + 1
    assert found["Gelu"] == (0 if key[0] == "quick gelu" else DEPTH)
    assert found["Gather"] <= 2
    for gone in (
        "Conv",
        "Erf",
        "Split",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Where",
        "IsNaN",
        "Identity",
        "Dropout",
    ):
        assert (gone == "Slice" and key[0] == "mean of tokens") or not found[gone], gone
    assert model.float_layers == ()


@pytest.mark.parametrize(
    "key", [g for g in GRAPHS if g[0] not in ("distilled", "mean of tokens", "torchvision")], ids=str
)
def test_the_last_block_computes_the_class_token_alone(key, read_other) -> None:
    fc1 = [node for node in read_other(*key).exported.model.graph if node.op_type == "Gemm"][-3]
    session_model = read_other(*key).exported.model.clone()
    values = ir.convenience.create_value_mapping(session_model.graph)
    session_model.graph.outputs.append(values[str(fc1.outputs[0].name)])
    session = open_session(model_bytes(session_model), device="cpu", threads=1)
    assert session.run(None, {"pixels": pixels(3)})[1].shape == (3, 48)


@pytest.mark.parametrize(
    "key",
    [("transformers sdpa", "dynamo", "free"), ("transformers eager", 14, "free"), ("timm unbind", 17, "free"),
     ("torchvision", 17, "free"), ("written out", 14, "free"), ("quick gelu", 17, 1)],
    ids=str,
)  # fmt: skip
def test_every_linear_runs_in_an_integer_kernel(key, read_other) -> None:
    from calibration.quantize_model import quantize

    model = read_other(*key)
    quantized = quantize(model.exported.model, [pixels(8)], target="any-cpu", single_rows="int8")
    linears = 2 + 6 * DEPTH
    assert quantized.kernels.summary().startswith(f"{linears} of {linears} linears and ")
    expected, found = model.reference(pixels(4)), logits(quantized.model, pixels(4))
    noise = np.square(found - expected).sum()
    assert 0 < noise < 0.03 * np.square(expected).sum()  # 15 dB, of weights and images that are noise


def test_split_qkv_names_the_three_after_the_one(read_other) -> None:
    model = read_other("timm unbind", 17, "free")
    names = [str(node.name) for node in model.exported.model.graph if node.op_type == "Gemm"]
    assert sorted(name for name in names if "qkv" in name) == sorted(
        f"blocks.{block}.attn.qkv.{part}" for block in range(DEPTH) for part in ("query", "key", "value")
    )
    assert model.exported.passes["split_qkv"] == DEPTH


def test_fused_qkv_ends_as_if_there_had_been_three_linears(read_other) -> None:
    fused = read_other("timm unbind", 17, "free").exported.model
    assert count(fused) == count(read_other("transformers sdpa", 20, "free").exported.model)


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
    before = as_it_stands(model, X)
    assert split_qkv(model) == 1
    np.testing.assert_allclose(as_it_stands(model, X), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("linear", "source"),
    [("m = MatMul(x, w) s = Add(m, b)", "float[2, 3, 4]"), ("s = Gemm(x, w, b)", "float[3, 4]")],
)
def test_a_bias_of_each_row_is_not_split(linear: str, source: str) -> None:
    lines = f"{linear} p, q, r = Split <axis = -1, num_outputs = 3> (s) a = Mul(p, q) y = Sub(a, r)"
    constants = {"w": np.ones((4, 3), np.float32), "b": np.arange(3, dtype=np.float32).reshape(3, 1)}
    assert split_qkv(built(lines, constants, source.replace("4", "1"), source)) == 0


def built(lines: str, constants: dict[str, object], output: str, source: str = "float[2, 3, 4]") -> ir.Model:
    """A graph x → y in ONNX's text form, with shapes."""
    import onnx

    listed = []
    arrays = {key: np.asarray(value) for key, value in constants.items()}
    header = f'<ir_version: 10, opset_import: ["" : 21]> g ({source} x) => ({output} y)'
    text = f"{header} {{ {' '.join(lines.split())} }}"
    proto = onnx.parser.parse_model(text)
    for key, array in arrays.items():
        listed.append(onnx.numpy_helper.from_array(array, key))
    proto.graph.initializer.extend(listed)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = open_session(ir.to_proto(model).SerializeToString(), device="cpu", threads=1)
    return np.asarray(session.run(None, {"x": x})[0])


X = np.random.default_rng(0).normal(scale=3, size=(2, 3, 4)).astype(np.float32)
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
    model = built(FOLD.format(strides), constants, "float[2, 5, 4, 6]", source=f"float[2, 30, {places}]")
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


def test_computed_shapes_become_constants() -> None:
    lines = (
        "s = Shape(x) n = Gather(s, first) m = Identity(n) t = Concat<axis = 0>(m, rest) r = Reshape(x, t)"
        " f = ConstantOfShape(t) g = Cast<to = 1>(f) y = Add(r, g)"
    )
    model = built(lines, {"first": [0], "rest": [12]}, "float[n, 12]", source="float[n, 3, 4]")
    assert freeze_shapes(model, (2, 3, 4)) > 0
    assert count(model) == {"Reshape": 1, "Add": 1}
    assert free_batch(model) == 2  # the target, and the zeros that were spread over the batch
    x = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    np.testing.assert_array_equal(run(model, x), x.reshape(5, 12))


@pytest.mark.parametrize(
    ("lines", "output"),
    [
        ("y = Concat<axis = 0>(x, c)", "float[4, 3, 4]"),  # something beside the images
        ("y = ReduceMean<keepdims = 1>(x, zeroth)", "float[1, 3, 4]"),  # a mean over the images
        ("y = Add(x, c)", "float[2, 3, 4]"),  # each image its own constant
    ],
)
def test_what_mixes_images_is_refused(lines, output) -> None:
    model = built(lines, {"c": X, "zeroth": [0]}, output)
    with pytest.raises(GraphError, match="expected to follow the batch"):
        free_batch(model)
