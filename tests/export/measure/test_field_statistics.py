"""Field statistics of an export: what the files hold, and what they find on real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.measure.field_statistics import describe_values
from runtime import Classifier, Preprocess
from runtime.model_file.artifact import read_artifact
from runtime.monitor.document import MOST_BYTES, FieldStatistics
from runtime.monitor.measure import IMAGE
from runtime.monitor.monitor import _compare
from tests.support.field_statistics import CHANGES, change_image, describe_rows, measure_all
from vit.data.datasets import open_images

Rows = np.ndarray


def raised(reference: FieldStatistics, rows: Rows) -> list[str]:
    """Statistics of the images that a monitor raises."""
    found = reference.statistics
    judge = partial(_compare, images=reference.images, statistics=len(IMAGE) + 1)
    return [name for name, values in zip(IMAGE, rows.T, strict=True) if judge(values, found[name]).raised]


def open_all(source: str, split: Any = "all") -> list[Image.Image]:
    images = open_images(source, split)
    opened = [Image.open(each) if isinstance(each, Path) else Image.fromarray(each) for each in images.items]
    return [opened[index] for index in np.random.default_rng(0).permutation(len(opened))]


@pytest.fixture
def sources(fashion: Path, flowers: Path) -> dict[str, tuple[list[Image.Image], Preprocess, int]]:
    """Images, preprocessing and number of images at export."""
    return {
        "fashion": (open_all(str(fashion), "test"), Preprocess(size=(28, 28)), 5000),
        "digits": (open_all("digits"), Preprocess(size=(8, 8)), 360),
        "flowers": (open_all(str(flowers)), Preprocess(size=(224, 224), resize="crop"), 150),
    }


def test_the_same_source_gives_no_alarm_and_each_change_is_raised(sources: Any) -> None:
    """25 windows of Fashion-MNIST that share no image, 100 of the others with replacement: 225 in all."""
    random = np.random.default_rng(1)
    alarms, missed = [], []
    references = {}
    for name, (images, preprocess, count) in sources.items():
        rows = measure_all(images, preprocess)
        references[name] = reference = describe_rows(rows[:count])
        rest = rows[count:]
        if name == "fashion":
            windows = list(rest.reshape(25, 200, -1))
        else:
            windows = [rest[random.integers(0, len(rest), 200)] for _ in range(100)]
        alarms += [(name, found) for each in windows if (found := raised(reference, each))]
        chosen = [images[i] for i in random.integers(count, len(images), 200)]
        for change in CHANGES:
            changed = measure_all([change_image(each, change, random) for each in chosen], preprocess)
            if not raised(reference, changed):
                missed.append((name, change))
    for name, reference in references.items():
        for other, (images, *_) in sources.items():
            if other != name and not raised(reference, measure_all(images[:200], sources[name][1])):
                missed.append((name, other))
    assert alarms == []
    # 1.5 % of 8 pixels is a blur of 0.12 pixels, which changes no value by more than a level or two.
    assert missed == [("digits", "blurred")]


@pytest.mark.parametrize("images", [50, 64, 999])
def test_every_image_is_in_one_bin_and_the_outer_ones_are_empty(images: int) -> None:
    random = np.random.default_rng(0)
    for values in (random.normal(size=images), np.zeros(images), random.integers(0, 2, images)):
        found = describe_values(values)
        assert sum(found.counts) == images
        assert found.counts[0] == found.counts[-1] == 0
        assert min(found.counts[1:-1]) >= 5


def test_a_file_of_an_export_monitors_its_own_images(digits_artifacts: Path) -> None:
    images = open_images("digits", "test").items
    file = digits_artifacts / "model.int8.onnx"
    text = read_artifact(file).field_statistics
    assert text is not None
    assert len(text) < MOST_BYTES
    with Classifier(file, monitor=360, min_score=0.9) as classify:
        assert classify.monitor is not None
        list(classify.stream(images))
        report = classify.monitor.read()
        # The images of the export themselves: every histogram is the same, those of the scores too.
        assert {each.distance for each in report.statistics.values()} == {0}
        assert report.unsure == report.unsure_there
        classify.monitor.restart()
        list(classify.stream([255 - each for each in images[:200]]))
        assert {"brightness", "score"} <= set(classify.monitor.read().raised)
    document = json.loads((digits_artifacts / "report.json").read_text())["field_statistics"]
    assert set(document) == {"float32", "int8"}
    assert document["int8"]["images"] == 360
    assert document["int8"]["bytes"] == len(text)
    assert "Field statistics" in (digits_artifacts / "report.html").read_text()


def test_too_few_images_give_none(start: Callable[..., Any], digits_checkpoint: Path, tmp_path: Path) -> None:
    command = ("-m", "export", digits_checkpoint, "--calibration", "digits", "--evaluation-samples", 49)
    done = start(*command, "--out", tmp_path, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert "field statistics: none, monitor=True needs 50 images and more, here 49 images" in done.stdout
    assert read_artifact(tmp_path / "model.onnx").field_statistics is None
