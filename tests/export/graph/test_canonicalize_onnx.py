"""Graphs of other exporters, all the way to integer kernels: the logits stay those of the original file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import sizes
from export.sources.onnx_description import OnnxDescription
from export.sources.onnx_file import read_onnx_file
from export.sources.source import Source
from export.write_artifact import serialize_model
from runtime.images.preprocess import Preprocess
from runtime.session import open_session

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
    session = open_session(serialize_model(model), device="cpu", threads=1)
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
    session = open_session(serialize_model(session_model), device="cpu", threads=1)
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
