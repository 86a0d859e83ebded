"""Tables of images with several labels each: what is read, what is refused, and the splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vit.data.datasets import DataError, find_splits, match_image_labels, open_images, split_images
from vit.data.tables import read_table
from vit.data.training_images import describe_duplicates, digest_images, open_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


CSV = "file,labels,split\na.jpg,tulip; rose,train\nb.jpg,,Training\nc.jpg,daisy,test\n\n"
LINES = "\n".join(
    json.dumps({"file": name, "labels": labels, "split": split})
    for name, labels, split in (
        ("a.jpg", ["rose", "tulip", "rose"], "train"),
        ("b.jpg", [], "train"),
        ("c.jpg", ["daisy"], "test"),
    )
)


@pytest.mark.parametrize(
    ("text", "name"), [(CSV, "labels.csv"), (LINES, "l.jsonl"), ("\ufeff" + CSV, "L.CSV")]
)
def test_both_forms(folder: Path, text: str, name: str) -> None:
    table = write(folder, text, name)
    images = open_images(table)
    assert images.labels == ("daisy", "rose", "tulip")
    assert images.items == [folder / "a.jpg", folder / "b.jpg", folder / "c.jpg"]
    assert images.targets.tolist() == [[False, True, True], [False] * 3, [True, False, False]]
    assert images.several
    assert find_splits(table) == ("train", "test")
    assert open_images(table, "test").targets.tolist() == [[True, False, False]]
    assert open_images(table, "train").labels == images.labels  # those of every split


def test_without_splits_a_share_is_held_out(folder: Path) -> None:
    rows = "".join(f"{name}.jpg,{'rose;tulip' if name in 'ab' else 'tulip'}\n" for name in "abcd")
    data = open_data(write(folder, "file,labels\n" + rows), holdout=0.5)
    assert (len(data.train), len(data.val), data.test) == (2, 2, None)
    assert data.train.targets.sum() == data.val.targets.sum() == 3  # a share of each rarest label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,labels\na.jpg,x\n", r"line 1: expected the columns file,labels"),
        ("file,labels,x\na.jpg,x,y\n", r"line 1: expected the columns"),
        ("file,labels\na.jpg,x;y,z\n", r"line 2: expected 2 fields, found 3"),
        ("file,labels\na.jpg,x;;y\n", r"line 2: a label without a name"),
        ("file,labels\na.jpg,x\n\na.jpg,y\n", r"line 4: .*a.jpg is in line 2 already"),
        ("file,labels\na.jpg,x;y\nz.jpg,y\n", r"line 3: no image 'z.jpg' in "),
        ("file,labels\na.jpg,x;y\n.,y\n", r"line 3: no image '.'"),
        ("file,labels,split\na.jpg,x;y,train\nb.jpg,y,\n", r"line 3: expected a split in every line"),
        ("file,labels,split\na.jpg,x;y,later\n", r"line 2: expected the split train, val or test, found 'la"),
        ("file,labels\na.jpg,x\nb.jpg,\n", r"expected two or more labels, found x"),
        ("file,labels\n", r"expected two or more labels, found none"),
        ("", r"line 1: expected the columns"),
        ('file,labels\na.jpg,"x;y\n', r"line 1: unexpected end of data"),
        ("file,labels,split\na.jpg,x;y,val\n", r"none to train on"),
    ],
)
def test_what_is_refused_names_its_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(write(folder, text), holdout=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "a.jpg", "labels": "x"}', "expected labels to be a list of text"),
        ('{"file": "a.jpg"}', "expected a field 'labels', found none"),
        ('{"file": "a.jpg", "labels": ["\\ud800"]}', "surrogates not allowed"),
        ('{"file": "a.jpg", "labels": [], "score": 1}', "unknown field 'score'"),
        ('{"file": "a.jpg", "labels": [], "labels": []}', "two fields 'labels'"),
        ('{"file": "a\\u0000", "labels": []}', "no image"),
        ("[1]", "expected an object"),
        ("{", "expected a JSON object with file, labels, split"),
    ],
)
def test_json_lines_are_read_strictly(folder: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=f"line 3: .*{message}"):
        read_table(write(folder, f'{{"file": "b.jpg", "labels": ["x", "y"]}}\n\n{line}\n', "l.jsonl"))


def test_links_and_paths_outside_the_folder(folder: Path, tmp_path: Path) -> None:
    inside = folder / "tables"
    inside.mkdir()
    (inside / "link.jpg").symlink_to(folder / "a.jpg")
    table = write(inside, f"file,labels\nlink.jpg,x\n../b.jpg,y\n{folder / 'c.jpg'},x\n")
    assert [each.read_bytes() for each in open_images(table).items] == [b"a.jpg", b"b.jpg", b"c.jpg"]


def test_a_split_keeps_a_share_of_every_label(folder: Path) -> None:
    sets = np.zeros((100, 3), bool)
    sets[:, 0], sets[:10, 1], sets[50:, 2] = True, True, True
    images = open_images(write(folder, CSV))
    many = type(images)([folder / "a.jpg"] * 100, sets, images.labels, "many")
    first, second = split_images(many, 0.2, seed=0)
    assert second.targets.sum(axis=0).tolist() == [20, 2, 10]
    assert first.targets.sum(axis=0).tolist() == [80, 8, 40]


def test_the_labels_of_a_model_by_their_names(folder: Path) -> None:
    images = open_images(write(folder, CSV))
    found = match_image_labels(images, ("tulip", "aster", "rose", "daisy"), several=True)
    assert found.targets.tolist() == [[1, 0, 1, 0], [0] * 4, [0, 0, 0, 1]]
    with pytest.raises(DataError, match=r"'rose'.* is not one of the model's 2"):
        match_image_labels(images, ("daisy", "tulip"), several=True)
    with pytest.raises(DataError, match="the model expects one label per image"):
        match_image_labels(images, ("tulip", "rose", "daisy"))
    with pytest.raises(DataError, match="expects classes of different names"):
        match_image_labels(images, ("tulip", "rose", "daisy", "rose"), several=True)
    one = type(images)(images.items, np.array([0, 1, 2]), images.labels, "folders")
    assert match_image_labels(one, images.labels, several=True).targets is None


def test_one_image_with_two_sets_is_reported(folder: Path) -> None:
    (folder / "b.jpg").write_bytes(b"a.jpg")
    data = open_data(write(folder, "file,labels\na.jpg,x\nb.jpg,x;y\n"), holdout=0)
    (sentence,) = describe_duplicates(data, digest_images(data.train))
    assert sentence.startswith("with other labels: 1 image")
