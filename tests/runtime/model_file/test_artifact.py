"""A model file is untrusted: what is wrong with it is found before ONNX Runtime sees it, and said."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from runtime import ArtifactError, Classifier, Metadata, Preprocess, read_metadata
from runtime.model_file.artifact import choose_model_file, read_artifact
from runtime.model_file.onnx_file import OnnxError, summarize_onnx
from runtime.onnx_runtime import onnxruntime

MakeModel = Callable[..., Path]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def rewrite(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def set_metadata(path: Path, text: str) -> Path:
    return rewrite(path, lambda model: helper.set_model_props(model, {"vit_edge": text}))


def document(**changes: Any) -> dict[str, Any]:
    metadata = Metadata(variant="int8", preprocess=Preprocess(), labels=("a", "b"), target="any-cpu")
    return json.loads(metadata.to_json()) | changes


def test_what_was_written_is_read(make_model: MakeModel) -> None:
    written = dict(
        variant="int8",
        preprocess=Preprocess(size=(32, 32), resize="crop", resize_to=40, decode="draft"),
        labels=("crane", "crane", "häuschen\n\u2028"),
        target="full-range",
        source={"checkpoint": "abc"},
        measured={"drift": {"top1": -0.5}},
        producer="vit-edge 0.1.0",
    )
    path = make_model(**written)
    assert read_metadata(path) == Metadata(**written)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_artifact(path, sha256=digest.upper()).sha256 == digest


def test_the_outline_agrees_with_the_onnx_package(model: Path) -> None:
    proto = onnx.load(model)
    found = summarize_onnx(model.read_bytes())
    assert found.ir_version == proto.ir_version
    assert found.opsets == {entry.domain: entry.version for entry in proto.opset_import}
    assert found.metadata == {entry.key: entry.value for entry in proto.metadata_props}
    assert not found.domains - {""}
    assert not found.external_data


def test_refused_files(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    assert "no such model file" in refusal(tmp_path / "nothing.onnx")
    assert "found a folder" in refusal(tmp_path)
    assert "SHA-256" in refusal(model, sha256="0" * 64)
    for content in (b"", b"text", b"\x93NUMPY" + b"\0" * 50, whole[: len(whole) // 2], whole[:-1]):
        model.write_bytes(content)
        assert "not an ONNX model, or a damaged one" in refusal(model)


def test_a_model_of_others_is_refused(model: Path) -> None:
    rewrite(model, lambda proto: proto.ClearField("metadata_props"))
    assert "not made by vit-edge" in refusal(model)


def test_an_operator_of_another_domain_is_refused(model: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].domain = "com.evil"

    assert "com.evil" in refusal(rewrite(model, change))


def test_a_subgraph_is_refused(model: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].attribute.append(helper.make_attribute("body", onnx.GraphProto()))

    assert "subgraphs" in refusal(rewrite(model, change))


def test_a_function_is_refused(model: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.functions.add().name = "Cast"

    assert "functions" in refusal(rewrite(model, change))


@pytest.mark.parametrize("place", ["initializer", "constant", "sparse"])
def test_weights_in_another_file_are_refused(model: Path, place: str) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")

    def change(proto: onnx.ModelProto) -> None:
        if place == "initializer":
            proto.graph.initializer.append(tensor)
        elif place == "constant":
            proto.graph.node[0].attribute.append(helper.make_attribute("value", tensor))
        else:
            sparse = onnx.SparseTensorProto(values=tensor, dims=[4])
            proto.graph.sparse_initializer.append(sparse)

    assert "in another file" in refusal(rewrite(model, change))


def test_two_metadata_entries_are_refused(model: Path) -> None:
    rewrite(model, lambda proto: proto.metadata_props.add(key="vit_edge", value="{}"))
    assert "two metadata entries" in refusal(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "upgrade vit-edge"),
        ({"version": 1}, "older vit-edge wrote it (metadata version 1, this one reads 2); export it again"),
        ({"version": 0}, "must be 2"),
        ({"version": "1"}, "must be 2"),
        ({"version": True}, "must be 2"),
        ({"variant": "int4"}, "float16"),
        ({"variant": ["int8"]}, "int8"),
        ({"target": "mips"}, "expected target any-cpu, full-range or npu, found 'mips'"),
        ({"target": "avx2"}, "avx2 is called any-cpu now"),
        ({"target": ["any-cpu"]}, "expected target any-cpu, full-range or npu"),
        ({"exact_on": ["x86-vnni"]}, "exact_on must be x86-vnni, x86, arm64, wasm for target any-cpu"),
        ({"exact_on": None}, "exact_on must be"),
        ({"labels": []}, "at least one"),
        ({"labels": "ab"}, "at least one"),
        ({"labels": ["a", 1]}, "text"),
        ({"labels": ["a", "\ud800"]}, "text"),
        ({"new\nline\x1b[31m": 1}, r"new line\x1b[31m"),
        ({"a" * 10_000: 1}, "…"),
        ({"labels": {"0": "a"}}, "list"),
        ({"preprocess": None}, "object"),
        ({"preprocess": {}}, "lacks"),
        ({"preprocess": Preprocess().to_dict() | {"size": [10**9, 1]}}, "size"),
        ({"source": []}, "source"),
        ({"measured": None}, "measured"),
        ({"producer": 1}, "producer"),
        ({"extra": 1}, "unknown fields: extra"),
    ],
)
def test_metadata_that_makes_no_sense(model: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(set_metadata(model, json.dumps(document(**changes))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        '{"version": NaN}',
        '{"version": ' + "9" * 5000 + "}",
        "1" * (2**24 + 1),
    ],
    ids=lambda text: text[:16],
)
def test_metadata_that_is_no_object(model: Path, text: str) -> None:
    assert "metadata" in refusal(set_metadata(model, text))


def test_missing_metadata_fields(model: Path) -> None:
    incomplete = document()
    del incomplete["labels"]
    assert "lacks labels" in refusal(set_metadata(model, json.dumps(incomplete)))


def test_what_json_cannot_hold_is_not_written() -> None:
    metadata = Metadata(
        variant="int8", preprocess=Preprocess(), labels=("a",), measured={"drift": float("nan")}
    )
    with pytest.raises(ArtifactError, match="JSON"):
        metadata.to_json()


def test_a_folder_means_the_file_that_suits(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model in this folder"):
        choose_model_file(tmp_path)
    single = make_model("model.onnx")
    assert choose_model_file(tmp_path) == single
    assert choose_model_file(single) == single
    int8 = make_model("model.int8.onnx")
    half = make_model("model.fp16.onnx")
    assert choose_model_file(tmp_path, ("int8", "float32")) == int8
    assert choose_model_file(tmp_path, ("float16", "float32", "int8")) == half


def test_protobuf_lengths_are_checked() -> None:
    for content in (
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph of 4 GiB in a file of 6 bytes
        b"\x08" + b"\x80" * 11,  # a number without an end
        b"\x08",  # a number without a beginning
        b"\x0b\x0c",  # groups, which nobody writes
        b"\x00\x00",  # field zero
        b"\x38\x01",  # a graph that is a number
        b"\x0a\x01a",  # a version that is text
    ):
        with pytest.raises(OnnxError):
            summarize_onnx(content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_model_or_an_error(content: bytes) -> None:
    with contextlib.suppress(OnnxError):
        summarize_onnx(content)


def test_a_file_that_is_replaced_while_it_is_opened_is_noticed(model: Path) -> None:
    artifact = read_artifact(model)
    artifact.expect_unchanged()
    other = model.with_name("other.onnx")
    other.write_bytes(model.read_bytes())
    other.replace(model)
    with pytest.raises(ArtifactError, match="replaced"):
        artifact.expect_unchanged()
    model.unlink()  # an update may take the old file away first
    with pytest.raises(ArtifactError, match="replaced"):
        artifact.expect_unchanged()


@pytest.mark.parametrize("name", ["a" * 300, "zero\0byte", "no/such/folder/model.onnx"])
def test_a_name_that_no_disk_can_hold_is_no_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no such model file|File name too long$"):
        Classifier(tmp_path / name)


def test_any_path_to_a_model_will_do(model: Path) -> None:
    with os.scandir(model.parent) as listing:
        entry = next(each for each in listing if each.name == model.name)
    assert Classifier(entry, threads=1).info.path == str(model)
    assert read_metadata(entry) == read_metadata(model)


def test_ort_format_is_refused_with_the_reason(model: Path, tmp_path: Path) -> None:
    """The real thing, written by ONNX Runtime."""
    path = tmp_path / "model.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match=r"found ORT format.*use the \.onnx file that it was made from"):
        Classifier(path)


@pytest.mark.parametrize("temperature", [0, 0.009, 101, "1", None, True, float("nan")])
def test_a_temperature_that_makes_no_sense(temperature: object) -> None:
    with pytest.raises(ArtifactError, match=r"temperature must be 0\.01 to 100"):
        Metadata(variant="int8", preprocess=Preprocess(), labels=("a",), temperature=temperature)  # type: ignore[arg-type]


@pytest.mark.parametrize(("suffix", "found"), [(".jpg", "a JPEG image"), (".png", "a PNG image")])
def test_an_image_in_the_place_of_a_model_is_called_one(suffix: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ArtifactError, match=f"photo{suffix}: expected a model file or folder, found {found}"):
        Classifier(path)
