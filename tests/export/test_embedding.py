"""Embeddings beside logits and alone: the numbers of torch, and drift in their own terms."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.balance import find_balance_groups
from calibration.graph.edit import GraphError
from calibration.graph.layers import find_layers
from calibration.plan import BalancePlan, PlanError
from calibration.quantize_model import quantize
from calibration.write import write_plan
from export.__main__ import main
from export.check_options import list_layer_names
from export.sources.from_torch import export_checkpoint
from export.sources.onnx_file import read_onnx
from export.sources.source import ensure_source_embedding
from runtime import ArtifactError, Classifier, Embedder, Preprocess, read_metadata
from runtime.__main__ import main as runtime_command
from runtime.session import open_session
from tests.support.html_page import Page
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.config import ViTConfig
from vit.model import new_model

SIDE, WIDTH = 32, 48
FILES = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")


def made(path: Path, *, classes: int, **fields: Any) -> Path:
    """A checkpoint whose last normalization and head are as lively as trained ones."""
    config = ViTConfig(
        image_size=(SIDE, SIDE), patch_size=8, width=WIDTH, depth=2, heads=4, mlp_width=96,
        classes=classes, **fields,
    )  # fmt: skip
    model = new_model(config, seed=0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.norm.weight.mul_(torch.logspace(-1, 1, WIDTH))  # what balancing would even out
    labels = [f"class {index}" for index in range(classes)]
    return save_checkpoint(path, model=model, preprocess=Preprocess(size=(SIDE, SIDE)), labels=labels)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(32):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module", params=["beside logits", "alone", "cosine head"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: Path
) -> tuple[Path, Path]:
    """The checkpoint and the folder of its export."""
    folder = tmp_path_factory.mktemp("embedding")
    beside = request.param != "alone"
    cosine = {"projection": WIDTH, "cosine_head": True} if request.param == "cosine head" else {}
    checkpoint = made(folder / "model.safetensors", classes=5 if beside else 0, **cosine)
    options = ["--quantize", "--fp16", "--min-cosine", "0.9", "--calibration", str(photos)]
    options += ["--embedding"] if beside else []
    assert main([str(checkpoint), "--out", str(folder / "out"), "--threads", "1", *options]) == 0
    return checkpoint, folder / "out"


def test_every_file_gives_the_features_of_torch(exported: tuple[Path, Path], photos: Path) -> None:
    checkpoint, out = exported
    model = load_checkpoint(checkpoint).model
    path = photos / "03.png"
    pixels = torch.from_numpy(Preprocess(size=(SIDE, SIDE))(path)[None])
    with torch.inference_mode():
        features = model.features(pixels)[0].numpy()
    unit = features / np.linalg.norm(features)
    for name, closeness in zip(FILES, (1 - 1e-6, 0.9999, 0.99), strict=True):
        found = Embedder(out / name, device="cpu", threads=1)(path)
        assert found.shape == (WIDTH,)
        assert found.dtype == np.float32
        assert float(np.linalg.norm(found)) == pytest.approx(1, abs=1e-6)
        assert float(found @ unit) >= closeness, name
        assert read_metadata(out / name).embedding == WIDTH
    raw = Embedder(out / "model.onnx", device="cpu", threads=1, normalize=False)(path)
    np.testing.assert_allclose(raw, features, rtol=1e-4, atol=1e-4)


def test_the_classifier_has_both_or_refuses(exported: tuple[Path, Path], photos: Path) -> None:
    checkpoint, out = exported
    if not load_checkpoint(checkpoint).labels:
        with pytest.raises(ArtifactError, match="has no classes; use Embedder"):
            Classifier(out / "model.onnx", threads=1)
        return
    for name in FILES:
        classify = Classifier(out / name, device="cpu", threads=1)
        embed = Embedder(out / name, device="cpu", threads=1)
        assert classify(photos / "00.png").label is not None
        np.testing.assert_array_equal(classify.embed(photos / "00.png"), embed(photos / "00.png"))


def test_the_report_tells_drift_in_its_own_terms(exported: tuple[Path, Path]) -> None:
    _, out = exported
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<h2>Embeddings</h2>" in page
    for variant in ("int8", "float16"):
        drift = report["embeddings"][variant]
        assert drift["images"] == 16
        assert 0.9 <= drift["worst_cosine"] <= drift["cosine"] <= 1
        assert 0 <= drift["nearest"] <= 100
        assert drift["worst_image"].endswith(".png")
        assert f"{drift['cosine']:.4f}" in page
    assert report["embeddings"]["float16"]["cosine"] > 0.9999
    classes = "drift" in report["models"]["int8"]
    assert ("Images that INT8 labels otherwise" in page) == classes
    assert ("Same label as float32" in page) == classes


def test_the_lines_of_the_report_give_an_embedding(
    exported: tuple[Path, Path],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, out = exported
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    python, shell = page.code[:2]
    if load_checkpoint(checkpoint).labels:
        assert "Classifier" in python  # tests/export/test_artifacts.py runs these
        return
    monkeypatch.chdir(out)
    Image.open(photos / "00.png").save("photo.jpg")
    exec(python, {})
    assert capsys.readouterr().out.strip().startswith("[")
    assert runtime_command(shlex.split(shell)[3:]) == 0
    assert np.load("embeddings.npy").shape == (1, WIDTH)


def test_a_limit_that_is_missed_writes_nothing(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = made(tmp_path / "model.safetensors", classes=5)
    common = [str(checkpoint), "--quantize", "--calibration", str(photos), "--out", str(tmp_path / "out")]
    assert main([*common, "--embedding", "--min-cosine", "1"]) == 1
    assert "mean cosine of the embeddings is 0.9" in capsys.readouterr().err
    assert main([*common, "--min-cosine", "0.5"]) == 2
    assert "add --embedding" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["plan-to-train.json"]


@pytest.mark.parametrize("limit", [["--min-agreement", "90"], ["--min-sqnr", "3"], ["--merge-tokens", "2"]])
def test_limits_on_labels_do_not_apply_without_classes(
    limit: list[str], tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = made(tmp_path / "model.safetensors", classes=0)
    out = tmp_path / "out"
    given = [str(checkpoint), "--quantize", "--calibration", str(photos), "--out", str(out), *limit]
    assert main(given) == 2
    assert "the model has no classes" in capsys.readouterr().err
    assert not out.exists()


def test_balance_never_reaches_the_embedding(tmp_path: Path, photos: Path) -> None:
    checkpoint = load_checkpoint(made(tmp_path / "model.safetensors", classes=5))
    plain = export_checkpoint(checkpoint)
    norms = [
        group
        for group in find_balance_groups(find_layers(plain.exported.model))
        if group.producer.op_type == "LayerNormalization"
    ]
    head = next(group for group in norms if any(linear.name == "head" for linear in group.linears))
    source = ensure_source_embedding(export_checkpoint(checkpoint))
    model = source.exported.model
    pixels = np.stack([source.preprocess(path) for path in sorted(photos.glob("*.png"))[:8]])
    chosen = quantize(model, [pixels], target="any-cpu", single_rows="int8", threads=1)
    assert chosen.plan.linears["head"].precision == "int8"
    assert head.name not in chosen.plan.balance
    exact, rounded = (
        open_session(each, device="cpu", threads=1).run(["embedding"], {"pixels": pixels})[0]
        for each in (_bytes(model), _bytes(chosen.model))
    )
    cosines = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > 0.98
    balance = {**chosen.plan.balance, head.name: BalancePlan(strength=0.5, scales=(2.0,) * WIDTH)}
    with pytest.raises(PlanError, match="output of the graph"):
        write_plan(model, replace(chosen.plan, balance=balance))


def test_the_embedding_of_a_tanh_head_is_what_the_last_linear_reads(tmp_path: Path, photos: Path) -> None:
    checkpoint = load_checkpoint(made(tmp_path / "model.safetensors", classes=5, representation=20))
    source = ensure_source_embedding(export_checkpoint(checkpoint))
    assert source.embedding == 20
    pixels = source.preprocess(photos / "00.png")[None]
    logits, embedding = open_session(_bytes(source.exported.model), device="cpu", threads=1).run(
        None, {"pixels": pixels}
    )
    with torch.inference_mode():
        features = checkpoint.model.features(torch.from_numpy(pixels))
        np.testing.assert_allclose(embedding, checkpoint.model.head[:2](features), atol=1e-4)
    np.testing.assert_allclose(logits, source.reference(pixels), atol=1e-4)


def test_an_onnx_model_without_classes(other_onnx: Callable[..., Path], tmp_path: Path, photos: Path) -> None:
    path = other_onnx("mean of tokens")
    document = {"preprocess": {"size": [16, 16]}, "mean": 0.5, "std": 0.5, "labels": []}
    (tmp_path / "spec.json").write_text(json.dumps(document), encoding="utf-8")
    given = ["--onnx", str(path), "--preprocess", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]
    assert main([*given, "--calibration", str(photos)]) == 0
    embed = Embedder(tmp_path / "out", device="cpu", threads=1, normalize=False)
    source = read_onnx(path, tmp_path / "spec.json")
    expected = source.reference(embed.info.preprocess(photos / "04.png")[None])[0]
    np.testing.assert_allclose(embed(photos / "04.png"), expected, atol=1e-4)
    with pytest.raises(ArtifactError, match="has no classes"):
        Classifier(tmp_path / "out")


def test_a_head_that_is_no_one_layer_is_refused(other_onnx: Callable[..., Path], tmp_path: Path) -> None:
    document = {"preprocess": {"size": [16, 16]}, "mean": 0.5, "std": 0.5}
    (tmp_path / "spec.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(GraphError, match="expected one linear layer that makes the logits, found Add"):
        ensure_source_embedding(read_onnx(other_onnx("distilled"), tmp_path / "spec.json"))


def _bytes(model: object) -> bytes:
    from export.write_artifact import serialize_model

    return serialize_model(model)  # type: ignore[arg-type]


def test_a_projection_is_a_layer_with_a_name(tmp_path: Path) -> None:
    """The names that --keep-float is compared with before a graph is there."""
    checkpoint = load_checkpoint(made(tmp_path, classes=5, projection=20, cosine_head=True))
    layers = find_layers(export_checkpoint(checkpoint).exported.model)
    assert list_layer_names(checkpoint.model.config)[-2:] == ("projection", "head")
    assert {*layers.linears, *layers.products} == {*list_layer_names(checkpoint.model.config)}
