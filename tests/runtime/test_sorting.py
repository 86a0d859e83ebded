"""Folders for labels, and images that are put into them, whatever both are called and whatever goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import ImageError
from runtime.__main__ import main
from runtime.batch.sorting import Sorter, folder_names


def noise(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "cat", "cat [1]"],
        ["cat [1]", "cat", "cat", "cat [1]", "cat [1] [0]"],
        ["", "[0]", "", "[2]"],
        ["caf\u00e9", "cafe\u0301"],
        ["\U00020000" * 100, "\U00020000" * 100],
    ],
)
def test_every_label_has_a_folder_of_its_own(labels: list[str], tmp_path: Path) -> None:
    image = noise(tmp_path / "p.png")
    sorter = Sorter(tmp_path / "sorted", labels, copy=False)
    assert len({sorter.put(image, index).parent for index in range(len(labels))}) == len(labels)
    if "cat [1]" in labels:
        assert len({name.casefold() for name in folder_names(labels)}) == len(labels)
    if "caf\u00e9" in labels:
        assert folder_names(labels) == ["caf\u00e9 [0]", "cafe\u0301 [1]"]  # macOS takes both names for one


@pytest.mark.parametrize("copy", [True, False])
def test_an_image_that_was_edited_is_put_again(copy: bool, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image, other = noise(tmp_path / "p.png"), noise(tmp_path / "a" / "p.png", seed=1)
    sorter = Sorter(tmp_path / "sorted", ["x"], copy=copy)
    sorter.put(other, 0)
    for seed in (2, 3):
        place = sorter.put(noise(image, seed), 0)
        assert place.name.startswith("p~")
        assert place.read_bytes() == image.read_bytes()
    assert len(list((tmp_path / "sorted" / "x").iterdir())) == 2


def test_two_images_with_one_long_name(tmp_path: Path) -> None:
    name = "\u00e9" * 123 + ".png"  # 250 bytes
    places = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        places.add(Sorter(tmp_path / "s", ["x"], copy=False).put(noise(tmp_path / folder / name), 0))
    assert len(places) == 2


def test_an_image_that_vanishes_before_it_is_copied_is_no_end_of_the_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="it cannot be copied: No such file"):
        Sorter(tmp_path / "sorted", ["x"], copy=True).put(tmp_path / "gone.png", 0)
    images = tmp_path / "images"
    images.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        noise(images / name, seed)
    real = Sorter.put

    def put(self: Sorter, image: Path, index: int) -> Path:
        if image.name == "b.png":
            image.unlink()
        return real(self, image, index)

    monkeypatch.setattr(Sorter, "put", put)
    out = tmp_path / "x.jsonl"
    command = [str(model), str(images), "--sort-into", str(tmp_path / "s"), "--copy", "--output", str(out)]
    assert main(command) == 1
    errors = [json.loads(line)["error"] for line in out.read_text().splitlines()]
    assert errors == [None, "it cannot be copied: No such file or directory", None]


def full_disk(limit: int, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command where no file can grow beyond `limit` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    command: Sequence[str] = [sys.executable, "-m", "runtime", *map(str, arguments)]
    limits = (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    return subprocess.run(
        command, capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    )


def test_a_full_disk_leaves_no_half_of_a_copy(model: Path, tmp_path: Path) -> None:
    image = noise(tmp_path / "p.png")  # 12 KiB
    done = full_disk(4096, model, image, "--sort-into", tmp_path / "s", "--copy")
    assert done.returncode == 1
    assert b"File too large" in done.stderr
    assert [path for path in (tmp_path / "s").rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_no_half_of_the_embeddings(make_embedding_model: object, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    image = noise(tmp_path / "p.png")
    model = make_embedding_model()  # type: ignore[operator]
    done = full_disk(100, model, *[image] * 30, "--embeddings", folder / "e.npy")
    assert done.returncode == 1
    assert b"File too large" in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert os.listdir(folder) == []  # noqa: PTH208
