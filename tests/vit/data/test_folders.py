"""Folders as they are unpacked: splits by any usual name, what systems leave, what is said of it."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vit.data.batches import free_memory
from vit.data.datasets import DataError, find_splits, open_images
from vit.data.folders import describe_unread_folders, split_of
from vit.data.training_images import describe_duplicates, digest_images, open_data


def fill(*folders, count=3):
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / f"{index}.png")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("TRAIN", "Valid", "TEST"),
        ("Training Set", "dev", "test-set"),
        ("train_images", "Validation", "Testing"),
    ],
)
def test_usual_spellings(tmp_path, train, val, test):
    fill(*(tmp_path / split / name for split in (train, val, test) for name in ("a", "b")))
    assert find_splits(tmp_path) == ("train", "val", "test")
    data = open_data(tmp_path, holdout=0.5)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 6, 6)
    assert data.notes == ()


def test_two_spellings_of_one_split_are_refused(tmp_path):
    fill(*(tmp_path / split / name for split in ("train", "val", "validation") for name in ("a", "b")))
    with pytest.raises(DataError, match="val and validation both mean the val split"):
        find_splits(tmp_path)


def test_a_split_in_a_folder_of_its_own_name(tmp_path):
    fill(*(tmp_path / "Train" / "train" / name for name in ("a", "b")), tmp_path / "Test" / "a")
    assert len(open_images(tmp_path, "train")) == 6


def test_classes_may_be_called_like_splits(tmp_path):
    fill(tmp_path / "train", tmp_path / "tram", tmp_path / "bus")
    assert find_splits(tmp_path) == ()
    assert open_images(tmp_path).labels == ("bus", "train", "tram")
    assert "train" in describe_unread_folders(tmp_path)[0]


def test_the_same_folders_in_each_are_refused(tmp_path):
    fill(*(tmp_path / outer / name for outer in ("fold1", "fold2", "fold3") for name in ("Cat", "dog")))
    with pytest.raises(DataError, match=r"fold1, fold2, fold3 all hold the folders cat, dog.*rename"):
        open_images(tmp_path)


def test_no_training_images_are_no_training(tmp_path):
    fill(*(tmp_path / split / name for split in ("val", "test") for name in ("a", "b")))
    with pytest.raises(DataError, match="none to train on"):
        open_data(tmp_path, holdout=0.1)
    assert len(open_images(tmp_path)) == 12


@pytest.mark.parametrize("inside", [".", "all", "test1"])
def test_a_test_split_without_labels_is_no_obstacle(tmp_path, inside):
    fill(tmp_path / "train" / "a", tmp_path / "train" / "b", tmp_path / "test" / inside)
    data = open_data(tmp_path, holdout=0)
    assert data.test is None
    assert any("test split" in note for note in data.notes)
    assert open_images(tmp_path, "test").targets is None


def test_everything_passed_over_is_said(tmp_path):
    fill(tmp_path / "train" / "a", tmp_path / "train" / "b", tmp_path / "annotations", tmp_path, count=2)
    (tmp_path / "train" / "a" / "linked").symlink_to(tmp_path / "annotations")
    notes = " | ".join(open_data(tmp_path, holdout=0).notes)
    for part in ("annotations: skipped", "2 images beside", "linked: skipped, a link"):
        assert part in notes


def test_what_counts_as_another_class_than_it_seems_is_said(tmp_path):
    fill(
        tmp_path / "train" / "bird" / "crow",
        tmp_path / "train" / "bird" / "wren",
        tmp_path / "train" / "fish",
    )
    fill(tmp_path / "val" / "fish")
    (tmp_path / "train" / "owl").mkdir()
    fill(tmp_path / "train" / "owl")
    notes = " | ".join(describe_unread_folders(tmp_path))
    assert "bird: the images of its folders crow, wren are all of the class 'bird'" in notes
    assert "the val split has no images of bird, owl" in notes
    fill(tmp_path / "val" / "bird")
    assert "the val split has no images of owl" in " | ".join(describe_unread_folders(tmp_path))


def test_files_without_suffix_are_named(tmp_path):
    fill(tmp_path / "a", tmp_path / "b")
    for path in list((tmp_path / "a").iterdir()):
        path.rename(path.with_suffix(""))
    with pytest.raises(DataError, match=r"skipped 3 files: no suffix 3"):
        open_images(tmp_path)
    with pytest.raises(DataError, match="skipped 3 files: no suffix 3"):
        open_images(tmp_path / "a")


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (5, 0), (6, 2)])
def test_classes_too_small_to_hold_images_out_are_said(tmp_path, count, held_out):
    fill(tmp_path / "a", tmp_path / "b", count=count)
    data = open_data(tmp_path, holdout=0.1)
    assert (len(data.train), len(data.val or ())) == (2 * count - held_out, held_out)
    said = "no validation images: no class has enough for a share of 0.1 (holdout); the last epoch is kept"
    assert data.notes == (() if held_out else (said,))


def test_the_same_image_in_two_classes_and_two_splits_is_told(tmp_path):
    fill(tmp_path / "train" / "a", tmp_path / "test" / "b", tmp_path / "test" / "a", count=2)
    fill(tmp_path / "train" / "b", count=1)
    data = open_data(tmp_path, holdout=0)
    said = describe_duplicates(data, digest_images(data.train))
    assert said[0].startswith("in two classes: 1 image, e.g. ")
    assert said[1] == "trained on too: 4 of 4 test images; take them out of one"


def test_what_systems_leave_is_no_class_and_no_image(tmp_path):
    fill(
        tmp_path / "a", tmp_path / "b", tmp_path / "__MACOSX", tmp_path / "@eaDir", tmp_path / "$RECYCLE.BIN"
    )
    fill(tmp_path / ".thumbnails", tmp_path / "a" / "@Recycle", tmp_path / "lost+found")
    (tmp_path / "b" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    images = open_images(tmp_path)
    assert images.labels == ("a", "b")
    assert len(images) == 6


def test_names_composed_and_decomposed_are_one_class(tmp_path):
    fill(tmp_path / "train" / unicodedata.normalize("NFD", "Öl"), tmp_path / "train" / "b")
    fill(tmp_path / "test" / unicodedata.normalize("NFC", "Öl"))
    assert open_images(tmp_path, "test").labels == ("b", "Öl")
    fill(tmp_path / "train" / unicodedata.normalize("NFC", "Öl"))
    with pytest.raises(DataError, match="looks like"):
        open_images(tmp_path, "train")


def test_a_wrapper_is_named(tmp_path):
    fill(tmp_path / "photos" / "a", tmp_path / "photos" / "b")
    with pytest.raises(DataError, match="photos, which holds a, b"):
        open_images(tmp_path, "train")


def test_other_case_is_named(tmp_path):
    fill(
        tmp_path / "train" / "Owl", tmp_path / "train" / "b", tmp_path / "val" / "owl", tmp_path / "val" / "b"
    )
    with pytest.raises(DataError, match="rename it to Owl"):
        open_images(tmp_path, "val")


def test_only_whole_names_are_splits():
    assert [split_of(name) for name in ("trainer", "contest", "evaluation", "VAL")] == [
        None,
        None,
        None,
        "val",
    ]


def test_memory_is_what_machine_and_container_leave(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4096 kB\n")
    assert free_memory(tmp_path, tmp_path) == 4096 << 10
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory(tmp_path, tmp_path) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("500")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("600")
    assert free_memory(tmp_path, tmp_path) == 0
    assert free_memory(tmp_path / "none", tmp_path / "none") > 1 << 28


UNDERSTOOD = {  # folders of classes, and the folder that each split is read from
    "seg_train/seg_train seg_test/seg_test": "seg_train/seg_train - seg_test/seg_test",
    "seg_train/seg_train seg_test/seg_test seg_pred": "seg_train/seg_train - seg_test/seg_test",
    "flowers-train flowers-val": "flowers-train flowers-val -",
    "train dev": "train dev -",
    "train1 test1": "train1 - test1",
    "train2017 val2017": "train2017 val2017 -",
    "01_Train 02_Val 03_Test": "01_Train 02_Val 03_Test",
    "images_train images_test": "images_train - images_test",
    "train_data valid_data test_data": "train_data valid_data test_data",
    "trainval test": "trainval - test",
    "train/images val/images": "train/images val/images -",
    "train test/images": "train - test/images",
    "train/train": "train/train - -",
}


@pytest.mark.parametrize("folders", UNDERSTOOD)
def test_splits_are_found_and_named_as_they_are_packed(tmp_path, folders):
    fill(*(tmp_path / each / name for each in folders.split() for name in ("a", "b")))
    data = open_data(tmp_path, holdout=0)
    parts = [data.train, data.val, data.test]
    found = ["-" if part is None else str(Path(part.name).relative_to(tmp_path)) for part in parts]
    assert found == UNDERSTOOD[folders].split()
    assert data.labels == ("a", "b")
    for part in parts:
        assert part is None or part.name in data.describe()
    assert len(data.notes) == ("seg_pred" in folders)


REFUSED = {  # folders of images: what is said
    "train1/a train2/a test/a": "train1 and train2 both mean the train split",
    "cats_train cats_test dogs_train dogs_test": "name a split and something else",
    "images/train/a images/test/a labels": "inside images are the splits test, train; give ",
    "images/train/a images/val/a masks/train/a masks/val/a": "inside images, masks are the splits train, val",
    "images/train/a masks/train/a": "inside images, masks are the splits train; give one of them",
    "cat/train cat/test dog/train dog/test": "inside cat, dog are the splits test, train; expected",
    "dataset/train/a dataset/test/a": "give .*dataset, which holds test, train",
    "outer/inner/a outer/inner/b": "give .*inner, which holds a, b",
    "images masks": "images, masks look like the parts of a data set",
    "JPEGImages Annotations/trimaps": "look like the parts of a data set",
    "images/cat images/dog meta": "give the folder that holds a folder of images for each class",
    "fold0 fold1 fold2": "look like the folds of a cross-validation",
    "x/x/a x/x/b y/y/a y/y/b": "x, y all hold the folders a, b",
    "x/a x/b y/a y/b loose": "x, y all hold the folders a, b",
    "train test1 sample": "images without classes",
    "cat dog val/x val/y": r"none to train on \(cat, dog beside them: no split\)",
    "train/a train/b val/a val/b val/c": "c: this class is not among those to train on",
}


@pytest.mark.parametrize("folders", REFUSED)
def test_what_would_train_on_the_names_of_splits_is_refused(tmp_path, folders):
    fill(*(tmp_path / each for each in folders.split()))
    with pytest.raises(DataError, match=REFUSED[folders]) as found:
        open_data(tmp_path, holdout=0)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "folders",
    [
        "steam_train model_train bus",
        "express-train bus tram",
        "pregnancy_test covid_test",
        "cat dog test",
        "cat val",
        "test1 test2 test3",
        "bird/crow bird/wren fish",
        "quercus/robur quercus/alba acer/rubrum",
        "cat/images dog/images",
        "cat/train dog/train",
    ],
)
def test_ordinary_classes_stay_classes(tmp_path, folders):
    fill(*(tmp_path / each for each in folders.split()))
    assert find_splits(tmp_path) == ()
    assert open_images(tmp_path).labels == tuple(sorted({each.split("/")[0] for each in folders.split()}))


def test_lists_of_classes_and_splits_are_not_read_and_said(tmp_path):
    fill(*(tmp_path / "train" / name for name in ("a", "b")), tmp_path / "train", count=2)
    for name in ("train.csv", "test.txt", "train/labels.tsv", "notes.txt"):
        (tmp_path / name).touch()
    notes = " | ".join(open_data(tmp_path, holdout=0).notes)
    for name in ("train.csv", "test.txt", "labels.tsv"):
        assert f"{name}: not read, folders say the classes and splits" in notes
    assert "notes.txt" not in notes
    assert f"2 images beside the folders of {tmp_path / 'train'}" in notes
    fill(tmp_path / "loose")
    (tmp_path / "loose" / "labels.csv").touch()
    with pytest.raises(DataError, match=r"without classes \(labels.csv: not read"):
        open_data(tmp_path / "loose", holdout=0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_one_line(tmp_path):
    fill(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").chmod(0)
    with pytest.raises(DataError, match="b: it cannot be listed"):
        find_splits(tmp_path)
