"""A model whose weights lie in a second file: opened where that is the one it was written with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from runtime import ArtifactError, Classifier
from runtime.model_file.artifact import read_artifact
from runtime.model_file.data_file import DATA_KEY

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


@pytest.fixture
def apart(model: Path, tmp_path: Path) -> Path:
    """The model of the tests, with its weights in a file beside it."""
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "model.onnx"
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if (
            tensor.data_type == onnx.TensorProto.FLOAT
        ):  # ONNX Runtime wants axes and shapes in the model itself
            set_external_data(tensor, location="model.onnx.data")
    onnx.save(proto, path)
    data = (path.parent / "model.onnx.data").read_bytes()
    described(path, file="model.onnx.data", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return path


def described(path: Path, **entry: object) -> None:
    proto = onnx.load(path, load_external_data=False)
    kept = [each for each in proto.metadata_props if each.key != DATA_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=DATA_KEY, value=json.dumps(entry))
    path.write_bytes(proto.SerializeToString())


def test_it_is_opened_and_answers_alike(model: Path, apart: Path) -> None:
    whole, parted = Classifier(model), Classifier(apart)
    assert parted(IMAGE).label == whole(IMAGE).label
    np.testing.assert_allclose(parted(IMAGE).score, whole(IMAGE).score, rtol=1e-5)
    assert parted.info.sha256 == hashlib.sha256(apart.read_bytes()).hexdigest()


def test_a_missing_file_is_named(apart: Path) -> None:
    (apart.parent / "model.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data, [\d,]+ bytes, which is missing.*copy both"):
        Classifier(apart)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"\xff", lambda _: b""])
def test_another_file_is_refused(apart: Path, change) -> None:
    beside = apart.parent / "model.onnx.data"
    beside.write_bytes(change(beside.read_bytes()))
    with pytest.raises(ArtifactError, match=r"expected .*copy both files again"):
        Classifier(apart)


@pytest.mark.parametrize(
    "entry",
    [
        {"file": "other.data", "bytes": 1, "sha256": "0"},
        {"file": "../model.onnx.data", "bytes": 1, "sha256": "0"},
        {"file": "model.onnx.data", "bytes": True, "sha256": "0"},
        {"file": "model.onnx.data", "bytes": 1},
        {},
    ],
)
def test_an_entry_that_does_not_name_the_one_file_is_refused(apart: Path, entry: dict[str, object]) -> None:
    described(apart, **entry)
    with pytest.raises(ArtifactError, match="export it again"):
        Classifier(apart)


def test_bytes_have_no_file_beside_them(apart: Path) -> None:
    with pytest.raises(ArtifactError, match=r"give the path of the \.onnx file"):
        Classifier(apart.read_bytes())


def test_a_file_that_is_replaced_meanwhile_is_noticed(apart: Path) -> None:
    artifact = read_artifact(apart)
    artifact.expect_unchanged()
    beside = apart.parent / "model.onnx.data"
    beside.write_bytes(beside.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="replaced while it was opened"):
        artifact.expect_unchanged()
