"""From another model's weights to labels on images: three commands as a user types them, no edits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("one", "seven", "zero")  # the folders' order is not the digits' order
BUDGET = 2.0  # points of top-1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three digits as PNG files under other names: train/<class>/… and test/<class>/…"""
    from vit.data.datasets import open_images

    wanted = {1: "one", 7: "seven", 0: "zero"}
    for split, most in (("train", 40), ("test", 20)):
        images = open_images("digits", split)
        for digit, name in wanted.items():
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for row in np.flatnonzero(images.targets == digit)[:most]:
                Image.fromarray(np.ascontiguousarray(images[int(row)])).save(folder / f"{row}.png")
    return tmp_path / "photos"


def test_train_export_classify(
    start: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    photos: Path,
    digits_checkpoint: Path,
) -> None:
    def run(*arguments: object) -> str:
        done = start("-m", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("vit", "train", "--data", "photos", "--from", digits_checkpoint, "--out", "runs/three")
    run("export", "runs/three", "--quantize", "--calibration", "photos", "--max-drift", BUDGET)
    lines = run("runtime", "artifacts/three", "photos/test").splitlines()

    answers = [json.loads(line) for line in lines]
    assert len(answers) == len(list(photos.glob("test/*/*.png")))
    assert {answer["label"] for answer in answers} == set(CLASSES)
    right = np.mean([Path(answer["path"]).parent.name == answer["label"] for answer in answers])
    assert right >= 0.9
    report = json.loads((tmp_path / "artifacts" / "three" / "report.json").read_text())
    assert report["models"]["int8"]["drift"]["top1_drop"] <= BUDGET
    assert report["search"]["after"]["top1_drop"] <= BUDGET
