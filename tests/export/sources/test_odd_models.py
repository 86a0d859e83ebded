"""Models that are legal and unusual, each a change of one small model: right, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.graph.memory import open_graph_session
from calibration.quantize_model import quantize
from export.graph.float_model import add_embedding
from export.sources.onnx_description import OnnxDescription, OnnxModelError
from export.sources.onnx_file import read_onnx_file
from export.sources.source import Source
from runtime.images.preprocess import Preprocess
from tests.support.small_perceptron import SIDE, WIDTH, perceptron

Change = Callable[[onnx.ModelProto], object]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Source]:
    def make(*changes: Change, side: int = SIDE) -> Source:
        model = perceptron()
        for change in changes:
            change(model)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return read_onnx_file(
            path, OnnxDescription(Preprocess(size=(side, side)), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), None)
        )

    return make


def images(side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)


def check(model: Source, side: int = SIDE) -> None:
    """The exported graph gives the logits of the file."""
    expected = model.reference(images(side))
    found = open_graph_session(model.exported.model).run(["logits"], {"pixels": images(side)})[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def renamed(old: str, new: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
        for value in (*model.graph.initializer, *model.graph.output):
            value.name = new if value.name == old else value.name

    return change


def edited(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = [each for each in model.graph.initializer if each.name == name]
        tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))

    return change


def with_input(*shape: int | str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", FLOAT, shape))

    return change


@pytest.mark.parametrize(
    "name", ["pixels", "logits", "embedding", "patch.weight", "shape.anyx24", "axis.last"]
)
@pytest.mark.parametrize("value", ["hidden", "mean", "fc.weight", "rows"])
def test_a_value_may_have_a_name_that_the_export_gives(value: str, name: str, loaded) -> None:
    """Another exporter's hidden layer called "pixels", or scores behind a tensor called "logits"."""
    aside = [renamed(name, "aside")] if name in ("logits", "patch.weight") else []
    model = loaded(*aside, renamed(value, name))
    check(model)
    assert add_embedding(model.exported.model) == WIDTH
    quantize(model.exported.model, [images()], target="any-cpu")
    check(model)


def test_pixels_that_fill_no_patch(loaded) -> None:
    model = loaded(with_input("N", 3, 22, 22), side=22)
    check(model, side=22)
    assert model.float_layers == ()
    assert len(quantize(model.exported.model, [images(22)], target="any-cpu").kernels.linears) == 2


def in_half(model: onnx.ModelProto) -> None:
    """As converters write it that keep the types of input and output."""
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT:
            edited(tensor.name, lambda array: array.astype(np.float16))(model)
    model.graph.node[0].input[0], model.graph.node[-1].output[0] = "in.half", "out.half"
    model.graph.node.insert(0, helper.make_node("Cast", ["images"], ["in.half"], to=HALF))
    model.graph.node.append(helper.make_node("Cast", ["out.half"], ["logits"], to=FLOAT))


def test_products_in_float16_are_refused(loaded) -> None:
    with pytest.raises(
        OnnxModelError, match=r"expected products in float32, found FLOAT16 in Conv .*before its conv"
    ):
        loaded(in_half)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_may_be_stored_in_another_type(dtype: type, loaded) -> None:
    def stored(model: onnx.ModelProto) -> None:
        edited("fc.weight", lambda array: array.astype(dtype))(model)
        model.graph.node[3].input[1] = "fc.weight.float"
        model.graph.node.insert(3, helper.make_node("Cast", ["fc.weight"], ["fc.weight.float"], to=FLOAT))

    model = loaded(stored)
    check(model)
    assert model.float_layers == ()


def test_grayscale_is_refused_for_what_it_is(loaded) -> None:
    with pytest.raises(
        OnnxModelError, match=r"expected color images as input, found 'images' of shape \[None, 1, 16, 16\]"
    ):
        loaded(edited("patch.weight", lambda array: array[:, :1]), with_input("N", 1, SIDE, SIDE))


@pytest.mark.parametrize("opset", [21, 23])
def test_a_file_without_shapes_of_its_values_is_read_in_silence(opset: int, loaded, caplog, capfd) -> None:
    """No conversion infers them at our opset and above."""

    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = opset

    check(loaded(newer))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def on_the_left(model: onnx.ModelProto) -> None:
    """A mixture of tokens: its weights stand on the left."""
    mixture = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mixture, "mixture"))
    model.graph.node[3].input[0] = "mixed"
    model.graph.node.insert(3, helper.make_node("MatMul", ["mixture", "tokens"], ["mixed"], name="mixing"))


def test_products_that_stay_float_are_listed(loaded) -> None:
    model = loaded(on_the_left)
    check(model)
    assert model.float_layers == ("mixing (MatMul)",)


def test_an_output_channel_of_zeros_keeps_its_bias(loaded) -> None:
    """Its scale would be too small for an int32 bias."""

    def dead(array: np.ndarray) -> np.ndarray:
        array[3] = 0
        return array

    model = loaded(edited("patch.weight", dead), edited("patch.bias", lambda array: array + 3))
    found = quantize(model.exported.model, [images()], target="any-cpu")
    expected = model.reference(images())
    logits = open_graph_session(found.model).run(["logits"], {"pixels": images()})[0]
    assert found.kernels.linears["patch"] == "QGemm"
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(("factor", "precision"), [(1.0, "float16"), (1e6, "float32"), (1e-7, "float32")])
def test_a_head_that_float16_does_not_hold_stays_float32(factor: float, precision: str, loaded) -> None:
    model = loaded(edited("head.weight", lambda array: array * np.float32(factor)))
    assert (
        quantize(model.exported.model, [images()], target="any-cpu").plan.linears["head"].precision
        == precision
    )
