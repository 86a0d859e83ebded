"""`python -m export` of names on the Hugging Face hub: ONNX models without PyTorch, and weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from runtime.model_file.artifact import read_metadata
from tests.export.sources.test_from_weights import huggingface
from tests.support.hub_server import COMMIT, Hub, serve_hub
from tests.support.small_perceptron import SIDE, perceptron

TRAINING = ("torch", "safetensors", "sklearn", "onnxscript")
DOCUMENTS = ["config.json", "preprocessor_config.json"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Models as optimum and transformers.js publish them, and photos beside the cache."""
    processor = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    names = ("plain", "large", "several", "evil")
    for name in names:
        (tmp_path / name / "onnx").mkdir(parents=True)
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
        (tmp_path / name / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}')
    onnx.save(perceptron(), tmp_path / "plain" / "onnx" / "model.onnx")
    for name in ("model_fp16", "model_quantized"):
        (tmp_path / "plain" / "onnx" / f"{name}.onnx").write_bytes(b"another")
    large = perceptron()
    onnx.external_data_helper.convert_model_to_external_data(large, location="0123456789", size_threshold=0)
    onnx.save(large, tmp_path / "large" / "onnx" / "model.onnx")
    data = (tmp_path / "large" / "onnx" / "model.onnx").read_bytes()
    (tmp_path / "evil" / "onnx" / "model.onnx").write_bytes(data.replace(b"0123456789", b"../weights"))
    (tmp_path / "large" / "onnx" / "model_fp16.onnx_data").write_bytes(b"another")
    for name in ("vit", "vit_other"):
        onnx.save(perceptron(), tmp_path / "several" / "onnx" / f"{name}.onnx")
    random = np.random.default_rng(0)
    (tmp_path / "home" / "photos").mkdir(parents=True)
    for index in range(8):
        image = Image.fromarray(random.integers(0, 256, (24, 20, 3), np.uint8))
        image.save(tmp_path / "home" / "photos" / f"{index}.png")
    with serve_hub() as hub:
        for name in names:
            hub.add(f"Xenova/{name}", tmp_path / name)
        yield hub


def line(*words: str) -> tuple[str, ...]:
    return ("export", *words, "--calibration", "photos", "--threads", "1")


def test_onnx_models(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    names = ["plain", "large", "several", "several/onnx/vit.onnx", "evil"]
    lines = [line("--onnx", f"hf:Xenova/{name}") for name in names]
    plain, large, several, named, evil = hub.run_several(home, lines, TRAINING)
    assert hub.downloads() == [
        *(*DOCUMENTS, "onnx/model.onnx"),
        *(*DOCUMENTS, "onnx/model.onnx", "onnx/0123456789"),
        *(*DOCUMENTS, "onnx/vit.onnx"),
        *(*DOCUMENTS, "onnx/model.onnx"),
    ]
    for name, file, (code, said) in (
        ("plain", "onnx/model.onnx", plain),
        ("large", "onnx/model.onnx, onnx/0123456789", large),
        ("several", "onnx/vit.onnx", named),
    ):
        assert code == 0, said
        origin = f"hf:Xenova/{name}@{COMMIT}"
        assert f"hub: {origin}: config.json, preprocessor_config.json, {file}\n" in said
        out = home / "artifacts" / {"several": "vit"}.get(name, name)
        metadata = read_metadata(out / "model.onnx")
        assert metadata.labels == ("a", "b", "c")
        assert metadata.source["downloaded_from"] == origin
        assert json.loads((out / "report.json").read_text())["source"]["downloaded_from"] == origin
        assert f"downloaded from {origin}" in (out / "report.html").read_text(encoding="utf-8")
    assert several[0] == 2
    found = "found several: onnx/vit.onnx, onnx/vit_other.onnx; name one: hf:Xenova/several/FILE\n"
    assert f"expected an ONNX model in the repository, {found}" in several[1]
    assert evil[0] == 2
    assert "outside the model's folder" in evil[1]

    shutil.rmtree(home / "artifacts")
    ((code, said),) = hub.run_several(home, lines[1:2], TRAINING, HF_HUB_OFFLINE="1")
    assert code == 0, said
    assert "; of the cache alone, since HF_HUB_OFFLINE is set" in said
    assert (home / "artifacts" / "large" / "model.onnx").is_file()


def test_weights(hub: Hub, tmp_path: Path) -> None:
    """By name in one step, and by an import: both say where the weights come from."""
    hub.add("google/tiny", huggingface(tmp_path / "tiny"))
    home, origin = tmp_path / "home", f"hf:google/tiny@{COMMIT}"
    lines = [
        line("hf:google/tiny"),
        ("vit", "import", "google/tiny", "--out", "runs/imported"),
        line("runs/imported"),
    ]
    for code, said in hub.run_several(home, lines):
        assert code == 0, said
    for name in ("tiny", "imported"):
        source = read_metadata(home / "artifacts" / name / "model.onnx").source
        assert (source["name"], source["downloaded_from"]) == (name, origin)
    # A checkpoint of this project on the hub is exported as one.
    hub.add("google/run", home / "runs" / "imported")
    ((code, said),) = hub.run_several(home, [line("hf:google/run")])
    assert code == 0, said
    source = read_metadata(home / "artifacts" / "run" / "model.onnx").source
    assert (source["name"], source["checkpoint"]) == ("run", "model.safetensors")
    assert source["downloaded_from"] == f"hf:google/run@{COMMIT}"
