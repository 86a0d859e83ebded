"""Another exporter's model with the documents beside it, and images to export it with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

SIDE = 16
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
CONFIG: dict[str, Any] = {
    "model_type": "vit",
    "image_size": SIDE,
    "id2label": {str(index): name for index, name in enumerate(NAMES)},
}


@pytest.fixture
def optimum(other_onnx: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder as optimum writes it: the model with external data, config.json, preprocessor_config.json."""
    folder = tmp_path / "vit-tiny-animals"
    folder.mkdir()
    proto = onnx.load(other_onnx("transformers sdpa", 20, "free"))
    onnx.save(
        proto,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=64,
    )
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    return folder


@pytest.fixture
def transformers_js(optimum: Path) -> Path:
    """The same folder as transformers.js wants it: the models in onnx/, a quantized one among them."""
    inner = optimum / "onnx"
    inner.mkdir()
    for path in [*optimum.glob("model.onnx*")]:
        path.rename(inner / path.name)
    shutil.copy(inner / "model.onnx", inner / "model_quantized.onnx")
    return optimum


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "photos" / NAMES[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (24, 20, 3), np.uint8)).save(path)
    return tmp_path / "photos"
