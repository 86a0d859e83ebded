"""Every kind of file opens with a batch that is fixed beforehand, as NPUs and Core ML ask, and gives the same
bits; and none of them casts a byte, see `dequantize_pixels`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibration.graph.edit import by_type
from calibration.quantize_model import QuantizedModel, apply_plan, quantize
from export.graph.canonical.pixels import patches_as_gemm
from export.graph.canonicalize import CANONICAL_REWRITES, canonicalize
from export.graph.float16 import to_float16
from export.graph.float_model import add_embedding
from export.sources.from_torch import export_raw_graph
from export.sources.onnx_description import OnnxDescription
from export.sources.onnx_file import read_onnx_file
from export.write_artifact import serialize_model
from runtime.images.preprocess import Preprocess
from runtime.model_file.targets import CPU_TARGETS, Target
from runtime.onnx_runtime import onnxruntime as ort
from tests.support.small_models import lively
from vit.config import ViTConfig

# 30 patches, four blocks, of which three can merge.
MERGING = ViTConfig(image_size=(40, 48), patch_size=8, width=32, depth=4, heads=4, mlp_width=64, classes=10)
SCHEDULES = ({"blocks.1": 4}, {"blocks.0": 15, "blocks.1": 7, "blocks.2": 1})
SIDE = 16  # of the models of other exporters
SPEC = OnnxDescription(Preprocess(size=(SIDE, SIDE)), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), None)


def open_fixed(data: bytes, batch: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def check_file(model: ir.Model) -> None:
    data = serialize_model(model)
    proto = onnx.load_from_string(data)
    bytes_of = {value.name for value in (*proto.graph.input, *proto.graph.value_info)
                if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}  # fmt: skip
    assert not [
        node.name for node in proto.graph.node if node.op_type == "Cast" and node.input[0] in bytes_of
    ]
    free = open_fixed(data, None)
    (pixels,) = free.get_inputs()
    assert pixels.shape[0] == "batch"
    images = np.random.default_rng(0).integers(0, 256, (2, *pixels.shape[1:]), np.uint8)
    for batch in (1, 2):
        fixed = open_fixed(data, batch)
        assert fixed.get_inputs()[0].shape[0] == batch
        expected, found = (each.run(None, {"pixels": images[:batch]}) for each in (free, fixed))
        for before, after in zip(expected, found, strict=True):
            np.testing.assert_array_equal(after, before)


def quantized(model: ir.Model, shape: tuple[int, ...], target: Target) -> QuantizedModel:
    images = np.random.default_rng(1).integers(0, 256, (8, *shape, 3), np.uint8)
    return quantize(model, [images], target=target, threads=1)


@pytest.mark.parametrize("name", ["plain", "odd", "rich"])
def test_float_and_int8(name: str, canonical: Mapping[str, ir.Model], models) -> None:
    check_file(canonical[name])
    check_file(to_float16(canonical[name]))
    for target in CPU_TARGETS:  # a file for an NPU has a batch of 1
        check_file(quantized(canonical[name], models[name].config.image_size, target).model)


def test_with_an_embedding(canonical: Mapping[str, ir.Model], models) -> None:
    model = canonical["plain"].clone()
    add_embedding(model)
    check_file(model)
    check_file(to_float16(model))
    check_file(quantized(model, models["plain"].config.image_size, "any-cpu").model)


def test_merged() -> None:
    model = export_raw_graph(lively(MERGING))
    canonicalize(model)
    dense = quantized(model, MERGING.image_size, "any-cpu")
    for schedule in SCHEDULES:
        check_file(apply_plan(model, replace(dense.plan, merging=schedule)).model)
        nothing = replace(dense.plan, linears={}, products={}, balance={}, merging=schedule)
        check_file(apply_plan(model, nothing).model)


@pytest.mark.parametrize(
    ("name", "exporter", "batch"),
    [("transformers sdpa", "dynamo", "free"), ("torchvision", 14, 2), ("distilled", 17, "free"),
     ("mean of tokens", 17, 1)],
)  # fmt: skip
def test_of_other_exporters(name: str, exporter: str | int, batch: str | int, other_onnx) -> None:
    source = read_onnx_file(other_onnx(name, exporter, batch), SPEC)
    check_file(source.exported.model)
    check_file(to_float16(source.exported.model))
    check_file(quantized(source.exported.model, (SIDE, SIDE), "any-cpu").model)


@pytest.mark.parametrize("name", ["plain", "odd"])
def test_patches_that_stay_a_convolution(name: str, raw_graphs, models, monkeypatch) -> None:
    left = tuple(each for each in CANONICAL_REWRITES if each is not patches_as_gemm)
    monkeypatch.setattr("export.graph.canonicalize.CANONICAL_REWRITES", left)
    model = raw_graphs[name].clone()
    canonicalize(model)
    assert by_type(model, "Conv")
    check_file(model)
    check_file(to_float16(model))
    check_file(quantized(model, models[name].config.image_size, "any-cpu").model)
