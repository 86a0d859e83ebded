"""The whole road of examples/road.sh, on real photos: from weights of another project to labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photos(flowers: Path, tmp_path: Path) -> Path:
    """Eight training and four test photos per class."""
    for split, count in (("train", 8), ("test", 4)):
        for folder in sorted((flowers / split).iterdir()):
            target = tmp_path / "photos" / split / folder.name
            target.mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:count]:
                shutil.copy(photo, target)
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder of Hugging Face: a small ViT of random weights and its preprocessing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "weights")
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (tmp_path / "weights" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return tmp_path / "weights"


def test_the_road_from_weights_to_labels(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "EPOCHS": "1",
        "SAMPLES": "16",
    }
    done = subprocess.run(
        [ROOT / "examples" / "road.sh", weights, photos, out],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    assert len(lines) == len([path for path in photos.rglob("*") if path.is_file()]) == 60
    assert {line["label"] for line in lines} <= {folder.name for folder in (photos / "train").iterdir()}
    report = json.loads((out / "model" / "report.json").read_text())
    assert report["models"]["int8"]["drift"]["images"] == 20
    assert (out / "tuned" / "plots").is_dir()


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "examples" / "road.sh", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected 3 arguments (WEIGHTS PHOTOS OUT), found 1" in done.stderr
