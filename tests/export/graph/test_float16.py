"""The float16 variant: close to float32, half the bytes, float32 where it matters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError, attribute, by_type
from export.graph.float16 import to_float16
from export.write_artifact import serialize_model
from runtime.session import open_session

NAMES = ["plain", "odd", "rich"]
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def run(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
    session = open_session(serialize_model(model), device="cpu", threads=1)
    return np.asarray(session.run(["logits"], {"pixels": pixels})[0])


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_float32_and_near(name, canonical: Mapping[str, ir.Model], models, pixels_for) -> None:
    pixels = pixels_for(models[name].config, 16)
    before = serialize_model(canonical[name])
    half = to_float16(canonical[name])
    assert serialize_model(canonical[name]) == before  # the float graph stays
    expected, found = run(canonical[name], pixels), run(half, pixels)
    assert found.dtype == np.float32
    assert 0 < np.square(expected - found).sum() < 1e-5 * np.square(expected).sum()  # 50 dB


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_standard_and_half_the_size(name, canonical) -> None:
    data = serialize_model(to_float16(canonical[name]))
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto, full_check=True)  # types and shapes too
    assert {node.domain for node in proto.graph.node} == {""}
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    single = sum(array.nbytes for array in weights if array.dtype == np.float32)
    half = sum(array.nbytes for array in weights if array.dtype == np.float16)
    head = next(node for node in reversed(proto.graph.node) if node.op_type == "Gemm")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    assert single == 4 * sum(int(np.prod(shapes[parameter])) for parameter in head.input[1:])
    assert half > 4 * single


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_in_which_precision(name, canonical) -> None:
    for node in to_float16(canonical[name]).graph:
        if node.op_type == "Softmax":
            assert node.inputs[0].dtype == node.outputs[0].dtype == FLOAT
        if node.op_type == "LayerNormalization":
            assert attribute(node, "stash_type", 1) == 1  # statistics in float32
            assert node.inputs[0].dtype == node.inputs[1].dtype == HALF
        if node.op_type in ("Gemm", "MatMul", "Gelu") and node.outputs[0].name != "logits":
            assert {value.dtype for value in (*node.inputs, *node.outputs)} == {HALF}


def test_pixels_enter_exactly(canonical) -> None:
    """(pixel - 128) / 64 for each of the 256 bytes, without a rounding."""
    half = to_float16(canonical["plain"])
    (read,) = by_type(half, "DequantizeLinear")
    assert read.inputs[0] is half.graph.inputs[0]
    step, center = (value.const_value.numpy() for value in read.inputs[1:])
    assert (step.dtype, read.outputs[0].dtype) == (np.float16, HALF)
    found = (np.arange(256, dtype=np.float16) - np.float16(center)) * step
    np.testing.assert_array_equal(found.astype(np.float64), (np.arange(256) - 128) / 64)


def test_weights_beyond_float16_are_refused(canonical) -> None:
    model = canonical["plain"].clone()
    fc1 = next(node for node in model.graph if node.name == "blocks.0.mlp.fc1")
    weight = fc1.inputs[1].const_value.numpy().copy()
    weight[0, 0] = 1e5
    fc1.inputs[1].const_value = ir.Tensor(weight, name=fc1.inputs[1].name)
    with pytest.raises(GraphError, match="expected weights within float16's range, found 1e"):
        to_float16(model)
