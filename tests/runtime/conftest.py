"""A model small enough to be made in a test: it averages the image and names its strongest channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from runtime import Metadata, Preprocess

LABELS = ("red", "green", "blue")
MakeModel = Callable[..., Path]


def color_graph(size: tuple[int, int], classes: int = 3) -> onnx.ModelProto:
    """uint8 [N, H, W, 3] → the mean of each channel, as `classes` logits."""
    weights = np.zeros((3, classes), np.float32)
    weights[range(3), range(3)] = 0.1
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "color",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def add_metadata(model: onnx.ModelProto, text: str) -> onnx.ModelProto:
    helper.set_model_props(model, {"vit_edge": text})
    return model


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write the color model to a file; keyword arguments change its metadata."""

    def make(name: str = "model.onnx", *, size: tuple[int, int] = (32, 32), **changes: Any) -> Path:
        values: dict[str, Any] = dict(variant="float32", preprocess=Preprocess(size=size), labels=LABELS)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            add_metadata(color_graph(size), Metadata(**values | changes).to_json()).SerializeToString()
        )
        return path

    return make


@pytest.fixture
def make_embedding_model(tmp_path: Path) -> MakeModel:
    """Write the color model with the mean color as its embedding, beside the logits or alone."""

    def write(name: str = "model.onnx", *, logits: bool = True, **changes: Any) -> Path:
        graph = color_graph((32, 32))
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])
        for node in graph.graph.node:
            for names in (node.input, node.output):
                names[:] = ["embedding" if each == "mean" else each for each in names]
        if not logits:
            del graph.graph.output[:], graph.graph.node[-1]
        graph.graph.output.append(output)
        values: dict[str, Any] = dict(
            variant="float32",
            preprocess=Preprocess(size=(32, 32)),
            labels=LABELS if logits else (),
            embedding=3,
        )
        path = tmp_path / name
        path.write_bytes(add_metadata(graph, Metadata(**values | changes).to_json()).SerializeToString())
        return path

    return write


@pytest.fixture
def model(make_model: MakeModel) -> Path:
    return make_model()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a red, a green and a blue image, one below another folder, and two that are broken."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    Image.new("RGB", (40, 30), (250, 10, 10)).save(folder / "a.png")
    Image.new("RGB", (30, 40), (10, 250, 10)).save(folder / "b.jpg")
    Image.new("RGB", (50, 50), (10, 10, 250)).save(folder / "deeper" / "c.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("not meant to be one")
    return folder
