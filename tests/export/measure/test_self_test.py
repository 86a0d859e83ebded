"""The self-test of a model file: images with a clear label, and the answers of this machine."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export.__main__ import main
from export.measure.inference import ModelFile, NotFiniteError, Run
from export.measure.self_test import KEPT, choose_made_size, make_self_tests, read_photos
from export.options import Options
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import read_artifact
from runtime.self_test.document import MOST_BYTES, SelfTest, TestImage, average_blocks
from runtime.self_test.made_images import MOST_EDGE
from tests.support.html_page import Page
from tools.expected_drift import random_checkpoint
from vit.data.datasets import DataError

ENVIRONMENT = {"cpu": "Some CPU", "cpu_kind": "x86", "packages": {"onnxruntime": "1.32.0"}}


def make_graph(
    classes: int, features: int = 0, *, size: tuple[int, int] = (16, 24), noise: float = 0, factor: float = 1
) -> ModelFile:
    """A model of the mean colors of an image: `noise` changes its logits, `factor` scales its outputs."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
    ]
    weights, outputs = [numpy_helper.from_array(np.array([1, 2]), "axes")], []
    for name, width in (("logits", classes), ("embedding", features)):
        if width:
            # Columns without a mean: gray has no class of its own, and hues have many.
            values = random.normal(size=(3, width)) + noise * np.random.default_rng(1).normal(size=(3, width))
            values -= values.mean(axis=0)
            weights.append(numpy_helper.from_array((factor * values).astype(np.float32), f"{name}.weights"))
            nodes.append(helper.make_node("MatMul", ["mean", f"{name}.weights"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *size, 3])
    graph = helper.make_graph(nodes, "colors", [pixels], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ModelFile("float32", ir.from_proto(model))


def make_tests(
    *variants: ModelFile, preprocess: Preprocess, labels: int, **options: Any
) -> dict[str, SelfTest]:
    source = SimpleNamespace(
        preprocess=preprocess,
        labels=tuple(f"class {i}" for i in range(labels)),
        exported=SimpleNamespace(model=variants[0].model),
    )
    latency = {each.variant: {"min": 1.0, "median": 2.0} for each in variants}
    run: Any = Run(source, None, Options(**options), variants, 0.0, {}, {}, {}, latency, {}, {})  # type: ignore[arg-type]
    return make_self_tests(run, ENVIRONMENT)


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (32, 32), (64, 256), (256, 64), (224, 224), (700, 600), (7, 6), (4096, 1)]
)
def test_made_images_are_larger_than_the_input_and_not_square(size: tuple[int, int]) -> None:
    for seed in (0, 1):
        made = choose_made_size(size, seed)
        assert made[0] != made[1] or max(made) == 1
        assert min(made) >= 1
        assert max(made) <= MOST_EDGE
        if max(size) < 500 and min(size) > 1:
            assert all(edge > least for edge, least in zip(made, size, strict=True))
    assert choose_made_size(size, 0) != choose_made_size(size, 1) or max(size) > 1000 or size == (1, 1)


@pytest.mark.parametrize(("classes", "features"), [(10, 0), (0, 7), (10, 7), (2, 0)])
@pytest.mark.parametrize("size", [(16, 24), (8, 8)])
def test_the_document_holds_what_the_file_answers(classes: int, features: int, size: tuple[int, int]) -> None:
    preprocess = Preprocess(size=size, resize="crop")
    exact = make_graph(classes, features, size=size)
    other = replace(make_graph(classes, features, size=size, noise=0.02), variant="float16")
    found = make_tests(exact, other, preprocess=preprocess, labels=classes)
    assert list(found) == ["float32", "float16"]
    features_of = {name: n for name, n in (("logits", classes), ("embedding", features)) if n}
    for name, model in (("float32", exact), ("float16", other)):
        test = SelfTest.from_json(found[name].to_json(), features_of)
        assert len(test.images) == KEPT
        assert all(image.made is not None for image in test.images)
        assert test.latency_ms == {"file": 2.0, "float32": 2.0}
        assert test.cpu == {"kind": "x86", "name": "Some CPU"}
        session, reference = model.open(1), exact.open(1)
        for index, image in enumerate(test.images):
            pixels = preprocess(image.open())
            assert hashlib.sha256(pixels.tobytes()).hexdigest() == test.pixels[index]
            for output, answers in test.outputs.items():
                for opened, rows in ((session, answers.file), (reference, answers.float32)):
                    (row,) = opened.run([output], {"pixels": pixels[None]})[0]
                    np.testing.assert_allclose(rows[index], row, rtol=1e-5)
            if classes:
                best = np.argsort(-test.outputs["logits"].file[index])[:3]
                assert test.top[index] == tuple((i, f"class {i}") for i in best)
                assert test.outputs["logits"].float32[index].argmax() == best[0]
            else:
                assert test.top[index] == ()


def test_the_images_kept_have_the_clearest_labels() -> None:
    exact = make_graph(10)
    preprocess = Preprocess(size=(16, 24))
    test = make_tests(exact, preprocess=preprocess, labels=10)["float32"]

    def margin(seed: int) -> float:
        pixels = preprocess(TestImage(made=seed, size=choose_made_size((16, 24), seed)).open())
        best = np.sort(exact.open(1).run(None, {"pixels": pixels[None]})[0][0])
        return float(best[-1] - best[-2])

    kept = {each.made for each in test.images}
    assert min(map(margin, kept)) >= max(map(margin, set(range(24)) - kept))


def test_a_file_that_labels_otherwise_keeps_images_on_which_it_agrees_first() -> None:
    exact, other = make_graph(10), replace(make_graph(10, noise=2), variant="int8")
    found = make_tests(exact, other, preprocess=Preprocess(size=(16, 24)), labels=10)["int8"]
    logits = found.outputs["logits"]
    agree = logits.file.argmax(1) == logits.float32.argmax(1)
    assert 0 < agree.sum() < KEPT
    assert list(agree) == sorted(agree, reverse=True)


def test_of_many_classes_columns_are_kept_those_of_the_top_among_them() -> None:
    exact = make_graph(100_000, 3000)
    found = make_tests(exact, preprocess=Preprocess(size=(16, 24)), labels=100_000)["float32"]
    text = found.to_json()
    assert 150_000 < len(text.encode()) <= MOST_BYTES
    test = SelfTest.from_json(text, {"logits": 100_000, "embedding": 3000})
    assert test.columns is not None
    assert {index for top in test.top for index, _ in top} <= set(test.columns)
    assert 500 < len(test.columns) <= 2000
    assert max(test.columns) > 90_000
    logits, embedding = exact.open(1).run(
        None, {"pixels": Preprocess(size=(16, 24))(test.images[3].open())[None]}
    )
    np.testing.assert_array_equal(test.keep_columns("logits", logits)[0], test.outputs["logits"].file[3])
    np.testing.assert_array_equal(
        test.keep_columns("embedding", embedding)[0], test.outputs["embedding"].file[3]
    )
    plain = make_tests(make_graph(1000), preprocess=Preprocess(size=(16, 24)), labels=1000)["float32"]
    assert plain.columns is None


def test_answers_that_are_no_numbers_are_an_error_that_names_the_file() -> None:
    exact, other = make_graph(10), replace(make_graph(10, factor=1e38), variant="float16")
    with pytest.raises(NotFiniteError, match=r"float16: expected numbers for the self-test's images.*--fp16"):
        make_tests(exact, other, preprocess=Preprocess(size=(16, 24)), labels=10)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos of which one lies on its side, by its EXIF orientation."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = np.linspace(0, 255, 300).astype(np.uint8)
    for index in range(3):
        pixels = np.stack(
            [np.tile(np.roll(rows, 40 * index + 70 * channel), (200, 1)) for channel in range(3)], -1
        )
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 1 else 1
        exif[0x010E] = "somebody's garden"
        Image.fromarray(pixels).save(folder / f"{index}.jpg", exif=exif)
    return folder


def test_photos_are_stored_small_upright_and_without_exif(photos: Path) -> None:
    preprocess = Preprocess(size=(32, 32), resize="crop", resize_to=40)
    found = read_photos(photos, preprocess)
    sizes = []
    for each in found:
        assert each.jpeg is not None
        assert b"garden" not in each.jpeg
        with Image.open(io.BytesIO(each.jpeg)) as image:
            assert not image.getexif()
            sizes.append(image.size)
    assert sizes == [(60, 40), (40, 60), (60, 40)]
    sideways = read_photos(photos, replace(preprocess, exif=False))
    with Image.open(io.BytesIO(sideways[1].jpeg or b"")) as image:
        assert image.size == (60, 40)


def test_photos_stand_behind_the_made_images(photos: Path) -> None:
    preprocess = Preprocess(size=(16, 24))
    test = make_tests(make_graph(10), preprocess=preprocess, labels=10, self_test=photos)["float32"]
    read = SelfTest.from_json(test.to_json(), {"logits": 10})
    assert [each.jpeg is not None for each in read.images] == [False] * KEPT + [True] * 3
    for image, digest, means in zip(read.images, read.pixels, read.means, strict=True):
        pixels = preprocess(image.open())
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest
        if image.jpeg is None:
            assert means is None
        else:
            np.testing.assert_array_equal(means, average_blocks(pixels))
            assert abs(float(means.mean()) - pixels.mean()) < 1


def test_photos_that_cannot_be_used_are_an_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        read_photos(tmp_path / "empty", Preprocess())
    (photos / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    with pytest.raises(DataError, match=r"3\.jpg: .*repair the image or take it out"):
        read_photos(photos, Preprocess())
    (photos / "3.jpg").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    Image.fromarray(noise).save(photos / "3.png")
    with pytest.raises(DataError, match=r"expected photos that take 80,000 bytes .*found .*give fewer"):
        read_photos(photos, Preprocess(size=(1500, 1500)))


def test_means_of_blocks() -> None:
    pixels = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    means = average_blocks(pixels)
    assert (means.dtype, means.shape) == (np.uint8, (8, 8, 3))
    exact = pixels[2:4, 3:6].reshape(-1, 3).mean(axis=0)
    assert (means[1, 1] == np.floor(exact + 0.5)).all()
    np.testing.assert_array_equal(average_blocks(pixels[:1, :1]), np.broadcast_to(pixels[:1, :1], (8, 8, 3)))


def test_the_command_line_and_the_report_say_that_photos_travel(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = random_checkpoint(tmp_path / "model.safetensors")
    words = [str(checkpoint), "--evaluate", str(photos), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main([*words, "--self-test", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    for options, count in (([], 0), (["--self-test", str(photos)], 3)):
        assert main([*words, *options]) == 0
        told = capsys.readouterr().out
        test = read_artifact(tmp_path / "out" / "model.onnx").self_test
        assert test is not None
        size = sum(len(each.jpeg or b"") for each in test.images)
        report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["self_test"]
        assert report["photo_bytes"] == size
        assert report["models"]["float32"]["photos"] == count
        page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
        assert page.flaws() == []
        assert "self-test in each file: 8 made images" in told
        sentence = (
            f"every model file holds 3 photos of --self-test ({size:,} bytes of JPEG): whoever has a file"
        )
        assert (sentence in told) == (count > 0)
        assert (f"travel in every model file, {size:,} bytes of JPEG" in page.text) == (count > 0)
        assert ("no photo is in the files" in page.text) == (count == 0)
