"""The document of a self-test is untrusted: what is not as `to_json` writes it is an ArtifactError."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from runtime import ArtifactError
from runtime.model_file.artifact import read_artifact, read_metadata
from runtime.self_test.document import MOST_BYTES, SELF_TEST_KEY, Answers, SelfTest, TestImage
from runtime.self_test.made_images import make_image

OUTPUTS = {"logits": 3, "embedding": 5}


def rows(columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, columns)).astype(np.float32)


def make_self_test(**changes: Any) -> SelfTest:
    values: dict[str, Any] = dict(
        images=(TestImage(made=3, size=(48, 57)), TestImage(jpeg=b"\xff\xd8 no real one")),
        pixels=("0" * 64, "9f" * 32),
        means=(None, np.arange(192, dtype=np.uint8).reshape(8, 8, 3)),
        columns=None,
        outputs={"logits": Answers(rows(3), rows(3, 1)), "embedding": Answers(rows(5, 2), rows(5, 3))},
        top=(((0, "red"), (1, "grün"), (2, "blue")), ((2, "blue"), (1, "grün"), (0, "red"))),
        kernels={"QGemm": 72, "MatMul": 24},
        cpu={"kind": "x86-vnni", "name": "AMD EPYC"},
        runtime="onnxruntime 1.32.0",
        latency_ms={"file": 22.125, "float32": 70},
    )
    return SelfTest(**values | changes)


def document(**changes: Any) -> dict[str, Any]:
    return json.loads(make_self_test().to_json()) | changes


def read(found: object, outputs: dict[str, int] = OUTPUTS) -> SelfTest:
    return SelfTest.from_json(json.dumps(found), outputs)


def floats(*values: float) -> str:
    return b64encode(np.array(values, "<f4").tobytes()).decode()


def test_what_was_written_is_read() -> None:
    written = make_self_test()
    found = SelfTest.from_json(written.to_json(), OUTPUTS)
    for name in ("images", "pixels", "columns", "top", "kernels", "cpu", "runtime", "latency_ms"):
        assert getattr(found, name) == getattr(written, name), name
    assert found.means[0] is None
    np.testing.assert_array_equal(found.means[1], written.means[1])
    for name, answers in written.outputs.items():
        np.testing.assert_array_equal(found.outputs[name].file, answers.file)
        np.testing.assert_array_equal(found.outputs[name].float32, answers.float32)
    assert found.to_json() == written.to_json()
    np.testing.assert_array_equal(found.images[0].open(), make_image(3, 48, 57))
    assert found.images[1].open() == b"\xff\xd8 no real one"


def test_columns_that_are_kept() -> None:
    answers = {"logits": Answers(rows(3), rows(3)), "embedding": Answers(rows(5), rows(5))}
    found = read(
        json.loads(make_self_test(columns=(0, 7, 9), outputs=answers).to_json()), OUTPUTS | {"logits": 10}
    )
    everything = np.arange(20, dtype=np.float32).reshape(2, 10)
    np.testing.assert_array_equal(found.keep_columns("logits", everything), [[0, 7, 9], [10, 17, 19]])
    assert found.keep_columns("embedding", everything).shape == (2, 5)
    assert make_self_test().keep_columns("logits", everything[:, :3]).shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected version to be 1"),
        ({"version": True}, "version"),
        ({"more": 1}, "the fields"),
        ({"images": []}, "number of images"),
        ({"images": [{"made": 0, "size": [9, 9]}] * 17}, "number of images"),
        (
            {"images": [{"made": 0, "size": [9, 9]}] * 3},
            "number of pixels to be 1 to 16, one per image, found 2",
        ),
        ({"images": [{"made": -1, "size": [9, 9]}, {"jpeg": "aaaa"}]}, "made"),
        ({"images": [{"made": 1.5, "size": [9, 9]}, {"jpeg": "aaaa"}]}, "made"),
        ({"images": [{"made": 1, "size": [9, 1025]}, {"jpeg": "aaaa"}]}, "size"),
        ({"images": [{"made": 1, "size": [9]}, {"jpeg": "aaaa"}]}, "size"),
        ({"images": [{"made": 1, "size": [9, 9]}, {"jpeg": "aa aa"}]}, "jpeg to be base64"),
        ({"images": [{"made": 1, "size": [9, 9]}, {"jpeg": "aab="}]}, "jpeg to be base64"),
        ({"images": [{"made": 1, "size": [9, 9]}, {"jpeg": ""}]}, "jpeg to be base64"),
        ({"images": [{"made": 1, "size": [9, 9]}, {"path": "/etc/passwd"}]}, "an image"),
        ({"images": [{"made": 1, "size": [9, 9]}, None]}, "an image"),
        ({"pixels": ["0" * 64, "F" * 64]}, "SHA-256"),
        ({"pixels": ["0" * 64, 5]}, "SHA-256"),
        ({"means": [None, None]}, "means"),
        ({"means": [floats(1), floats(1)]}, "means of a made image"),
        ({"means": [None, floats(1)]}, "192 bytes"),
        ({"columns": [0, 1]}, "logits"),
        ({"columns": [0, 1, 1]}, "columns"),
        ({"columns": [2, 1, 0]}, "columns"),
        ({"columns": [0, 1, 3]}, "columns"),
        ({"columns": []}, "columns"),
        ({"columns": 3}, "columns"),
        ({"outputs": {}}, "outputs"),
        ({"outputs": {"logits": {}, "embedding": {}}}, "logits"),
        ({"top": [[], []]}, "3 pairs"),
        ({"top": [[[0, "a"], [1, "b"], [3, "c"]]] * 2}, "top"),
        ({"top": [[[0, "a"], [1, "b"], [2, "\ud800"]]] * 2}, "top"),
        ({"kernels": {"QGemm": 0}}, "kernels"),
        ({"kernels": ["QGemm"]}, "kernels"),
        ({"cpu": {"kind": "z80", "name": "Z80"}}, "cpu"),
        ({"cpu": {"kind": [], "name": "Z80"}}, "cpu"),
        ({"cpu": {"kind": "x86", "name": 5}}, "cpu"),
        ({"runtime": None}, "runtime"),
        ({"latency_ms": {"file": 1}}, "latency_ms"),
        ({"latency_ms": {"file": 1, "float32": 0}}, "latency_ms"),
        ({"latency_ms": {"file": 1, "float32": True}}, "latency_ms"),
    ],
)
def test_what_is_not_a_self_test_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        read(document(**changes))
    assert "its self-test is not usable" in str(caught.value)
    assert "export the model again" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "float32"),
    [
        (floats(*[0] * 6), floats(*[0] * 5)),
        (floats(*[0] * 4), floats(*[0] * 4)),
        (floats(*[0] * 5, float("nan")), floats(*[0] * 6)),
        (floats(*[0] * 6), floats(*[0] * 5, float("inf"))),
        (floats(*[0] * 8), floats(*[0] * 8)),
        (floats(0), floats(0)),
        (5, 5),
    ],
)
def test_answers_that_do_not_fit_are_refused(file: str, float32: str) -> None:
    outputs = document()["outputs"] | {"logits": {"file": file, "float32": float32}}
    with pytest.raises(ArtifactError, match="logits to be"):
        read(document(outputs=outputs))


def test_a_self_test_of_another_model_is_refused() -> None:
    for outputs in ({"logits": 3}, {"logits": 4, "embedding": 5}, {"logits": 3, "embedding": 4}):
        with pytest.raises(ArtifactError, match="self-test"):
            read(document(), outputs)


def test_its_size_is_limited() -> None:
    large = make_self_test(images=(TestImage(made=1, size=(9, 9)), TestImage(jpeg=bytes(MOST_BYTES))))
    with pytest.raises(ArtifactError, match="at most 200,000 bytes, found 2"):
        large.to_json()
    with pytest.raises(ArtifactError, match="at most 200,000 bytes, found 2"):
        SelfTest.from_json("é" * (MOST_BYTES // 2 + 1), OUTPUTS)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_is_read_or_refused_and_never_a_crash(data: st.DataObject) -> None:
    """One value anywhere in the document becomes another one."""
    found: Any = document()
    place: Any = found
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(ANY)
    try:
        accepted = read(found)
    except ArtifactError:
        return
    assert json.loads(accepted.to_json()) == found


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_any_other_document_is_refused(found: object) -> None:
    with pytest.raises(ArtifactError):
        read(found)


def put(path: Path, text: str) -> Path:
    model = onnx.load(path)
    helper.set_model_props(
        model, {each.key: each.value for each in model.metadata_props} | {SELF_TEST_KEY: text}
    )
    path.write_bytes(model.SerializeToString())
    return path


def test_a_model_file_gives_it_on_demand_alone(make_model: Callable[..., Path]) -> None:
    path = make_model()
    assert read_artifact(path).self_test is None
    answers = {"logits": Answers(rows(3), rows(3, 1))}
    put(path, make_self_test(outputs=answers).to_json())
    artifact = read_artifact(path)
    assert artifact.self_test is artifact.self_test  # parsed once
    assert artifact.self_test is not None
    assert artifact.self_test.runtime == "onnxruntime 1.32.0"
    put(path, "{}")
    assert read_metadata(path).labels == ("red", "green", "blue")
    with pytest.raises(ArtifactError, match=f"{path.name}: its self-test is not usable: .*version"):
        _ = read_artifact(path).self_test
