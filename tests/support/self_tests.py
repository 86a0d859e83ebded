"""Model files with a self-test, and with faults: each file is written anew, its digest valid again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime import read_metadata
from runtime.cpu import cpu_kind, cpu_name
from runtime.model_file.integrity import DIGEST_KEY, digest_entry
from runtime.onnx_runtime import onnxruntime
from runtime.self_test.document import SELF_TEST_KEY, Answers, SelfTest, TestImage, average_blocks
from runtime.session import open_session


def add_self_test(path: Path, *, images: tuple[TestImage, ...] = (), **changes: Any) -> Path:
    """Add the self-test of a float32 file, made on the CPU here; by default of four made images."""
    metadata = read_metadata(path)
    images = images or tuple(TestImage(made=seed, size=(90, 70)) for seed in range(4))
    session = open_session(path, device="cpu", threads=1)
    pixels = [metadata.preprocess(image.open()) for image in images]
    found = {
        name: np.concatenate([session.run([name], {"pixels": each[None]})[0] for each in pixels])
        for name in metadata.outputs
    }
    best = [np.argsort(-row)[:3] for row in found["logits"]] if metadata.labels else [[] for _ in images]
    values: dict[str, Any] = dict(
        images=images,
        pixels=tuple(hashlib.sha256(each.tobytes()).hexdigest() for each in pixels),
        means=tuple(
            None if image.jpeg is None else average_blocks(each)
            for image, each in zip(images, pixels, strict=True)
        ),
        columns=None,
        outputs={name: Answers(each, each) for name, each in found.items()},
        top=tuple(tuple((int(index), metadata.labels[index]) for index in each) for each in best),
        kernels={},
        cpu={"kind": cpu_kind(), "name": cpu_name()},
        runtime=f"onnxruntime {onnxruntime.__version__}",
        latency_ms={"file": 1.0, "float32": 1.0},
    )
    text = SelfTest(**values | changes).to_json()
    return change_model(path, lambda model: set_entry(model, SELF_TEST_KEY, text))


def set_entry(model: onnx.ModelProto, key: str, text: str) -> None:
    """Set an entry of the metadata."""
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = text
            return
    model.metadata_props.add(key=key, value=text)


def change_metadata(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the document with the metadata of a model file."""

    def apply(model: onnx.ModelProto) -> None:
        (entry,) = (each for each in model.metadata_props if each.key == "vit_edge")
        document = json.loads(entry.value)
        change(document)
        entry.value = json.dumps(document)

    return change_model(path, apply)


def change_model(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Change a model file and compute its digest anew, where it has one."""
    model = onnx.load(path)
    entries = [each for each in model.metadata_props if each.key != DIGEST_KEY]
    had_digest = len(entries) < len(model.metadata_props)
    del model.metadata_props[:]
    model.metadata_props.extend(entries)
    change(model)
    data = model.SerializeToString()
    path.write_bytes(data + (digest_entry(hashlib.sha256(data).hexdigest()) if had_digest else b""))
    return path


def flip_bit(model: onnx.ModelProto, tensor: int, byte: int, bit: int) -> None:
    """Flip one bit of a weight: of a tensor with raw bytes, by its number."""
    weights = [each for each in model.graph.initializer if each.raw_data][tensor]
    data = bytearray(weights.raw_data)
    data[byte] ^= 1 << bit
    weights.raw_data = bytes(data)
