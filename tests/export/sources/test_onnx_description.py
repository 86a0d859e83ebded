"""Folders as optimum and transformers.js write them: nothing else to type."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from export.__main__ import main
from export.sources.onnx_description import OnnxModelError, describe_onnx, find_onnx, name_onnx
from export.sources.onnx_file import read_onnx_file
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import read_metadata

SIDE = 16
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def write(folder: Path, name: str, document: object, encoding: str = "utf-8") -> None:
    (folder / name).write_text(json.dumps(document), encoding=encoding)


def test_a_folder_is_enough(optimum: Path, photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--onnx", str(optimum), "--quantize", "--calibration", str(photos), "--threads", "1"]
    assert main(command) == 0
    metadata = read_metadata(tmp_path / "artifacts" / "vit-tiny-animals" / "model.int8.onnx")
    assert metadata.labels == tuple(NAMES)
    assert metadata.preprocess == Preprocess(size=(SIDE, SIDE), resize="stretch", interpolation="bilinear")
    assert metadata.source["name"] == "vit-tiny-animals"
    assert "assumed" not in capsys.readouterr().err


def test_the_models_of_transformers_js_lie_deeper(transformers_js: Path) -> None:
    found = describe_onnx(transformers_js)
    assert found.file == transformers_js / "onnx" / "model.onnx"
    assert (found.name, found.description.labels) == ("vit-tiny-animals", tuple(NAMES))
    # The file itself finds its documents as well.
    assert describe_onnx(found.file).description == found.description


@pytest.fixture
def snapshot(transformers_js: Path, tmp_path: Path) -> Path:
    """The same folder as the hub's cache stores it: links to files that are called by their content."""
    repository = tmp_path / "hub" / "models--animals--vit-tiny"
    folder = repository / "snapshots" / "0a1b2c"
    (repository / "blobs").mkdir(parents=True)
    for index, path in enumerate(sorted(transformers_js.rglob("*.*"))):
        link, blob = folder / path.relative_to(transformers_js), repository / "blobs" / f"blob{index}"
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def test_a_snapshot_of_the_hub_is_read(snapshot: Path, transformers_js: Path, monkeypatch) -> None:
    found, plain = describe_onnx(snapshot), describe_onnx(transformers_js)
    assert found.description == plain.description
    assert found.name == "vit-tiny"
    monkeypatch.chdir(snapshot / "onnx")
    assert name_onnx(Path("model.onnx")) == "vit-tiny"
    assert (
        read_onnx_file(found.file, found.description).description
        == read_onnx_file(plain.file, plain.description).description
    )


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_link_that_leads_nowhere_is_no_missing_document(name: str, snapshot: Path) -> None:
    """git-annex and DVC leave such links for what was not loaded; without labels the classes have numbers."""
    (snapshot / name).resolve().unlink()
    with pytest.raises(OnnxModelError, match=rf"{name}: a link to a file that is not there"):
        describe_onnx(snapshot)


def test_a_model_that_was_not_loaded_is_said_so(snapshot: Path) -> None:
    described = describe_onnx(snapshot)
    described.file.resolve().unlink()
    with pytest.raises(
        OnnxModelError, match=r"model\.onnx: it cannot be read: a link to a file that is not there"
    ):
        read_onnx_file(find_onnx(snapshot), described.description)


def test_the_preprocessor_may_be_named(optimum: Path, tmp_path: Path) -> None:
    beside = describe_onnx(optimum)
    moved = tmp_path / "elsewhere.json"
    (optimum / "preprocessor_config.json").rename(moved)
    with pytest.raises(
        OnnxModelError, match=r"expected preprocessor_config\.json beside the model.*--preprocess"
    ):
        describe_onnx(optimum)
    assert describe_onnx(optimum, moved) == beside


def test_documents_may_begin_with_a_byte_order_mark(optimum: Path) -> None:
    plain = describe_onnx(optimum)
    for name in ("config.json", "preprocessor_config.json"):
        write(optimum, name, json.loads((optimum / name).read_text(encoding="utf-8")), "utf-8-sig")
    assert describe_onnx(optimum) == plain
    own = {"preprocess": {"size": [SIDE, SIDE]}, "mean": 0.5, "std": 0.5, "labels": NAMES}
    write(optimum, "own.json", own, "utf-8-sig")
    assert describe_onnx(optimum, optimum / "own.json").description.labels == tuple(NAMES)


def test_timm_describes_itself_in_its_config(optimum: Path) -> None:
    (optimum / "preprocessor_config.json").unlink()
    cfg = {
        "input_size": [3, SIDE, SIDE],
        "crop_pct": 0.5,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    write(optimum, "config.json", {"architecture": "vit", "label_names": NAMES, "pretrained_cfg": cfg})
    spec = describe_onnx(optimum).description
    assert (spec.preprocess.resize, spec.preprocess.resize_to) == ("crop", 2 * SIDE)
    assert (spec.mean, spec.labels) == ((0.5, 0.5, 0.5), tuple(NAMES))


@pytest.mark.parametrize("config", [{"label2id": {"b": 1, "a": 0}}, {"id2label": ["a", "b"]}])
def test_labels_are_read_in_every_form_in_which_weights_have_them(config: dict, optimum: Path) -> None:
    write(optimum, "config.json", config)
    found = describe_onnx(optimum)
    assert found.description.labels == ("a", "b")
    assert not any("labels" in sentence for sentence in found.assumed)


def test_what_is_guessed_is_said(optimum: Path) -> None:
    write(optimum, "config.json", {"image_size": 2 * SIDE})
    found = describe_onnx(optimum)
    assert found.description.labels is None
    assert any("numbers as their labels" in sentence for sentence in found.assumed)
    assert any(f"{SIDE}×{SIDE} pixels" in sentence for sentence in found.assumed)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("preprocessor_config.json", "{", "not a JSON file"),
        ("preprocessor_config.json", "[1]", "expected a JSON object"),
        ("preprocessor_config.json", '{"size": {"longest_edge": 3}}', "longest_edge"),
        ("config.json", "{", "not a JSON file"),
        ("config.json", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ("preprocessor_config.json", '{"image_mean": "half"}', "image_mean"),
        ("preprocessor_config.json", '{"image_processor_type": "PoolFormerImageProcessor"}', "PoolFormer"),
        ("preprocessor_config.json", '{"do_flip_channel_order": true}', "blue, green, red"),
    ],
)
def test_damaged_documents_are_named(name: str, text: str, message: str, optimum: Path, capsys) -> None:
    (optimum / name).write_text(text, encoding="utf-8")
    assert main(["--onnx", str(optimum)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert name in error
    assert error.count("\n") == 1


def test_labels_that_do_not_fit_are_refused(optimum: Path, tmp_path: Path, capsys) -> None:
    write(optimum, "config.json", {"id2label": {"0": "ant", "1": "bee"}})
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(photos / name)
    assert main(["--onnx", str(optimum), "--calibration", str(photos)]) == 2
    assert "the model has 7 classes, the description 2 labels" in capsys.readouterr().err


def test_among_several_models_one_must_be_named(optimum: Path) -> None:
    (optimum / "model.onnx").rename(optimum / "a.onnx")
    assert find_onnx(optimum) == optimum / "a.onnx"
    (optimum / "b.onnx").write_bytes(b"")
    with pytest.raises(OnnxModelError, match=r"found a\.onnx, b\.onnx; name the \.onnx file itself"):
        find_onnx(optimum)


def test_a_model_is_called_after_its_folder_only_where_its_own_name_says_nothing(tmp_path: Path) -> None:
    assert name_onnx(tmp_path / "bee" / "model.onnx") == "bee"
    assert name_onnx(tmp_path / "bee" / "onnx" / "model.onnx") == "bee"
    assert name_onnx(tmp_path / "bee" / "wasp.onnx") == "wasp"


def test_an_onnx_model_in_the_place_of_a_checkpoint_is_told_apart(optimum: Path, capsys) -> None:
    assert main([str(optimum)]) == 2
    assert f"write --onnx {optimum}" in capsys.readouterr().err
