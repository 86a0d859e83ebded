"""Which images calibrate and which measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.image_sets import ExportImages, choose_images, sample_images
from vit.data.datasets import DataError, match_image_labels, open_images

CLASSES = ("cat", "dog", "eel")


def fill(folder: Path, count: int, color: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (9, 7), (color, index, 0)).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for color, name in enumerate(CLASSES):
        fill(tmp_path / "photos" / name, 10, color)
    return tmp_path / "photos"


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    for split, count in (("train", 8), ("test", 4)):
        for color, name in enumerate(CLASSES):
            fill(tmp_path / "splits" / split / name, count, color)
    return tmp_path / "splits"


def names(images) -> set[str]:
    return {str(item) for item in images.items}


def choose(calibration, evaluation=None, samples=12, evaluation_samples=None) -> ExportImages:
    chosen = choose_images(calibration, evaluation, samples=samples, evaluation_samples=evaluation_samples)
    assert not names(chosen.calibration) & names(chosen.evaluation)
    return chosen


def test_one_folder_of_classes_is_shared_out(classes: Path) -> None:
    chosen = choose(classes)
    assert len(chosen.calibration) == 12
    assert len(chosen.evaluation) == 18
    assert np.bincount(chosen.calibration.targets).tolist() == [4, 4, 4]
    assert "calibration was not given" in chosen.note


@pytest.mark.parametrize("samples", [1, 5, 15, 16, 1000])
def test_calibration_takes_no_more_than_half(classes: Path, samples: int) -> None:
    chosen = choose(classes, samples=samples)
    assert abs(len(chosen.calibration) - min(samples, 15)) <= len(CLASSES)
    assert len(chosen.evaluation) >= 12


def test_one_image_of_each_class(tmp_path: Path) -> None:
    for label in "abcdef":
        (tmp_path / label).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / label / "one.png")
    found = choose_images(tmp_path, None, samples=2, evaluation_samples=None)
    assert (len(found.calibration), len(found.evaluation)) == (2, 4)
    assert not set(found.calibration.items) & set(found.evaluation.items)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_loose_images(tmp_path: Path, count: int) -> None:
    chosen = choose(fill(tmp_path / "loose", count), samples=128)
    assert len(chosen.calibration) == count // 2
    assert len(chosen.evaluation) == count - count // 2
    assert match_image_labels(chosen.evaluation, CLASSES).targets is None


def test_splits_are_kept(splits: Path) -> None:
    chosen = choose(splits, samples=128)
    assert len(chosen.calibration) == 24
    assert len(chosen.evaluation) == 12
    assert all("/train/" in name for name in names(chosen.calibration))
    assert "test split" in chosen.note


def test_images_of_their_own(classes: Path, splits: Path) -> None:
    chosen = choose(classes, splits / "test", samples=100)
    assert len(chosen.calibration) == 30  # all of them: others measure
    assert len(chosen.evaluation) == 12
    assert chosen.note == "images of their own"


def test_the_same_images_twice(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"calibrates and measures \(\d+ such images\); give --evaluate other"
    ):
        choose(classes, classes, samples=100)
    (tmp_path / "link").symlink_to(classes)
    with pytest.raises(DataError, match="calibrates and measures"):
        choose(classes, tmp_path / "link", samples=100)


def test_digits_keep_their_360() -> None:
    chosen = choose_images("digits", None, samples=128, evaluation_samples=None)
    assert (len(chosen.calibration), len(chosen.evaluation)) == (128, 360)
    counts = np.bincount(chosen.calibration.targets)
    assert counts.max() - counts.min() <= 1


def test_a_choice_repeats(classes: Path) -> None:
    assert names(choose(classes).calibration) == names(choose(classes).calibration)


def test_a_sample_sees_every_class(classes: Path) -> None:
    some = sample_images(open_images(classes), 3, seed=5)
    assert sorted(some.targets) == [0, 1, 2]


def test_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one image cannot both calibrate and measure"):
        choose(fill(tmp_path / "one", 1))


def test_classes_in_the_models_own_order(classes: Path) -> None:
    chosen = choose(classes)
    model = ("eel", "ant", "cat", "dog")
    found = match_image_labels(chosen.evaluation, model).targets
    folders = [Path(str(item)).parent.name for item in chosen.evaluation.items]
    assert [model[index] for index in found] == folders


def test_classes_that_the_model_does_not_have(classes: Path) -> None:
    with pytest.raises(DataError, match=r"class 'eel' \(3 classes\) is not one of the model's 2 labels"):
        match_image_labels(choose(classes).evaluation, ("cat", "dog"))


def test_a_search_gets_images_of_its_own_however_few_there_are(classes: Path) -> None:
    for source, samples in ((classes / CLASSES[0], 2), (classes, 12)):
        chosen = choose_images(source, None, samples=samples, evaluation_samples=None, search=True)
        assert chosen.search is not None
        parts = [set(map(str, part.items)) for part in (chosen.calibration, chosen.search, chosen.evaluation)]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))
    with pytest.raises(DataError, match="a search needs at least two images per class"):
        choose_images(classes, None, samples=2, evaluation_samples=None, search=True)
