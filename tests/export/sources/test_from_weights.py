"""`python -m export FOLDER` for weights of another project: imported and exported in one go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from calibration.graph.memory import open_graph_session
from export.__main__ import main
from export.sources.from_torch import export_weights
from runtime.model_file.artifact import read_metadata
from tools.expected_drift import random_checkpoint
from vit.pretrained.weight_files import holds_weights


def huggingface(folder: Path, *, labels: int = 3) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=16, patch_size=8, num_labels=labels, **shape)
    ViTForImageClassification(config).save_pretrained(folder)
    processor = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def test_a_folder_of_weights_is_imported_and_exported(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = huggingface(tmp_path / "tiny-vit")
    weights = load_file(folder / "model.safetensors") | {"decoder.0.weight": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors")
    photos = tmp_path / "photos"
    random = np.random.default_rng(0)
    for index in range(8):
        path = photos / f"LABEL_{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    path.rename(photos / "loose.png")
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), "--quantize", "--calibration", str(photos), "--threads", "1"]) == 0
    metadata = read_metadata(tmp_path / "artifacts" / "tiny-vit" / "model.int8.onnx")
    assert metadata.source["format"] == "Hugging Face"
    assert metadata.source["name"] == "tiny-vit"
    assert metadata.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    said = capsys.readouterr()
    assert "float32 equals torch to" in said.out
    assert "export: 1 tensors of the pre-training were left out (decoder)" in said.err
    assert "export: 1 image beside the folders" in said.err


def test_weights_without_a_head_are_exported_as_an_embedding(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "features")
    weights = {
        name: v for name, v in load_file(folder / "model.safetensors").items() if "classifier" not in name
    }
    save_file(weights, folder / "model.safetensors")
    source = export_weights(folder)
    assert (source.labels, source.embedding) == ((), 16)
    assert [value.name for value in source.exported.model.graph.outputs] == ["embedding"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = open_graph_session(source.exported.model).run(["embedding"], {"pixels": pixels})[0]
    np.testing.assert_allclose(found, source.reference(pixels), atol=1e-5)


def test_heads_that_nothing_tells_are_asked_for_where_they_can_be_said(tmp_path: Path, capsys) -> None:
    folder = huggingface(tmp_path / "tiny-vit")
    document = json.loads((folder / "config.json").read_text())
    del document["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(document))
    assert main([str(folder), "--quantize", "--calibration", "digits"]) == 2
    assert "--heads N (an option of python -m vit import" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "vit.npz"])
def test_weights_of_others_are_told_from_checkpoints(name: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_bytes(b"")
    assert holds_weights(tmp_path / "theirs")
    assert holds_weights(tmp_path / "theirs" / name)
    ours = random_checkpoint(tmp_path / "ours" / "model.safetensors")
    assert not holds_weights(ours)
    assert not holds_weights(ours.parent)
    assert not holds_weights(tmp_path / "absent")
